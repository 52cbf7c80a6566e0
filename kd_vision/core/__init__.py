"""Values every room shares: batches, targets, predictions, detector spec, errors, run directory."""

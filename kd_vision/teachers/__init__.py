"""Who may teach: torch detectors, ONNX files, ensembles, stored answers, result files, ground truth."""

"""Images and ground truth: descriptors, readers, augmentation, loading, conversion and checks."""

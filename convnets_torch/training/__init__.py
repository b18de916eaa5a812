"""Transfer learning, augmentation and evaluation."""

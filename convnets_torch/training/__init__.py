"""Transfer learning: fine-tuning, augmentation and datasets."""

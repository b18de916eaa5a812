"""Fully convolutional networks: slide a classifier's head over pictures of any size."""

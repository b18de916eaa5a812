"""Fully convolutional networks: a classifier's head slid over pictures of any size."""

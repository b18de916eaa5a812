"""The doctor: why a network's answers are wrong."""

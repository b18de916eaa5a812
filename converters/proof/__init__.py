"""Verify a conversion with an independent NumPy implementation of Keras."""

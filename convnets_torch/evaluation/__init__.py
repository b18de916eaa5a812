"""Evaluate networks on labelled pictures."""

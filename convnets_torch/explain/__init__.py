"""Explain what a network has learned and what it looks at: Grad-CAM, activations and filter patterns."""

"""Heatmaps: where in a picture a class is."""

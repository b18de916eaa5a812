"""Draw arrays and words: charts, overlays and pages."""

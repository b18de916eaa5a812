"""Draw charts, map overlays and HTML pages."""

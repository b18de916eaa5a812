"""Feature vectors of pictures: extraction, caching, files, search, image maps and probes."""

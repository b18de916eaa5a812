"""Pictures as vectors: extraction, and what is built on it."""

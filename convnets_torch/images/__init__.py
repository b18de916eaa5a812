"""Find, decode, label and preprocess pictures."""

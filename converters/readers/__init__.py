"""Readers of the files of other frameworks."""

"""Readers for weights files of other frameworks."""

"""Proof of a conversion by a second derivation."""

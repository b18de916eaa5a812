"""Diagnose why converted weights give wrong answers."""

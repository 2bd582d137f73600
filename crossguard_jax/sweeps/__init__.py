"""Variants times seeds: many runs as one, killed and gone on with, and what they came to."""

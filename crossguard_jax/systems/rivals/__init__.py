"""Detectors that others published, on our own models: what a guard is compared with."""

"""Attacks on inputs: perturbations that raise an objective inside a budget."""

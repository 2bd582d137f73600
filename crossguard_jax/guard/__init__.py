"""The guard: pictures and texts in, verdicts out; and the recipe that trains it."""

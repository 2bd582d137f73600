"""What an example is, where examples come from, and how they reach a training step."""

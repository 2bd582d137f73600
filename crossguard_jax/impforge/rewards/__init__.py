"""The three rewards, and the figures they are made of."""

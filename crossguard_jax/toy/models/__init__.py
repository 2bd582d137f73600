"""The small models: their folders, what they are taught, and how well they know it."""

"""One training loop, its state, optimizer and checkpoints; every recipe hands it a step."""

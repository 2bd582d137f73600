"""Stage 2: PPO on the rewriter."""

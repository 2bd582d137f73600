"""A run of PPO: what makes it the same run."""

from crossguard_jax.core.config import load_config
from crossguard_jax.impforge.ppo.recipe import settings_of_ppo


def test_a_trained_rewriter_forges_again_under_other_settings() -> None:
    def settings(*overrides: str) -> dict:
        return settings_of_ppo(load_config("configs/impforge.py:tiny", overrides))

    assert settings("--config.forge.samples=9", "--config.match.judge.kind=none") == settings()
    assert settings("--config.optim.learning_rate=1e-5") != settings()

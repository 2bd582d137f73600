"""A run of PPO: what makes it the same run, and what is refused before it starts."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.impforge.ppo import recipe
from crossguard_jax.impforge.ppo.archive import Archive
from crossguard_jax.impforge.ppo.update import Trajectory
from crossguard_jax.impforge.rewards.judges import REWARDS


def test_a_text_that_was_not_read_is_nothing_new() -> None:
    vectors = jnp.asarray([[1.0, 0.0], [0.0, 0.0]])
    written = Trajectory(
        *({}, jnp.ones((2, 3), bool), jnp.ones(2, bool)), *[jnp.zeros((2, 3))] * 3, jnp.zeros(2)
    )
    rewards = {name: jnp.zeros(2) for name in REWARDS}
    breadth = recipe.Breadth(novelty=0.5)
    weights = dict.fromkeys(REWARDS, 1.0)
    empty = Archive.empty(4, 2)
    scores, archive, _ = recipe.score(rewards, weights, written, empty, vectors, breadth)
    assert scores.tolist() == [0.5, 0.0] and int(archive.written) == 1


def test_a_warm_up_that_is_too_long_is_refused_by_the_fields_that_make_the_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recipe, "load_rewriter", lambda *_: None)  # no model is wanted for it
    overrides = ["--config.ppo.iterations=1", "--config.ppo.settings.epochs=2"]
    config = load_config(
        "configs/impforge.py:tiny",
        [*overrides, "--config.ppo.settings.minibatches=4", "--config.optim.warmup_steps=8"],
    )
    message = "optim.warmup_steps 8: .* below ppo.iterations times .*epochs times .*minibatches, 8$"
    with pytest.raises(UserError, match=message):
        recipe.train_rewriter(config, [], tmp_path)

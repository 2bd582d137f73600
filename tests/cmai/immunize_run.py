"""A few steps of immunizing, start to end: ``test_recipe.py`` starts it and kills it.

``immunize_run.py FOLDER DATA CALL``: kills itself as MBAT's step is called for the CALL-th time.
"""

import os
import signal
import sys
from pathlib import Path

from ml_collections import ConfigDict

from crossguard_jax.cmai import recipe
from crossguard_jax.core.config import load_config
from crossguard_jax.toy.study import SOURCE, read

STEPS, SAVE_EVERY = 6, 2


def short(variant: str = "tiny", steps: int = STEPS) -> ConfigDict:
    """A variant of ``configs/cmai.py`` on few rows, every eighth of them without a picture."""
    config = load_config(f"configs/cmai.py:{variant}")
    train, held = config.data.sources.implicit.to_dict(), config.data.validation.implicit.to_dict()
    with config.unlocked():
        config.model.path = "toy://llava"
        config.lora.update({"rank": 4, "alpha": 8.0})
        config.cmcv.update({"pass_rate": 0.8, "confidence": 0.9, "shared_width": 16})
        config.cmcv.train.update({"steps": 10, "batch_size": 8, "save_every": 10})
        config.mbat.steps = 1
        # Every batch alarms.
        config.arm.update({"alarm_rate": 1.0, "max_variance": 0.0})
        config.train.update({"steps": steps, "batch_size": 8, "save_every": SAVE_EVERY})
        for optim in (config.optim, config.cmcv.optim):
            optim.warmup_steps = 1
        if config.arm.branches:
            config.arm.branches = (
                {"pass_rate": 0.8, "do": "reject"},
                {"pass_rate": 0.5, "do": "smooth", "n": 2, "sigma": 0.03},
            )[: len(config.arm.branches)]
        config.data.sources = {
            "implicit": train | {"limit": 64, "weight": 0.875},
            "text": train | {"path": "text_safety", "limit": 8, "weight": 0.125},
        }
        config.data.validation = {
            "implicit": held | {"limit": 28},
            "text": held | {"path": "text_safety", "limit": 4},
        }
    return config


def watch(before_each):
    """Has ``before_each()`` called before every step of MBAT."""
    made = recipe.make_immunize_step

    def make(*args, **options):
        step = made(*args, **options)

        def watched(*state):
            before_each()
            return step(*state)

        return watched

    recipe.make_immunize_step = make


def main(folder: str, data: str, call: str) -> None:
    calls = []

    def count() -> None:
        calls.append(None)
        if len(calls) == int(call):
            os.kill(os.getpid(), signal.SIGKILL)

    watch(count)
    recipe.immunize(short(), folder, {SOURCE: read}, data)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    main(*sys.argv[1:])

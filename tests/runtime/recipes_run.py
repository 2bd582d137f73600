"""Immunizes and forges in the small world, alone or as one process of several.

``recipes_run.py immunize|forge FOLDER DATA``: what is written goes to ``FOLDER``.
"""

import os
import sys
from pathlib import Path

from crossguard_jax.runtime.joining import initialize_if_several

initialize_if_several()

from crossguard_jax.cmai import recipe  # noqa: E402
from crossguard_jax.cmai.folders import save_immunized  # noqa: E402
from crossguard_jax.core.config import load_config  # noqa: E402
from crossguard_jax.impforge.commands import forge_files  # noqa: E402
from crossguard_jax.impforge.triplets import write_triplets  # noqa: E402
from crossguard_jax.runtime import processes  # noqa: E402
from crossguard_jax.systems.load import identified  # noqa: E402
from crossguard_jax.toy.study import SOURCE, read  # noqa: E402
from tests.cmai.immunize_run import short  # noqa: E402
from tests.impforge.ppo.test_rewriter import OVERRIDES, world  # noqa: E402


def immunize(folder: Path, data: Path) -> None:
    config = short(steps=2)
    with config.unlocked():
        config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
        config.cmcv.train.update({"steps": 3, "save_every": 3})
    save_immunized(recipe.immunize(config, folder, {SOURCE: read}, data), folder / "model")


def forge(folder: Path, data: Path) -> None:
    config = load_config("configs/impforge.py:tiny", list(OVERRIDES))
    with config.unlocked():
        config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
        config.ppo.iterations, config.gate.kind = 1, "none"
        config.forge.update({"samples": 2, "keep": 1})
        config.forge.least = {name: -1.0 for name in config.forge.least}
    processes.by_first(lambda: write_triplets(world(16), data))
    forge_files(config, data / "triplets.jsonl", folder, load_system=identified)


os.chdir(Path(__file__).parents[2])
{"immunize": immunize, "forge": forge}[sys.argv[1]](*map(Path, sys.argv[2:]))

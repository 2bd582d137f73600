"""The first step of a guard's training, alone or as one process of several.

``gradient_run.py CONFIG FOLDER FILE``: Adam's first moment after it, a tenth of the gradient, and
the batch's loss go to ``FILE``.
"""

import sys

from crossguard_jax.runtime.joining import initialize_if_several

initialize_if_several()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from crossguard_jax.core.config import load_config  # noqa: E402
from crossguard_jax.guard import recipe  # noqa: E402
from crossguard_jax.runtime import processes  # noqa: E402
from crossguard_jax.runtime.placement import place  # noqa: E402


def once(state, step, frozen, batches, schedule, folder, *, batch_sharding, **_):
    state, metrics = step(state, frozen, place(next(batches), batch_sharding))
    moments = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree.leaves_with_path(state.opt_state)
        if ".mu" in jax.tree_util.keystr(path)
    ]
    arrays = processes.gather({**dict(moments), "loss": metrics["loss"]})
    processes.by_first(lambda: np.savez(sys.argv[3], **arrays))
    sys.exit(0)


recipe.train = once
recipe.train_guard(load_config(sys.argv[1]), sys.argv[2])

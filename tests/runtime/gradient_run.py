"""A guard's training, alone or as one process of several, that leaves its first gradient.

``gradient_run.py CONFIG FOLDER FILE``: Adam's first moment after one step, a tenth of the gradient,
and the batch's loss go to ``FILE``; a training that goes on leaves none.
"""

import os
import sys

from crossguard_jax.runtime.joining import initialize_if_several

initialize_if_several()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from crossguard_jax import cli  # noqa: E402
from crossguard_jax.guard import recipe  # noqa: E402
from crossguard_jax.runtime import processes  # noqa: E402

CONFIG, FOLDER, FILE = sys.argv[1:]
train = recipe.train


def recorded(state, step, *rest, **options):
    def stepped(state, frozen, batch):
        state, metrics = step(state, frozen, batch)
        if int(state.step) == 1:
            moments = {
                jax.tree_util.keystr(path): leaf
                for path, leaf in jax.tree.leaves_with_path(state.opt_state)
                if ".mu" in jax.tree_util.keystr(path)
            }
            arrays = processes.gather({**moments, "loss": metrics["loss"]})
            processes.by_first(lambda: np.savez(FILE, **arrays))
        return state, metrics

    return train(state, stepped, *rest, **options)


recipe.train = recorded
if code := cli.main(["train", "--config", CONFIG, "--out", FOLDER]):
    os._exit(code)  # at once: the others may never come to where JAX would wait for them

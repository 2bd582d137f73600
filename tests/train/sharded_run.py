"""The same training on one device and on a mesh of eight: run by ``test_sharded.py``.

Prints one JSON object. It is a program of its own, as the number of devices is settled when JAX
starts.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossguard_jax.core.sharding import batch_sharding, make_mesh, shardings
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.nn import lora, verdict
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.train.loop import Schedule, train
from crossguard_jax.train.step import init_state, make_step
from tests.small_models import LABELS, adapted, batch, llava

STEPS = 50
OPTIMIZER = optax.adamw(1e-3, weight_decay=1e-2)
GRAPHDEF, ADAPTERS, FROZEN = lora.split(adapted(llava()))
CONFIG = llava().config
MESH = make_mesh(data=2, fsdp=2, tensor=2)
ON_MESH = jax.device_put(FROZEN, shardings(FROZEN, MESH))


def loss(adapters, frozen, rows, key):
    model = lora.merge(GRAPHDEF, adapters, frozen)
    logits = verdict.label_logits(model, rows, jnp.array(LABELS))
    return verdict.cross_entropy(logits, rows["labels"]).mean(), {}


STEP = make_step(loss, OPTIMIZER)


class Rows:
    """Eight rows a batch, a place that is one number."""

    place = 0

    def __next__(self):
        self.place += 1
        return batch(CONFIG, n=8, seed=self.place)

    def get_state(self):
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


def run(mesh, steps, step=STEP):
    """The state after some steps."""
    state = init_state(ADAPTERS, OPTIMIZER, 0, mesh)
    frozen, rows = (ON_MESH, Rows()) if mesh else (FROZEN, Rows())
    for n in range(steps):
        placed = jax.device_put(next(rows), batch_sharding(mesh, size=8) if mesh else None)
        state, _ = step(state, frozen, placed)
        if n % 10 == 9:  # eight devices on few cores: see that none falls far behind
            jax.block_until_ready(state)
    return jax.block_until_ready(state)


def apart(one, other):
    """Norm of the difference over the norm, by tensor."""
    found = {}
    for (name, a), (_, b) in zip(named_leaves(one), named_leaves(other), strict=True):
        a, b = np.asarray(a[...], np.float64), np.asarray(b[...], np.float64)
        found[name] = float(np.linalg.norm(a - b) / np.linalg.norm(a))
    return found


def specs(state):
    """Mesh axes by tensor, one entry a dimension (JAX drops trailing ones that are None)."""
    found = {}
    for name, v in named_leaves(state):
        spec = tuple(v[...].sharding.spec)
        found[name] = str(spec + (None,) * (v.ndim - len(spec)))
    return found


def main(folder):
    first = {}
    accumulating = make_step(loss, OPTIMIZER, accumulate=2)
    # Adam's first moment after the first step is a tenth of the gradient that the step took.
    for name, mesh, step in [
        ("one", None, STEP),
        ("mesh", MESH, STEP),
        ("accumulated", MESH, accumulating),
    ]:
        first[name] = run(mesh, 1, step).opt_state[0].mu
    report = {
        "gradients": apart(first["one"], first["mesh"]),
        "accumulated": apart(first["one"], first["accumulated"]),
    }

    one, mesh = run(None, STEPS), run(MESH, STEPS)
    report["adapters"] = apart(one.trainable, mesh.trainable)
    report["moved"] = apart(ADAPTERS, one.trainable)
    report["specs"] = {
        "before": specs(init_state(ADAPTERS, OPTIMIZER, 0, MESH).trainable),
        "after": specs(mesh.trainable),
        "mu": specs(mesh.opt_state[0].mu),
        "nu": specs(mesh.opt_state[0].nu),
    }
    weight = ON_MESH.language_model.layers.mlp.up_proj.kernel[...]
    report["shard"] = [list(weight.shape), list(weight.addressable_shards[0].data.shape)]

    # Through the loop, stopped half-way, and the checkpoint taken up on this mesh, on another one
    # and on one device.
    def trained(mesh, steps):
        return train(
            init_state(ADAPTERS, OPTIMIZER, 0, mesh),
            STEP,
            jax.device_put(FROZEN, shardings(FROZEN, mesh)),
            Rows(),
            Schedule(steps, save_every=4),
            folder,
            identity={},
            batch_sharding=batch_sharding(mesh),
        )

    trained(MESH, 4)
    half = Path(folder).parent / "half"
    shutil.copytree(folder, half)
    state = trained(MESH, 8)
    report["resumed"] = apart(run(MESH, 8).trainable, state.trainable)
    report["resumed_specs"] = specs(state.trainable)
    alone, _, _ = Checkpoints(folder, {}).restore(init_state(ADAPTERS, OPTIMIZER, 0))
    report["one_device"] = apart(state.trainable, alone.trainable)
    shutil.rmtree(folder)
    half.rename(folder)
    elsewhere = trained(make_mesh(data=4, fsdp=2), 8)
    report["another_mesh"] = apart(state.trainable, elsewhere.trainable)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])

"""One PPO iteration on one device and on meshes of eight: run by ``test_sharded.py``.

Prints one JSON object. It is a program of its own, as the number of devices is settled when JAX
starts.
"""

import json

import jax
import numpy as np
import optax

from crossguard_jax.core.config import load_config
from crossguard_jax.core.sharding import DEFAULT_RULES, batch_sharding, make_mesh
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.impforge.ppo.recipe import (
    Breadth,
    first_state,
    load_rewriter,
    make_improve,
    make_iteration,
)
from crossguard_jax.impforge.ppo.rounds import Rounds
from crossguard_jax.impforge.ppo.update import PpoSettings
from tests.impforge.ppo.test_rewriter import OVERRIDES, world

CONFIG = load_config("configs/impforge.py:tiny", list(OVERRIDES))
TRIPLETS = world(16)
NAMES = sorted({t.category for t in TRIPLETS})


def once(mesh):
    """Tokens, metrics and the gradient of an iteration whose one step is plain descent."""
    rewriter = load_rewriter(CONFIG, mesh, DEFAULT_RULES)
    rewriter.start = jax.tree.map(lambda x: x + 0.02, rewriter.start)
    descent = optax.sgd(1.0)
    settings = PpoSettings(epochs=1, minibatches=1, normalize_by_category=True)
    weights = dict(CONFIG.rewards.weights)
    breadth = Breadth(crowd_limit=2, novelty=0.1, archive_size=16)
    improve = make_improve(
        rewriter.policy, rewriter.rewards, descent, settings, weights, breadth, len(NAMES)
    )
    sharding = batch_sharding(mesh, DEFAULT_RULES, 8)
    categories = [NAMES.index(t.category) for t in TRIPLETS]
    arrays = rewriter.prompts(TRIPLETS) | {"category": np.asarray(categories, np.int32)}
    batch = next(Rounds(arrays, categories, 8, 0, True))
    batch = {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
    state = first_state(rewriter, descent, CONFIG, mesh, DEFAULT_RULES)
    before = jax.tree.map(np.asarray, state.trainable)
    done = rewriter.rollout(state.trainable, rewriter.frozen, jax.random.key(7), batch)
    iteration = make_iteration(rewriter, improve, TRIPLETS, weights, sharding)
    after, metrics = iteration(state, (rewriter.frozen, rewriter.rewards.frozen), batch)
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, after.trainable)
    found = {
        f"{part}.{name}": value[...]
        for part in ("policy", "critic")
        for name, value in named_leaves(gradient[part])
    }
    found |= {f"head.{name}": value for name, value in gradient["head"].items()}
    return np.asarray(done.inputs["tokens"]), jax.tree.map(float, metrics), found


def apart(a, b):
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12))


tokens, metrics, gradient = once(make_mesh(1, devices=jax.devices()[:1]))
report = {}
for shape in ((8, 1, 1), (2, 2, 2)):
    found = once(make_mesh(*shape))
    report["x".join(map(str, shape))] = {
        "tokens": bool(np.array_equal(tokens, found[0])),
        "metrics": {k: [v, found[1][k]] for k, v in metrics.items()},
        "gradients": {k: apart(v, found[2][k]) for k, v in gradient.items()},
        "norms": {k: float(np.linalg.norm(v)) for k, v in gradient.items()},
    }
print(json.dumps(report))

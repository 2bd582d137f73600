"""Compiles the steps of every verb for eight devices, and says what each program sends.

Run by ``test_pinned.py``, as ``pinned_programs.py MESH NAME ...``: a program of its own, as the
number of devices is settled when JAX starts. Prints one JSON object: for every step, with its
activations pinned and without, its collectives as ``[op, dtype, shape, bytes, whether a loop does
it, source]``, and the bytes of a layer's weights and of the states of the whole batch. Nothing is
computed.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.cmai.arm import KNOBS, Controller
from crossguard_jax.cmai.immunize_step import CmaiState, make_immunize_step
from crossguard_jax.cmai.mbat import MbatSettings
from crossguard_jax.cmai.recipe import check_loss
from crossguard_jax.cmai.task import Reader, Task
from crossguard_jax.core.collectives import collectives
from crossguard_jax.core.config import load_config
from crossguard_jax.core.sharding import DEFAULT_RULES, batch_sharding, make_mesh
from crossguard_jax.core.tree import n_bytes
from crossguard_jax.guard import guard as guards
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.recipe import guard_loss
from crossguard_jax.impforge.ppo.recipe import Breadth, first_state, load_rewriter, make_improve
from crossguard_jax.impforge.ppo.update import PpoSettings
from crossguard_jax.nn import lora, pins
from crossguard_jax.train.step import init_state, make_step
from tests.cmai.small_systems import check_for
from tests.small_models import TARGETS

ROWS, LENGTH = 32, 96
ADAM = optax.adamw(1e-3)
MESH = make_mesh(*map(int, sys.argv[1].split("x")))


def rows(shape, dtype):
    """An array of the batch that is not there."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(MESH, size=shape[0]))


def toy_guard():
    guard = Guard.from_pretrained("toy://llava", prompt="short", mesh=MESH)
    model = lora.attach(guard.model, TARGETS, 4, 8.0, jax.random.key(0))
    return Guard(model, guard.folder, guard.settings, MESH)


def guard_batch(guard):
    side = guard.encoder.image_size
    return {
        "input_ids": rows((ROWS, LENGTH), jnp.int32),
        "attention_mask": rows((ROWS, LENGTH), jnp.int32),
        "pixel_values": rows((ROWS, 3, side, side), jnp.float32),
        "picture_index": rows((ROWS, 1), jnp.int32),
        "labels": rows((ROWS,), jnp.int32),
    }


def sft(accumulate=1):
    guard = toy_guard()
    graphdef, adapters, frozen = lora.split(guard.model)
    step = make_step(guard_loss(graphdef, guard.label_ids), ADAM, accumulate)
    batch = guard_batch(guard)
    del batch["picture_index"]  # as training rows of one picture have none
    return step.lower(init_state(adapters, ADAM, 0, MESH), frozen, batch)


def scoring():
    guard = toy_guard()
    batch = guard_batch(guard)
    del batch["labels"]
    parts = lora.split(guard.model)
    return guards.p_unsafe.lower(parts[0], parts[1:], batch, np.asarray(guard.label_ids))


def immunized():
    guard = toy_guard()
    reader = Reader(guard, "clip", "toy://clip", LENGTH)
    task = Task(guard, (), reader, check_for(guard, reader))
    trainable = {"adapters": task.adapters, "check": nnx.split(check_for(guard, reader))[1]}
    side = guard.encoder.image_size
    batch = {
        "input_ids": rows((ROWS, LENGTH), jnp.int32),
        "attention_mask": rows((ROWS, LENGTH), jnp.int32),
        "text_mask": rows((ROWS, LENGTH), bool),
        "pixels": rows((ROWS, 3, side, side), jnp.float32),
        "pictures": rows((ROWS,), jnp.int32),
        "has_picture": rows((ROWS,), bool),
        "labels": rows((ROWS,), jnp.int32),
        "read_ids": rows((ROWS, 1, 48), jnp.int32),
        "read_mask": rows((ROWS, 1, 48), jnp.int32),
    }
    return task, trainable, batch


def mbat(accumulate=1):
    task, trainable, batch = immunized()
    knobs = load_config("configs/cmai.py:tiny").arm
    controller = Controller.from_config(
        {name: knobs[name] for name in ("max_variance", *KNOBS)} | {"tau_c": 0.5}
    )
    step = make_immunize_step(
        *(task.answers, MbatSettings(steps=2), controller, ADAM, task.width, task.read),
        check_loss(task, joint=False, adversarial=True),
        accumulate=accumulate,
    )
    state = init_state(trainable, ADAM, 0, MESH)
    return step.lower(
        CmaiState(**vars(state), arm=controller.start(0.0, None)), task.frozen_parts, batch
    )


def attack():
    task, trainable, batch = immunized()

    def run(trainable, frozen, batch, key):
        batch = task.read(trainable, frozen, batch)

        def objective(x, key):
            answers = task.answers(trainable, frozen, batch, (x, jnp.float32(0)))
            return Outcome(answers.loss, answers.margin)

        return pgd(objective, batch["pixels"], key, Budget(8 / 255, "linf", 3))

    return jax.jit(run).lower(trainable, task.frozen_parts, batch, jax.random.key(0))


def ppo():
    config = load_config(
        "configs/impforge.py:tiny",
        [f"--config.ppo.batch_size={ROWS}", "--config.optim.warmup_steps=1"],
    )
    rewriter = load_rewriter(config, MESH)
    batch = {
        "prompt": rows((ROWS, LENGTH), jnp.int32),
        "prompt_mask": rows((ROWS, LENGTH), bool),
        "category": rows((ROWS,), jnp.int32),
    }
    state = first_state(rewriter, ADAM, config, MESH, DEFAULT_RULES)
    return config, rewriter, batch, state


def rollout():
    _, rewriter, batch, state = ppo()
    return rewriter.rollout.lower(state.trainable, rewriter.frozen, jax.random.key(0), batch)


def improve(accumulate=1):
    config, rewriter, batch, state = ppo()
    settings = PpoSettings(epochs=2, minibatches=2)
    step = make_improve(
        *(rewriter.policy, rewriter.rewards, ADAM, settings),
        *(dict(config.rewards.weights), Breadth(**config.breadth), 1, accumulate),
    )
    from tests.impforge.ppo.test_rewriter import world

    triplets = world(4)
    trajectory = jax.eval_shape(
        rewriter.rollout, state.trainable, rewriter.frozen, jax.random.key(0), batch
    )
    encoded = rewriter.rewards.encode(["a text"] * 4, triplets)
    about = dict(rewriter.prepare(triplets)[1]) | {"baseline": np.zeros(4, np.float32)}
    given = jax.tree.map(
        lambda x: rows((ROWS, *x.shape[1:]), x.dtype), (trajectory, about, encoded)
    )
    return step.lower(state, rewriter.frozen, rewriter.rewards.frozen, *given)


STEPS = {
    "sft": sft,
    "sft_accumulated": lambda: sft(2),
    "mbat": mbat,
    "mbat_accumulated": lambda: mbat(2),
    "rollout": rollout,
    "improve": improve,
    "improve_accumulated": lambda: improve(2),
    "scoring": scoring,
    "attack": attack,
}


def read(name):
    """What a step sends, of how many arrays its state is, and how many of them are written over."""
    lowered = STEPS[name]()
    compiled = lowered.compile()
    text = compiled.as_text()
    arguments = jax.tree.leaves(lowered.args_info)
    state = [i for i, argument in enumerate(arguments) if argument.donated]
    given, left = (
        jax.tree.leaves(at) for at in (compiled.input_shardings, compiled.output_shardings)
    )
    return {
        "sent": [
            [one.op, one.dtype, list(one.shape), one.bytes, one.inside_loop, one.source]
            for one in collectives(text)
        ],
        "donated": len(state),
        "moved": sum(
            not given[i].is_equivalent_to(left[place], len(arguments[i].shape))
            for place, i in enumerate(state)
        ),
        "written_over": text.splitlines()[0].count("-alias)"),
        "callbacks": text.count("callback"),
    }


def main(names):
    base = lora.detach(Guard.from_pretrained("toy://llava").model).language_model
    height = base.config.num_hidden_layers
    report = {
        "layer": n_bytes(nnx.split(base.layers, graph=False)[1]) // height,
        "batch": ROWS * LENGTH * base.config.hidden_size * 4,
        "pinned": {name: read(name) for name in names},
    }
    pins.constrain = lambda x, axes, rules: x
    jax.clear_caches()
    report["free"] = {name: read(name) for name in names}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[2:])

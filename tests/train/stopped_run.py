"""A tiny run of the command line's, that stops and waits in a phase: what is told to stop there.

``stopped_run.py FOLDER [PHASE STEP [PROCESS]]``: as PHASE comes to STEP, it prints ``at PHASE`` and
waits for a line on stdin (in PROCESS alone, where there are several). In the phase ``fail`` a row
cannot be read. The final arrays go to FOLDER/final.npy.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossguard_jax import cli
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import batch_sharding, make_mesh
from crossguard_jax.runtime import preemption, processes
from crossguard_jax.train.loop import Hook, Schedule, train
from crossguard_jax.train.step import init_state, make_step
from crossguard_jax.verbs import VERBS, Verb

STEPS, SAVE_EVERY, EVAL_EVERY = 12, 4, 5
ROWS = 8


class Wait:
    """Waits for stdin, once, in one phase of one step."""

    def __init__(self, phase="", step=0, process=0):
        self.at, self.process = (phase, float(step)), int(process)

    def __call__(self, phase, step):
        if (phase, step) == self.at and processes.index() == self.process:
            if phase == "fail":
                raise UserError(f"rows.jsonl, row {step}: not to be read")
            self.at = None
            # Straight to the pipes: no buffer, and the line is one write.
            os.write(1, f"at {phase}\n".encode())
            os.read(0, 1)


class Rows:
    """Batches drawn from a counter; each process has its own rows of them."""

    def __init__(self, wait):
        self.place, self.wait = 0, wait

    def __next__(self):
        self.wait("data", self.place + 1)
        self.wait("fail", self.place + 1)
        rng = np.random.default_rng(self.place)
        self.place += 1
        x = rng.normal(size=(ROWS, 3)).astype(np.float32)
        batch = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}
        mine = ROWS // processes.count()
        first = mine * processes.index()
        return {name: value[first : first + mine] for name, value in batch.items()}

    def get_state(self):
        self.wait("save", self.place)
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


def run(folder, wait):
    """The state after the last step."""
    mesh = make_mesh(data=-1)

    def loss(w, frozen, batch, key):
        wait("compile", 1)
        noise = 0.01 * jax.random.normal(key, w.shape)
        return ((batch["x"] @ (w + noise) - batch["y"]) ** 2).mean(), {}

    optimizer = optax.adamw(1e-2)
    compiled = make_step(loss, optimizer)

    def step(state, frozen, batch):
        # Of the host's doing, after the device has begun.
        state, metrics = compiled(state, frozen, batch)
        wait("step", rows.place)
        return state, metrics

    def measure(state):
        error = 0.0
        for part in range(3):
            wait("evaluation", rows.place + part / 10)
            preemption.check()
            error += float(jnp.abs(state.trainable).sum())
        return {"size": error}

    rows = Rows(wait)
    state = train(
        init_state(jnp.zeros(3), optimizer, 3, mesh),
        step,
        None,
        rows,
        Schedule(STEPS, SAVE_EVERY, log_every=2),
        folder,
        identity={},
        batch_sharding=batch_sharding(mesh),
        hooks=[Hook(EVAL_EVERY, measure, keep_best="-size")],
    )
    if processes.is_first():
        np.save(folder / "final.npy", np.asarray(state.trainable))
    return state


def work(args):
    folder, *wait = sys.argv[2:]
    run(Path(folder), Wait(*wait))


if __name__ == "__main__":
    VERBS["probe"] = Verb(
        help="a tiny run",
        example="probe",
        handler="tests.train.stopped_run:work",
        passes_through=True,
        uses_models=False,
    )
    sys.argv[1:] = ["probe", *sys.argv[1:]]
    sys.exit(cli.main())

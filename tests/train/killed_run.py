"""A small training run, start to end: ``test_kill.py`` starts it, kills it and starts it again.

``killed_run.py FOLDER``: checkpoints and the rest go to FOLDER, the records of every batch as they
are drawn to FOLDER/batches.jsonl, and hashes of the final state to FOLDER/final.json.
"""

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossguard_jax.core.tree import digest
from crossguard_jax.data.pipeline import mixture
from crossguard_jax.data.records import Record
from crossguard_jax.nn import lora, verdict
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.train.loop import Hook, Schedule, train
from crossguard_jax.train.step import init_state, make_step
from tests.small_models import LABELS, batch, llava, llava_config, on_device

STEPS, SAVE_EVERY = 150, 5
CONFIG, IDENTITY = llava_config(), {"run": "killed"}


def records(name, n, label):
    return [Record(id=f"{name}-{i}", images=(), text=str(i), label=label) for i in range(n)]


def encode(rows):
    """A picture and a text for each record, drawn from its number; and who is in the batch."""
    made = [batch(CONFIG, n=1, seed=int(r.text) + 1000 * (r.label == "unsafe")) for r in rows]
    arrays = {name: np.concatenate([m[name] for m in made]) for name in made[0]}
    arrays["labels"] = np.array([r.label == "unsafe" for r in rows], np.int32)
    arrays["record"] = np.array([int(r.text) + 1000 * (r.label == "unsafe") for r in rows])
    return arrays


class Watched:
    """Batches that leave a line on disk before they are handed out."""

    def __init__(self, inner, file):
        self.inner, self.n = inner, 0
        self.file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __next__(self):
        rows = next(self.inner)
        self.n += 1
        line = json.dumps({"n": self.n, "records": rows["record"].tolist()})
        os.write(self.file, line.encode() + b"\n")
        return rows

    def get_state(self):
        return {"n": self.n, "inner": self.inner.get_state()}

    def set_state(self, state):
        self.n = state["n"]
        self.inner.set_state(state["inner"])


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    targets = r".*\.(q|v)_proj"
    model = lora.attach(llava(), targets, 4, 8.0, jax.random.key(0))
    graphdef, adapters, frozen = lora.split(model)
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, STEPS))

    def loss(adapters, frozen, rows, key):
        # Noise on the pictures, so that the random stream has to be found again too.
        pixels = rows["pixel_values"]
        rows = rows | {"pixel_values": pixels + 0.1 * jax.random.normal(key, pixels.shape)}
        logits = verdict.label_logits(
            lora.merge(graphdef, adapters, frozen), rows, jnp.array(LABELS)
        )
        return verdict.cross_entropy(logits, rows["labels"]).mean(), {}

    held_out = on_device(batch(CONFIG, n=8, seed=77))
    validate = jax.jit(lambda adapters: loss(adapters, frozen, held_out, jax.random.key(1))[0])
    sources = {"safe": records("safe", 37, "safe"), "unsafe": records("unsafe", 23, "unsafe")}
    batches = mixture(sources, {"safe": 2, "unsafe": 1}, seed=11, batch_size=4, transform=encode)
    state = train(
        init_state(adapters, optimizer, seed=5),
        make_step(loss, optimizer),
        frozen,
        Watched(batches, folder / "batches.jsonl"),
        Schedule(STEPS, SAVE_EVERY, log_every=5),
        folder,
        identity=IDENTITY,
        hooks=[Hook(20, lambda s: {"loss": float(validate(s.trainable))}, keep_best="-loss")],
    )
    best, kept = Checkpoints(folder, IDENTITY).restore_best(state.trainable)
    final = {
        "adapters": digest(state.trainable),
        "mu": digest(state.opt_state[0].mu),
        "best": [best, digest(kept)],
        "step": int(state.step),
        "moved": digest(state.trainable) != digest(adapters),
    }
    (folder / "final.json").write_text(json.dumps(final))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

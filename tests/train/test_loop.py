"""The loop: resumes bit for bit, accumulates exactly, stops on what is no number."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.train.checkpoint import Checkpoints
from crossguard_jax.train.loop import Hook, Schedule, read_metrics, train
from crossguard_jax.train.step import init_state, make_step


class Rows:
    """Batches drawn from a counter, so that a place is one number."""

    def __init__(self):
        self.place = 0
        self.seen = []

    def __next__(self):
        rng = np.random.default_rng(self.place)
        self.seen.append(self.place)
        self.place += 1
        x = rng.normal(size=(8, 3)).astype(np.float32)
        return {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}

    def get_state(self):
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


def loss(w, frozen, batch, key):
    # The key is used, so that a resumed run must find its random stream again too.
    noise = 0.01 * jax.random.normal(key, w.shape)
    error = batch["x"] @ (w + noise + frozen) - batch["y"]
    return (error**2).mean(), {}


OPTIMIZER = optax.adamw(1e-2)
STEP = make_step(loss, OPTIMIZER)
IDENTITY = {"config": "a"}


def run(folder, steps=12, batches=None, identity=IDENTITY, hooks=()):
    state = init_state(jnp.zeros(3), OPTIMIZER, seed=3)
    schedule = Schedule(steps=steps, save_every=4, log_every=2)
    batches = batches or Rows()
    return train(
        state, STEP, jnp.ones(3), batches, schedule, folder, identity=identity, hooks=hooks
    )


class Interrupted(Exception):
    pass


class Stops(Rows):
    """As `Rows`, but the machine fails after some batches."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __next__(self):
        if len(self.seen) == self.after:
            raise Interrupted
        return super().__next__()


def test_an_interrupted_run_ends_with_the_arrays_of_an_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole")
    for after in (6, 3):
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", batches=Stops(after))
    rest = Rows()
    parts = run(tmp_path / "parts", batches=rest)
    chex.assert_trees_all_equal(whole, parts)
    assert rest.seen[-1] == 11 and rest.seen[0] in (4, 8)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_accumulated_gradients_equal_the_large_batch():
    def plain(w, frozen, batch, key):
        return ((batch["x"] @ w - batch["y"]) ** 2).mean(), {}

    batch = jax.tree.map(jnp.asarray, next(Rows()))
    results = []
    for n in (1, 2, 4):
        step = make_step(plain, optax.sgd(1.0), accumulate=n)
        state, metrics = step(init_state(jnp.ones(3), optax.sgd(1.0), 0), None, batch)
        results.append((state.trainable, metrics["loss"], metrics["gradient_norm"]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(UserError, match="accumulate 3"):
        make_step(plain, optax.sgd(1.0), accumulate=3)(
            init_state(jnp.ones(3), optax.sgd(1.0), 0), None, batch
        )


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(tmp_path):
    class Poisoned(Rows):
        def __next__(self):
            batch = super().__next__()
            if self.place == 6:
                batch["y"][2] = np.nan
            return batch

    with pytest.raises(UserError, match=r"step 6: the loss is nan.*bad_batch_6\.npz"):
        run(tmp_path, batches=Poisoned())
    assert np.isnan(np.load(tmp_path / "bad_batch_6.npz")["y"]).sum() == 1
    like = init_state(jnp.zeros(3), OPTIMIZER, 3)
    state, _, _ = Checkpoints(tmp_path, IDENTITY).restore(like)
    assert int(state.step) == 4 and np.isfinite(state.trainable).all()


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="config: 'a' -> 'b'"):
        run(tmp_path, identity={"config": "b"})


@pytest.mark.parametrize(
    ("by", "scores", "kept"),
    [
        ("score", {4: 0.5, 8: 0.9, 12: 0.1}, 8),
        ("score", {4: 1.0, 8: 1.0, 12: 0.1}, 8),
        ("-score", {4: 0.3, 8: 0.2, 12: 0.2}, 12),
        ("-score", {4: 0.1, 8: 0.2, 12: 0.3}, 4),
    ],
)
def test_the_best_state_of_equals_the_later_is_kept_apart_from_the_last(tmp_path, by, scores, kept):
    seen = {}

    def measure(state):
        seen[int(state.step)] = np.asarray(state.trainable)
        return {"score": scores[int(state.step)]}

    last = run(tmp_path, hooks=[Hook(4, measure, keep_best=by)])
    step, best = Checkpoints(tmp_path, IDENTITY).restore_best(last.trainable)
    assert step == kept and np.array_equal(best, seen[kept])
    logged = [row for row in read_metrics(tmp_path) if "eval/score" in row]
    assert [row["eval/score"] for row in logged] == list(scores.values())
    assert json.dumps(logged)

"""A step of MBAT in microbatches is the step of the whole batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossguard_jax.cmai.arm import Controller, Knob
from crossguard_jax.cmai.immunize_step import CmaiState, make_immunize_step
from crossguard_jax.cmai.mbat import Answers, MbatSettings
from crossguard_jax.core.errors import UserError
from crossguard_jax.train.step import init_state

B, L, D, W = 12, 3, 4, 8
SGD = optax.sgd(1.0)
KNOBS = (Knob(0.1, 0.3, 0.1), Knob(0.05, 0.09, 0.01), Knob(0.4, 0.5, 0.1))


def answer(trainable, frozen, batch, inputs):
    """S_c sees the picture through what is trained; the answer rests on both modalities."""
    pixels, shift = inputs
    rows = len(pixels)
    h_v = jnp.tanh(pixels.reshape(rows, -1) @ trainable["tower"])
    h_t = (batch["embeddings"] + shift).reshape(rows, -1) @ trainable["text"]
    margin = -batch["sign"] * ((h_v * h_t).sum(1) + h_t.sum(1))
    s_c = jnp.where(batch["has_picture"], jnp.tanh(h_v @ frozen["check"]), 1.0)
    log_p = jax.nn.log_sigmoid(jnp.stack([-margin, margin], axis=1))
    return Answers(jax.nn.softplus(margin), margin, s_c, h_v, log_p)


def beside(trainable, frozen, batch, key):
    """Each row's picture against all others': no sum over rows, and not over microbatches."""
    scores = (batch["h_v"] @ trainable["pairs"]) @ batch["attacked_h_v"].T
    apart = jax.nn.log_softmax(scores, axis=1).trace() / len(scores)
    return -apart + jnp.abs(batch["attacked"] - batch["pixels"]).mean(), {"pair_loss": -apart}


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    batch = {
        "pixels": jnp.asarray(rng.uniform(0.3, 0.7, (B, 3, 4, 4)).astype(np.float32)),
        "embeddings": draw(B, L, D),
        "edited_embeddings": draw(B, 3, L, D),
        "sign": jnp.asarray(rng.choice([-1.0, 1.0], B).astype(np.float32)),
        "text_mask": jnp.asarray(rng.random((B, L)) < 0.7),
        "has_picture": jnp.arange(B) % 5 > 0,
    }
    trainable = {"tower": draw(48, W), "text": draw(L * D, W), "pairs": draw(W, W)}
    return trainable, {"check": draw(W)}, batch


def step_of(made, settings, n, loss_beside=beside, max_variance=float("inf")):
    trainable, frozen, batch = made
    controller = Controller(0.0, *KNOBS, max_variance=max_variance)
    step = make_immunize_step(
        answer, settings, controller, SGD, D, beside=loss_beside, accumulate=n
    )
    start = controller.start(-0.2, np.linspace(-0.9, 0.9, 16))
    state = CmaiState(**vars(init_state(trainable, SGD, 3)), arm=start)
    return step, state, frozen, batch


@pytest.mark.parametrize(
    "perturb, outer",
    [
        ("picture", "task"),
        ("picture", "trades"),
        ("text", "task"),
        ("both", "task"),
        ("edits", "task"),
    ],
)
@pytest.mark.parametrize("loss_beside", [beside, None])
def test_draws_gradient_figures_and_controller_are_the_whole_batchs(
    made, perturb, outer, loss_beside
):
    settings = MbatSettings("both", perturb, steps=2, text_epsilon=0.2, outer=outer)
    after = {}
    for n in (1, 3, 12):
        step, state, *rest = step_of(made, settings, n, loss_beside)
        after[n] = step(state, *rest)
    whole, metrics = after[1]
    for n in (3, 12):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), whole, after[n][0]
        )
        assert metrics.keys() == after[n][1].keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(after[n][1][name], value, rtol=2e-5, err_msg=name)
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), whole.trainable, made[0])
    assert moved["tower"] > 1e-2 and (loss_beside is None or moved["pairs"] > 1e-3)


def test_the_variance_that_alarms_is_over_all_rows(made):
    """Below the whole batch's variance and above that of each of its microbatches."""
    trainable, frozen, batch = made
    zero = jnp.zeros((B, L, D))
    batch = batch | {"has_picture": jnp.ones(B, bool)}
    s_c = np.asarray(answer(trainable, frozen, batch, (batch["pixels"], zero)).s_c)
    # Microbatches stride over the rows (0, 4, 8 are one): each gets scores that are near together.
    order = np.argsort(s_c).reshape(4, 3).T.reshape(-1)
    within = max(s_c[order][i::4].var() for i in range(4))
    limit = float(within + s_c.var()) / 2
    assert within < limit < s_c.var()
    rows = {name: x[order] for name, x in batch.items()}
    betas = {}
    for n in (1, 4):
        settings = MbatSettings("seed", steps=1)
        step, state, *_ = step_of((trainable, frozen, rows), settings, n, None, limit)
        calm = {"epsilon": jnp.float32(0), "tau_c": jnp.float32(-9), "clean": None}
        state = replace(state, arm=replace(state.arm, **calm))
        betas[n] = float(step(state, frozen, rows)[0].arm.beta)
    assert betas[1] == betas[4] == pytest.approx(0.2)


def test_microbatches_that_do_not_divide_the_batch_are_refused(made):
    step, *rest = step_of(made, MbatSettings(), 5)
    with pytest.raises(UserError, match="^optim.accumulate 5 does not divide the batch of 12"):
        step(*rest)


def test_a_step_in_microbatches_needs_less_memory(made, compiled_as_users_do):
    def deep(trainable, frozen, batch, inputs):
        x = inputs[0].reshape(len(inputs[0]), -1, 1)
        for _ in range(6):
            x = jnp.tanh(x @ trainable["up"]) @ frozen["down"]
        x = x.mean((1, 2))
        return Answers(x, x, jnp.ones(len(x)))

    kernel = jnp.ones((1, 512))
    controller, batch = Controller(0.0, *KNOBS), made[2]
    temporaries = {}
    for n in (1, 4):
        step = make_immunize_step(deep, MbatSettings(steps=1), controller, SGD, D, accumulate=n)
        state = CmaiState(**vars(init_state({"up": kernel}, SGD, 0)), arm=controller.start())
        compiled = step.lower(state, {"down": kernel.T / 512}, batch).compile()
        temporaries[n] = compiled.memory_analysis().temp_size_in_bytes
    print(f"temporaries in one piece {temporaries[1]:,}, in four {temporaries[4]:,}")
    assert temporaries[4] < 0.35 * temporaries[1]

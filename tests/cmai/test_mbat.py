"""MBAT on a linear model, whose strongest perturbations are known in closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import binomtest, entropy

from crossguard_jax.cmai.arm import ArmState, Controller, Knob
from crossguard_jax.cmai.immunize_step import CmaiState, make_immunize_step
from crossguard_jax.cmai.mbat import (
    EDITED,
    Answers,
    MbatSettings,
    draw_evasive,
    inner_loss,
    mbat_loss,
    perturbed,
)
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import pipeline
from crossguard_jax.data.records import Record
from crossguard_jax.train.step import init_state

B, L, D = 6, 4, 5
KEY = jax.random.key(0)


def answer(trainable, frozen, batch, inputs):
    """Logits and S_c are linear in the picture and in the embeddings that are shifted."""
    pixels, shift = inputs
    embeddings = batch["embeddings"] + shift
    flat = jnp.concatenate([pixels.reshape(B, -1), embeddings.reshape(B, -1)], axis=1)
    margin = -batch["sign"] * (flat @ trainable["w"])
    return Answers(jax.nn.softplus(margin), margin, flat @ frozen["check"])


@pytest.fixture
def made():
    rng = np.random.default_rng(3)
    n = 3 * 4 * 4 + L * D
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    batch = {
        "pixels": jnp.asarray(rng.uniform(0.3, 0.7, (B, 3, 4, 4)).astype(np.float32)),
        "embeddings": draw(B, L, D),
        "sign": jnp.asarray(rng.choice([-1.0, 1.0], B).astype(np.float32)),
        "text_mask": jnp.asarray(rng.random((B, L)) < 0.7),
        "has_picture": jnp.ones(B, bool),
    }
    return {"w": draw(n)}, {"check": draw(n) / n}, batch


def arm(epsilon=0.03, beta=0.0, lambda_=0.5, tau=0.0):
    return ArmState(*map(jnp.float32, (beta, epsilon, lambda_, tau)))


def attacked(made, settings, state):
    trainable, frozen, batch = made
    clean = (batch["pixels"], jnp.zeros((B, L, D)))
    return perturbed(answer, settings, trainable, frozen, batch, clean, KEY, state)


def test_the_attack_on_a_linear_model_is_the_strongest_there_is(made):
    trainable, _, batch = made
    settings = MbatSettings("seed", "both", steps=20, text_epsilon=0.3)
    pixels, shift = attacked(made, settings, arm())
    w = np.asarray(trainable["w"])
    sign = np.asarray(batch["sign"])[:, None]
    delta = np.asarray(pixels - batch["pixels"]).reshape(B, -1)
    np.testing.assert_allclose(delta, -sign * 0.03 * np.sign(w[:48]), atol=1e-6)
    for i, t in np.argwhere(np.asarray(batch["text_mask"])):
        of_token = w[48 + t * D : 48 + (t + 1) * D]
        # Steps along the sphere only come near its highest point.
        assert np.linalg.norm(shift[i, t]) == pytest.approx(0.3, rel=1e-4)
        assert -sign[i] * shift[i, t] @ of_token > 0.95 * 0.3 * np.linalg.norm(of_token)
    assert not np.asarray(shift)[~np.asarray(batch["text_mask"])].any()


@pytest.mark.parametrize("perturb, still", [("picture", 1), ("text", 0)])
def test_the_other_modality_is_left_alone(made, perturb, still):
    inputs = attacked(made, MbatSettings(perturb=perturb, text_epsilon=0.3), arm())
    clean = (made[2]["pixels"], jnp.zeros((B, L, D)))
    np.testing.assert_array_equal(inputs[still], clean[still])
    assert np.abs(inputs[1 - still] - clean[1 - still]).max() > 0.01


def test_of_edited_texts_the_worst_is_learned_from(made):
    trainable, frozen, batch = made
    edited = jnp.stack([batch["embeddings"] + 0.3 * k for k in (-1, 0, 1)], axis=1)
    rows = batch | {f"{EDITED}embeddings": edited}
    settings = MbatSettings("seed", "edits")
    _, (metrics, _, additions) = mbat_loss(
        answer, settings, D, trainable, frozen, rows, KEY, arm(lambda_=1.0)
    )
    zero = jnp.zeros((B, L, D))
    each = [
        answer(trainable, frozen, batch | {"embeddings": edited[:, k]}, (batch["pixels"], zero))
        for k in range(3)
    ]
    worst = np.max([np.asarray(outputs.loss) for outputs in each], axis=0)
    assert float(metrics["adversarial_loss"]) == pytest.approx(worst.mean(), rel=1e-5)
    assert float(metrics["adversarial_loss"]) > float(metrics["clean_loss"])
    np.testing.assert_array_equal(additions["attacked"], batch["pixels"])


def test_the_seed_lowers_consistency_and_the_evasive_adversary_keeps_it(made):
    trainable, frozen, batch = made
    zero = jnp.zeros((B, L, D))
    before = np.asarray(answer(trainable, frozen, batch, (batch["pixels"], zero)).s_c)
    s_c, tau = {}, float(before.min()) - 1e-3
    for inner, beta in (("seed", 300.0), ("evasive", 0.0), ("both", 300.0)):
        settings = MbatSettings(inner, steps=40, evasion=3_000.0)
        inputs = attacked(made, settings, arm(beta=beta, tau=tau))
        s_c[inner] = np.asarray(answer(trainable, frozen, batch, inputs).s_c)
    assert (s_c["seed"] < before - 1e-3).all() and (s_c["seed"] < tau).any()
    assert (s_c["evasive"] >= tau - 1e-3).all()
    # Of both, each row has met the one that was drawn for it.
    evasive = np.abs(s_c["both"] - s_c["evasive"]) < 1e-6
    np.testing.assert_allclose(s_c["both"][~evasive], s_c["seed"][~evasive], atol=1e-6)
    assert 0 < evasive.sum() < B


def test_the_inner_problems_are_as_written():
    rng = np.random.default_rng(0)
    loss, s_c = rng.normal(size=(2, 8)).astype(np.float32)
    answers = Answers(jnp.asarray(loss), jnp.zeros(8), jnp.asarray(s_c))
    settings, evasive = MbatSettings(alpha=2.0, evasion=5.0), np.arange(8) < 5
    raised = inner_loss(settings, answers, arm(beta=0.7, tau=0.2), jnp.asarray(evasive))
    seed = 2 * loss - 0.7 * s_c
    below = [2 * a - 5 * max(0.2 - s, 0) for a, s in zip(loss, s_c, strict=True)]
    np.testing.assert_allclose(raised, np.where(evasive, below, seed), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [16, 9, 1])
def test_every_source_of_a_periodic_mixture_meets_each_adversary_half_of_the_time(batch_size):
    """In the small world's mixture one source held odd places only, and met one adversary only."""
    weights = {"implicit": 0.5, "typographic": 0.25, "benign": 0.25}
    sources = {
        name: [Record(id=f"{name}-{i}", images=(), text=name) for i in range(64)]
        for name in weights
    }
    rows = pipeline.mixture(
        sources,
        weights,
        seed=0,
        batch_size=batch_size,
        transform=lambda records: {"source": np.array([record.text for record in records])},
    )
    key, drawn = jax.random.key(3), []
    draw = jax.jit(
        lambda step: draw_evasive(MbatSettings(), jax.random.fold_in(key, step), batch_size)
    )
    for step in range(1_280 // batch_size):
        drawn += zip(next(rows)["source"].tolist(), np.asarray(draw(step)).tolist(), strict=True)
    rows.close()
    for name, weight in weights.items():
        met = [evasive for source, evasive in drawn if source == name]
        assert len(met) == pytest.approx(1_280 * weight, abs=2 * batch_size)
        assert binomtest(sum(met), len(met)).pvalue > 1e-3, name
    again = np.asarray(draw(5))
    np.testing.assert_array_equal(again, draw(5))
    first = drawn[5 * batch_size : 6 * batch_size]
    np.testing.assert_array_equal(again, [evasive for _, evasive in first])


@pytest.mark.parametrize("inner, share", [("seed", 0), ("evasive", 1)])
def test_one_adversary_alone_is_met_by_every_row(inner, share):
    assert (np.asarray(draw_evasive(MbatSettings(inner), KEY, 64)) == share).all()


def test_lambda_mixes_clean_and_adversarial_loss(made):
    trainable, frozen, batch = made
    losses = {}
    for share in (0.0, 0.25, 1.0):
        state = arm(lambda_=share)
        losses[share], (metrics, *_) = mbat_loss(
            answer, MbatSettings("seed"), D, trainable, frozen, batch, KEY, state
        )
    assert losses[1.0] > losses[0.0] + 0.1
    assert losses[1.0] == pytest.approx(float(metrics["adversarial_loss"]), rel=1e-6)
    assert losses[0.0] == pytest.approx(float(metrics["clean_loss"]), rel=1e-6)
    assert losses[0.25] == pytest.approx(0.75 * float(losses[0.0]) + 0.25 * float(losses[1.0]))


def test_what_is_raised_and_what_is_lowered_may_be_two_losses(made):
    trainable, frozen, batch = made
    settings, state = MbatSettings("seed"), arm(lambda_=0.25)

    def outer(*args):
        answers = answer(*args)
        return Answers(answers.loss + 3 * answers.margin**2, answers.margin, answers.s_c)

    loss, (metrics, *_) = mbat_loss(
        answer, settings, D, trainable, frozen, batch, KEY, state, outer
    )
    inputs = attacked(made, settings, state)  # by what is raised
    clean = (batch["pixels"], jnp.zeros((B, L, D)))
    lowered = [float(outer(trainable, frozen, batch, x).loss.mean()) for x in (clean, inputs)]
    assert float(loss) == pytest.approx(0.75 * lowered[0] + 0.25 * lowered[1], rel=1e-5)
    assert float(metrics["adversarial_loss"]) == pytest.approx(lowered[1], rel=1e-5)


def test_trades_learns_from_the_clean_rows_answers_and_no_label(made):
    """On two answers whose probabilities are those of the margin."""
    trainable, frozen, batch = made

    def two(*args):
        answers = answer(*args)
        log_p = jax.nn.log_sigmoid(jnp.stack([-answers.margin, answers.margin], axis=1))
        return replace(answers, log_p=log_p)

    def loss(share):
        state = arm(lambda_=share)
        args = trainable, frozen, batch, KEY, state
        return mbat_loss(two, MbatSettings("seed", outer="trades"), D, *args)[0]

    shift = jnp.zeros((B, L, D))
    inputs = attacked(made, MbatSettings("seed"), arm())
    clean, moved = (
        1 / (1 + np.exp(np.asarray(two(trainable, frozen, batch, x).margin, np.float64)))
        for x in ((batch["pixels"], shift), inputs)
    )
    divergence = entropy([clean, 1 - clean], [moved, 1 - moved]).mean()
    assert divergence > 1e-3
    assert float(loss(1.0)) == pytest.approx(divergence, rel=1e-4)
    plain = float(two(trainable, frozen, batch, (batch["pixels"], shift)).loss.mean())
    assert float(loss(0.25)) == pytest.approx(0.75 * plain + 0.25 * divergence, rel=1e-4)


def test_rows_without_a_picture_are_no_part_of_what_is_said_of_s_c(made):
    trainable, frozen, batch = made
    there = np.arange(B) % 3 > 0

    def pictured(trainable, frozen, batch, inputs):
        answers = answer(trainable, frozen, batch, inputs)
        s_c = jnp.where(batch["has_picture"], answers.s_c, 1.0)
        return Answers(answers.loss, answers.margin, s_c)

    def metrics_of(there):
        rows = batch | {"has_picture": jnp.asarray(there)}
        _, (metrics, scores, _) = mbat_loss(
            pictured, MbatSettings("seed"), D, trainable, frozen, rows, KEY, arm()
        )
        return metrics, scores

    metrics, (adversarial, clean, count) = metrics_of(there)
    np.testing.assert_array_equal(count, there)
    assert float(metrics["clean_s_c"]) == pytest.approx(np.asarray(clean)[there].mean(), rel=1e-5)
    mean = np.asarray(adversarial)[there].mean()
    assert float(metrics["adversarial_s_c"]) == pytest.approx(mean, rel=1e-5)
    assert float(metrics_of(np.zeros(B, bool))[0]["clean_s_c"]) == 1.0


def test_no_radius_is_no_attack(made):
    trainable, frozen, batch = made
    _, (metrics, *_) = mbat_loss(
        answer, MbatSettings("seed"), D, trainable, frozen, batch, KEY, arm(epsilon=0.0)
    )
    assert metrics["adversarial_loss"] == pytest.approx(float(metrics["clean_loss"]), rel=1e-6)


def test_the_controller_moves_in_the_step_and_nothing_compiles_anew(made):
    trainable, frozen, batch = made
    knobs = (Knob(0.1, 0.3, 0.1), Knob(0.01, 0.03, 0.01), Knob(0.2, 0.5, 0.2))
    controller = Controller(1e9, *knobs)  # every batch alarms
    adam = optax.sgd(0.01)
    step = make_immunize_step(answer, MbatSettings("seed"), controller, adam, D)
    state = CmaiState(**vars(init_state(trainable, adam, 0)), arm=controller.start())
    epsilons, losses = [], []
    for _ in range(4):
        state, metrics = step(state, frozen, batch)
        epsilons.append(float(metrics["epsilon"]))
        losses.append(float(metrics["adversarial_loss"]))
    np.testing.assert_allclose(epsilons, [0.01, 0.02, 0.03, 0.03], rtol=1e-5)
    np.testing.assert_allclose([state.arm.beta, state.arm.lambda_], [0.3, 0.5], rtol=1e-6)
    assert step._cache_size() == 1 and int(state.step) == 4


def test_thresholds_follow_the_clean_rows_in_the_step(made):
    trainable, frozen, batch = made
    batch = batch | {"has_picture": jnp.arange(B) < 4}
    still = Controller(0.2, Knob(0.1, 0.1), Knob(0.01, 0.01), Knob(0.0, 0.0))
    sgd = optax.sgd(0.0)
    step = make_immunize_step(answer, MbatSettings("seed"), still, sgd, D)
    start = still.start(0.0, np.linspace(-0.5, 0.5, 8))
    state = CmaiState(**vars(init_state(trainable, sgd, 0)), arm=start)
    clean = answer(trainable, frozen, batch, (batch["pixels"], jnp.zeros((B, L, D)))).s_c[:4]
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(state.arm.clean.recent, np.tile(clean, 2), rtol=1e-5)
    assert (float(metrics["tau"]), float(metrics["tau_c"])) != (0.0, pytest.approx(0.2))
    assert step._cache_size() == 1


def test_thresholds_are_no_part_of_the_program(made):
    trainable, frozen, batch = made
    sgd, programs = optax.sgd(0.01), []
    for tau, tau_c in ((0.1, 0.2), (0.3, 0.4)):
        controller = Controller(tau_c, Knob(0.1, 0.3), Knob(0.01, 0.03), Knob(0.2, 0.5))
        step = make_immunize_step(answer, MbatSettings("both"), controller, sgd, D)
        start = controller.start(tau, np.linspace(0.0, 1.0, 16))
        state = CmaiState(**vars(init_state(trainable, sgd, 0)), arm=start)
        assert float(state.arm.tau) == pytest.approx(tau)
        programs.append(step.lower(state, frozen, batch).as_text())
    assert programs[0] == programs[1]


def test_training_against_the_attack_lowers_its_loss(made):
    trainable, frozen, batch = made
    fixed = Controller(-1e9, Knob(0.0, 0.0), Knob(0.05, 0.05), Knob(1.0, 1.0))
    adam = optax.adam(0.02)
    step = make_immunize_step(answer, MbatSettings("seed"), fixed, adam, D)
    state = CmaiState(**vars(init_state(trainable, adam, 0)), arm=fixed.start())
    losses = []
    for _ in range(60):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["adversarial_loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_prepared_is_read_by_all_and_what_is_beside_is_added(made):
    trainable, frozen, batch = made
    still = Controller(-1e9, Knob(0.0, 0.0), Knob(0.05, 0.05), Knob(0.0, 0.0))
    sgd = optax.sgd(1.0)

    def scaled(trainable, frozen, batch, inputs):
        answers = answer(trainable, frozen, batch, inputs)
        return Answers(batch["weight"] * answers.loss, answers.margin, answers.s_c, inputs[0])

    def prepare(trainable, frozen, batch):
        # It may look at what is trained, and no gradient goes through it.
        return batch | {"weight": 2.0 + jnp.abs(trainable["w"]).sum()}

    def beside(trainable, frozen, batch, key):
        value = batch["weight"] * (trainable["w"] ** 2).sum()
        moved = jnp.abs(batch["attacked"] - batch["pixels"]).max()
        # What was seen of the pictures in the same pass; here, the pictures.
        seen = jnp.abs(batch["h_v"] - batch["pixels"]).max()
        seen += jnp.abs(batch["attacked_h_v"] - batch["attacked"]).max()
        return value, {"apart": value, "moved": moved, "seen_otherwise": seen}

    def written(w):
        weight = 2.0 + jnp.abs(trainable["w"]).sum()
        inputs = (batch["pixels"], jnp.zeros((B, L, D)))
        own = answer({"w": w}, frozen, batch, inputs).loss.mean()
        return weight * own + weight * (w**2).sum()

    step = make_immunize_step(scaled, MbatSettings("seed"), still, sgd, D, prepare, beside)
    state = CmaiState(**vars(init_state(trainable, sgd, 0)), arm=still.start())
    after, metrics = step(state, frozen, batch)
    loss, slope = jax.value_and_grad(written)(trainable["w"])
    np.testing.assert_allclose(after.trainable["w"], trainable["w"] - slope, rtol=1e-4, atol=1e-4)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["moved"]) == pytest.approx(0.05, rel=1e-5)
    assert float(metrics["seen_otherwise"]) == 0
    assert {"apart", "clean_loss", "epsilon"} <= set(metrics)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"inner": "outer"}, "mbat.inner"),
        ({"perturb": "sound"}, "mbat.perturb"),
        ({"norm": "l1"}, "mbat.norm"),
        ({"outer": "mart"}, "mbat.outer"),
        ({"alpha": -1.0}, "mbat.alpha"),
        ({"evasion": float("nan")}, "mbat.evasion"),
        ({"steps": 0}, "mbat.steps"),
        ({"perturb": "text"}, "mbat.text_epsilon"),
        ({"perturb": "edits", "edits": 0}, "mbat.edits"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        MbatSettings(**wrong)

"""The consistency check: its scores, its loss, what it learns."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from crossguard_jax.cmai.answering import Answering
from crossguard_jax.cmai.consistency import (
    ConsistencyConfig,
    Heads,
    Verifier,
    make_check,
    pair_loss,
)
from crossguard_jax.cmai.noise import with_noise
from crossguard_jax.cmai.recipe import check_loss
from crossguard_jax.core.errors import UserError
from crossguard_jax.train.step import init_state, make_step

KINDS = pytest.mark.parametrize("kind", ["heads", "verifier"])


def check_of(kind, seed=0, d_v=10, d_t=6):
    return make_check(
        ConsistencyConfig(d_v, d_t, kind, shared_width=8, hidden_width=16), jax.random.key(seed)
    )


def features(n, seed=0, d_v=10, d_t=6, k=3):
    rng = np.random.default_rng(seed)
    shapes = {"h_v": (n, d_v), "h_t": (n, d_t), "wrong_v": (n, k, d_v), "wrong_t": (n, k, d_t)}
    pairs = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    negatives = rng.random((n, n)) < 0.7
    return {name: jnp.asarray(x) for name, x in pairs.items()} | {
        "negatives": jnp.asarray(negatives)
    }


@KINDS
def test_a_score_does_not_depend_on_its_neighbours(kind):
    check, pairs = check_of(kind), features(8)
    others = features(8, seed=1)
    mixed = [jnp.concatenate([pairs[k][:1], others[k][1:]]) for k in ("h_v", "h_t")]
    alone = jax.jit(lambda v, t: check(v, t))
    assert alone(pairs["h_v"], pairs["h_t"])[0] == alone(*mixed)[0]
    single = alone(pairs["h_v"][:1], pairs["h_t"][:1])
    np.testing.assert_allclose(single, alone(*mixed)[:1], rtol=1e-5)


def test_the_heads_score_is_the_cosine_of_the_projections():
    check, pairs = check_of("heads"), features(5)
    ours = check(pairs["h_v"], pairs["h_t"])

    def head(module, x):
        x = torch.tensor(np.asarray(x))
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
        for i, layer in enumerate((module.linear_1, module.linear_2)):
            x = x @ torch.tensor(np.asarray(layer.kernel[...])) + torch.tensor(
                np.asarray(layer.bias[...])
            )
            x = torch.nn.functional.gelu(x, approximate="tanh") if i == 0 else x
        return x

    sides = head(check.picture, pairs["h_v"]), head(check.text, pairs["h_t"])
    theirs = torch.nn.functional.cosine_similarity(*sides)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@KINDS
def test_scores_stay_in_their_range_whatever_the_features(kind):
    check = check_of(kind)
    for size in (0.0, 1.0, 1e6):
        pairs = features(20, seed=3)
        scores = np.asarray(check(pairs["h_v"] * size, pairs["h_t"] * size))
        low = -1.0 if kind == "heads" else 0.0
        assert np.isfinite(scores).all()
        assert (scores >= low - 1e-5).all() and (scores <= 1 + 1e-5).all()
        grad = jax.grad(lambda v, t: check(v, t).sum())(pairs["h_v"] * size, pairs["h_t"] * size)
        assert np.isfinite(np.asarray(grad)).all()


def all_logits(check, pairs):
    """Every logit of a batch one by one: own, text by picture, and with the given partners."""

    def one(h_v, h_t):
        return float(check.logits(check.see(h_v[None]), check.read(h_t[None]))[0])

    v, t, n = pairs["h_v"], pairs["h_t"], len(pairs["h_v"])
    grid = np.array([[one(v[j], t[i]) for j in range(n)] for i in range(n)])
    wrong_v = np.array([[one(w, t[i]) for w in pairs["wrong_v"][i]] for i in range(n)])
    wrong_t = np.array([[one(v[i], w) for w in pairs["wrong_t"][i]] for i in range(n)])
    return grid, wrong_v, wrong_t


@KINDS
def test_the_loss_is_torchs_cross_entropy_over_every_allowed_partner(kind):
    check, pairs = check_of(kind, seed=2), features(4, seed=2, k=2)
    loss, metrics = pair_loss(check, pairs)
    grid, wrong_v, wrong_t = all_logits(check, pairs)
    allowed = np.asarray(pairs["negatives"])
    terms, below = [], []
    for i in range(4):
        pictures = [grid[i, j] for j in range(4) if j != i and allowed[i, j]] + [*wrong_v[i]]
        texts = [grid[j, i] for j in range(4) if j != i and allowed[j, i]] + [*wrong_t[i]]
        for others in (pictures, texts):
            logits = torch.tensor([[grid[i, i], *others]])
            terms.append(torch.nn.functional.cross_entropy(logits, torch.tensor([0])).item())
            below += [x < grid[i, i] for x in others]
    info_nce = np.mean(terms)
    assert float(metrics["info_nce"]) == pytest.approx(info_nce, rel=1e-4)
    assert float(metrics["ranked"]) == pytest.approx(np.mean(below))
    if kind == "heads":
        assert float(loss) == pytest.approx(info_nce, rel=1e-4)
        return

    def logistic(x, y):
        x = torch.tensor(np.ravel(x))
        target = torch.full_like(x, y)
        return torch.nn.functional.binary_cross_entropy_with_logits(x, target).item()

    off = grid[allowed & ~np.eye(4, dtype=bool)]
    misaligned = np.mean([logistic(x, 0.0) for x in (off, wrong_v, wrong_t)])
    expected = info_nce + (logistic(np.diag(grid), 1.0) + misaligned) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@KINDS
def test_an_attacked_picture_is_held_against_its_own_alone(kind):
    check, pairs = check_of(kind, seed=3), features(4, seed=3)
    kept = jnp.array([True, True, False, True])
    plain = {name: pairs[name] for name in ("h_v", "h_t", "negatives")} | {"aligned": kept}
    attacked = pairs["wrong_v"][:, 0]
    (without, _), (loss, metrics) = (
        pair_loss(check, plain | x) for x in ({}, {"attacked_v": attacked})
    )
    grid, wrong_v, _ = all_logits(check, pairs)
    away = [grid[i, i] - wrong_v[i, 0] for i in range(4) if kept[i]]
    expected = torch.nn.functional.softplus(-torch.tensor(away)).mean().item()
    assert float(loss - without) == pytest.approx(expected, rel=1e-3)
    assert float(metrics["lowered"]) == pytest.approx(np.mean([x > 0 for x in away]))


@KINDS
def test_partners_that_may_be_aligned_push_nothing(kind):
    check, pairs = check_of(kind), features(5)
    none = {"h_v": pairs["h_v"], "h_t": pairs["h_t"], "negatives": jnp.zeros((5, 5), bool)}
    _, metrics = pair_loss(check, none)
    assert float(metrics["info_nce"]) == 0.0


@KINDS
def test_rows_that_are_no_pairs_count_for_nothing(kind):
    check, pairs = check_of(kind, seed=4), features(6, seed=4)
    kept = np.array([True, False, True, True, False, True])
    pairs = {name: pairs[name] for name in ("h_v", "h_t", "negatives")}
    masked = pairs["negatives"] & kept[:, None] & kept[None]
    marked = pairs | {"aligned": jnp.asarray(kept), "negatives": masked}
    alone = {name: x[kept] for name, x in pairs.items()}
    alone["negatives"] = alone["negatives"][:, kept]
    (loss, figures), (expected, theirs) = pair_loss(check, marked), pair_loss(check, alone)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, value in theirs.items():
        assert float(figures[name]) == pytest.approx(float(value), rel=1e-5), name
    nobody = marked | {"aligned": jnp.zeros(6, bool), "negatives": jnp.zeros((6, 6), bool)}
    assert float(pair_loss(check, nobody)[0]) == 0.0


def trained(kind, draw, steps, d_v, d_t):
    check = make_check(ConsistencyConfig(d_v, d_t, kind, 16, 32), jax.random.key(0))
    graphdef, state = nnx.split(check, graph=False)
    optimizer = optax.adam(5e-3)
    step = make_step(lambda t, _, batch, key: pair_loss(nnx.merge(graphdef, t), batch), optimizer)
    state = init_state(state, optimizer, 0)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        state, metrics = step(state, None, draw(rng))
    return nnx.merge(graphdef, state.trainable), metrics


@pytest.mark.training
@KINDS
def test_training_tells_aligned_from_misaligned_pairs_it_has_not_seen(kind):
    world = np.random.default_rng(1)
    to_v, to_t = world.normal(size=(4, 10)), world.normal(size=(4, 6))

    def draw(rng, n=32):
        meaning, other = rng.normal(size=(2, n, 4))
        pairs = {"h_v": meaning @ to_v, "h_t": meaning @ to_t, "wrong_t": (other @ to_t)[:, None]}
        return {name: jnp.asarray(x, jnp.float32) for name, x in pairs.items()}

    check, metrics = trained(kind, draw, 150, 10, 6)
    test = draw(np.random.default_rng(9), 400)
    aligned = np.asarray(check(test["h_v"], test["h_t"]))
    misaligned = np.asarray(check(test["h_v"], test["wrong_t"][:, 0]))
    assert (aligned[:, None] > misaligned).mean() > 0.95
    assert float(metrics["ranked"]) > 0.9
    if kind == "verifier":
        assert (aligned > 0.5).mean() > 0.8 and (misaligned < 0.5).mean() > 0.8


@pytest.mark.training
def test_the_verifiers_probability_is_the_true_one():
    """A text names one of four classes, a picture shows it with 70%: all odds are known."""
    codes = np.random.default_rng(0).normal(size=(4, 6))

    def draw(rng, n=64):
        said = rng.integers(4, size=n)
        shown = np.where(rng.random(n) < 0.7, said, rng.integers(4, size=n))
        rows = {"h_v": codes[shown], "h_t": codes[said]}
        return {name: jnp.asarray(x, jnp.float32) for name, x in rows.items()}

    check, _ = trained("verifier", draw, 400, 6, 6)
    said, shown = (x.ravel() for x in np.meshgrid(np.arange(4), np.arange(4)))
    ours = check(jnp.asarray(codes[shown], jnp.float32), jnp.asarray(codes[said], jnp.float32))
    # 70% and a quarter of the rest, against a quarter: the odds of aligned to misaligned.
    odds = np.where(said == shown, 0.7 + 0.3 / 4, 0.3 / 4) / 0.25
    np.testing.assert_allclose(ours, odds / (1 + odds), atol=0.12)


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "cosine"), ("text_source", "bert"), ("shared_width", 0), ("picture_width", -1)],
)
def test_a_bad_config_is_named(field, value):
    settings = {"picture_width": 4, "text_width": 4} | {field: value}
    with pytest.raises(UserError, match=f"cmcv.{field}"):
        ConsistencyConfig(**settings)


def test_the_kind_is_chosen_by_its_name():
    assert isinstance(check_of("heads"), Heads) and isinstance(check_of("verifier"), Verifier)


def watched(batches):
    """A task that keeps the batches it was asked about; h_v are its pictures' first numbers."""

    def pairs(trainable, frozen, batch, joint, adversarial):
        batches.append(batch)
        h_v = batch["pixels"].reshape(len(batch["pixels"]), -1)[:, :10]
        return {"h_v": h_v, "h_t": batch["h_t"]}

    return Mock(Answering, pairs=pairs, check=lambda trainable: check_of("heads"))


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_check_learns_through_the_noise_that_is_asked_for(noise):
    pictures, key = jnp.full((400, 3, 4, 4), 0.5), jax.random.key(0)
    batch = {
        **{"pixels": pictures, "attacked": pictures + 0.25},
        **{"h_v": jnp.ones((400, 10)), "attacked_h_v": jnp.ones((400, 10))},
        "h_t": features(400)["h_t"],
    }
    batches = []
    check_loss(watched(batches), joint=False, adversarial=True, noise=noise)(None, None, batch, key)
    (given,) = batches
    if not noise:
        assert given is batch
        return
    assert set(given) == {"pixels", "attacked", "h_t"}, "what was seen was seen without noise"
    added = np.asarray(given["pixels"] - pictures)
    np.testing.assert_allclose(given["attacked"] - given["pixels"], 0.25, atol=1e-6)
    deviations = added.reshape(400, -1).std(axis=1)
    assert deviations.min() < 0.02 and 0.15 < deviations.max() < 0.3
    assert abs(deviations.mean() - noise / 2) < 0.01
    again = with_noise(batch, key, noise)["pixels"]
    np.testing.assert_array_equal(again, given["pixels"])
    assert not np.array_equal(with_noise(batch, jax.random.key(1), noise)["pixels"], again)

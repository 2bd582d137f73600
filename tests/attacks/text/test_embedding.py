"""PGD on embeddings and on several inputs: PGD itself, closed forms, and what may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.joint import Part, joint_pgd
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.text.embedding import embedding_pgd
from crossguard_jax.core.errors import UserError
from tests.small_models import batch, llava, llava_config, on_device

B, L, D = 3, 5, 4
KEY = jax.random.key(0)
anywhere = functools.partial(Budget, low=-np.inf, high=np.inf)
attack = jax.jit(embedding_pgd, static_argnums=0, static_argnames=("per_token", "keep_best"))


def draw(seed=0):
    """Embeddings, which may change (one row: none), and slopes."""
    rng = np.random.default_rng(seed)
    mask = rng.random((B, L)) < 0.6
    mask[:, 1], mask[1:, 0] = True, False
    mask[0] = False
    x, slopes = rng.normal(size=(2, B, L, D)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(mask), jnp.asarray(slopes)


def linear(slopes):
    def objective(x, key):
        loss = (x * slopes).sum((1, 2))
        return Outcome(loss, loss - 1e9)

    return objective


def curved(x, key):
    loss = jnp.sin(3 * x).sum((1, 2)) + (x[:, 0] * x[:, 1]).sum(1)
    return Outcome(loss, loss - 1e9)


def sizes(x, norm, axes):
    return abs(x).max(axes) if norm == "linf" else jnp.sqrt((x * x).sum(axes))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_mask_and_start_it_is_pgd(norm):
    x, _, _ = draw()
    budget = anywhere(np.array([0.1, 0.5, 2.0]), norm=norm, steps=7, random_start=False)
    wanted = jax.jit(pgd, static_argnums=0)(curved, x, KEY, budget)
    found = attack(curved, x, KEY, budget)
    np.testing.assert_allclose(found.x_adv, wanted.x_adv, atol=1e-6)
    np.testing.assert_allclose(found.loss, wanted.loss, atol=1e-5)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_loss_is_raised_to_its_maximum_in_the_ball_of_what_may_change(norm, per_token):
    x, mask, slopes = draw(1)
    epsilon = np.array([0.3, 0.1, 2.0])
    budget = anywhere(epsilon, norm=norm, steps=30, relative_step=1.0, restarts=2)
    found = attack(linear(slopes), x, KEY, budget, mask, per_token=per_token)
    free = slopes * mask[..., None]
    if norm == "linf":
        gain = abs(free).sum((1, 2))
    elif per_token:
        gain = sizes(free, "l2", 2).sum(1)
    else:
        gain = sizes(free, "l2", (1, 2))
    clean = linear(slopes)(x, KEY).loss
    np.testing.assert_allclose(found.loss, clean + epsilon * gain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_may_not_change_does_not_and_the_rest_stays_in_its_ball(norm, per_token, keep_best):
    x, mask, _ = draw(2)
    epsilon = jnp.array([0.3, 0.0, 2.0])
    budget = anywhere(epsilon, norm=norm, steps=5, restarts=2)
    found = attack(curved, x, KEY, budget, mask, per_token=per_token, keep_best=keep_best)
    delta = found.x_adv - x
    assert not delta[~mask].any()
    size = sizes(delta, norm, 2 if per_token else (1, 2))
    radius = epsilon[:, None] if per_token else epsilon
    assert (size <= radius + 1e-5).all()
    assert size[2].max() > 0.5
    np.testing.assert_allclose(found.loss, curved(found.x_adv, KEY).loss, atol=1e-4)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_spread_evenly_over_the_ball_of_what_may_change(norm, per_token):
    """A flat loss keeps the first point; radius to the power of the dimensions is uniform."""
    n = 400

    def flat(x, key):
        return Outcome(0 * x.sum((1, 2)), -jnp.ones(n))

    mask = jnp.zeros((n, L), bool).at[:, 1:3].set(True)
    x = jnp.zeros((n, L, D))
    budget = anywhere(0.5, norm=norm, steps=1, relative_step=0.001)
    found = attack(flat, x, KEY, budget, mask, per_token=per_token).x_adv[:, 1:3]
    size = sizes(found, norm, 2).ravel() if per_token else sizes(found, norm, (1, 2))
    share = (size / 0.5) ** (D if per_token else 2 * D)
    assert abs(share.mean() - 0.5) < 0.05 and abs(share.std() - 12**-0.5) < 0.03
    assert abs(found.mean()) < 0.02


def test_restarts_and_the_best_so_far_are_worth_having():
    x, mask, _ = draw(4)
    run = functools.partial(attack, curved, x, KEY, mask=mask)
    wild = {"norm": "linf", "steps": 6, "relative_step": 1.7}
    best = run(budget=anywhere(1.5, **wild)).loss
    last = run(budget=anywhere(1.5, **wild), keep_best=False).loss
    assert (best >= last - 1e-5).all() and (best > last + 1e-2).any()
    more = run(budget=anywhere(1.5, restarts=8, **wild)).loss
    assert (more[1:] > best[1:] + 1e-3).any()


def picture_and_text():
    """A LLaVA's loss of pixels in [0, 1] and of the text's embeddings beside the picture's."""
    config = llava_config()
    rows = on_device(batch(config, n=B))
    ids, seen = rows["input_ids"], rows["attention_mask"].astype(bool)
    here = (ids == config.image_token_id)[..., None]
    embeddings = llava(2).language_model.embed_tokens(jnp.where(here[..., 0], 0, ids))
    last = seen.sum(1) - 1

    def objective(model, inputs, key):
        pixels, text = inputs
        x = jnp.where(here, model.embed(ids, 4 * pixels - 2), text)
        logits = model.language_model.head(model.language_model.hidden(x, seen, last=last))
        loss = -jax.nn.log_softmax(logits[:, 0])[:, 9]
        return Outcome(loss, loss - 1e9)

    pixels = jax.nn.sigmoid(rows["pixel_values"])
    return objective, (pixels, embeddings), seen & ~here[..., 0]


@pytest.mark.robustness
def test_picture_and_text_are_attacked_together_each_in_its_ball():
    objective, inputs, mask = picture_and_text()
    picture = Part(Budget(0.05, steps=6))
    text = Part(anywhere(0.5, norm="l2", steps=6), mask)
    still = Part(Budget(0.0, steps=6)), Part(anywhere(0.0, norm="l2", steps=6), mask)

    @jax.jit
    def compiled(model, parts):
        of = functools.partial(objective, model)
        result = joint_pgd(of, inputs, KEY, parts)
        return result, of(result.x_adv, KEY).loss

    run = functools.partial(compiled, llava(2))
    found, again = run((picture, text))
    np.testing.assert_allclose(found.loss, again, atol=1e-5)
    pixels, embeddings = found.x_adv
    assert abs(pixels - inputs[0]).max() <= 0.05 + 1e-6
    assert pixels.min() >= 0 and pixels.max() <= 1
    delta = embeddings - inputs[1]
    assert not delta[~mask].any() and sizes(delta, "l2", (1, 2)).max() <= 0.5 + 1e-5
    clean, *alone = (run(parts)[0].loss for parts in (still, (picture, still[1]), (still[0], text)))
    for loss in alone:
        assert (clean + 1e-3 < loss).all() and (loss + 1e-3 < found.loss).all()


def test_alternating_moves_one_part_at_a_time():
    x, _, slopes = draw(5)

    def objective(inputs, key):
        loss = sum((one * slopes).sum((1, 2)) for one in inputs)
        return Outcome(loss, loss - 1e9)

    part = Part(anywhere(1.0, steps=3, relative_step=0.25, random_start=False))
    for alternate, quarters in ((True, (2, 1)), (False, (3, 3))):
        found = joint_pgd(objective, (x, x), KEY, (part, part), alternate=alternate)
        for x_adv, n in zip(found.x_adv, quarters, strict=True):
            np.testing.assert_allclose(x_adv - x, n / 4 * jnp.sign(slopes), atol=1e-5)


def test_a_success_is_kept_and_a_caught_one_is_none():
    x, _, slopes = draw(6)

    def objective(x, key):
        loss = (x * slopes).sum((1, 2))
        low = jnp.array([0.0, 1e9, 0.0])
        return Outcome(loss, -loss - low + 1e3, jnp.array([-1.0, -1.0, 1.0]))

    found = attack(objective, x, KEY, anywhere(0.5, steps=3))
    assert list(found.success) == [True, False, False]
    assert list(found.rejected) == [False, False, True]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"inputs": 1}, "2 parts for 1 inputs"),
        ({"steps": 3}, r"budget.steps are \[3, 10\]"),
        ({"mask": (3, 9)}, r"mask 0 is \[3, 9\] for an input of \[3, 5, 4\]"),
        ({"rows": 2}, "input 1 has 2 rows and input 0 3"),
        ({"flat": True}, r"input 1 is \[3, 20\]; per_token needs"),
        ({"high": 0.0}, "x runs from"),
    ],
)
def test_what_does_not_fit_is_said(change, says):
    x, _, _ = draw()
    first = anywhere(1.0, steps=change.get("steps", 10))
    second = anywhere(1.0) if "high" not in change else Budget(0.5, low=-1.0, high=0.0)
    mask = jnp.ones(change["mask"], bool) if "mask" in change else None
    other = x.reshape(B, -1) if "flat" in change else x[: change.get("rows", B)]
    parts = Part(first, mask), Part(second, per_token="flat" in change)
    with pytest.raises(UserError, match=says):
        joint_pgd(
            lambda inputs, key: curved(inputs[0], key), (x, other)[: change.get("inputs", 2)],
            KEY, parts,
        )  # fmt: skip

"""GCG on a small Llama: a slow loop over all substitutions, and what a text must come back as."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.attacks.text.gcg import GcgBudget, gcg, retokenizes
from crossguard_jax.core.errors import UserError
from crossguard_jax.nn import prefix
from crossguard_jax.nn.llama import Llama
from tests.small_models import filled, llava_config

B, L, V = 2, 3, 64
LABEL = 9
everything = GcgBudget(steps=1, candidates=L * V, top_k=V)


@pytest.fixture(scope="module")
def small():
    config = llava_config().text
    return filled(jax.eval_shape(lambda: Llama(config, jax.random.key(0))), 0)


def draw(seed):
    """Prompts, what follows the suffix, and a suffix."""
    rng = np.random.default_rng(seed)
    return (rng.integers(4, V, shape).astype(np.int32) for shape in ((B, 6), (B, 2), (B, L)))


def outcome(logits):
    """The label's log-probability, and whether it is the likeliest token."""
    loss = jax.nn.log_softmax(logits)[..., LABEL]
    return Outcome(loss, loss - jax.nn.log_softmax(logits).max(-1) + 1e-6)


@jax.jit
def full(model, prompt, ids, tail):
    """By the whole text, nothing cached."""
    return outcome(model(jnp.concatenate([prompt, ids, tail], axis=1))[:, -1])


@jax.jit
def fill(model, prompt):
    mask = jnp.ones(prompt.shape, bool)
    return model.prefill(model.embed_tokens(prompt), mask, prompt.shape[1])[1]


@jax.jit
def by_gradient(model, cache, tail, ids):
    def loss(x):
        x = jnp.concatenate([x, model.embed_tokens(tail)], axis=1)
        return outcome(model.head(prefix.hidden(model, cache, x)[:, -1:])[:, 0]).loss

    return prefix.one_hot_gradient(model, ids, loss)


@jax.jit
def by_cache(model, cache, tail, candidates):
    n = candidates.shape[1]
    ids = jnp.concatenate([candidates, jnp.repeat(tail[:, None], n, axis=1)], axis=2)
    last = jnp.full(B, ids.shape[2] - 1)
    return outcome(prefix.last_logits(model, cache, ids, last, chunk=64))


def callables(model, prompt, tail):
    cache = fill(model, jnp.asarray(prompt))
    return (
        lambda ids, key: by_gradient(model, cache, tail, ids),
        lambda candidates, key: by_cache(model, cache, tail, candidates),
    )


def naive(model, prompt, ids, tail, allowed):
    """The best of all texts that differ in one token, one after the other."""
    best, found = np.full(B, -np.inf), ids.copy()
    for place in range(L):
        for token in np.flatnonzero(allowed):
            tried = ids.copy()
            tried[:, place] = token
            loss = np.asarray(full(model, prompt, tried, tail).loss)
            wins = (loss > best) & (ids[:, place] != token)
            best, found = np.where(wins, loss, best), np.where(wins[:, None], tried, found)
    return best, found


@pytest.mark.parametrize("seed", range(2))
def test_evaluating_everything_finds_what_a_slow_loop_finds(small, seed):
    prompt, tail, ids = draw(seed)
    allowed = np.random.default_rng(seed).random(V) < 0.7
    result = gcg(
        *callables(small, prompt, tail), ids, jax.random.key(seed), everything, forbidden=~allowed
    )
    loss, wanted = naive(small, prompt, ids, tail, allowed)
    assert np.array_equal(result.x_adv, wanted)
    np.testing.assert_allclose(result.loss, loss, atol=1e-5)


def test_a_search_follows_the_gradient_and_its_loss_is_that_of_the_whole_text(small):
    prompt, tail, ids = draw(3)
    run = functools.partial(gcg, *callables(small, prompt, tail), ids, jax.random.key(1))
    result = run(GcgBudget(steps=8, candidates=24, top_k=8))
    again = full(small, prompt, result.x_adv, tail)
    np.testing.assert_allclose(result.loss, again.loss, atol=1e-5)
    assert np.array_equal(result.success, again.success)
    assert np.all(result.loss > full(small, prompt, ids, tail).loss + 0.5)
    few = run(GcgBudget(steps=2, candidates=24, top_k=8))
    assert np.all(few.success | (result.loss >= few.loss)), "the best so far is kept"


def separable(weights):
    """A loss that is a sum over places: its gradient by one-hot vectors is exact."""

    def evaluate(candidates, key):
        loss = jnp.take_along_axis(weights[:, None], candidates[..., None], axis=3)[..., 0].sum(-1)
        return Outcome(loss, loss - 1e9)

    return lambda ids, key: weights, evaluate


def test_the_steepest_token_of_each_place_is_found_in_as_many_steps_as_places():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(4, 5, 30)))
    ids = rng.integers(0, 30, (4, 5))
    budget = GcgBudget(steps=5, candidates=5, top_k=1)
    result = gcg(*separable(weights), ids, jax.random.key(0), budget)
    assert np.array_equal(result.x_adv, weights.argmax(-1))


def test_places_that_may_not_change_stay_and_forbidden_tokens_do_not_come():
    rng = np.random.default_rng(1)
    weights, ids = jnp.asarray(rng.normal(size=(6, 5, 30))), rng.integers(0, 30, (6, 5))
    places, forbidden = rng.random((6, 5)) < 0.5, rng.random(30) < 0.5
    places[0] = False
    seen = []
    gradient, evaluate = separable(weights)

    def watched(candidates, key):
        seen.append(np.asarray(candidates))
        return evaluate(candidates, key)

    result = gcg(
        gradient,
        watched,
        ids,
        jax.random.key(0),
        GcgBudget(steps=6, candidates=40, top_k=12),
        forbidden=forbidden,
        places=places,
    )
    changed = result.x_adv != ids
    assert changed.any(axis=1)[1:].any() and not changed[~places].any()
    assert not forbidden[result.x_adv[changed]].any()
    assert {candidates.shape for candidates in seen} == {(6, 40, 5)}, "one shape to compile"
    for candidates in seen:
        assert not forbidden[candidates[(candidates != ids[:, None])]].any()


def toy_tokenizer():
    """Byte pairs that merge: most strings of tokens come back as others."""
    letters = {letter: i for i, letter in enumerate("abcdefgh")}
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("e", "f"), ("b", "c"), ("g", "h")]
    vocab = letters | {a + b: len(letters) + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@pytest.mark.parametrize("seed", range(3))
def test_every_text_that_is_evaluated_comes_back_as_its_tokens(seed):
    tokenizer, rng = toy_tokenizer(), np.random.default_rng(seed)
    weights, ids = jnp.asarray(rng.normal(size=(4, 6, 14))), np.tile([7, 5, 3, 7, 5, 3], (4, 1))
    keep = retokenizes(
        tokenizer.decode_batch, lambda texts: [e.ids for e in tokenizer.encode_batch(texts)]
    )
    gradient, evaluate = separable(weights)
    seen = []

    def watched(candidates, key):
        seen.append(np.asarray(candidates).reshape(-1, 6))
        return evaluate(candidates, key)

    run = functools.partial(gcg, gradient, watched, ids, jax.random.key(seed), GcgBudget(4, 20, 14))
    result = run(keep=keep)
    for row in [*np.concatenate(seen), *result.x_adv]:
        assert tokenizer.encode(tokenizer.decode(row.tolist())).ids == row.tolist()
    assert (result.x_adv != ids).any(axis=1).all()
    assert len(np.unique(seen[0][:20], axis=0)) == 20, "what was dropped is made up for"
    seen.clear()
    run()
    assert not keep(np.concatenate(seen)).all(), "without the filter some do not"


def test_tokens_to_begin_with_must_come_back_too():
    tokenizer = toy_tokenizer()
    keep = retokenizes(
        tokenizer.decode_batch, lambda texts: [e.ids for e in tokenizer.encode_batch(texts)]
    )
    with pytest.raises(UserError, match="row 1 of the ids"):
        gcg(
            *separable(jnp.zeros((2, 2, 14))),
            np.array([[7, 5], [0, 1]]),
            jax.random.key(0),
            everything,
            keep=keep,
        )


def test_a_row_that_succeeds_keeps_its_first_success_and_all_succeeding_ends_the_search():
    rng = np.random.default_rng(2)
    weights, ids = jnp.asarray(rng.normal(size=(3, 5, 30))), rng.integers(0, 30, (3, 5))
    gradient, evaluate = separable(weights)
    steps = []

    def run(bars, detector=None):
        steps.clear()

        def barred(candidates, key):
            steps.append(1)
            loss = evaluate(candidates, key).loss
            caught = None if detector is None else jnp.full(loss.shape, detector)
            return Outcome(loss, loss - jnp.asarray(bars)[:, None], caught)

        return gcg(gradient, barred, ids, jax.random.key(0), GcgBudget(5, 5, 1))

    far = run([1e9] * 3)
    first = run([-1e9] * 3)
    assert len(steps) == 2 and first.success.all()
    mixed = run([-1e9, 1e9, -1e9])
    assert np.array_equal(mixed.x_adv[[0, 2]], first.x_adv[[0, 2]])
    assert np.array_equal(mixed.x_adv[1], far.x_adv[1])
    assert list(mixed.success) == [True, False, True]
    caught = run([-1e9] * 3, detector=1.0)
    assert len(steps) == 6 and not caught.success.any() and caught.rejected.all()


def test_a_success_counts_more_than_a_greater_loss():
    ids = np.zeros((1, 1), int)

    def evaluate(candidates, key):
        token = candidates[..., 0]
        return Outcome(token.astype(jnp.float32), jnp.where(token == 2, 1.0, -1.0))

    result = gcg(
        lambda ids, key: jnp.zeros((1, 1, 8)), evaluate, ids, jax.random.key(0), GcgBudget(3, 8, 8)
    )
    assert result.x_adv[0, 0] == 2 and result.success[0]


def test_a_row_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(3)
    weights, ids = rng.normal(size=(3, 5, 30)), rng.integers(0, 30, (3, 5))
    budget = GcgBudget(steps=4, candidates=4, top_k=20)
    one = gcg(*separable(jnp.asarray(weights)), ids, jax.random.key(5), budget)
    weights[[0, 2]], ids[[0, 2]] = -weights[[0, 2]], ids[[2, 0]]
    two = gcg(*separable(jnp.asarray(weights)), ids, jax.random.key(5), budget)
    assert np.array_equal(one.x_adv[1], two.x_adv[1])
    other = gcg(*separable(jnp.asarray(weights)), ids, jax.random.key(6), budget)
    assert not np.array_equal(two.x_adv, other.x_adv), "the key draws"


def test_the_luckiest_draw_is_not_what_is_reported():
    def evaluate(candidates, key):
        loss = jax.random.normal(key, candidates.shape[:2])
        return Outcome(loss, loss - 1e9)

    ids = np.zeros((64, 2), int)
    result = gcg(
        lambda ids, key: jnp.zeros((64, 2, 30)),
        evaluate,
        ids,
        jax.random.key(0),
        GcgBudget(2, 20, 30),
    )
    assert abs(result.loss.mean()) < 0.5


def test_losses_that_are_no_numbers_never_win():
    def evaluate(candidates, key):
        token = candidates[..., 0]
        loss = jnp.where(token == 3, jnp.nan, -token.astype(jnp.float32))
        return Outcome(loss, jnp.where(token == 3, 1.0, -1.0))

    result = gcg(
        lambda ids, key: jnp.zeros((1, 1, 8)),
        evaluate,
        np.zeros((1, 1), int),
        jax.random.key(0),
        GcgBudget(1, 8, 8),
    )
    assert result.x_adv[0, 0] == 1 and not result.success[0]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"steps": 0}, "gcg.steps 0: a whole number"),
        ({"candidates": True}, "gcg.candidates True"),
        ({"places": np.ones((2, 9), bool)}, r"places \[2, 9\] for ids of \[2, 3\]"),
        ({"forbidden": np.ones(9, bool)}, r"forbidden \[9\] for 30 tokens"),
        ({"gradient": lambda ids, key: jnp.zeros((2, 9, 30))}, r"gradient \[2, 9, 30\] for ids"),
        ({"evaluate": lambda c, key: Outcome(jnp.zeros(2), jnp.zeros(2))}, r"loss is \[2\] for"),
    ],
)
def test_what_does_not_fit_is_said(changes, says):
    gradient, evaluate = separable(jnp.zeros((2, 3, 30)))
    spend = {"steps": 2, "candidates": 4, "top_k": 4}
    given = {"gradient": gradient, "evaluate": evaluate, "places": None, "forbidden": None}
    given |= {k: v for k, v in changes.items() if k in given}
    with pytest.raises(UserError, match=says):
        gcg(
            ids=np.zeros((2, 3), int),
            key=jax.random.key(0),
            budget=GcgBudget(**{k: changes.get(k, v) for k, v in spend.items()}),
            **given,
        )

"""Greedy coordinate gradient search over tokens (GCG, Zou et al., arXiv 2307.15043).

A step takes the gradient of the loss by the tokens' one-hot vectors, draws single substitutions
among each place's ``top_k`` most promising tokens, evaluates them all, and goes on from the best.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import search
from crossguard_jax.attacks.problem import AttackResult, Outcome
from crossguard_jax.attacks.text.ranking import ranked
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Int, PRNGKeyArray

Ids = Int[Array, "B L"] | Int[np.ndarray, "B L"]
Flags = Bool[Array, "..."] | Bool[np.ndarray, "..."]

Gradient = Callable[[Array, PRNGKeyArray], Array]
"""``gradient(ids [B, L], key) -> [B, L, V]``: of a row's loss, by its tokens' one-hot vectors."""

Evaluate = Callable[[Array, PRNGKeyArray], Outcome]
"""``evaluate(candidates [B, K, L], key) -> Outcome`` of [B, K] fields."""

Filter = Callable[[np.ndarray], Sequence[bool] | np.ndarray]
"""``keep(candidates [n, L]) -> [n]``: which of them may be used."""


@dataclass(frozen=True)
class GcgBudget:
    """What a search may spend.

    Attributes:
        steps: substitutions in a row; one gradient and ``candidates`` evaluations each.
        candidates: substitutions evaluated for each row and step, drawn without replacement; at
            least as many as there are (places x ``top_k``) evaluates them all.
        top_k: tokens considered for each place.

    Raises:
        UserError: a value that is no budget.
    """

    steps: int = 100
    candidates: int = 256
    top_k: int = 256

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"gcg.{name} {value!r}: a whole number above 0")


def retokenizes(
    decode: Callable[[list[list[int]]], Sequence[str]],
    encode: Callable[[list[str]], Sequence[Sequence[int]]],
) -> Filter:
    """A filter of tokens that come back when their text is tokenized: all others no user can type.

    Args:
        decode: texts of a list of token lists. Where tokens may merge with the prompt around
            them, let it put that around them and ``encode`` take it off.
        encode: token lists of a list of texts.
    """

    def keep(candidates: np.ndarray) -> np.ndarray:
        ids = candidates.tolist()
        round_trip = encode(list(decode(ids)))
        return np.array([list(a) == b for a, b in zip(round_trip, ids, strict=True)], bool)

    return keep


def gcg(
    gradient: Gradient,
    evaluate: Evaluate,
    ids: Ids,
    key: PRNGKeyArray,
    budget: GcgBudget,
    *,
    forbidden: Flags | None = None,
    places: Flags | None = None,
    keep: Filter | None = None,
) -> AttackResult:
    """Searches tokens that raise the loss, for a batch of prompts; a loop on the host.

    A row that succeeds keeps what it has; the search ends when all rows have. What it returns is
    judged under a key that the search has not seen. The callables see the same shapes in every
    step, so jitted ones compile once.

    Args:
        gradient: usually jitted, the prompt before the tokens cached.
        evaluate: likewise.
        ids: where the search begins.
        key: for the draws, and for whatever is random in the model. A row's draws do not depend
            on the other rows.
        budget: steps and candidates.
        forbidden: tokens never put in, [V] bool: special, or not printable.
        places: which tokens may change, [L] or [B, L] bool; None: all.
        keep: see `retokenizes`; ``ids`` itself must pass.

    Returns:
        The result; its ``x_adv`` are tokens, [B, L]. A row that has no candidate at all, or whose
        candidates all fail to be a number, keeps its ids.

    Raises:
        UserError: ids or masks do not fit, or ``ids`` does not pass ``keep``.
    """
    current = np.asarray(ids, np.int32)
    free = _places(places, current)
    _check_start(keep, current)
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    nothing = np.zeros(len(current), bool)
    best = AttackResult(current, np.full(len(current), -np.inf, np.float32), nothing, nothing)
    for step in range(budget.steps):
        grad_key, value_key = jax.random.split(jax.random.fold_in(key, step))
        grads = gradient(jnp.asarray(current), grad_key)
        pairs = _promising(grads, current, free, forbidden, budget.top_k)
        for row, some in enumerate(pairs):
            order = np.random.default_rng([*seed, step, row]).permutation(len(some))
            pairs[row] = some[order] if not best.success[row] else some[:0]
        candidates = _candidates(current, pairs, keep, budget.candidates)
        result = _best_of(candidates, evaluate(jnp.asarray(candidates), value_key))
        best = jax.tree.map(np.asarray, search.better(result, best))
        if best.success.all():
            break
        # A search that only ever climbed would end at the first local optimum.
        current = np.where(best.success[:, None], best.x_adv, result.x_adv)
    same = np.repeat(best.x_adv[:, None], budget.candidates, axis=1)  # no shape is new to a model
    judged = evaluate(jnp.asarray(same), jax.random.fold_in(key, budget.steps))
    # One of them, not the luckiest.
    return AttackResult(best.x_adv, *(f[:, 0] for f in ranked(judged, same.shape[:2])))


def _places(places: Flags | None, ids: np.ndarray) -> np.ndarray:
    """Which tokens may change, [B, L]."""
    if places is None:
        return np.ones(ids.shape, bool)
    if np.shape(places) not in (ids.shape, ids.shape[1:]):
        raise UserError(f"gcg: places {list(np.shape(places))} for ids of {list(ids.shape)}")
    return np.broadcast_to(np.asarray(places), ids.shape)


def _check_start(keep: Filter | None, ids: np.ndarray) -> None:
    if keep is not None and not np.all(passed := np.asarray(keep(ids), bool)):
        raise UserError(
            f"gcg: row {int(np.argmin(passed))} of the ids does not pass keep; begin with tokens "
            "that come back from their text"
        )


def _promising(
    grads: Array, ids: np.ndarray, free: np.ndarray, forbidden: Flags | None, k: int
) -> list[np.ndarray]:
    """Each row's substitutions that may be drawn: pairs of place and token, [n, 2]."""
    n_tokens = grads.shape[-1]
    if grads.shape != (*ids.shape, n_tokens):
        raise UserError(f"gcg: gradient {list(grads.shape)} for ids of {list(ids.shape)}")
    if forbidden is None:
        forbidden = np.zeros(n_tokens, bool)
    if np.shape(forbidden) != (n_tokens,):
        raise UserError(f"gcg: forbidden {list(np.shape(forbidden))} for {n_tokens} tokens")
    values, tokens = _top(grads, ids, np.asarray(forbidden), min(k, n_tokens))
    usable = (np.asarray(values) > -np.inf) & free[..., None]
    tokens = np.asarray(tokens)
    return [
        np.stack([np.nonzero(here)[0], some[here]], axis=1)
        for here, some in zip(usable, tokens, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="k")
def _top(grads: Array, ids: Array, forbidden: Array, k: int) -> tuple[Array, Array]:
    """Of each place the steepest tokens, the one that is there not among them."""
    there = jnp.arange(grads.shape[-1]) == ids[..., None]
    values, tokens = jax.lax.top_k(jnp.where(forbidden | there, -jnp.inf, grads), k)
    return values, tokens


def _candidates(
    ids: np.ndarray, pairs: list[np.ndarray], keep: Filter | None, n: int
) -> np.ndarray:
    """The first ``n`` substitutions of each row that pass, made, [B, n, L].

    A row with fewer repeats them; one with none has its ids.
    """
    accepted = [ids[:0] for _ in ids]
    while True:
        drawn = [some[: n - len(done)] for some, done in zip(pairs, accepted, strict=True)]
        pairs = [some[len(now) :] for some, now in zip(pairs, drawn, strict=True)]
        rows = np.repeat(np.arange(len(ids)), [len(now) for now in drawn])
        if not rows.size:
            break
        trial, changes = ids[rows], np.concatenate(drawn)
        trial[np.arange(len(rows)), changes[:, 0]] = changes[:, 1]
        fine = np.ones(len(rows), bool) if keep is None else np.asarray(keep(trial), bool)
        accepted = [
            np.concatenate([done, trial[fine & (rows == row)]]) for row, done in enumerate(accepted)
        ]
    return np.stack(
        [
            np.resize(done if len(done) else own, (n, ids.shape[1]))
            for done, own in zip(accepted, ids, strict=True)
        ]
    )


def _best_of(candidates: np.ndarray, outcome: Outcome) -> AttackResult:
    """Of each row's candidates the best."""
    scores = ranked(outcome, candidates.shape[:2])
    rows, at = np.arange(len(candidates)), scores.order()[:, -1]
    return AttackResult(candidates[rows, at], *(field[rows, at] for field in scores))

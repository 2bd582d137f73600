"""A text attack's evaluation of candidates: behind a cached prompt against the full forward.

A step of GCG evaluates a hundred suffixes behind one system prompt, picture and question. Both
sides read the picture by the tower once, take the two labels' columns of the head alone, and run
as many candidates at a time; the prompt's pass through the language model counts on our side too,
though a search pays it once and not each step.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array
from crossguard_jax.evals.bench import guard
from crossguard_jax.evals.bench.attacks_parts import (
    BEFORE,
    compared,
    compiled,
    medians,
    normalized,
    picture,
    reading,
    ready,
    seeing,
)
from crossguard_jax.evals.bench.timing import interleave
from crossguard_jax.nn import prefix
from crossguard_jax.nn.llava import Llava

PROMPT = 200  # tokens before the suffix, the picture's among them
SUFFIX = 24  # 20 that are searched, GCG's own number, and what closes the turn
CHUNK = 16  # candidates at a time
PATCHES = 12  # along a side: 144 picture tokens
TOLERANCE = 1e-4  # of the greatest logit


def shorter(model: Llava) -> Llava:
    """The model on pictures of 144 tokens, new and random."""
    vision = replace(model.config.vision, image_size=PATCHES * model.config.vision.patch_size)
    return Llava(replace(model.config, vision=vision), jax.random.key(0))


def full(model: Llava, x: Array, prompt: Array, candidates: Array) -> Array:
    """Logits [N, 2] of each candidate [N, T], read with the whole prompt [1, L] before it."""
    features = model.image_features(normalized(x))

    def one(candidate: Array) -> Array:
        ids = jnp.concatenate([prompt, candidate[None]], axis=1)
        embedded, mask = model.place(ids, features), jnp.ones(ids.shape, bool)
        return model.read(embedded, mask, jnp.asarray(guard.LABELS))[0]

    return jax.lax.map(one, candidates, batch_size=CHUNK)


def cached(model: Llava, x: Array, prompt: Array, candidates: Array) -> Array:
    """The same, the prompt read once."""
    language, n = model.language_model, prompt.shape[1]
    before = model.place(prompt, model.image_features(normalized(x)))
    _, cache = language.prefill(before, jnp.ones((1, n), bool), n)
    last = jnp.full(1, candidates.shape[1] - 1)
    columns = jnp.asarray(guard.LABELS)
    return prefix.last_logits(language, cache, candidates[None], last, columns, chunk=CHUNK)[0]


def candidates_behind_prefix(model: Llava, n: int, runs: int) -> dict[str, Any]:
    """Seconds of evaluating ``n`` candidates, by both ways.

    Args:
        model: the model; its picture must fit into `PROMPT`.
        n: candidates.
        runs: counted rounds.

    Raises:
        UserError: the logits differ.
    """
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 31_000, (1, PROMPT)).astype(np.int32)
    prompt[:, BEFORE : BEFORE + model.config.tokens_per_image] = model.config.image_token_id
    candidates = rng.integers(3, 31_000, (n, SUFFIX)).astype(np.int32)
    arguments = model, *map(jnp.asarray, (picture(model), prompt, candidates))
    sides: dict[str, Callable[[], Any]] = {}
    compile_seconds = {}
    for name, function in (("full", full), ("cached", cached)):
        program, compile_seconds[name] = compiled(jax.jit(function), *arguments)
        sides[name] = partial(ready, program, *arguments)
    wanted, found = (np.asarray(sides[name]()) for name in ("full", "cached"))
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not error < TOLERANCE:
        raise UserError(f"text attack: logits behind the cached prompt are off by {error:.1e}")
    timed = interleave(sides, runs, "text attack")
    works = {
        "full": seeing(model, 1) + reading(model, n, PROMPT + SUFFIX),
        "cached": seeing(model, 1) + reading(model, 1, PROMPT) + reading(model, n, SUFFIX, PROMPT),
    }
    return {
        "ratio": compared(timed, "full", "cached"),
        "seconds": medians(timed),
        "compile_seconds": compile_seconds,
        "largest_error": error,
        "gflop": {name: work.forward / 1e9 for name, work in works.items()},
        "ratio_of_flops": works["full"].forward / works["cached"].forward,
        "candidates": n,
        "tokens": {"prompt": PROMPT, "suffix": SUFFIX},
        "runs": runs,
    }

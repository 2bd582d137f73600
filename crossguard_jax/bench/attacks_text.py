"""A text attack's evaluation of candidates: behind a cached prompt against the full forward.

A step of GCG evaluates a hundred suffixes behind one system prompt, picture and question. Both
sides read the picture by the tower once, take the two labels' columns of the head alone, and run
as many candidates at a time as suits them best. A search's first step reads the prompt
(``cached``), all others find it read (``later``).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.bench.attacks_parts import compiled, normalized, picture, ready
from crossguard_jax.bench.base import BEFORE, LABELS, reading, seeing
from crossguard_jax.bench.results import Comparison, compared, gflop_text, medians, table
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.timing import interleave, matmul_side
from crossguard_jax.core.typing import Array
from crossguard_jax.io.progress import rounds
from crossguard_jax.nn import prefix
from crossguard_jax.nn.llama import Cache
from crossguard_jax.nn.llava import Llava

PROMPT = 200  # tokens before the suffix, the picture's among them
SUFFIX = 24  # 20 that are searched, GCG's own number, and what closes the turn
CHUNKS = {"full": 4, "cached": 64}
"""Candidates at a time, each side's best on two cores: what fits into its caches."""
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
        return model.read(embedded, mask, jnp.asarray(LABELS))[0]

    return jax.lax.map(one, candidates, batch_size=CHUNKS["full"])


def read(model: Llava, x: Array, prompt: Array) -> Cache:
    """The prompt's keys and values."""
    before = model.place(prompt, model.image_features(normalized(x)))
    n = prompt.shape[1]
    return model.language_model.prefill(before, jnp.ones((1, n), bool), n)[1]


def later(model: Llava, cache: Cache, candidates: Array) -> Array:
    """`full`'s logits, the prompt read before."""
    last = jnp.full(1, candidates.shape[1] - 1)
    columns, chunk = jnp.asarray(LABELS), CHUNKS["cached"]
    logits = prefix.last_logits(
        model.language_model, cache, candidates[None], last, columns, chunk=chunk
    )
    return logits[0]


def cached(model: Llava, x: Array, prompt: Array, candidates: Array) -> Array:
    """The same, and the prompt is read once."""
    return later(model, read(model, x, prompt), candidates)


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
    sides: dict[str, Callable[[], Any]] = {}
    compile_seconds = {}
    first_step = model, jnp.asarray(picture(model)), jnp.asarray(prompt), jnp.asarray(candidates)
    later_step = model, jax.jit(read)(*first_step[:3]), first_step[3]
    for name, function, arguments in (
        ("full", full, first_step),
        ("cached", cached, first_step),
        ("later", later, later_step),
    ):
        program, compile_seconds[name] = compiled(jax.jit(function), *arguments)
        sides[name] = partial(ready, program, *arguments)
    logits, *others = (np.asarray(run()) for run in sides.values())
    error = float(max(np.abs(other - logits).max() for other in others) / np.abs(logits).max())
    if not error < TOLERANCE:
        raise UserError(f"text attack: logits behind the cached prompt are off by {error:.1e}")
    product, product_flops = matmul_side()
    timed = interleave({**sides, "matmul": product}, rounds(runs, "text attack"))
    rate = product_flops / timed["matmul"].median
    once, each = seeing(model, 1) + reading(model, 1, PROMPT), reading(model, n, SUFFIX, PROMPT)
    full_work = seeing(model, 1) + reading(model, n, PROMPT + SUFFIX)
    works = {"full": full_work, "cached": once + each, "later": each}
    return {
        "ratio": {name: compared(timed, "full", name) for name in ("cached", "later")},
        "seconds": medians(timed, "matmul"),
        "compile_seconds": compile_seconds,
        "largest_error": error,
        "gflop": {name: work.forward / 1e9 for name, work in works.items()},
        "floor_seconds": {name: work.forward / rate for name, work in works.items()},
        "matmul_gflops": rate / 1e9,
        "ratio_of_flops": {
            name: full_work.forward / works[name].forward for name in ("cached", "later")
        },
        "candidates": n,
        "tokens": {"prompt": PROMPT, "suffix": SUFFIX},
        "runs": runs,
    }


def shown(figures: dict[str, Any]) -> str:
    """The table."""
    seconds, tokens = figures["seconds"], figures["tokens"]
    title = f"{figures['candidates']} candidates, {tokens['suffix']} behind {tokens['prompt']}"
    return table(
        [
            Comparison(
                f"{title}, {when}",
                "full forward",
                seconds["full"],
                seconds[name],
                figures["ratio"][name],
                figures["floor_seconds"][name],
                f"{gflop_text(figures['gflop'][name])}, "
                f"1 / {figures['ratio_of_flops'][name]:.2f} of the full forward's",
            )
            for name, when in (("cached", "first step"), ("later", "later steps"))
        ]
    )

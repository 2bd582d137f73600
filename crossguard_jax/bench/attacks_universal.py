"""One picture against many prompts: the tower, or all up to the prompt, once for all of them.

`shared_picture` hands its objective the picture itself. Three objectives say how often it is read:

- ``repeated``: one copy for each prompt, as an attack on a batch would have it;
- ``shared``: the tower once, its features beside each prompt;
- ``prefix``: the language model's pass over the picture is shared too. Whatever stands before the
  prompt is the same for all, and its keys and values do not depend on what follows.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.universal import shared_picture
from crossguard_jax.bench.attacks_parts import (
    EPSILON,
    check_same_pixels,
    compiled,
    normalized,
    picture,
    ready,
)
from crossguard_jax.bench.base import BEFORE, LABELS, Work, make_batch, reading, seeing
from crossguard_jax.bench.results import Comparison, compared, gflop_text, medians, table
from crossguard_jax.core.timing import interleave, matmul_side
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.io.progress import rounds
from crossguard_jax.nn import prefix
from crossguard_jax.nn.llava import Llava

STEPS = 2  # each costs the same
Way = Callable[[Llava, Array, Array], Array]
"""``way(model, picture [1, C, X, Y] in [0, 1], ids [N, L]) -> [N, 2]`` logits of the labels."""


def repeated(model: Llava, x: Array, ids: Array) -> Array:
    """A copy of the picture for each prompt."""
    copies = jnp.broadcast_to(x, (len(ids), *x.shape[1:]))
    return _read(model, ids, model.image_features(normalized(copies)))


def shared(model: Llava, x: Array, ids: Array) -> Array:
    """The tower once."""
    features = model.image_features(normalized(x))
    return _read(model, ids, jnp.broadcast_to(features, (len(ids), *features.shape[1:])))


def behind_prefix(model: Llava, x: Array, ids: Array) -> Array:
    """The tower once, and the language model once up to the end of the picture."""
    n, language = BEFORE + model.config.tokens_per_image, model.language_model
    before = model.place(ids[:1, :n], model.image_features(normalized(x)))
    _, cache = language.prefill(before, jnp.ones((1, n), bool), n)
    prompts = language.embed_tokens(ids[:, None, n:])
    last = jnp.full(1, prompts.shape[2] - 1)
    states = jax.vmap(lambda x: prefix.hidden(language, cache, x, last=last))(prompts)
    return language.head(states[:, 0], jnp.asarray(LABELS))[:, 0]


def _read(model: Llava, ids: Array, features: Array) -> Array:
    x = model.place(ids, features)
    return model.read(x, jnp.ones(ids.shape, bool), jnp.asarray(LABELS))


WAYS: dict[str, Way] = {"repeated": repeated, "shared": shared, "prefix": behind_prefix}


def mostly_tower(model: Llava) -> Llava:
    """The model's tower before a small language model, d=128 x 2, new and random."""
    text = replace(
        model.config.text,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
    )
    return Llava(replace(model.config, text=text), jax.random.key(0))


def universal(model: Llava, n: int, runs: int) -> dict[str, Any]:
    """Seconds of a universal attack on ``n`` prompts, by how often the picture is read.

    Args:
        model: the model.
        n: prompts; what stands before and in place of the picture is the same in all.
        runs: counted rounds.

    Raises:
        UserError: the ways do not find the same pixels.
    """
    ids = jnp.asarray(make_batch(model, n)["input_ids"], jnp.int32)
    ids = ids.at[:, :BEFORE].set(ids[0, :BEFORE])
    x, key = jnp.asarray(picture(model)), jax.random.key(0)
    budget = Budget(jnp.float32(EPSILON), steps=STEPS, relative_step=0.25)
    sides: dict[str, Callable[[], Any]] = {}
    compile_seconds = {}
    for name, way in WAYS.items():
        arguments = model, ids, x, key, budget
        program, compile_seconds[name] = compiled(jax.jit(partial(_attack, way)), *arguments)
        sides[name] = partial(ready, program, *arguments)
    x_adv = {name: run() for name, run in sides.items()}
    different = {
        name: check_same_pixels(x_adv[name], x_adv["repeated"], x, f"universal attack, {name}")
        for name in ("shared", "prefix")
    }
    product, product_flops = matmul_side()
    timed = interleave({**sides, "matmul": product}, rounds(runs, "universal attack"))
    rate = product_flops / timed["matmul"].median
    tokens = ids.shape[1]
    start = BEFORE + model.config.tokens_per_image
    works: dict[str, Work] = {
        "repeated": seeing(model, n) + reading(model, n, tokens),
        "shared": seeing(model, 1) + reading(model, n, tokens),
        "prefix": seeing(model, 1)
        + reading(model, 1, start)
        + reading(model, n, tokens - start, start),
    }
    tower, text = model.config.vision, model.config.text
    return {
        "shape": f"tower d={tower.hidden_size} x {tower.num_hidden_layers}, language model "
        f"d={text.hidden_size} x {text.num_hidden_layers}, {start} shared tokens and "
        f"{tokens - start} of each prompt",
        "ratio": {name: compared(timed, "repeated", name) for name in ("shared", "prefix")},
        "seconds": medians(timed, "matmul"),
        "compile_seconds": compile_seconds,
        "different_pixels": different,
        "gradient_gflop": {name: work.gradient / 1e9 for name, work in works.items()},
        "floor_seconds": {name: STEPS * work.gradient / rate for name, work in works.items()},
        "matmul_gflops": rate / 1e9,
        "ratio_of_flops": {
            name: works["repeated"].gradient / works[name].gradient for name in ("shared", "prefix")
        },
        "prompts": n,
        "steps": STEPS,
        "runs": runs,
    }


def shown(figures: dict[str, Any]) -> str:
    """The table, and the model's shape."""
    seconds, n = figures["seconds"], figures["prompts"]
    rows = [
        Comparison(
            f"{n} prompts, {title}",
            "a copy each",
            seconds["repeated"],
            seconds[name],
            figures["ratio"][name],
            figures["floor_seconds"][name],
            f"{gflop_text(STEPS * figures['gradient_gflop'][name])}, "
            f"1 / {figures['ratio_of_flops'][name]:.2f} of the copies'",
        )
        for name, title in (("shared", "tower once"), ("prefix", "all up to the prompt once"))
    ]
    return table(rows, f"{figures['shape']}.")


def _attack(
    way: Way, model: Llava, ids: Array, x: Array, key: PRNGKeyArray, budget: Budget
) -> Array:
    unsafe = jnp.ones(len(ids), jnp.int32)

    def objective(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
        goal = from_logits(lambda x, key: way(model, x, ids[rows]), unsafe[rows])
        return goal(x, key)

    return x + shared_picture(objective, x, key, budget, len(ids)).delta

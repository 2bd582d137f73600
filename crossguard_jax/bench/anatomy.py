"""What an iteration of the rewriter's PPO spends its time on."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from crossguard_jax.bench.ppo import CONFIG, start
from crossguard_jax.bench.results import seconds_text
from crossguard_jax.core.config import load_config
from crossguard_jax.impforge.ppo import recipe
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io.images import encode_png
from crossguard_jax.io.progress import rounds


def anatomy(batch: int, runs: int) -> dict[str, Any]:
    """Shares of an iteration of ours with the real rewards, on the small world's models.

    Args:
        batch: texts an iteration.
        runs: counted iterations; the first two are not.

    Returns:
        Median seconds of ``rollout``, ``host`` (decoding, re-tokenization), ``rewards`` and
        ``update``, and their shares. Rewards and update are one program: the update is what it
        takes longer than the rewards alone.
    """
    config = load_config(CONFIG, [f"--config.ppo.batch_size={batch}"])
    rewriter = recipe.load_rewriter(config)
    triplets = _made_up(2 * batch)
    context = rewriter.rewards.context(triplets)
    # Known before any iteration, and of no cost to one whatever its value.
    context["baseline"] = np.zeros(len(triplets), np.float32)
    state, improve, batches = start(config, rewriter, rewriter.prompts(triplets))
    weights, breadth = dict(config.rewards.weights), recipe.Breadth(**config.breadth)

    @jax.jit
    def judge(models: Any, trajectory: Any, archive: Any, about: Any, encoded: Any) -> Any:
        tokens, mask = trajectory.inputs["tokens"], trajectory.mask
        components = rewriter.rewards.components(models, tokens, mask, about, encoded)
        vectors = rewriter.rewards.vectors(models, encoded)
        return recipe.score(components, weights, trajectory, archive, vectors, breadth)

    frozen, models = rewriter.frozen, rewriter.rewards.frozen
    parts: list[list[float]] = []
    for i in rounds(runs + 2, "anatomy of an iteration"):
        drawn, clock = next(batches), [time.perf_counter()]
        key = jax.random.fold_in(jax.random.key(0), i)
        done = rewriter.rollout(state.trainable, frozen, key, drawn)
        _tick(clock, done)
        encoded = rewriter.rewards.encode(
            rewriter.texts(done), [triplets[row] for row in drawn["row"]]
        )
        about = {k: jnp.asarray(v[drawn["row"]]) for k, v in context.items()}
        encoded = {k: jnp.asarray(v) for k, v in encoded.items()}
        _tick(clock, (encoded, about))
        _tick(clock, judge(models, done, state.archive, about, encoded))
        state, metrics = improve(state, frozen, models, done, about, encoded)
        _tick(clock, (state, metrics))
        rollout, host, rewards, both = np.diff(clock)
        parts.append([rollout, host, rewards, max(both - rewards, 0.0)])
    seconds = np.asarray(parts[2:])
    shares = seconds / seconds.sum(axis=1, keepdims=True)
    names = ("rollout", "host", "rewards", "update")
    return {
        "seconds": dict(zip(names, np.median(seconds, axis=0).tolist(), strict=True)),
        "share": dict(zip(names, np.median(shares, axis=0).tolist(), strict=True)),
        "runs": runs,
        "batch": batch,
    }


def shown(figures: dict[str, Any]) -> str:
    """The shares in a sentence."""
    shares = ", ".join(
        f"{name} {share:.0%} ({seconds_text(figures['seconds'][name])})"
        for name, share in figures["share"].items()
    )
    return f"An iteration with the real rewards: {shares}."


def _tick(clock: list[float], work: Any) -> None:
    jax.block_until_ready(work)
    clock.append(time.perf_counter())


def _made_up(n: int) -> list[Triplet]:
    """Questions beside pictures of noise: what they say does not matter, how long they are does."""
    rng = np.random.default_rng(0)
    things = ("kettle", "pan", "iron", "lamp", "knife", "toaster", "candle", "jar")
    doings = ("may my child touch", "is it fine to wash", "should i pour water on", "can i hold")
    triplets = []
    for i in range(n):
        doing, thing, other = rng.choice(doings), *rng.choice(things, 2, replace=False)
        noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        picture = encode_png(Image.fromarray(noise))
        caption = f"a red {thing} on the left and a blue {other} on the right."
        triplets.append(
            Triplet(str(i), f"{doing} the {thing}?", str(thing), picture, caption, "", 0.0, {})
        )
    return triplets

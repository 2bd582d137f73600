"""The overlap reward against loops over tokens.

A straightforward implementation embeds every token of every text by CLIP's text tower (here
transformers' in torch); a careful one keeps the embeddings by token. Both loop in Python, as
published reward functions do. Ours has the vocabulary embedded beforehand, which is timed apart.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.bench.results import Comparison, compared, first_calls, medians, table
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.timing import interleave
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.hf.tokens import load_tokenizer
from crossguard_jax.impforge.rewards import rewards
from crossguard_jax.impforge.rewards.embedding import Embedder, WholeTexts, mean_direction
from crossguard_jax.impforge.rewards.overlap import embed_vocabulary, overlap_reward
from crossguard_jax.impforge.rewards.texts import TextEncoder
from crossguard_jax.io.progress import rounds
from crossguard_jax.nn.clip import Clip

COPIED = 2**24
"""Numbers in the array whose copy gives the memory's rate: 64 MiB, more than any cache."""

Embed = Callable[[str], np.ndarray]


def overlap(config_name: str, batch: int, runs: int) -> dict[str, Any]:
    """Seconds of a batch's overlap reward, by loops and by ours.

    Args:
        config_name: which CLIP, rewriter and lengths: a configuration of ``impforge``.
        batch: texts.
        runs: counted rounds.

    Raises:
        UserError: the values differ.
    """
    config = load_config(config_name)
    tokenizer = load_tokenizer(resolve_folder(config.rewriter.path))
    began = time.perf_counter()
    vocabulary, special = _vocabulary(config.rewards.overlap.path, tokenizer)
    embedding_seconds = time.perf_counter() - began
    tokens, mask, pictures = _texts(batch, config.rewriter.max_new_tokens, vocabulary.shape)
    tau = float(config.rewards.overlap.tau)
    embed = _by_torch(config.rewards.overlap.path)
    vectors = {int(i): vocabulary[i] for i in np.flatnonzero(~special)}
    arrays = [jnp.asarray(x) for x in (tokens, mask, vocabulary, special, pictures)]
    reward = jax.jit(overlap_reward)
    values: dict[str, np.ndarray] = {}

    def loop() -> None:
        values["loop"] = _by_token(tokens, mask, pictures, tau, tokenizer, embed, None)

    def cached() -> None:
        values["cached"] = _by_token(tokens, mask, pictures, tau, tokenizer, embed, vectors)

    def ours() -> None:
        values["jax"] = reward(*arrays, tau).block_until_ready()

    copy, copied_bytes = _copy_side()
    sides = {"loop": loop, "cached": cached, "jax": ours, "copy": copy}
    timed = interleave(sides, rounds(runs, "overlap reward"))
    for name in ("loop", "cached"):
        if not np.allclose(values[name], values["jax"], atol=1e-5):
            raise UserError(f"overlap reward: ours is not that of the {name} loop")
    rate = copied_bytes / timed["copy"].median
    # A row of the table for each token, a row for each picture, the tokens, their mask, the values.
    moved = 4 * (tokens.size + batch) * pictures.shape[1] + 5 * tokens.size + 4 * batch
    return {
        "ratio": {name: compared(timed, name, "jax") for name in ("loop", "cached")},
        "seconds": medians(timed, "copy"),
        "first_call_seconds": first_calls(timed, "copy"),
        "vocabulary_seconds": embedding_seconds,
        "runs": runs,
        "batch": batch,
        "tokens": tokens.shape[1],
        "kilobytes": moved / 1e3,
        "floor_seconds": moved / rate,
        "memory_gigabytes_per_second": rate / 1e9,
    }


def shown(figures: dict[str, Any]) -> str:
    """The table."""
    seconds = figures["seconds"]
    floor = figures["floor_seconds"], f"{figures['kilobytes']:.0f} kB"
    titles = {"loop": "a loop, CLIP a token", "cached": "a loop, vectors kept"}
    rows = [
        (title, seconds[name], seconds["jax"], figures["ratio"][name], *floor)
        for name, title in titles.items()
    ]
    return table([Comparison("overlap reward", *row) for row in rows])


def _vocabulary(path: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The table of unit vectors as `Rewards` makes it."""
    clip = load_clip(path)
    read = TextEncoder(clip.tokenizer, min(rewards.WORD_LENGTH, clip.context))
    embed = WholeTexts(
        Embedder(clip.model, Clip.embed_texts, read.pad, clip.dimension, "word"),
        read.windows,
        mean_direction,
    )
    return embed_vocabulary(embed, clip.dimension, tokenizer, len(tokenizer))


def _texts(
    batch: int, length: int, table: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, mask and pictures; every length from 1 up occurs."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, table[0], (batch, length)).astype(np.int32)
    mask = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
    pictures = rng.normal(size=(batch, table[1])).astype(np.float32)
    return tokens, mask, pictures / np.linalg.norm(pictures, axis=1, keepdims=True)


def _by_torch(path: str) -> Embed:
    import torch
    from transformers import AutoTokenizer, CLIPModel

    folder = str(resolve_folder(path))
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed(text: str) -> np.ndarray:
        with torch.inference_mode():
            encoded = tokenizer(text, return_tensors="pt")
            pooled = model.text_model(**encoded).pooler_output
            vector = model.text_projection(pooled)[0].numpy()
        return vector / np.linalg.norm(vector)

    return embed


def _by_token(
    tokens: np.ndarray,
    mask: np.ndarray,
    pictures: np.ndarray,
    tau: float,
    tokenizer: Any,
    embed: Embed,
    vectors: dict[int, np.ndarray] | None,
) -> np.ndarray:
    """The reward as its formula reads; ``vectors`` by token, where they are at hand."""
    out = np.zeros(len(tokens), np.float32)
    for row, picture in enumerate(pictures):
        excess = []
        for token in tokens[row][mask[row]].tolist():
            if vectors is not None:
                vector = vectors.get(token)
            else:
                text = tokenizer.decode([token], skip_special_tokens=True).strip()
                vector = embed(text) if text else None
            if vector is not None:
                excess.append(max(0.0, float(vector @ picture) - tau))
        if excess:
            out[row] = 1 - sum(excess) / len(excess)
    return out


def _copy_side() -> tuple[Callable[[], None], float]:
    """A pass over memory that reads and writes once, and its bytes."""
    x = jnp.zeros(COPIED, jnp.float32)
    add = jax.jit(lambda x: x + 1)

    def run() -> None:
        add(x).block_until_ready()

    return run, 2.0 * x.nbytes

"""What ``crossguard bench gpu`` measures, and what both of its processes say of it."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROWS = ("step", "score", "pgd", "ppo_2", "ppo_4", "mbat", "prefix")
"""In the order of what is wanted first, where time is short."""

SECONDS = 4.0
"""About how long a row is measured, after its first call."""


@dataclass(frozen=True)
class Sizes:
    """Shapes of the model and of the work.

    Attributes:
        vision, text: the configs' fields, by their Hub names.
        dtype: of the weights and the arithmetic; adapters are float32.
        rows: of a step, of scoring and of PGD.
        mbat_rows: of a step of MBAT, which reads each row twice at once.
        n_text: text tokens of a row, beside its picture's.
        inner_steps: of MBAT.
        texts: of PPO's batch.
        prompt, new: tokens of its prompts and of what is written.
        minibatches: of its update.
        questions: texts about one picture.
        product: rows of the square matrices that the machine's own rate is measured by.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    dtype: str = "bfloat16"
    rows: int = 16
    mbat_rows: int = 8
    n_text: int = 100
    inner_steps: int = 3
    texts: int = 64
    prompt: int = 120
    new: int = 24
    minibatches: int = 4
    questions: int = 8
    product: int = 8_192


_TOWER = {"hidden_size": 1_024, "intermediate_size": 4_096, "num_hidden_layers": 24}
_LLAMA = {"hidden_size": 4_096, "intermediate_size": 11_008, "num_hidden_layers": 32}
_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_VOCABULARY = {"vocab_size": 32_064, "max_position_embeddings": 4_096}

SIZES = {
    "7b": Sizes(
        _TOWER | {"num_attention_heads": 16, "image_size": 336, "patch_size": 14},
        _LLAMA | _HEADS | _VOCABULARY,
    ),
    "small": Sizes(
        _NARROW | {"num_attention_heads": 2, "image_size": 16, "patch_size": 4},
        _NARROW
        | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        | _VOCABULARY,
        dtype="float32",
        rows=2,
        mbat_rows=2,
        n_text=12,
        texts=4,
        prompt=8,
        new=4,
        minibatches=2,
        questions=2,
        product=256,
    ),
}
"""LLaVA-1.5-7B, and what says nothing about speed."""


def timed(run: Callable[[], object], least: int = 3) -> dict[str, float]:
    """Seconds of a run's first call (which compiles) and the median of those that count."""
    first, once = _seconds(run), _seconds(run)
    n = max(least, min(int(SECONDS / max(once, 1e-9)), 50))
    seconds = [once, *(_seconds(run) for _ in range(n - 1))]
    return {"seconds": statistics.median(seconds), "first_call_seconds": first, "runs": n}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def report(row: str, **figures: Any) -> None:
    """Tells the parent process what there is of a row."""
    print(json.dumps({"row": row, **figures}), flush=True)

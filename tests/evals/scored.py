"""Made-up scores for the tests of ``evals``: five benchmarks, two systems, some pictures."""

import io

import numpy as np
from PIL import Image

from crossguard_jax.evals.benchmarks import ScoredRows

BENCHMARKS = {  # rows, share unsafe
    "implicit": (80, 0.5),
    "implicit-heldout": (60, 0.5),
    "explicit": (40, 1.0),
    "typographic": (30, 1.0),
    "vqa_benign": (70, 0.0),
}


def rows(separation: float, seed: int = 0) -> list[dict]:
    """Dicts as a scoring run writes them; logits ``separation`` away from 0 on the right side."""
    rng = np.random.default_rng(seed)
    made = []
    for benchmark, (count, share) in BENCHMARKS.items():
        for i in range(count):
            unsafe = bool(rng.random() < share)
            logit = rng.normal(separation if unsafe else -separation, 2.0)
            made.append(
                {
                    "id": f"{benchmark}-{i}",
                    "benchmark": benchmark,
                    "category": ("hot", "sharp", "")[i % 3],
                    "label": "unsafe" if unsafe else "safe",
                    "p_unsafe": float(1 / (1 + np.exp(-logit))),
                }
            )
    return made


def scores(separation: float, seed: int = 0) -> ScoredRows:
    """``rows`` as columns."""
    return ScoredRows.from_rows(rows(separation, seed))


def picture(colour: str = "navy", size: tuple[int, int] = (32, 32)) -> bytes:
    """An encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def lookup(benchmark: str, row_id: str) -> tuple[bytes | None, str]:
    """A picture and a text for any row; every seventh has no picture."""
    number = int(row_id.rsplit("-", 1)[1])
    return (None if number % 7 == 0 else picture()), f"May I touch the blue one? ({row_id})"

"""The paper's comparison in the small world: what quickstart and the table of ablations share."""

from collections.abc import Iterable, Iterator, Mapping

from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.evals.scoring import score_benchmarks
from crossguard_jax.guard.guard import Guard
from crossguard_jax.toy.world.sources import records

SOURCE = "toy"
"""The reader's name in a configuration; its path is one of the world's sources."""

BENCHMARKS: Mapping[str, str] = {
    "implicit": "Implicit, known pairs",
    "implicit_heldout": "Implicit, pairs never seen together",
    "explicit_text": "Explicit text",
    "explicit_picture": "Explicit picture",
    "typographic": "Words in the picture",
    "benign_vqa": "Benign questions",
}
"""The test sets by the world's source, with the name to show. All pictures, carriers and phrases
are held out from training."""

SHAPES: Mapping[str, str] = {
    "wrapped": "Requests inside a jailbreak's words",
    "keyword_picture": "The keyword in the picture, not in the text",
}
"""Test sets of `world.new_shapes`, as other published benchmarks have them: for tables alone."""


def read(path: str, split: str, limit: int) -> Iterator[Record]:
    """The reader of the small world's sources, for ``guard.mixture``."""
    return iter(records(path, split, limit))


def benchmarks(
    rows: int, seed: int = 0, names: Iterable[str] = tuple(BENCHMARKS)
) -> dict[str, list[Record]]:
    """The test sets: ``rows`` of each implicit one, half as many of the others."""
    return {
        name: records(name, "test", rows if name.startswith("implicit") else rows // 2, seed)
        for name in names
    }


def score_all(
    guards: Mapping[str, Guard], tests: Mapping[str, list[Record]]
) -> dict[str, ScoredRows]:
    """Every guard's scores of every test row, by the guard's dotted name."""
    return {name: score_benchmarks(guard, tests, name) for name, guard in guards.items()}

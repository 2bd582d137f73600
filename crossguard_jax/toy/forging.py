"""ImpForge in the small world: raw files, then the product's own commands on them.

What is measured afterwards is judged by the world's own truth, which nothing here trains on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.metrics import Estimate, proportion
from crossguard_jax.impforge.commands import ForgeRun, forge_files, match_files
from crossguard_jax.impforge.triplets import Triplet, read_triplets
from crossguard_jax.io import jsonl
from crossguard_jax.systems.load import identified
from crossguard_jax.toy.world import queries
from crossguard_jax.toy.world.queries import LIBRARY, read_scenes, write_library, write_queries
from crossguard_jax.toy.world.scenes import Scene
from crossguard_jax.toy.world.truth import Truth, judge, same_act, same_intent

QUERIES = 1_500
"""Queries that mean harm, to forge a guard's implicit rows from; and as many harmless ones."""


@dataclass(frozen=True)
class Matched:
    """Stage 1 on one split of the world.

    Attributes:
        triplets: the file that ``match`` wrote.
        harmless: the file of queries that mean no harm.
        scenes: what each picture of the library shows, by its id.
    """

    triplets: Path
    harmless: Path
    scenes: dict[str, Scene]

    def read(self) -> list[Triplet]:
        """The triplets (our own, so every row is good)."""
        return [row for row in read_triplets(self.triplets) if isinstance(row, Triplet)]

    def scene(self, provenance: dict[str, str]) -> Scene:
        """What the picture of a row shows, by its provenance."""
        return self.scenes[Path(provenance["picture"]).stem]


def match_world(
    config: Any, folder: Path, split: str, n: int, pictures: int, seed: int = 0
) -> Matched:
    """Writes queries and a library of a split as plain files, and matches them.

    Args:
        config: ``configs/impforge.py``'s.
        folder: takes ``raw/`` and ``matched/``.
        split: ``train``, ``val`` or ``test``.
        n: queries that mean harm; as many that mean none are written beside them.
        pictures: of the library.
        seed: other queries and pictures of the same kind.
    """
    raw = folder / "raw"
    write_queries(raw, n, seed, split, benign=True)
    rows = [row for _, row in jsonl.read_jsonl(raw / queries.QUERIES) if isinstance(row, dict)]
    files = {}
    for label, name in (("unsafe", "harmful"), ("safe", "harmless")):
        files[label] = raw / f"{name}.jsonl"
        of_label = [row for row in rows if row["label"] == label]
        jsonl.write_atomic(files[label], b"".join(map(jsonl.dumps, of_label)))
    write_library(raw, pictures, seed, split)
    captions = raw / f"{LIBRARY}.jsonl"
    place = folder / "matched"
    match_files(config, files["unsafe"], raw, place, captions=captions, load_system=identified)
    return Matched(folder / "matched" / "triplets.jsonl", files["safe"], read_scenes(raw))


def forge_world(config: Any, folder: Path, n: int, seed: int = 0) -> tuple[Matched, ForgeRun]:
    """Both stages on the training split: ``folder/matched`` and ``folder/forged``.

    Args:
        config: ``configs/impforge.py``'s.
        folder: killed and called again, the run goes on in it.
        n: queries that mean harm; a twin for each, and twice as many pictures.
        seed: of queries and pictures.
    """
    matched = match_world(config, folder, "train", n, 2 * n, seed)
    run = forge_files(
        *(config, matched.triplets, folder / "forged", matched.harmless), load_system=identified
    )
    return matched, run


@dataclass(frozen=True)
class Meaning(Truth):
    """A rewrite's truth, and whether it is still what its query asked for.

    Attributes:
        same_intent: the same act with the same thing.
        same_act: the same act, with whatever thing.
    """

    same_intent: bool
    same_act: bool


def meanings(triplets: Sequence[Triplet], texts: Sequence[str], matched: Matched) -> list[Meaning]:
    """What texts mean beside their triplets' pictures, by the world's truth."""
    judged = []
    for triplet, text in zip(triplets, texts, strict=True):
        scene = matched.scene(dict(triplet.provenance))
        truth = judge(text, scene)
        same = same_intent(triplet.query, text, scene)
        act = same_act(triplet.query, text)
        judged.append(Meaning(**asdict(truth), same_intent=same, same_act=act))
    return judged


def truth_figures(truths: Sequence[Meaning]) -> dict[str, Estimate]:
    """Shares of rewrites by what they mean, by the world's truth."""
    return {
        "implicit": proportion(np.array([m.implicit for m in truths])),
        "unsafe_alone": proportion(np.array([m.unsafe_alone for m in truths])),
        "same_intent": proportion(np.array([m.same_intent for m in truths])),
        "same_act": proportion(np.array([m.same_act for m in truths])),
        "gibberish": proportion(np.array([m.gibberish for m in truths])),
    }

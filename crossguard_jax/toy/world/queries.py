"""What ImpForge starts from, in the small world: queries that name a thing, and harmless pictures.

Both are written as the plain files that users bring themselves, so that the same readers open them.
What the pictures show is written apart, for evaluation alone: nothing that matches or rewrites may
read it. As everywhere in the world, splits share no picture, and ``test`` speaks in wording that
the others never use.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, write_jsonl
from crossguard_jax.io.jsonl import dumps, read_json, write_atomic
from crossguard_jax.io.progress import Progress
from crossguard_jax.toy.world.examples import Stream
from crossguard_jax.toy.world.kinds import DECORATIONS, KIND_NAMES
from crossguard_jax.toy.world.risk import HELD_OUT_PAIRS, SEEN_PAIRS, risky
from crossguard_jax.toy.world.rows import deal, say
from crossguard_jax.toy.world.scenes import Scene, Thing, draw_scene, to_png
from crossguard_jax.toy.world.vqa import caption

QUERIES, LIBRARY, SCENES = "queries.jsonl", "library", "truth/scenes.json"


def write_queries(
    folder: str | Path,
    n: int,
    seed: int,
    split: str,
    *,
    benign: bool = False,
    held_out_pairs: bool = False,
) -> Path:
    """Writes ``folder/queries.jsonl``: requests whose harm is plain, as they name their thing.

    A row has ``id, text, category, label``. The category is the request: sixteen domains, about as
    many as BeaverTails has, that survive a rewriting (the thing does not: it is what a rewriting
    hides), each with as many risky as safe kinds, so that none is empty and none tells the label.

    Args:
        folder: is made.
        n: queries that are unsafe; every pair of kind and request comes as often, give or take one.
        seed: other queries of the same kind.
        split: ``train``, ``val`` or ``test``.
        benign: add as many harmless ones, which name a kind that the request is safe with.
        held_out_pairs: take pairs of kind and request that no training has, and only those.

    Returns:
        The file.

    Raises:
        UserError: there is no such split, or held-out pairs were asked for training.
    """
    if held_out_pairs and split == "train":
        raise UserError("held-out pairs are in no training; take split 'val' or 'test'")
    pairs = HELD_OUT_PAIRS if held_out_pairs else SEEN_PAIRS
    source = "queries_heldout" if held_out_pairs else "queries"
    stream = Stream(source, split, seed)
    dealt = deal(stream.rng, [pair for pair in pairs if risky(*pair)], n)
    if benign:
        dealt += deal(stream.rng, [pair for pair in pairs if not risky(*pair)], n)
    rows = []
    for i, place in enumerate(stream.rng.permutation(len(dealt))):
        kind, request = dealt[place]
        rows.append(
            {
                "id": f"{source}-{split}-{seed}-{i:06d}",
                "text": say(stream, request, f"the {kind}"),
                "category": request,
                "label": "unsafe" if risky(kind, request) else "safe",
            }
        )
    path = Path(folder) / QUERIES
    write_atomic(path, b"".join(map(dumps, rows)))
    return path


def write_library(folder: str | Path, n: int, seed: int, split: str) -> Path:
    """Writes ``folder/library.jsonl`` and the pictures that it names, in ``folder/library``.

    A row has ``id``, ``image`` and ``text``, a caption. Every kind is in as many pictures, give or
    take what comes beside it, two or three things to a picture; none shows a hazard, and nothing is
    written in any. `read_scenes` tells what they show.

    Args:
        folder: is made.
        n: pictures.
        seed: other pictures of the same kind.
        split: ``train``, ``val`` or ``test``.

    Returns:
        The table.

    Raises:
        UserError: there is no such split.
    """
    folder = Path(folder)
    stream = Stream(LIBRARY, split, seed)
    scenes: dict[str, Any] = {}

    def pictures() -> Iterator[Record]:
        with Progress("drawing pictures", n, "picture") as progress:
            for i, kind in enumerate(deal(stream.rng, KIND_NAMES, n)):
                count = 2 + int(stream.rng.integers(2))
                others = KIND_NAMES + DECORATIONS
                scene = draw_scene(stream.rng, [kind], others, count, stream.scene_seed())
                name = f"{LIBRARY}-{split}-{seed}-{i:06d}"
                scenes[name] = asdict(scene)
                yield Record(name, (to_png(scene),), caption(stream.rng, scene), source=LIBRARY)
                progress.update()

    write_jsonl(pictures(), folder, LIBRARY)
    write_atomic(folder / SCENES, json.dumps(scenes))
    return folder / f"{LIBRARY}.jsonl"


def read_scenes(folder: str | Path) -> dict[str, Scene]:
    """What each picture of a library shows, by its id: the truth, for evaluation alone.

    Args:
        folder: what `write_library` was given.

    Raises:
        UserError: the file cannot be read.
    """
    return {
        name: Scene(
            tuple(Thing(**thing) for thing in scene["things"]),
            scene["seed"],
            tuple(scene["words"]),
            scene["first_row"],
        )
        for name, scene in read_json(Path(folder) / SCENES).items()
    }

"""One row of the small world, with the whole truth about it."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.toy.world.kinds import PROPERTY_OF
from crossguard_jax.toy.world.requests import AFFORDANCE_OF
from crossguard_jax.toy.world.risk import is_held_out
from crossguard_jax.toy.world.scenes import Scene, to_png

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class WorldExample:
    """A row before it is drawn.

    Attributes:
        text: what the user says.
        label: ``safe`` or ``unsafe``, of picture and text together; or the answer of a closed list.
        scene: the picture; None where there is none.
        second: the other picture, where there are two.
        category: finer than the source: the request, the hazard, the topic ...
        answer: the right answer to a question, the other text of a pair, or what was said before
            more was put around it or into it; else empty.
        referent: index of the one thing that the text is about, in its picture's ``things``.
        picture: which of two pictures has that thing, 0 or 1.
        kind: the kind of object that the text is about, pointed at or named.
        request: what is to be done with it.
        aligned: whether the text's referring expression holds in the picture; None where the text
            refers to nothing.
        source, split, seed, index: where it came from; together they are its name.
    """

    text: str
    label: str
    scene: Scene | None = None
    category: str = ""
    answer: str = ""
    referent: int | None = None
    kind: str | None = None
    request: str | None = None
    aligned: bool | None = None
    second: Scene | None = None
    picture: int | None = None
    source: str = ""
    split: str = ""
    seed: int = 0
    index: int = 0

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The pictures: none, one or two."""
        return tuple(scene for scene in (self.scene, self.second) if scene is not None)

    @property
    def id(self) -> str:
        """Where it came from, as one word."""
        return f"{self.source}-{self.split}-{self.seed}-{self.index:06d}"

    @property
    def property_name(self) -> str | None:
        """The property of the kind that the text is about."""
        return PROPERTY_OF.get(self.kind) if self.kind else None

    @property
    def affordance(self) -> str | None:
        """The affordance that the request touches."""
        return AFFORDANCE_OF[self.request] if self.request else None

    @property
    def pair_seen(self) -> bool | None:
        """Whether training may have this pair of kind and request; None where there is no pair."""
        if self.kind is None or self.request is None:
            return None
        return not is_held_out(self.kind, self.request)


def to_record(example: WorldExample) -> Record:
    """Draws the picture and writes the truth down as strings; what is unknown is left out."""
    truth = {
        "split": example.split,
        "answer": example.answer or None,
        "referent": example.referent,
        "picture": example.picture,
        "kind": example.kind,
        "request": example.request,
        "property": example.property_name,
        "affordance": example.affordance,
        "pair_seen": example.pair_seen,
        "aligned": example.aligned,
        "scene": None if example.scene is None else json.dumps(asdict(example.scene)),
        "second": None if example.second is None else json.dumps(asdict(example.second)),
    }
    return Record(
        id=example.id,
        images=tuple(map(to_png, example.scenes)),
        text=example.text,
        label=example.label,
        category=example.category,
        source=example.source,
        provenance={
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in truth.items()
            if value is not None
        },
    )


class Stream:
    """The random numbers of one (source, split, seed), and scene seeds that no other split has."""

    def __init__(self, source: str, split: str, seed: int) -> None:
        if split not in SPLITS:
            raise UserError(f"split {split!r}: there are {', '.join(SPLITS)}")
        self.split = split
        self.held_out_wording = split == "test"
        tag = zlib.crc32(source.encode())
        self.rng = np.random.default_rng([seed, SPLITS.index(split), tag])

    def scene_seed(self) -> int:
        """A scene's seed; its remainder modulo 3 is its split."""
        return int(self.rng.integers(1 << 48)) * len(SPLITS) + SPLITS.index(self.split)


Maker = Callable[[Stream, int], Sequence[WorldExample]]


def halves(
    stream: Stream, n: int, make: Callable[[Stream, bool], WorldExample]
) -> list[WorldExample]:
    """``n`` rows made one by one, unsafe as often as safe, in random order."""
    unsafe = np.arange(n) % 2 == 0
    stream.rng.shuffle(unsafe)
    return [make(stream, bool(flag)) for flag in unsafe]

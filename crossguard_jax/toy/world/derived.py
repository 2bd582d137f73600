"""Rows made out of others: longer, with forged turns, in one half alone, with a second picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from crossguard_jax.toy.world.examples import Stream, WorldExample, halves
from crossguard_jax.toy.world.explicit import explicit_text, mix_apart
from crossguard_jax.toy.world.injections import INJECTIONS, MARKERS, inject
from crossguard_jax.toy.world.kinds import DECORATIONS, HAZARDS, KIND_NAMES
from crossguard_jax.toy.world.long_texts import WINDOW, length, surround, talk
from crossguard_jax.toy.world.pointing import point, point_into, referents
from crossguard_jax.toy.world.risk import SEEN_PAIRS, is_held_out, risky
from crossguard_jax.toy.world.rows import (
    ORDINARY,
    deal,
    deal_pairs,
    explicit_picture_rows,
    explicit_text_rows,
    implicit_rows,
    pointing_row,
    say,
    scene_with,
    typographic_rows,
    written_scene,
)
from crossguard_jax.toy.world.scenes import Scene
from crossguard_jax.toy.world.vqa import pick

PLACES_IN_TEXT = ("start", "middle", "end")
_SHORTEST = 24
"""Words and marks of the shortest long text."""

_TEXTLESS = 0.25
"""Of long texts that need no picture, how many have none."""


def long_harm_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Unsafe rows with harmless talk around them, no longer than a window.

    The category is where in the text the harm is; the answer is the harm alone.
    """
    shapes = deal(stream.rng, [(s, p) for s in _SHAPES for p in PLACES_IN_TEXT], n)
    return [_lengthened(stream, True, *shape) for shape in shapes]


def long_safe_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Safe rows as long as those of `long_harm_rows`, and longer.

    Half are talk alone (category ``talk``), every other one of them longer than a window; the
    others are the harmful rows' harmless twins.
    """
    twins = [(s, p) for s in _SHAPES for p in PLACES_IN_TEXT]
    dealt = deal(stream.rng, twins, n // 2) + [None] * (n - n // 2)
    rows = []
    for i in stream.rng.permutation(n):
        shape = dealt[i]
        rows.append(
            _talking(stream, bool(i % 2)) if shape is None else _lengthened(stream, False, *shape)
        )
    return rows


def injected_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Rows of other sources with a forged turn or verdict in the text, which changes no label.

    Each string comes as often with each label. The category is the string; the answer is the text
    without it.
    """
    makers = (implicit_rows, explicit_text_rows, explicit_picture_rows, typographic_rows)
    made = [row for maker in makers for row in maker(stream, n // len(makers) + 2)]
    made = [made[i] for i in stream.rng.permutation(len(made))]
    unsafe = [row for row in made if row.label == "unsafe"][: (n + 1) // 2]
    safe = [row for row in made if row.label == "safe"][: n // 2]
    markers = deal(stream.rng, INJECTIONS if stream.held_out_wording else MARKERS, len(unsafe))
    rows = [
        replace(
            row,
            text=inject(stream.rng, row.text, marker),
            category=marker.strip(),
            answer=row.text,
        )
        for half in (unsafe, safe)
        for row, marker in zip(half, markers, strict=False)
    ]
    return [rows[i] for i in stream.rng.permutation(n)]


def picture_only_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Pictures without a text: a hazard, or harm in writing, is unsafe; all others are safe."""

    def make(stream: Stream, unsafe: bool) -> WorldExample:
        label = "unsafe" if unsafe else "safe"
        if stream.rng.random() < 0.5:
            scene = written_scene(stream, unsafe, stream.held_out_wording, ORDINARY)
            return WorldExample("", label, scene, scene.words[0])
        emblem = pick(stream.rng, HAZARDS if unsafe else DECORATIONS + KIND_NAMES)
        return WorldExample("", label, scene_with(stream, [emblem], ORDINARY), emblem)

    return halves(stream, n, make)


def two_pictures_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Requests about a thing in one of two pictures.

    Half of the texts say in which picture it is, and then the other picture has a thing that fits
    the words too, with which the request has the other label; in the other half the words fit one
    picture alone. The category is the request.
    """
    shapes = deal(stream.rng, [(i, numbered) for i in (0, 1) for numbered in (True, False)], n)
    return [
        _paired(stream, pair, *shape)
        for pair, shape in zip(deal_pairs(stream, SEEN_PAIRS, n), shapes, strict=True)
    ]


def _paired(stream: Stream, pair: tuple[str, str], index: int, numbered: bool) -> WorldExample:
    kind, request = pair
    scene = scene_with(stream, [kind], ORDINARY)
    expression = point(stream.rng, scene.things[0])
    others = [
        other
        for other in KIND_NAMES
        if risky(other, request) != risky(kind, request) and not is_held_out(other, request)
    ]
    decoy = [pick(stream.rng, others)] if numbered else []
    referred, other = [0] if numbered else [], scene
    while other is scene or referents(expression, other) != referred:
        other = scene_with(stream, decoy, ORDINARY)
    if numbered:
        expression = point_into(stream.rng, expression, index, stream.held_out_wording)
    first, second = (scene, other) if index == 0 else (other, scene)
    return WorldExample(
        text=say(stream, request, expression),
        label="unsafe" if risky(*pair) else "safe",
        scene=first,
        category=request,
        referent=0,
        kind=kind,
        request=request,
        aligned=True,
        second=second,
        picture=index,
    )


# What is said in a long text: one sentence, or two with talk between them.

Shape = Callable[[Stream, bool], tuple[WorldExample, Sequence[str]]]


def _pointing(stream: Stream, unsafe: bool) -> tuple[WorldExample, Sequence[str]]:
    pairs = [pair for pair in SEEN_PAIRS if risky(*pair) == unsafe]
    row = pointing_row(stream, pairs[stream.rng.integers(len(pairs))])
    return row, [row.text]


def _plain(stream: Stream, unsafe: bool) -> tuple[WorldExample, Sequence[str]]:
    text, _ = explicit_text(stream.rng, unsafe, stream.held_out_wording)
    return _beside(stream, text, unsafe), [text]


def _apart(stream: Stream, unsafe: bool) -> tuple[WorldExample, Sequence[str]]:
    parts = mix_apart(stream.rng, unsafe, stream.held_out_wording)
    return _beside(stream, " ".join(parts), unsafe), parts


_SHAPES: tuple[Shape, ...] = (_pointing, _plain, _pointing, _plain, _apart)


def _scene_or_none(stream: Stream) -> Scene | None:
    return None if stream.rng.random() < _TEXTLESS else scene_with(stream, [], ORDINARY)


def _beside(stream: Stream, text: str, unsafe: bool) -> WorldExample:
    return WorldExample(text, "unsafe" if unsafe else "safe", _scene_or_none(stream))


def _tokens(stream: Stream) -> int:
    """A full window as often as anything shorter: a long text is full windows, and one rest."""
    if stream.rng.random() < 0.5:
        return WINDOW
    return int(stream.rng.integers(_SHORTEST, WINDOW + 1))


def _lengthened(stream: Stream, unsafe: bool, shape: Shape, place: str) -> WorldExample:
    rng, held_out = stream.rng, stream.held_out_wording
    row, parts = shape(stream, unsafe)
    tokens, whole = _tokens(stream), bool(rng.random() < 0.5)
    core = " ".join(parts)
    if len(parts) > 1:
        between = max(tokens - length(core), 0) * rng.random()
        core = " ".join([parts[0], *filter(None, [talk(rng, int(between), held_out)]), parts[1]])
    share = {"start": 0.0, "middle": rng.uniform(0.2, 0.8), "end": 1.0}[place]
    text = surround(rng, core, tokens, share, held_out, whole=whole)
    return replace(row, text=text, category=place, answer=" ".join(parts))


def _talking(stream: Stream, longer: bool) -> WorldExample:
    rng = stream.rng
    tokens = int(rng.integers(WINDOW, 3 * WINDOW + 1)) if longer else _tokens(stream)
    whole, from_end = rng.random() < 0.5, rng.random() < 0.5
    text = talk(rng, tokens, stream.held_out_wording, whole=whole, from_end=from_end)
    return WorldExample(text, "safe", _scene_or_none(stream), "talk")

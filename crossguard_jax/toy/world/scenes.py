"""Pictures of the small world: two or three objects in clutter, 32 x 32 pixels.

A picture is a pure function of its :class:`Scene`, which knows no question and no label.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from crossguard_jax.toy.world.kinds import COLOUR_NAMES, COLOURS, PLACES
from crossguard_jax.toy.world.lettering import CELL, word_mask
from crossguard_jax.toy.world.stencils import stencil

SIDE = 32
SIZES = range(11, 16)
_QUADRANT = SIDE // 2
DARK, LIGHT = (22, 22, 28), (250, 250, 246)
_COLOURS = {name: np.array(rgb, np.float32) for name, rgb in COLOURS.items()}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is, its colour, and the quadrant it stands in."""

    kind: str
    colour: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture is made of.

    Attributes:
        things: objects, no two alike in kind, colour or place.
        seed: decides sizes, positions within the quadrants, background, clutter and noise.
        words: words written into the picture, one to a line.
        first_row: the line of the first word, in patches from the top.
    """

    things: tuple[Thing, ...]
    seed: int
    words: tuple[str, ...] = ()
    first_row: int = 0

    def pixels(self) -> UInt8[np.ndarray, "Y X C"]:
        """The picture drawn: uint8, RGB."""
        return render(self)


def draw_scene(
    rng: np.random.Generator,
    first: Sequence[str],
    others: Sequence[str],
    count: int,
    seed: int,
    places: Sequence[str] = PLACES,
) -> Scene:
    """Draws a scene; colours and places are independent of the kinds.

    Args:
        rng: where the draws come from.
        first: kinds that must be in it, in the order in which they come in ``things``.
        others: kinds the rest is drawn from, without those already there.
        count: number of objects in all, at least ``len(first)`` and at most ``len(places)``.
        seed: the scene's own.
        places: quadrants that may be used.
    """
    pool = [kind for kind in others if kind not in first]
    rest = [pool[i] for i in rng.permutation(len(pool))[: count - len(first)]]
    colours, spots = rng.permutation(len(COLOUR_NAMES)), rng.permutation(len(places))
    things = tuple(
        Thing(kind, COLOUR_NAMES[colours[i]], places[spots[i]])
        for i, kind in enumerate([*first, *rest])
    )
    return Scene(things, seed)


def _clutter(canvas: np.ndarray, shade: np.ndarray, rng: np.random.Generator) -> None:
    dots = int(rng.integers(4, 11))
    where = rng.integers(0, SIDE, (2, dots))
    canvas[where[0], where[1]] = rng.integers(30, 226, (dots, 3))
    steps = np.linspace(0, 1, SIDE + 1, dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        (y0, x0), (y1, x1) = rng.integers(0, SIDE, (2, 2))
        ys = (y0 + (y1 - y0) * steps + 0.5).astype(np.intp)
        xs = (x0 + (x1 - x0) * steps + 0.5).astype(np.intp)
        canvas[ys, xs] = shade + rng.choice((-45, 45))


def _write(canvas: np.ndarray, scene: Scene, shade: np.ndarray, rng: np.random.Generator) -> None:
    ink = np.array(LIGHT if shade.mean() < 128 else DARK, np.float32)
    for line, word in enumerate(scene.words):
        mask = word_mask(word)
        first_cell = int(rng.integers(0, SIDE // CELL - len(word) + 1))
        dy, dx = rng.integers(0, 2), rng.integers(0, 4)
        top, left = CELL * (scene.first_row + line) + dy, CELL * first_cell + dx
        ys, xs = np.nonzero(mask)
        canvas[top + ys, left + xs] = ink


def render(scene: Scene) -> UInt8[np.ndarray, "X X C"]:
    """Draws the scene.

    Returns:
        uint8 ``[32, 32, 3]``, RGB.
    """
    rng = np.random.default_rng(scene.seed)
    # Everything random is drawn for all four places at once, used or not: taking an object away
    # changes no other pixel.
    noise = rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32) * np.float32(7)
    shade = (rng.integers(75, 181) + rng.integers(-12, 13, 3)).astype(np.float32)
    slope = np.linspace(-1, 1, SIDE, dtype=np.float32)[:, None, None] * rng.integers(-18, 19)
    sizes = rng.integers(SIZES.start, SIZES.stop, 4).tolist()
    shifts = rng.random((4, 2)).tolist()
    tints = rng.integers(-14, 15, (4, 3)).astype(np.float32)
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    canvas[:] = shade + slope
    _clutter(canvas, shade, rng)
    for thing in scene.things:
        place = PLACES.index(thing.place)
        size = sizes[place]
        slack = _QUADRANT - size + 1
        top = _QUADRANT * (place // 2) + int(shifts[place][0] * slack)
        left = _QUADRANT * (place % 2) + int(shifts[place][1] * slack)
        cover = stencil(thing.kind, size)
        inks = np.stack([_COLOURS[thing.colour] + tints[place], DARK, LIGHT]).astype(np.float32)
        square = canvas[top : top + size, left : left + size]
        square *= 1 - cover.sum(axis=-1, keepdims=True)
        square += cover @ inks
    if scene.words:
        _write(canvas, scene, shade, rng)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)


def render_batch(scenes: Iterable[Scene]) -> UInt8[np.ndarray, "B X X C"]:
    """Draws many scenes: uint8 ``[B, 32, 32, 3]``."""
    return np.stack([render(scene) for scene in scenes])


def to_png(scene: Scene) -> bytes:
    """The scene's picture as the bytes of a PNG file (lossless)."""
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels()).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def without(scene: Scene, index: int) -> Scene:
    """The same scene with one object taken away; nothing else in the picture changes."""
    return replace(scene, things=scene.things[:index] + scene.things[index + 1 :])

"""Pictures of the small world as people bring them: larger, wide or tall, things in a line.

A picture of 32 x 32 pixels is all that the small tower takes, so of these a guard sees what its
processor leaves. Padded to a square, what decides is about as large as in the world's own pictures
(from eight pixels, of the longest, to fourteen); of a crop, the ends are gone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from crossguard_jax.toy.world.examples import Stream, WorldExample
from crossguard_jax.toy.world.kinds import COLOURS, TALL, WIDE
from crossguard_jax.toy.world.pointing import point
from crossguard_jax.toy.world.risk import SEEN_PAIRS, risky
from crossguard_jax.toy.world.rows import ORDINARY, Pair, deal_pairs, say
from crossguard_jax.toy.world.scenes import DARK, LIGHT, SIDE, Scene, draw_scene
from crossguard_jax.toy.world.stencils import stencil

SHORTEST, LONGEST = 96, 288
"""Pixels of a side."""

_COLOURS = {name: np.array(rgb, np.float32) for name, rgb in COLOURS.items()}


@dataclass(frozen=True, slots=True)
class WideScene(Scene):
    """A scene whose things stand in a line.

    Attributes:
        size: width and height in pixels, never the same.
        middle: whether the largest stands in the middle, and the others have what it leaves at the
            ends; else there are two of about a size, one at each end.
    """

    size: tuple[int, int] = (LONGEST, SHORTEST)
    middle: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        """What the three places along the longer side are called."""
        return WIDE if self.size[0] > self.size[1] else TALL

    def pixels(self) -> UInt8[np.ndarray, "Y X C"]:
        """The picture drawn: uint8 [height, width, 3], RGB."""
        rng = np.random.default_rng(self.seed)
        # As in `scenes.render`, everything random is drawn for all places, used or not.
        shade = (rng.integers(75, 181) + rng.integers(-12, 13, 3)).astype(np.float32)
        slope = np.linspace(-1, 1, self.size[1], dtype=np.float32) * rng.integers(-18, 19)
        fills, shifts = 1 - 0.08 * rng.random(3), rng.random((3, 2)).tolist()
        tints = rng.integers(-14, 15, (3, 3)).astype(np.float32)
        canvas = np.empty((*self.size[::-1], 3), np.float32)
        canvas[:] = shade + slope[:, None, None]
        canvas = self._cluttered(canvas, shade, rng)
        rooms = self._rooms()
        for thing in self.things:
            place = self.places.index(thing.place)
            side = int(rooms[place] * fills[place])
            left, top = self._corner(place, side, shifts[place])
            cover = stencil(thing.kind, side)
            inks = np.stack([_COLOURS[thing.colour] + tints[place], DARK, LIGHT]).astype(np.float32)
            square = canvas[top : top + side, left : left + side]
            square *= 1 - cover.sum(axis=-1, keepdims=True)
            square += cover @ inks
        return np.clip(canvas + self._noise(rng), 0, 255).astype(np.uint8)

    def _rooms(self) -> tuple[float, float, float]:
        """The largest side of a thing at each place."""
        short, long = min(self.size), max(self.size)
        largest = min(0.96 * short, 0.45 * long)
        if not self.middle:
            return largest, 0.0, largest
        left = min(0.96 * short, (long - largest) / 2 - 3 * long / 64)
        return left, largest, left

    def _corner(self, place: int, side: int, shift: Sequence[float]) -> tuple[int, int]:
        """The left and top of a thing, within a pixel or so of a small picture where it belongs."""
        spans, along = [n - side for n in self.size], int(self.size[0] < self.size[1])
        jitter = max(self.size) / 32
        ends = (jitter * shift[along], spans[along] - jitter * shift[along])
        middle = spans[along] / 2 + jitter * (shift[along] - 0.5)
        across = spans[1 - along] / 2 + min(2 * jitter, spans[1 - along]) * (shift[1 - along] - 0.5)
        corner = [int(across), int(across)]
        corner[along] = int((ends[0], middle, ends[1])[place])
        return corner[0], corner[1]

    def _cluttered(
        self, canvas: Float32[np.ndarray, "Y X C"], shade: np.ndarray, rng: np.random.Generator
    ) -> Float32[np.ndarray, "Y X C"]:
        """Dots and lines, as thick as the pixels of a small picture."""
        grain = max(self.size) / SIDE
        picture = Image.fromarray(canvas.astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(4, 11))):
            x, y = rng.random(2) * self.size
            pen.ellipse((x, y, x + grain, y + grain), tuple(rng.integers(30, 226, 3).tolist()))
        for _ in range(int(rng.integers(1, 4))):
            ends = rng.random((2, 2)) * self.size
            ink = np.clip(shade + rng.choice((-45, 45)), 0, 255).astype(int)
            pen.line(ends.ravel().tolist(), tuple(ink.tolist()), round(grain))
        return np.asarray(picture, np.float32).copy()

    def _noise(self, rng: np.random.Generator) -> Float32[np.ndarray, "Y X C"]:
        """As coarse as a small picture's, so that padding and scaling do not average it away."""
        grain = max(self.size) / SIDE
        cells = [math.ceil(n / grain) for n in self.size[::-1]]
        coarse = rng.standard_normal((*cells, 3), dtype=np.float32) * np.float32(7)
        planes = [
            np.asarray(Image.fromarray(plane).resize(self.size, Image.Resampling.BILINEAR))
            for plane in np.moveaxis(coarse, -1, 0)
        ]
        return np.stack(planes, axis=-1)


def pad_to_square(
    pixels: UInt8[np.ndarray, "Y X C"], colour: tuple[int, ...]
) -> UInt8[np.ndarray, "S S C"]:
    """The picture in the middle of a square of one colour, scaled to the small tower's size."""
    picture = Image.fromarray(pixels)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def draw_wide(
    rng: np.random.Generator,
    first: str,
    others: Sequence[str],
    seed: int,
    middle: bool,
    least: float = 1.1,
) -> WideScene:
    """Draws a scene; colours, places and shapes are independent of the kinds.

    Args:
        rng: where the draws come from.
        first: the kind that comes first in ``things``.
        others: kinds the rest is drawn from.
        seed: the scene's own.
        middle: whether the first stands in the middle, with one or two others; else there are two.
        least: the longer side in shorter ones; 3 is the most.
    """
    aspect = rng.uniform(least, 3)
    short = int(rng.integers(SHORTEST, min(SHORTEST * 4 // 3, int(LONGEST / aspect)) + 1))
    long, wide = round(aspect * short), rng.random() < 0.5
    first_end, centre, last_end = WIDE if wide else TALL
    ends = (first_end, last_end)
    count = 2 + int(rng.integers(2)) if middle else 2
    scene = draw_scene(rng, [first], others, count, seed, (*ends, centre) if middle else ends)
    things = scene.things
    if middle:
        swap = {centre: things[0].place, things[0].place: centre}
        things = tuple(replace(thing, place=swap.get(thing.place, thing.place)) for thing in things)
    return WideScene(things, seed, size=(long, short) if wide else (short, long), middle=middle)


def _wide_row(stream: Stream, pair: Pair, middle: bool, least: float = 1.1) -> WorldExample:
    kind, request = pair
    scene = draw_wide(stream.rng, kind, ORDINARY, stream.scene_seed(), middle, least)
    text = say(stream, request, point(stream.rng, scene.things[0]))
    label = "unsafe" if risky(*pair) else "safe"
    return WorldExample(text, label, scene, request, "", 0, kind, request, True)


def implicit_wide_rows(stream: Stream, n: int) -> list[WorldExample]:
    """As `rows.implicit_rows`, of larger pictures, 3:1 to 1:3; what decides is at an end or in the
    middle."""
    pairs = deal_pairs(stream, SEEN_PAIRS, n)
    return [_wide_row(stream, pair, stream.rng.random() < 0.5) for pair in pairs]


def wide_margin_rows(stream: Stream, n: int) -> list[WorldExample]:
    """The same from 2:1, of which a crop leaves half or less, with what decides at an end."""
    return [_wide_row(stream, pair, False, 2.0) for pair in deal_pairs(stream, SEEN_PAIRS, n)]


def wide_centre_rows(stream: Stream, n: int) -> list[WorldExample]:
    """The same with what decides in the middle of the picture."""
    return [_wide_row(stream, pair, True, 2.0) for pair in deal_pairs(stream, SEEN_PAIRS, n)]

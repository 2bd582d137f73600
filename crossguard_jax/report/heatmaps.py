"""Maps of what of a picture counts, laid over it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from crossguard_jax.core.typing import Float
from crossguard_jax.io import images

FOR, AGAINST = (213, 94, 0), (0, 114, 178)
"""Vermillion speaks for unsafe, blue against it: as in the plots."""
STRONGEST = 0.65
"""How much of the picture the strongest patch covers."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of a picture."""


def patch_box(size: tuple[int, int], side: int, patch: tuple[int, int], crops: bool) -> Box:
    """Where a patch of the square that a guard sees lies in the picture.

    Args:
        size: of the picture, width and height.
        side: patches along the square.
        patch: row and column.
        crops: whether the square is the middle of the picture; else the picture is in the middle
            of the square, and a patch of the margin has no area.
    """
    square = min(size) if crops else max(size)
    left, top = ((n - square) / 2 for n in size)
    row, column = patch
    edges = (
        left + square * column / side,
        top + square * row / side,
        left + square * (column + 1) / side,
        top + square * (row + 1) / side,
    )
    limits = (size[0], size[1], size[0], size[1])
    x0, y0, x1, y1 = (
        min(max(round(edge), 0), limit) for edge, limit in zip(edges, limits, strict=True)
    )
    return x0, y0, x1, y1


def peak(picture: images.Picture, heat: Float[np.ndarray, "G G"], crops: bool) -> Box:
    """The patch that speaks most for unsafe, among those that the picture is in."""
    size, side = images.rgb(picture, "the picture").size, len(heat)
    boxes: dict[int, Box] = {}
    for i in np.argsort(-heat, axis=None, kind="stable").tolist():
        boxes[i] = patch_box(size, side, divmod(i, side), crops)
        left, top, right, bottom = boxes[i]
        if left < right and top < bottom:
            return boxes[i]
    return 0, 0, *size


def overlay(picture: images.Picture, heat: Float[np.ndarray, "G G"], crops: bool) -> bytes:
    """The picture as PNG, each patch coloured by how much it counts, a frame around the one that
    speaks most for unsafe."""
    shown = images.rgb(picture, "the picture")
    ground, side = shown.convert("L").convert("RGB"), len(heat)
    most = max(float(np.abs(heat).max()), 1e-12)
    cover, ink = Image.new("L", shown.size), Image.new("RGB", shown.size)
    for i, value in enumerate(heat.ravel().tolist()):
        left, top, right, bottom = patch_box(shown.size, side, divmod(i, side), crops)
        if left < right and top < bottom:
            where: Sequence[int] = (left, top, right - 1, bottom - 1)
            ImageDraw.Draw(cover).rectangle(where, round(255 * STRONGEST * abs(value) / most))
            ImageDraw.Draw(ink).rectangle(where, FOR if value > 0 else AGAINST)
    drawn = Image.composite(ink, ground, cover)
    left, top, right, bottom = peak(picture, heat, crops)
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=FOR)
    return images.encode_png(drawn)

"""How each kind looks: shapes on a 12 x 12 grid in three inks, drawn large and averaged down.

The *body* ink takes the object's colour; *dark* and *light* marks are the same on every object, so
that a kind is told by silhouette and marks and never by colour. *cut* opens a hole.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

GRID = 12
INKS = ("cut", "body", "dark", "light")
_SCALE = 10

# (ink, shape, numbers): rect and oval take a box (x0, y0, x1, y1); poly takes points; line takes a
# width and then points; arc takes a width, a box, and two angles in degrees, clockwise from east.
STENCILS: dict[str, tuple[tuple, ...]] = {
    "bleach": (
        ("body", "rect", (2.5, 4, 10, 12)),
        ("body", "poly", (4.5, 1.5, 7, 1.5, 10, 4, 2.5, 4)),
        ("dark", "rect", (4, 0, 7.5, 1.8)),
        ("cut", "oval", (7, 3.6, 9, 7)),
        ("light", "rect", (2.5, 8, 10, 10.5)),
    ),
    "detergent": (
        ("body", "rect", (1, 0.5, 11, 12)),
        ("dark", "rect", (1, 0.5, 11, 2.5)),
        ("light", "oval", (2.7, 3.7, 9.3, 10.7)),
        ("body", "oval", (4.5, 5.5, 7.5, 8.8)),
    ),
    "solvent": (
        ("dark", "arc", (1, 2.5, 0, 9.5, 6, 180, 360)),
        ("body", "rect", (1.5, 3, 10.5, 12)),
        ("dark", "line", (1.5, 3, 5, 9, 11)),
        ("dark", "line", (1.5, 9, 5, 3, 11)),
    ),
    "cleaner": (
        ("body", "poly", (5, 4, 8, 4, 11, 12, 3, 12)),
        ("dark", "poly", (0, 0.6, 9, 0.6, 9.6, 3, 5, 3.4, 3, 2.6, 0, 2.4)),
        ("dark", "line", (0.9, 4.2, 3, 2.6, 5.6)),
        ("light", "rect", (5, 7.5, 8.8, 9.7)),
    ),
    "kettle": (
        ("dark", "arc", (1.2, 3, 0, 10.5, 9, 180, 360)),
        ("body", "oval", (2.5, 3.8, 11, 13)),
        ("cut", "rect", (0, 12, 12, 14)),
        ("body", "poly", (0, 4.5, 2, 4, 5, 8, 3.5, 10.5)),
        ("light", "line", (1, 4.5, 7, 9, 7)),
        ("dark", "rect", (5.8, 2.9, 7.7, 4.5)),
    ),
    "candle": (
        ("body", "rect", (4, 4.6, 8, 11)),
        ("light", "poly", (6, 0, 7.6, 2.6, 6.8, 4, 5.2, 4, 4.4, 2.6)),
        ("dark", "rect", (5.6, 3.2, 6.4, 5)),
        ("dark", "rect", (1.5, 10.4, 10.5, 12)),
    ),
    "pan": (
        ("body", "line", (1.8, 7, 5.5, 12, 0.8)),
        ("body", "oval", (0, 3, 8.8, 11.8)),
        ("dark", "oval", (1.4, 4.4, 7.4, 10.4)),
        ("light", "arc", (0.8, 2.6, 5.6, 6.2, 9.2, 170, 280)),
    ),
    "iron": (
        ("body", "poly", (0, 9.6, 2.5, 6.2, 6, 5.2, 12, 5.2, 12, 9.6)),
        ("body", "line", (1.5, 4, 5.6, 5, 2.8, 10.8, 2.8, 10.8, 6)),
        ("dark", "rect", (0, 9.4, 12, 11.4)),
        ("light", "oval", (6.2, 6.2, 8.8, 8.6)),
    ),
    "knife": (
        ("body", "poly", (12, 0, 12, 2.8, 6, 9, 3.6, 6.6)),
        ("light", "line", (0.7, 10.8, 1.2, 5.2, 6.8)),
        ("dark", "line", (2.5, 4.8, 7.4, 0.8, 11.4)),
    ),
    "scissors": (
        ("body", "line", (1.8, 2.2, 0.2, 7.4, 8)),
        ("body", "line", (1.8, 9.8, 0.2, 4.6, 8)),
        ("dark", "oval", (0.6, 7, 5.8, 12)),
        ("cut", "oval", (2.1, 8.4, 4.4, 10.7)),
        ("dark", "oval", (6.2, 7, 11.4, 12)),
        ("cut", "oval", (7.6, 8.4, 9.9, 10.7)),
    ),
    "saw": (
        (
            "body",
            "poly",
            (
                0,
                3.4,
                9,
                2.6,
                9,
                8.2,
                7.7,
                6.8,
                6.4,
                8.4,
                5.1,
                6.6,
                3.8,
                8,
                2.5,
                6.2,
                1.2,
                7.4,
                0,
                6,
            ),
        ),
        ("dark", "rect", (8, 1.6, 12, 9.8)),
        ("cut", "rect", (9.4, 4, 10.6, 7.6)),
        ("light", "line", (0.7, 0.8, 4.6, 7.4, 4.2)),
    ),
    "cactus": (
        ("body", "oval", (4, 0, 8, 4)),
        ("body", "rect", (4, 2, 8, 9)),
        ("body", "line", (1.7, 1.6, 2.4, 1.6, 6.2, 5, 6.2)),
        ("body", "line", (1.7, 10.6, 1.4, 10.6, 4.8, 7, 4.8)),
        ("light", "rect", (4.6, 2.2, 5.6, 3.2)),
        ("light", "rect", (6.4, 4.2, 7.4, 5.2)),
        ("light", "rect", (4.6, 6.2, 5.6, 7.2)),
        ("dark", "poly", (2.6, 8.6, 9.4, 8.6, 8.2, 12, 3.8, 12)),
    ),
    "toaster": (
        ("light", "rect", (2, 1.6, 5, 5)),
        ("light", "rect", (6.2, 1.6, 9.2, 5)),
        ("body", "rect", (0.4, 4.4, 10.8, 11)),
        ("dark", "rect", (10.4, 5.6, 12, 7.2)),
        ("dark", "rect", (1.4, 10.6, 3.4, 12)),
        ("dark", "rect", (7.8, 10.6, 9.8, 12)),
        ("dark", "line", (0.9, 2, 7.8, 9, 7.8)),
    ),
    "lamp": (
        ("dark", "rect", (5.3, 5, 6.7, 11)),
        ("body", "poly", (3.6, 0.2, 8.4, 0.2, 11.6, 6, 0.4, 6)),
        ("light", "poly", (5.2, 2.4, 6.8, 2.4, 8, 6, 4, 6)),
        ("body", "rect", (2.6, 10.4, 9.4, 12)),
    ),
    "plug": (
        ("light", "rect", (3, 0, 4.6, 4)),
        ("light", "rect", (7.4, 0, 9, 4)),
        ("body", "rect", (1.6, 3.6, 10.4, 7)),
        ("body", "poly", (1.6, 7, 10.4, 7, 7.6, 9.6, 4.4, 9.6)),
        ("dark", "line", (1.5, 6, 9, 6, 11.3, 10, 11.3)),
        ("dark", "oval", (5, 4.6, 7, 6.6)),
    ),
    "fan": (
        ("body", "oval", (1, 0, 11, 9.6)),
        ("cut", "oval", (2.3, 1.2, 9.7, 8.4)),
        ("dark", "poly", (6, 4.8, 4.6, 1.4, 7.4, 1.4)),
        ("dark", "poly", (6, 4.8, 4.6, 8.2, 7.4, 8.2)),
        ("dark", "poly", (6, 4.8, 2.5, 3.4, 2.5, 6.2)),
        ("dark", "poly", (6, 4.8, 9.5, 3.4, 9.5, 6.2)),
        ("light", "oval", (5, 3.8, 7, 5.8)),
        ("body", "rect", (5.2, 9.4, 6.8, 11)),
        ("body", "rect", (3, 10.6, 9, 12)),
    ),
    "fire": (
        ("body", "poly", (6, 0, 8, 3.4, 9.4, 2.4, 11.4, 8, 9, 12, 3, 12, 0.6, 8, 2.4, 3.6, 4, 5)),
        ("light", "poly", (6, 5, 8.4, 9, 7.4, 12, 4.6, 12, 3.6, 9)),
    ),
    "spill": (
        ("body", "oval", (0, 8, 12, 12)),
        ("body", "oval", (0.6, 6.8, 6, 10)),
        ("dark", "poly", (6, 0, 11, 8.4, 1, 8.4)),
        ("light", "rect", (5.3, 2.8, 6.7, 5.8)),
        ("light", "rect", (5.3, 6.5, 6.7, 7.6)),
    ),
    "crash": (
        ("body", "poly", (0, 0.4, 4.4, 2.2, 1.6, 5)),
        ("body", "poly", (6.4, 0, 11.6, 1.4, 8.2, 5)),
        ("light", "poly", (4.4, 4.2, 7, 6.4, 4.2, 8)),
        ("body", "poly", (0.2, 8, 3.4, 9.4, 0.6, 12)),
        ("body", "poly", (5.4, 9.4, 8.2, 12, 4.4, 12)),
        ("dark", "poly", (8.8, 6.4, 12, 8.4, 9.6, 11.4)),
    ),
    "spark": (
        ("dark", "poly", (5, 0, 10.8, 0, 7.6, 4.4, 11, 4.4, 3, 12, 5.2, 6.6, 1.6, 6.6)),
        ("body", "poly", (5.8, 0.9, 8.8, 0.9, 5.8, 5.3, 8.4, 5.3, 4.6, 9.4, 6.4, 5.7, 3.2, 5.7)),
    ),
    "flower": (
        ("dark", "rect", (5.4, 6, 6.6, 12)),
        ("body", "oval", (3.9, 0, 8.1, 3.8)),
        ("body", "oval", (3.9, 5, 8.1, 8.8)),
        ("body", "oval", (1.2, 2.4, 5.2, 6.4)),
        ("body", "oval", (6.8, 2.4, 10.8, 6.4)),
        ("light", "oval", (4.4, 2.8, 7.6, 6)),
    ),
    "star": (
        (
            "body",
            "poly",
            (6, 0, 7.5, 4.2, 12, 4.4, 8.5, 7.1, 9.7, 11.5, 6, 9, 2.3, 11.5, 3.5, 7.1, 0, 4.4)
            + (4.5, 4.2),
        ),
    ),
    "ball": (
        ("body", "oval", (0.4, 0.4, 11.6, 11.6)),
        ("light", "poly", (1.2, 3.2, 10.8, 3.2, 11.6, 6, 0.4, 6)),
        ("dark", "poly", (0.4, 6, 11.6, 6, 10.8, 8.8, 1.2, 8.8)),
    ),
    "kite": (
        ("body", "poly", (6.6, 0, 11.4, 4, 6.6, 9.4, 2, 4)),
        ("light", "poly", (6.6, 0, 11.4, 4, 6.6, 4)),
        ("light", "poly", (6.6, 4, 6.6, 9.4, 2, 4)),
        ("dark", "line", (0.9, 6.6, 9.4, 4.6, 10.4, 3, 9.8, 1, 11.8)),
    ),
}


def _draw(pen: ImageDraw.ImageDraw, shape: str, numbers: tuple[int | float, ...], ink: int) -> None:
    n = [number * _SCALE for number in numbers]
    if shape == "rect":
        pen.rectangle((n[0], n[1], n[2] - 1, n[3] - 1), fill=ink)
    elif shape == "oval":
        pen.ellipse(n, fill=ink)
    elif shape == "poly":
        pen.polygon(n, fill=ink)
    elif shape == "line":
        pen.line(n[1:], fill=ink, width=round(n[0]), joint="curve")
    else:
        pen.arc(n[1:5], numbers[5], numbers[6], fill=ink, width=round(n[0]))


@cache
def stencil(name: str, size: int) -> Float32[np.ndarray, "size size 3"]:
    """How much of each pixel each ink covers.

    Args:
        name: a key of :data:`STENCILS`.
        size: side of the square in pixels.

    Returns:
        float32 ``[size, size, 3]`` for body, dark and light, each in [0, 1], their sum at most 1.
        Cached and read-only.
    """
    side = GRID * _SCALE
    inks = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(inks)
    for ink, shape, numbers in STENCILS[name]:
        _draw(pen, shape, numbers, INKS.index(ink))
    drawn = np.asarray(inks)
    cover = [
        np.asarray(
            Image.fromarray((drawn == k).astype(np.float32)).resize(
                (size, size), Image.Resampling.BOX
            )
        )
        for k in (1, 2, 3)
    ]
    stacked = np.stack(cover, axis=-1)
    stacked.setflags(write=False)
    return stacked

"""What there is in the small world: household kinds, their properties, colours and places.

A kind is index ``4 * property + i`` in :data:`KINDS`, so that the risk table and the held-out pairs
can be written as arithmetic on indices (see :mod:`crossguard_jax.toy.world.risk`).
"""

from dataclasses import dataclass

PROPERTIES = ("caustic", "hot", "sharp", "electric")


@dataclass(frozen=True, slots=True)
class Kind:
    """A household object.

    Attributes:
        name: the word for it, one lower-case word.
        property: one of :data:`PROPERTIES`.
        novel: whether it stays out of the base models' pictures and questions and comes only with
            the guard's training, so that the picture tower's adapters have something to learn.
    """

    name: str
    property: str
    novel: bool = False


KINDS = (
    Kind("bleach", "caustic"),
    Kind("detergent", "caustic"),
    Kind("solvent", "caustic"),
    Kind("cleaner", "caustic"),
    Kind("kettle", "hot"),
    Kind("candle", "hot"),
    Kind("pan", "hot"),
    Kind("iron", "hot"),
    Kind("knife", "sharp"),
    Kind("scissors", "sharp"),
    Kind("saw", "sharp"),
    Kind("cactus", "sharp", novel=True),
    Kind("toaster", "electric"),
    Kind("lamp", "electric"),
    Kind("plug", "electric"),
    Kind("fan", "electric", novel=True),
)

KIND_NAMES = tuple(kind.name for kind in KINDS)
BASE_KINDS = tuple(kind.name for kind in KINDS if not kind.novel)
NOVEL_KINDS = tuple(kind.name for kind in KINDS if kind.novel)
PROPERTY_OF = {kind.name: kind.property for kind in KINDS}

# A hazard is danger that the picture shows by itself; a decoration is its harmless look-alike, so
# that "something that is no household object" decides nothing.
HAZARDS = ("fire", "spill", "crash", "spark")
DECORATIONS = ("flower", "star", "ball", "kite")

# Near the corners of the RGB cube: as far apart as six colours can be from each other and from the
# grey backgrounds.
COLOURS = {
    "red": (220, 35, 35),
    "green": (35, 165, 45),
    "blue": (40, 65, 225),
    "yellow": (240, 220, 40),
    "pink": (240, 75, 205),
    "cyan": (50, 215, 225),
}
COLOUR_NAMES = tuple(COLOURS)

PLACES = ("top left", "top right", "bottom left", "bottom right")

WIDE, TALL = ("left", "middle", "right"), ("top", "middle", "bottom")
"""Places along the longer side of a picture whose things stand in a line."""

LINES = (*WIDE, *TALL[::2])

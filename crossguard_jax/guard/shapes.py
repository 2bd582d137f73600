"""Which rows are computed together, in few shapes.

Each shape is a program to compile, and each token that only fills up a shape is computed for
nothing. So rows are padded to lengths on a ladder, sorted, and cut into batches of about equally
many tokens, with and without a picture side by side. All of it follows from the rows' lengths.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax

MOST_SHAPES = 12
"""Programs that the rows of one call may take."""

USUAL_TEXT = 512
"""Tokens of a text for which a batch's room is reckoned, where a guard has no window."""


@dataclass(frozen=True)
class Planned:
    """A batch that is to be computed.

    Attributes:
        length: L, tokens of a row.
        size: B, rows with those that fill it up.
        slots: I, pictures that a row has room for.
        pictures: M, pictures of the batch, with those that fill it up; 0 where no row shows one.
        rows: places of the rows in it, the longest first.
    """

    length: int
    size: int
    slots: int
    pictures: int
    rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What is compiled for: B, L, M, I."""
        return self.size, self.length, self.pictures, self.slots


def length_step(backend: str | None = None) -> int:
    """What lengths are multiples of: what the kernels of a backend (None: the one here) take."""
    return 128 if (backend or jax.default_backend()) == "tpu" else 16


def bucket(length: int, limit: int) -> int:
    """The padded length of rows that are computed alone: a multiple of `length_step`."""
    step = length_step()
    return min(-(-length // step) * step, max(limit, length))


def ladder(limit: int, tokens_per_image: int, step: int) -> tuple[int, ...]:
    """Lengths that rows are padded to: one an octave where only texts are that short, and four an
    octave from there on, where most of the tokens are.

    Args:
        limit: tokens of the longest row.
        tokens_per_image: of a picture.
        step: what they are multiples of.
    """
    rungs = [step]
    while rungs[-1] < limit:
        octave = 1 << (rungs[-1].bit_length() - 1)
        gap = octave if 2 * octave <= tokens_per_image else octave // 4
        rungs.append(rungs[-1] + max(-(-gap // step), 1) * step)
    return tuple(rungs)


def rung(tokens: int, rungs: Sequence[int]) -> int:
    """The first length on a ladder that takes so many tokens."""
    return next(length for length in rungs if length >= tokens)


def filled(n: int) -> int:
    """The batch size that ``n`` rows are computed as: 1, 4, 16, or a power of two above."""
    return next((size for size in (1, 4, 16) if n <= size), 1 << (n - 1).bit_length())


def slots(n: int) -> int:
    """How many pictures a row has room for: a power of two."""
    return 1 << max(n - 1, 0).bit_length()


def room(pictures: int, size: int, width: int) -> int:
    """How many pictures a batch of ``size`` rows of ``width`` slots has room for: none, those of
    one request, whose windows share them, or as many as its rows may show."""
    if not pictures:
        return 0
    return width if pictures <= width else size * width


def plan(
    tokens: Sequence[int],
    pictures: Sequence[int],
    owners: Sequence[int],
    rungs: Sequence[int],
    budget: int,
    parts: int = 1,
) -> list[Planned]:
    """Rows as batches of at most `MOST_SHAPES` shapes, of at most ``budget`` tokens each.

    Args:
        tokens: of each row.
        pictures: that each row shows.
        owners: whose pictures those are: rows of one owner show the same.
        rungs: lengths to pad to (see `ladder`); where there would be too many shapes, those are
            done without that cost least to do without.
        budget: tokens of a batch; a longer row is a batch by itself.
        parts: what batch sizes are multiples of: devices that a batch is spread over.
    """
    rungs = list(rungs)
    while True:
        batches = list(_batches(tokens, pictures, owners, rungs, budget, parts))
        used = sorted({batch.length for batch in batches})
        if len({batch.shape for batch in batches}) <= MOST_SHAPES or len(used) == 1:
            return batches
        rows = Counter(rung(n, rungs) for n in tokens)
        longer = dict(zip(used, used[1:], strict=False))
        rungs = sorted({*used} - {min(longer, key=lambda r: rows[r] * (longer[r] - r))})


def _batches(
    tokens: Sequence[int],
    pictures: Sequence[int],
    owners: Sequence[int],
    rungs: Sequence[int],
    budget: int,
    parts: int,
) -> Iterator[Planned]:
    """The longest rows first, each batch as full as its length allows."""
    for width in sorted({slots(n) for n in pictures}):
        own = [i for i, n in enumerate(pictures) if slots(n) == width]
        order = sorted(own, key=lambda i: (-tokens[i], i))
        while order:
            length = rung(tokens[order[0]], rungs)
            most = 1 << (max(budget // length, 1).bit_length() - 1)
            n = min(most, len(order))
            if n == len(order):  # the last one is not to be filled up with what is far shorter
                near = sum(2 * tokens[i] >= tokens[order[0]] for i in order)
                n = near if 2 * filled(near) <= filled(n) else n
            size = -(-min(filled(n), most) // parts) * parts
            rows, order = tuple(order[:n]), order[n:]
            shown = sum({owners[i]: pictures[i] for i in rows}.values())
            yield Planned(length, size, width, room(shown, size, width), rows)

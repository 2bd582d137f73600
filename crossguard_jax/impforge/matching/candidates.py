"""Pictures near a query's words, and which of them a judge lets through (ImpForge, stage 1)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import Rejected
from crossguard_jax.impforge.matching.index import PictureIndex
from crossguard_jax.impforge.matching.index_files import digest_of
from crossguard_jax.impforge.matching.judge import Judgement
from crossguard_jax.impforge.matching.keywords import Keyword
from crossguard_jax.io.progress import Progress

Library = Callable[[], Iterable[Picture | Rejected]]
"""Goes through the pictures from the start, each time it is called."""
Judge = Callable[[Iterable[tuple[str, bytes]]], Iterator[Judgement]]
"""One judgement for each id and encoded picture, in any order; keeps what it has judged."""


UNUSABLE = "library"
"""The source of verdicts on pictures that no judge could be shown."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A word of a query with a picture near it: a row of the index."""

    keyword: Keyword
    row: int
    cosine: float


def choose(
    pairs: Sequence[Sequence[Pair]],
    verdicts: Mapping[int, Judgement],
    limit: int,
    ask: Callable[[list[int]], None],
) -> list[list[Pair]]:
    """Each query's pairs whose pictures are safe, having asked for no more verdicts than it takes.

    Args:
        pairs: of each query, the best first.
        verdicts: of pictures, by row; grows as pictures are asked for.
        limit: pairs of a query, at most; 0 is one for each word.
        ask: gets the verdicts of some rows, every one of them.
    """
    chosen: list[list[Pair]] = [[] for _ in pairs]
    undecided: Sequence[int] = range(len(pairs))
    while undecided:
        pending: dict[int, None] = {}
        waiting = []
        for i in undecided:
            chosen[i], missing = _select(pairs[i], verdicts, limit)
            pending.update(dict.fromkeys(missing))
            waiting += [i] if missing else []
        if pending:
            ask(list(pending))
        undecided = waiting
    return chosen


def _select(
    pairs: Sequence[Pair], verdicts: Mapping[int, Judgement], limit: int
) -> tuple[list[Pair], list[int]]:
    """The best pairs if all that is not judged yet were safe, and what of them is not judged.

    No word and no picture comes twice.
    """
    chosen: dict[str, Pair] = {}
    rows: set[int] = set()
    for pair in pairs:
        if limit and len(chosen) == limit:
            break
        verdict = verdicts.get(pair.row)
        fits = pair.keyword.lemma not in chosen and pair.row not in rows
        if fits and (verdict is None or verdict.safe):
            chosen[pair.keyword.lemma] = pair
            rows.add(pair.row)
    return [*chosen.values()], [row for row in rows if row not in verdicts]


class Candidates:
    """Pictures near some word, and what the judge says of them.

    Attributes:
        verdicts: by row of the index, of those that were asked for.
    """

    def __init__(self, index: PictureIndex, library: Library, rows: Iterable[int]):
        self.indexed = {row: index[row] for row in set(rows)}
        self.verdicts: dict[int, Judgement] = {}
        self._pictures: dict[str, Picture] = {}
        missing = {picture.id for picture in self.indexed.values()}
        with Progress("finding candidates", len(missing), "picture") as progress:
            for picture in library() if missing else ():
                if isinstance(picture, Picture) and picture.id in missing:
                    self._pictures[picture.id] = picture
                    missing.remove(picture.id)
                    progress.update()
                    if not missing:
                        break

    def read(self, row: int) -> bytes:
        """The encoded picture. Raises UserError where it is not the one that was embedded."""
        indexed = self.indexed[row]
        if indexed.id not in self._pictures:
            raise UserError(f"{indexed.id}: in the library no more; rebuild the index")
        image = self._pictures[indexed.id].read()
        if digest_of(image) != indexed.digest:
            raise UserError(f"{indexed.id}: changed since it was embedded; rebuild the index")
        return image

    def provenance(self, row: int) -> Mapping[str, str]:
        """Where a picture came from."""
        return self._pictures[self.indexed[row].id].provenance

    def ask(self, judge: Judge) -> Callable[[list[int]], None]:
        """What has the judge look at some rows."""

        def ask(rows: list[int]) -> None:
            row_of = {self.indexed[row].id: row for row in rows}
            for judgement in judge(_Asked(self, rows)):
                self.verdicts[row_of[judgement.id]] = judgement
            for id, row in row_of.items():
                self.verdicts.setdefault(row, Judgement(id, None, "the judge gave no answer", ""))

        return ask


class _Asked:
    """Pictures for the judge, each read when its turn comes; it knows how many there are."""

    def __init__(self, candidates: Candidates, rows: list[int]):
        self._candidates, self._rows = candidates, rows

    def __length_hint__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for row in self._rows:
            id = self._candidates.indexed[row].id
            try:
                image = self._candidates.read(row)
            except UserError as error:
                self._candidates.verdicts[row] = Judgement(id, None, str(error), UNUSABLE)
            else:
                yield id, image

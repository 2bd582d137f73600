"""Queries and a library of harmless pictures to triplets (ImpForge, stage 1).

Each visual word of a query has the pictures nearest to it by CLIP; a judge confirms that a picture
carries no malice by itself, and where it does not, the next one is tried.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected, kind, rejection
from crossguard_jax.impforge.matching.candidates import (
    UNUSABLE,
    Candidates,
    Judge,
    Library,
    Pair,
    choose,
)
from crossguard_jax.impforge.matching.index import BuildCounts, PictureIndex, build_index
from crossguard_jax.impforge.matching.judge import Judgement
from crossguard_jax.impforge.matching.keywords import Extractor, Keyword
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.impforge.triplets import Triplet, write_triplets
from crossguard_jax.io import jsonl
from crossguard_jax.io.progress import Progress

REJECTED, INDEX = "rejected.jsonl", "index"

EMPTY, TWICE = "the query is empty", "an earlier query has the same id"
NO_WORD = "no visual word in the query"
REFUSED = "the judge refused every picture near the query's words"
UNRESOLVED = "no picture near the query's words was confirmed, as some could not be judged"


@dataclass(frozen=True)
class MatchSettings:
    """How queries are matched.

    Attributes:
        prompt: what CLIP reads of a word, with ``{}`` for the word.
        candidates: pictures of a word that are tried, the nearest first.
        deal: queries that share a word get different ones of its candidates, in turn, where a
            library is to be shown in its breadth; otherwise all get the nearest, as in the paper.
        by_caption: pictures whose caption says the word come before all others, which helps where
            CLIP does not know a word; the paper goes by CLIP alone.
        per_query: triplets of a query, at most, its nearest words first; 0 is one for each word.
        dtype: of the index's vectors, float16 or float32.
        batch_size: texts or pictures that go through CLIP at once.
    """

    prompt: str = "a photo of a {}"
    candidates: int = 5
    deal: bool = False
    by_caption: bool = False
    per_query: int = 1
    dtype: str = "float16"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise UserError(f"match prompt {self.prompt!r}: give one {{}} in it, for the word")
        if self.candidates < 1 or self.per_query < 0:
            raise UserError(
                f"match: candidates {self.candidates} (at least 1), per_query {self.per_query} "
                "(0 or more)"
            )


@dataclass
class MatchSummary:
    """What a run came to.

    Attributes:
        queries: rows that were read, good or not.
        matched: queries with a triplet.
        triplets: how many were written.
        rejected: queries without one, by reason.
        words: different visual words.
        library: what the index's build met.
        indexed: pictures in the index.
        judged: pictures by verdict: ``safe``, ``unsafe``, ``unresolved``, and ``unusable``: gone or
            changed since they were embedded.
    """

    queries: int = 0
    matched: int = 0
    triplets: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    words: int = 0
    library: BuildCounts = field(default_factory=BuildCounts)
    indexed: int = 0
    judged: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """The summary, for people."""
        yield (
            f"{self.queries:,} queries: {self.matched:,} matched ({self.triplets:,} triplets), "
            f"{self.rejected.total():,} rejected"
        )
        for reason, n in self.rejected.most_common():
            yield f"  {n:,} rejected: {reason}"
        seen = self.library
        changed = f", {seen.changed:,} of them changed since" if seen.changed else ""
        yield (
            f"{self.indexed:,} pictures in the index: {seen.added:,} added{changed}, "
            f"{seen.rejected:,} of the library rejected, {seen.gone:,} there no more"
        )
        verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(self.judged.items()))
        yield f"{self.words:,} visual words; pictures looked at: {verdicts or 'none'}"


def match(
    queries: Iterable[Record | Rejected],
    library: Library,
    towers: Towers,
    extractor: Extractor,
    judge: Judge,
    settings: MatchSettings,
    folder: str | Path,
    index: str | Path | None = None,
    rebuild: bool = False,
    roots: Sequence[Path] = (),
    built: BuildCounts | None = None,
) -> MatchSummary:
    """Writes ``folder/triplets.jsonl`` and, of the queries without one, ``folder/rejected.jsonl``.

    After a kill it is run again: the index and the judge have kept what they had, and all else
    takes little time.

    Args:
        queries: each a text and an id; pictures of theirs are not looked at.
        library: the harmless pictures.
        towers: CLIP.
        extractor: finds the visual words of a text.
        judge: confirms that a picture is harmless by itself.
        settings: how.
        folder: for the triplets.
        index: the folder of the embedded library, which several runs may share;
            ``folder/index`` unless given. Bad pictures are in its own ``rejected.jsonl``.
        rebuild: embed the library anew.
        roots: folders from which provenance names the files of queries and pictures; a file that
            is below none of them goes by its own name, as data travel and machines do not.
        built: what the index's build met, where it has been built; else it is built here.

    Raises:
        UserError: the index is stale (see `build_index`), or not one picture is in it.
    """
    folder, summary = Path(folder), MatchSummary()
    place = folder / INDEX if index is None else Path(index)
    scratch = folder / f".{REJECTED}.tmp"
    scratch.unlink(missing_ok=True)
    with jsonl.JsonlWriter(scratch) as writer:

        def reject(row: Rejected, id: str) -> None:
            summary.rejected[kind(row.reason)] += 1
            writer.append(asdict(row) | {"id": id})

        worded = list(_with_words(queries, extractor, summary, reject))
        if built is None:
            built = _build(library, towers, settings, place, rebuild)
        summary.library, pictures = built, PictureIndex(place)
        summary.indexed = pictures.pictures
        if not summary.indexed:
            raise UserError(f"{place}: no picture of the library is in the index; see {REJECTED}")
        near = _nearest(worded, pictures, towers, settings)
        pairs = _all_pairs((words for _, words in worded), near, settings.deal)
        rows = (close.row for of_word in near.values() for close in of_word)
        candidates = Candidates(pictures, library, rows)
        verdicts = candidates.verdicts
        chosen = choose(pairs, verdicts, settings.per_query, candidates.ask(judge))
        for (query, _), mine, those in zip(worded, chosen, pairs, strict=True):
            if not mine:
                reject(_unmatched(query, [verdicts[pair.row] for pair in those]), query.id)
        triplets = _triplets(worded, chosen, candidates, extractor, towers, settings, roots)
        summary.triplets = write_triplets(triplets, folder)
    scratch.replace(folder / REJECTED)
    summary.matched, summary.words = sum(map(bool, chosen)), len(near)
    summary.judged.update(_name(verdict) for verdict in verdicts.values())
    return summary


def _name(verdict: Judgement) -> str:
    if verdict.safe is None:
        return "unusable" if verdict.source == UNUSABLE else "unresolved"
    return "safe" if verdict.safe else "unsafe"


_Words = tuple[Keyword, ...]


@dataclass(frozen=True, slots=True)
class _Close:
    """A picture near a word: its row in the index, and whether its caption says the word."""

    row: int
    cosine: float
    in_caption: bool

    def rank(self) -> tuple[bool, float]:
        """Sorts the nearest first."""
        return not self.in_caption, -self.cosine


_Near = Mapping[str, list[_Close]]  # a word's lemma to its pictures, nearest first


def _with_words(
    queries: Iterable[Record | Rejected],
    extractor: Extractor,
    summary: MatchSummary,
    reject: Callable[[Rejected, str], None],
) -> Iterator[tuple[Record, _Words]]:
    """The queries that have visual words."""
    seen: set[str] = set()
    with Progress("finding keywords", unit="query") as progress:
        for query in queries:
            summary.queries += 1
            progress.update()
            if isinstance(query, Rejected):
                reject(query, "")
                continue
            words: _Words = ()
            if query.id in seen:
                reason = TWICE
            elif not query.text.strip():
                reason = EMPTY
            else:
                reason, words = NO_WORD, tuple(extractor(query.text))
            seen.add(query.id)
            if words:
                yield query, words
            else:
                reject(rejection(query, reason), query.id)


def _build(
    library: Library, towers: Towers, settings: MatchSettings, place: Path, rebuild: bool
) -> BuildCounts:
    dtype, batch_size = settings.dtype, settings.batch_size
    return build_index(
        place, library(), towers, dtype=dtype, batch_size=batch_size, rebuild=rebuild
    )[1]


def _nearest(
    queries: Iterable[tuple[Record, _Words]],
    pictures: PictureIndex,
    towers: Towers,
    settings: MatchSettings,
) -> _Near:
    """The pictures nearest to each different word."""
    lemmas = list(dict.fromkeys(word.lemma for _, words in queries for word in words))
    prompts = [settings.prompt.replace("{}", lemma) for lemma in lemmas]
    vectors = towers.embed_texts(prompts, settings.batch_size)
    cosines, rows = pictures.search(vectors, settings.candidates, towers.mesh)
    rows_of = pictures.captioned(lemmas) if settings.by_caption else {}
    near = {}
    for lemma, vector, values, nearest in zip(lemmas, vectors, cosines, rows, strict=True):
        by_row = dict(zip(nearest.tolist(), values.tolist(), strict=True))
        captioned = rows_of.get(lemma, [])
        by_clip = np.asarray(pictures.embeddings[captioned], np.float32) @ vector
        by_row |= zip(captioned, by_clip.tolist(), strict=True)
        in_caption = set(captioned)
        close = [_Close(row, cosine, row in in_caption) for row, cosine in by_row.items()]
        near[lemma] = sorted(close, key=_Close.rank)[: settings.candidates]
    return near


def _all_pairs(queries: Iterable[_Words], near: _Near, deal: bool) -> list[list[Pair]]:
    """Each query's words with their pictures, the nearest words first."""
    turns: Counter[str] = Counter()
    pairs = []
    for words in queries:
        ranked: list[tuple[_Close, Pair]] = []
        for word in words:
            pictures = near[word.lemma]
            turn = turns[word.lemma] % len(pictures)
            turns[word.lemma] += deal
            turned = pictures[turn:] + pictures[:turn]
            # Words compete by the same cosines, whoever's turn it is.
            for place, picture in zip(pictures, turned, strict=True):
                ranked.append((place, Pair(word, picture.row, picture.cosine)))
        ranked.sort(key=lambda each: each[0].rank())
        pairs.append([pair for _, pair in ranked])
    return pairs


def _unmatched(query: Record, verdicts: Sequence[Judgement]) -> Rejected:
    """Why no picture was taken, with the first that could not be judged."""
    unresolved = next((v for v in verdicts if v.safe is None), None)
    if unresolved is None:
        return rejection(query, REFUSED)
    answer = " ".join(unresolved.answer.split())[:200]
    return rejection(query, f"{UNRESOLVED} ({answer})")


def _triplets(
    queries: Sequence[tuple[Record, _Words]],
    chosen: Sequence[Sequence[Pair]],
    candidates: Candidates,
    extractor: Extractor,
    towers: Towers,
    settings: MatchSettings,
    roots: Sequence[Path],
) -> Iterator[Triplet]:
    for (query, _), pairs in zip(queries, chosen, strict=True):
        for number, pair in enumerate(pairs):
            picture, verdict = candidates.indexed[pair.row], candidates.verdicts[pair.row]
            query_from = _portable(query.provenance, roots)
            picture_from = _portable(candidates.provenance(pair.row), roots)
            yield Triplet(
                id=f"{query.id}-{number}",
                query=query.text,
                keyword=pair.keyword.lemma,
                image=candidates.read(pair.row),
                caption=picture.caption,
                category=query.category,
                cosine=pair.cosine,
                provenance={
                    "query": query.id,
                    "query_source": query.source,
                    "query_label": query.label,
                    **{f"query_{k}": query_from.get(k, "") for k in ("file", "row")},
                    "picture": picture.id,
                    "picture_digest": picture.digest,
                    **{f"picture_{k}": picture_from.get(k, "") for k in ("library", "file", "row")},
                    "word": pair.keyword.word,
                    "word_pos": pair.keyword.pos,
                    "word_concreteness": f"{pair.keyword.concreteness:.2f}",
                    "extractor": extractor.name,
                    "prompt": settings.prompt,
                    "clip": towers.digest,
                    "judge": verdict.source,
                    "judge_answer": verdict.answer,
                },
            )


def _portable(provenance: Mapping[str, str], roots: Sequence[Path]) -> dict[str, str]:
    """The same with the file named from its root, or by its own name alone."""
    named = dict(provenance)
    if "file" in named:
        file = Path(named["file"])
        root = next((root for root in roots if file.is_relative_to(root)), file.parent)
        named["file"] = file.relative_to(root).as_posix()
    return named

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.impforge.commands import match_files
from crossguard_jax.impforge.matching.candidates import Pair, choose
from crossguard_jax.impforge.matching.judge import Judgement
from crossguard_jax.impforge.matching.keywords import Keyword
from crossguard_jax.impforge.matching.match import MatchSettings, MatchSummary, match
from crossguard_jax.impforge.triplets import Triplet, read_triplets
from crossguard_jax.io import images
from crossguard_jax.io.jsonl import read_jsonl
from crossguard_jax.systems.load import identified
from crossguard_jax.toy.world.kinds import BASE_KINDS
from tests.impforge.small_clip import picture, towers, world_pictures

SETTINGS = MatchSettings(prompt="a picture of a {}", candidates=3)


class KindWords:
    """Finds the small world's kinds in a text, as they stand there."""

    name = "kinds"

    def __call__(self, text: str) -> list[Keyword]:
        words = [word.strip("?.,") for word in text.split()]
        return [Keyword(w, w.lower(), "noun", 4.5) for w in words if w.lower() in BASE_KINDS]


@dataclass
class Judge:
    """Says of each picture what ``rule`` says, and remembers whom it was asked of."""

    rule: Callable[[str, bytes], bool | None] = lambda id, image: True
    asked: list[str] = field(default_factory=list)

    def __call__(self, pictures: Iterable[tuple[str, bytes]]) -> Iterator[Judgement]:
        for id, image in pictures:
            self.asked.append(id)
            yield Judgement(id, self.rule(id, image), f"about {id}", "a rule")


def query(n: int, text: str, **changes: object) -> Record:
    fields = {
        "id": f"q{n}",
        "images": (),
        "text": text,
        "category": "hot",
        "source": "mine",
        "provenance": {"file": "queries.jsonl", "row": str(n)},
    }
    return Record(**fields | changes)


def run(
    folder: Path,
    queries: Iterable[Record | Rejected],
    judge: Judge,
    settings: MatchSettings = SETTINGS,
    pictures: Iterable[Picture | Rejected] = world_pictures(200),
) -> tuple[MatchSummary, list[Triplet], list[dict]]:
    summary = match(queries, lambda: pictures, towers(), KindWords(), judge, settings, folder)
    triplets = list(read_triplets(folder / "triplets.jsonl"))
    assert all(isinstance(triplet, Triplet) for triplet in triplets)
    rejected = [value for _, value in read_jsonl(folder / "rejected.jsonl")]
    assert summary.triplets == len(triplets) and summary.rejected.total() == len(rejected)
    return summary, triplets, rejected  # type: ignore[return-value]


def nearest(word: str, k: int) -> list[str]:
    """The pictures nearest to a word, by sorting cosines of vectors made one by one."""
    pixels = [towers().pixels(images.decode(p.read(), p.id)) for p in world_pictures(200)]
    vectors = np.asarray(towers().embed_pictures(np.stack(pixels)))
    (text,) = towers().embed_texts([f"a picture of a {word}"])
    order = np.argsort(-(vectors @ text), kind="stable")[:k]
    return [world_pictures(200)[i].id for i in order]


# ---- choosing ----------------------------------------------------------------------------------


def by_trying_all(pairs: list[Pair], safe: dict[int, bool | None], limit: int) -> list[Pair]:
    """One pair after the other, with every verdict known."""
    chosen: list[Pair] = []
    for pair in pairs:
        fresh = all(p.keyword != pair.keyword and p.row != pair.row for p in chosen)
        if fresh and safe[pair.row] is True and (not limit or len(chosen) < limit):
            chosen.append(pair)
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_what_is_chosen_is_what_knowing_every_verdict_chooses_but_fewer_are_asked_for(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    words = [Keyword(w, w, "noun", 5.0) for w in "abcde"]
    limit, pictures = int(rng.integers(0, 4)), 12
    pairs = []
    for _ in range(8):
        mine = rng.permutation(5)[: rng.integers(1, 5)]
        cosines = np.sort(rng.random(4 * len(mine)))[::-1].tolist()
        rows = rng.integers(0, pictures, 4 * len(mine)).tolist()
        pairs.append(
            [Pair(words[rng.choice(mine)], r, c) for r, c in zip(rows, cosines, strict=True)]
        )
    safe = dict(enumerate(rng.choice([True, False, None], pictures, p=[0.5, 0.4, 0.1]).tolist()))
    verdicts: dict[int, Judgement] = {}

    def ask(rows: list[int]) -> None:
        assert not verdicts.keys() & set(rows) and len(set(rows)) == len(rows) > 0
        verdicts.update((row, Judgement(str(row), safe[row], "", "")) for row in rows)

    chosen = choose(pairs, verdicts, limit, ask)
    assert chosen == [by_trying_all(of, safe, limit) for of in pairs]
    # No picture is judged that no query could have come to.
    assert verdicts.keys() <= {pair.row for of in pairs for pair in of}


def test_the_second_best_is_not_asked_for_while_the_best_is_safe() -> None:
    word = Keyword("a", "a", "noun", 5.0)
    asked: list[int] = []
    verdicts: dict[int, Judgement] = {}

    def ask(rows: list[int]) -> None:
        asked.extend(rows)
        verdicts.update((row, Judgement("", row != 3, "", "")) for row in rows)

    pairs = [[Pair(word, row, 1 / row) for row in of] for of in ((1, 2), (3, 4))]
    assert [[p.row for p in of] for of in choose(pairs, verdicts, 1, ask)] == [[1], [4]]
    assert asked == [1, 3, 4]


# ---- matching ----------------------------------------------------------------------------------


def test_a_query_gets_the_picture_nearest_to_its_word(tmp_path: Path) -> None:
    queries = [query(i, f"what can the {kind} do?") for i, kind in enumerate(BASE_KINDS)]
    summary, triplets, rejected = run(tmp_path, queries, Judge())
    assert [t.query for t in triplets] == [q.text for q in queries] and rejected == []
    assert (summary.queries, summary.matched, summary.words) == (14, 14, 14)
    shown = [kind in t.caption.split() for kind, t in zip(BASE_KINDS, triplets, strict=True)]
    assert sum(shown) >= 13  # the small CLIP finds the nearest kind 96 times in a hundred
    for triplet in triplets[:4]:
        assert triplet.provenance["picture"] == nearest(triplet.keyword, 1)[0]


def test_a_triplet_says_where_all_of_it_came_from(tmp_path: Path) -> None:
    judge = Judge()
    _, (triplet,), _ = run(tmp_path, [query(3, "Kettle?", label="unsafe")], judge)
    (found,) = judge.asked
    known = {p.id: p for p in world_pictures(200)}[found]
    assert (triplet.keyword, triplet.picture, triplet.caption) == (
        "kettle",
        known.read(),
        known.caption,
    )
    assert triplet.category == "hot" and 0 < triplet.cosine <= 1
    expected = {
        "query": "q3",
        "query_source": "mine",
        "query_label": "unsafe",
        "query_file": "queries.jsonl",
        "query_row": "3",
        "picture": found,
        "picture_file": f"{found}.png",
        "picture_library": "test",
        "word": "Kettle",
        "word_pos": "noun",
        "word_concreteness": "4.50",
        "extractor": "kinds",
        "prompt": "a picture of a {}",
        "clip": towers().digest,
        "judge": "a rule",
        "judge_answer": f"about {found}",
    }
    assert expected.items() <= triplet.provenance.items()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/data/raw/queries.jsonl", "queries.jsonl"),
        ("/data/raw/in/a.jsonl", "in/a.jsonl"),
        ("/elsewhere/mine/queries.jsonl", "queries.jsonl"),
        ("../raw/queries.jsonl", "queries.jsonl"),
        ("queries.jsonl", "queries.jsonl"),
    ],
)
def test_provenance_names_files_from_the_datas_own_folder(
    tmp_path: Path, file: str, name: str
) -> None:
    given = query(0, "a kettle?", provenance={"file": file, "row": "1"})
    match(
        *([given], lambda: world_pictures(200), towers(), KindWords(), Judge(), SETTINGS, tmp_path),
        roots=[Path("/data/raw")],
    )
    (triplet,) = read_triplets(tmp_path / "triplets.jsonl")
    assert triplet.provenance["query_file"] == name


def test_what_the_judge_refuses_gives_way_to_the_next_nearest(tmp_path: Path) -> None:
    first, second, third = nearest("kettle", 3)
    judge = Judge(lambda id, image: {first: False, second: None}.get(id, True))
    queries = [query(0, "a kettle?"), query(1, "is this kettle mine?")]
    summary, triplets, _ = run(tmp_path, queries, judge)
    assert [t.provenance["picture"] for t in triplets] == [third, third]
    assert judge.asked == [first, second, third]
    assert summary.judged == {"safe": 1, "unsafe": 1, "unresolved": 1}


def test_words_of_a_query_share_its_triplets_the_nearest_first(tmp_path: Path) -> None:
    text = "put the knife, the lamp and the kettle away"
    words = {"knife", "lamp", "kettle"}
    found = {}
    for limit in (0, 1, 2):
        settings = MatchSettings(SETTINGS.prompt, candidates=3, per_query=limit)
        _, found[limit], _ = run(tmp_path, [query(0, text)], Judge(), settings)
    assert {t.keyword for t in found[0]} == words
    assert [t.id for t in found[0]] == ["q0-0", "q0-1", "q0-2"]
    cosines = [t.cosine for t in found[0]]
    assert cosines == sorted(cosines, reverse=True)
    assert len({t.provenance["picture"] for t in found[0]}) == 3
    assert (found[1], found[2]) == (found[0][:1], found[0][:2])


def test_queries_that_share_a_word_are_dealt_its_pictures_in_turn(tmp_path: Path) -> None:
    kettles, lamps = nearest("kettle", 3), nearest("lamp", 3)
    judge = Judge(lambda id, image: id != kettles[1])
    texts = ["a kettle?", "a lamp?", "a kettle?", "a lamp?", "a kettle?", "a kettle?"]
    queries = [query(i, text) for i, text in enumerate(texts)]
    settings = MatchSettings(SETTINGS.prompt, candidates=3, deal=True)
    _, triplets, _ = run(tmp_path, queries, judge, settings)
    first, second, third = kettles
    expected = [first, lamps[0], third, lamps[1], third, first]  # the judge refuses the second
    assert [t.provenance["picture"] for t in triplets] == expected
    assert triplets[0].cosine == triplets[5].cosine > triplets[2].cosine


def test_whatever_is_wrong_with_a_query_is_reported_and_the_rest_is_matched(
    tmp_path: Path,
) -> None:
    refused, unsure = nearest("saw", 3), nearest("lamp", 3)
    judge = Judge(lambda id, image: False if id in refused else None if id in unsure else True)
    assert not set(refused) & set(unsure)
    queries = [
        query(1, "the kettle?"),
        Rejected("queries.jsonl", 2, "field 'text' is a list; give text"),
        query(1, "the candle?"),
        query(4, "  \n"),
        query(5, "why is that so?"),
        query(6, "the saw?"),
        query(7, "the lamp?"),
        query(8, "the pan?"),
    ]
    summary, triplets, rejected = run(tmp_path, queries, judge)
    assert [t.provenance["query"] for t in triplets] == ["q1", "q8"]
    assert (summary.queries, summary.matched) == (8, 2)
    reasons = {(row["row"], row["id"]): row["reason"] for row in rejected}
    assert reasons.keys() == {(2, ""), (1, "q1"), (4, "q4"), (5, "q5"), (6, "q6"), (7, "q7")}
    assert "same id" in reasons[1, "q1"] and "empty" in reasons[4, "q4"]
    assert "no visual word" in reasons[5, "q5"] and "refused every" in reasons[6, "q6"]
    assert f"could not be judged (about {unsure[0]})" in reasons[7, "q7"]
    assert set(summary.rejected.values()) == {1} and len(summary.rejected) == 6
    said = "\n".join(summary.lines())
    assert all(reason in said for reason in summary.rejected) and "8 queries: 2 matched" in said


def test_bad_pictures_of_the_library_are_counted_and_the_rest_is_searched(tmp_path: Path) -> None:
    good = world_pictures(200)[:50]
    pictures = [*good[:9], picture("torn", b"\x89PNG\r\n\x1a\n"), *good[9:]]
    summary, triplets, _ = run(tmp_path, [query(0, "a kettle?")], Judge(), pictures=pictures)
    assert (summary.indexed, summary.library.rejected, len(triplets)) == (50, 1, 1)
    (row,) = (value for _, value in read_jsonl(tmp_path / "index" / "rejected.jsonl"))
    assert row["id"] == "torn"


def test_a_picture_that_is_gone_is_never_matched_and_one_that_was_changed_as_it_is_now(
    tmp_path: Path,
) -> None:
    pictures = world_pictures(200)
    first, second, third = nearest("kettle", 3)
    run(tmp_path, [query(0, "a kettle?")], Judge())
    changed = [p for p in pictures if p.id not in (first, second)]
    changed.append(picture(second, pictures[0].read()))
    judge = Judge()
    summary, triplets, _ = run(tmp_path, [query(0, "a kettle?")], judge, pictures=changed)
    assert judge.asked == [third] == [t.provenance["picture"] for t in triplets]
    assert summary.judged == {"unusable": 1, "safe": 1}
    assert (summary.library.gone, summary.library.changed) == (1, 1)


def test_a_run_goes_on_after_its_judge_failed(tmp_path: Path) -> None:
    queries = [query(i, f"the {kind}?") for i, kind in enumerate(BASE_KINDS)]
    known: dict[str, Judgement] = {}
    fresh: list[str] = []

    def cached(dies_after: int) -> Callable[..., Iterator[Judgement]]:
        def judge(pictures: Iterable[tuple[str, bytes]]) -> Iterator[Judgement]:
            for id, _ in pictures:
                if id not in known:
                    if len(known) == dies_after:
                        raise UserError("the endpoint is gone")
                    fresh.append(id)
                    known[id] = Judgement(id, True, "", "cached")
                yield known[id]

        return judge

    def once(dies_after: int) -> MatchSummary:
        judge = cached(dies_after)
        library = functools.partial(world_pictures, 200)
        return match(queries, library, towers(), KindWords(), judge, SETTINGS, tmp_path)

    with pytest.raises(UserError, match="endpoint is gone"):
        once(5)
    assert not (tmp_path / "triplets.jsonl").exists()
    summary = once(10**6)
    assert len(fresh) == len(set(fresh)) == summary.judged["safe"]
    assert (summary.matched, summary.library.added, summary.library.kept) == (14, 0, 200)
    before = (tmp_path / "triplets.jsonl").read_bytes()
    once(0)
    assert (tmp_path / "triplets.jsonl").read_bytes() == before


def test_a_judge_that_says_nothing_of_a_picture_leaves_it_unresolved(tmp_path: Path) -> None:
    summary = match(
        [query(0, "a kettle?")],
        lambda: world_pictures(200),
        towers(),
        KindWords(),
        lambda pictures: (Judgement(*row, "", "") for row in [] if list(pictures)),
        SETTINGS,
        tmp_path,
    )
    assert summary.judged == {"unresolved": 3} and summary.triplets == 0
    row = json.loads((tmp_path / "rejected.jsonl").read_text())
    assert "no answer" in row["reason"]


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"prompt": "a picture"}, {"candidates": 0}, {"per_query": -1}):
        with pytest.raises(UserError, match="match"):
            MatchSettings(**wrong)


def test_a_prompt_that_leaves_clip_no_room_for_a_word_is_refused(tmp_path: Path) -> None:
    line = f"--config.match.settings.prompt={'a picture of ' * 16}a {{}}"
    config = load_config("configs/impforge.py:tiny", [line])
    with pytest.raises(UserError, match="match.settings.prompt takes 51 of the 64 tokens .* short"):
        match_files(config, tmp_path, tmp_path, tmp_path / "m", load_system=identified)

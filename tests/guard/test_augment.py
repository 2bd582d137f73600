"""Rows made of a mixture's own keep what their label rests on, whole and in order."""

import re
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.guard.augment import (
    INJECTED,
    LONG,
    MadeRows,
    Talk,
    forged_turns,
    inject,
    injected,
    lengthened,
    longest_row,
    parts,
)
from crossguard_jax.guard.guard import Guard

LENGTH = 160
TALK = ("we had some tea.", "the dog is in the garden, and so is the cat.", "is the soup hot?")
CORE = "my sister is at home. how can i push her there?"


@pytest.fixture(scope="module")
def encoder(llava_folder):
    return Guard.from_pretrained(llava_folder, prompt="short").encoder


@pytest.fixture(scope="module")
def talk(encoder):
    return Talk(TALK, encoder.text_tokens(TALK))


def row(label="unsafe", text=CORE, images=()):
    return Record("a", images, text, label)


def long_rows(encoder, talk, record, n=200):
    rng = np.random.default_rng(0)
    return [lengthened(rng, record, talk, encoder, LENGTH) for _ in range(n)]


@pytest.mark.parametrize("label", ["safe", "unsafe"])
def test_a_longer_row_has_every_sentence_of_its_own_in_order(encoder, talk, label):
    sentences = CORE.split(". ")
    for made in long_rows(encoder, talk, row(label)):
        assert made.label == label
        starts = [made.text.index(part) for part in sentences]
        assert starts == sorted(starts)


def test_harm_stays_in_one_row_and_most_rows_are_nearly_full(encoder, talk):
    texts = [made.text for made in long_rows(encoder, talk, row())]
    assert all(encoder.fits(text, LENGTH) for text in texts)
    tokens = np.array(encoder.text_tokens(texts))
    assert np.mean(tokens > encoder.text_room(LENGTH) - 16) > 0.4
    assert tokens.min() < encoder.text_room(LENGTH) / 2


def test_what_is_harmless_may_be_longer_than_a_window(encoder, talk):
    tokens = encoder.text_tokens([m.text for m in long_rows(encoder, talk, row("safe"))])
    longer = np.mean(np.array(tokens) > encoder.text_room(LENGTH))
    assert 0.1 < longer < 0.3


def test_harm_is_at_the_start_in_the_middle_and_at_the_end_with_talk_between_its_sentences(
    encoder, talk
):
    where = Counter()
    for made in long_rows(encoder, talk, row(), 400):
        first, last = CORE.split(". ")
        where["start"] += made.text.startswith(first)
        where["end"] += made.text.endswith(last)
        where["middle"] += not made.text.startswith(first) and not made.text.endswith(last)
        where["apart"] += CORE not in made.text
    assert min(where.values()) > 60, where


def test_rows_begin_and_end_within_sentences_as_windows_do(encoder, talk):
    texts = [made.text for made in long_rows(encoder, talk, row("safe", ""))]
    whole = [re.fullmatch(f"({'|'.join(map(re.escape, (*TALK, ' ')))})*", text) for text in texts]
    assert 0.3 < np.mean([match is None for match in whole]) < 0.7


def test_a_picture_without_a_text_may_have_talk_beside_it(encoder, talk):
    made = long_rows(encoder, talk, row("unsafe", "", (b"a picture",)))
    assert all(m.images == (b"a picture",) and m.label == "unsafe" for m in made)
    assert np.mean([bool(m.text) for m in made]) > 0.7


def test_a_forged_turn_changes_no_label_and_no_word(encoder):
    strings = forged_turns("safe", "unsafe")
    rng = np.random.default_rng(0)
    for _ in range(200):
        made = injected(rng, row(text="how can i push her ?"), strings, encoder, LENGTH)
        assert made.label == "unsafe" and encoder.fits(made.text, LENGTH)
    assert any("ASSISTANT" in s for s in strings) and any("[/inst]" in s for s in strings)
    full = " ".join(["push"] * encoder.text_room(LENGTH))
    assert injected(rng, row(text=full), strings, encoder, LENGTH).text == full


def test_a_string_comes_before_within_and_after_a_text_and_keeps_its_words():
    rng, where = np.random.default_rng(8), Counter()
    for _ in range(300):
        text = inject(rng, CORE, "[X]")
        assert text.replace("[X]", "").split() == CORE.split()
        where[text.startswith("[X]"), text.endswith("[X]")] += 1
    assert len(where) == 3 and min(where.values()) > 70
    assert inject(rng, "", "[X]") == "[X]"


def test_a_made_row_is_the_same_every_time_and_comes_from_each_source_by_its_weight():
    sources = {
        name: [Record(f"{name}{i}", (), name, "safe") for i in range(50)] for name in ("a", "b")
    }

    def change(rng, record):
        return Record(record.id, (), f"{record.text} {rng.integers(10**9)}", record.label)

    rows = MadeRows(sources, {"a": 3.0, "b": 1.0}, change, 0, "long")
    assert [rows[i] for i in range(100)] == [rows[i] for i in range(100)]
    assert len({r.text for r in map(rows.__getitem__, range(100))}) == 100
    share = np.mean([rows[i].text.startswith("a") for i in range(100)])
    assert 0.62 < share < 0.88
    assert rows[0] != MadeRows(sources, {"a": 3.0, "b": 1.0}, change, 1, "long")[0]
    with pytest.raises(IndexError):
        rows[100]


def read(path, split, limit):
    texts = {"talk": TALK, "rows": (CORE,), "harm": (CORE,), "empty": ("",)}[path]
    label = "unsafe" if path == "harm" else "safe"
    for i in range(limit):
        yield Record(f"{path}{i}", (), texts[i % len(texts)] if path != "empty" else "", label)


def data(**augment):
    spec = {"reader": "here", "split": "train", "weight": 1.0, "limit": 8, "labels": ()}
    spec["tenth"] = ""
    given = {"long": 0.2, "injected": 0.1, "max_length": LENGTH}
    talk = {**spec, "path": augment.pop("path", "talk")}
    return ConfigDict(
        {
            "sources": {"rows": {**spec, "path": "rows", "weight": 3.5}},
            "augment": given | augment | {"talk": talk},
            "max_length": 48,
        }
    )


def test_long_and_forged_rows_have_the_shares_and_the_length_that_are_asked_for(encoder, tmp_path):
    opened = {"rows": list(read("rows", "train", 8))}
    short, longer = parts(data(), opened, encoder, tmp_path, {"here": read}, 0)
    assert short.sources == opened and short.length == 48
    assert short.weights == {"rows": pytest.approx(0.7)} and short.share == pytest.approx(0.7)
    assert longer.weights == {LONG: 0.2, INJECTED: 0.1} and longer.length == LENGTH
    assert longer.share == pytest.approx(0.3)
    assert longer.sources[LONG][0].id.endswith("+long0")


def test_without_them_a_mixture_is_its_own_rows_of_their_own_length(encoder, tmp_path):
    opened = {"rows": list(read("rows", "train", 8))}
    given = data(long=0.0, injected=0.0)
    (only,) = parts(given, opened, encoder, tmp_path, {"here": read}, 0)
    assert only.sources == opened and only.length == longest_row(given) == 48
    assert only.share == pytest.approx(1.0)


def test_rows_of_several_pictures_are_in_batches_of_their_own(encoder, tmp_path):
    two = [Record("two", (b"a", b"b"), "which one ?", "safe")]
    opened = {"rows": list(read("rows", "train", 8)), "two": two}
    given = data(long=0.0, injected=0.0)
    given.sources.two = ConfigDict({**given.sources.rows.to_dict(), "weight": 1.5})
    short, longer = parts(given, opened, encoder, tmp_path, {"here": read}, 0)
    assert short.weights == {"rows": pytest.approx(0.7)}
    assert longer.weights == {"two": pytest.approx(0.3)} and longer.length == 48


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"long": -0.1}, "long -0.1 and injected 0.1 are shares"),
        ({"long": 0.9}, "together less than 1"),
        ({"max_length": 40}, "augment.max_length 40 is less than data.max_length 48"),
        ({"path": "harm"}, "row harm0 is 'unsafe'"),
        ({"path": "empty"}, "row empty0 is 'safe' and says ''"),
    ],
)
def test_shares_and_talk_that_are_none_are_refused(encoder, tmp_path, wrong, named):
    opened = {"rows": list(read("rows", "train", 8))}
    with pytest.raises(UserError, match=named):
        parts(data(**wrong), opened, encoder, tmp_path, {"here": read}, 0)


def test_talk_that_is_drawn_is_talk_that_fits(talk):
    rng = np.random.default_rng(0)
    for room in (0, 3, 30, 300):
        drawn = talk.fill(rng, room)
        counts = dict(zip(talk.sentences, talk.tokens, strict=True))
        assert sum(counts[sentence] for sentence in drawn) <= room

import json
from collections import Counter

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.toy.world.examples import to_record
from crossguard_jax.toy.world.kinds import COLOUR_NAMES, HAZARDS, KIND_NAMES, NOVEL_KINDS
from crossguard_jax.toy.world.lettering import HARMFUL_WORDS
from crossguard_jax.toy.world.pointing import referents
from crossguard_jax.toy.world.requests import CARRIERS, HELD_OUT_CARRIERS
from crossguard_jax.toy.world.risk import is_held_out, risky
from crossguard_jax.toy.world.rows import TYPOGRAPHIC_PROMPT
from crossguard_jax.toy.world.scenes import render_batch
from crossguard_jax.toy.world.sources import SOURCES, TESTED, examples, records
from crossguard_jax.toy.world.vqa import words

TRAINED = [source for source in SOURCES if source not in {"implicit_heldout", *TESTED}]
PRETRAINING = ("vqa", "captions", "reading", "knowledge")
BALANCED = ("implicit", "explicit_text", "explicit_picture", "typographic", "text_safety")


def _linear_accuracy(train, train_labels, test, test_labels, ridge=30.0):
    """Of a least-squares classifier: enough to find what a modality's marginals give away."""
    mean = train.mean(0)
    train, test = train - mean, test - mean
    target = 2.0 * train_labels - 1
    gram = train.T @ train + ridge * np.eye(train.shape[1])
    weights = np.linalg.solve(gram, train.T @ target)
    return ((test @ weights > 0) == (test_labels == 1)).mean()


def _bags(texts, vocabulary):
    index = {word: i for i, word in enumerate(vocabulary)}
    bags = np.zeros((len(texts), len(index)))
    for row, text in zip(bags, texts, strict=True):
        row[[index[word] for word in words(text)]] = 1
    return bags


def _labels(rows):
    return np.array([row.label == "unsafe" for row in rows], int)


@pytest.fixture(scope="module")
def implicit():
    return {
        "train": examples("implicit", "train", 4000),
        "seen": examples("implicit", "test", 2400),
        "heldout": examples("implicit_heldout", "test", 2400),
    }


@pytest.mark.parametrize("source", TRAINED)
def test_rows_are_the_same_every_time_and_others_for_another_seed(source):
    assert examples(source, "train", 20, 3) == examples(source, "train", 20, 3)
    one, other = examples(source, "train", 20, 3), examples(source, "train", 20, 4)
    one_text = source in ("typographic", "picture_only")
    assert one_text or [row.text for row in one] != [row.text for row in other]
    assert [row.scene for row in one] != [row.scene for row in other] or one[0].scene is None


@pytest.mark.parametrize("source", TRAINED)
def test_splits_share_no_picture_and_ids_are_unique(source):
    rows = [row for split in ("train", "val", "test") for row in examples(source, split, 300)]
    assert len({row.id for row in rows}) == len(rows)
    seeds = {split: set() for split in ("train", "val", "test")}
    for row in rows:
        seeds[row.split].update(scene.seed for scene in row.scenes)
    assert not seeds["train"] & (seeds["val"] | seeds["test"]) and not seeds["val"] & seeds["test"]
    assert {seed % 3 for seed in seeds["test"]} <= {2}


@pytest.mark.parametrize("source", BALANCED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_half_of_the_rows_are_unsafe(source, split):
    assert sum(_labels(examples(source, split, 500))) == 250


def test_benign_sources_are_safe():
    for source in ("benign_vqa", "implicit_misaligned"):
        assert not _labels(examples(source, "train", 300)).any()


def test_every_kind_and_request_is_unsafe_as_often_as_safe():
    for source, split, pairs in (("implicit", "train", 192), ("implicit_heldout", "test", 64)):
        rows = examples(source, split, 5 * pairs)
        assert set(Counter((row.kind, row.request) for row in rows).values()) == {5}
        for name in ("kind", "request"):
            for value in {getattr(row, name) for row in rows}:
                labels = _labels([row for row in rows if getattr(row, name) == value])
                assert labels.mean() == 0.5


def test_labels_are_the_truth_of_kind_and_request():
    for row in examples("implicit", "train", 300) + examples("implicit_heldout", "test", 300):
        assert row.scene.things[row.referent].kind == row.kind
        assert (row.label == "unsafe") == risky(row.kind, row.request)
        assert (
            row.pair_seen == (row.source == "implicit") == (not is_held_out(row.kind, row.request))
        )


def test_aligned_texts_have_one_referent_and_misaligned_ones_none():
    for row in examples("implicit", "train", 500) + examples("implicit", "test", 500):
        assert row.aligned and referents(row.text, row.scene) == [row.referent]
    for row in examples("implicit_misaligned", "train", 500):
        assert row.aligned is False and referents(row.text, row.scene) == []


def test_how_a_text_points_does_not_depend_on_the_kind(implicit):
    rows = implicit["train"]
    ways = [{"left", "right"}, {"left"}, {"top"}, *({colour} for colour in COLOUR_NAMES)]
    said = [set(words(row.text)) for row in rows]
    used = np.array([[bool(way & text) for way in ways] for text in said])
    overall = used.mean(0)
    # 250 rows a kind: the largest of 144 deviations stays within four standard errors.
    bound = 4 * np.sqrt(overall * (1 - overall) / 250)
    for kind in KIND_NAMES:
        share = used[[row.kind == kind for row in rows]].mean(0)
        assert (np.abs(share - overall) <= bound).all(), kind


def test_the_text_alone_does_not_tell_the_label(implicit):
    vocabulary = sorted(
        {word for rows in implicit.values() for row in rows for word in words(row.text)}
    )
    bags = {key: _bags([row.text for row in rows], vocabulary) for key, rows in implicit.items()}
    for key in ("seen", "heldout"):
        accuracy = _linear_accuracy(
            bags["train"], _labels(implicit["train"]), bags[key], _labels(implicit[key])
        )
        assert abs(accuracy - 0.5) <= 0.04, key


def test_the_picture_alone_does_not_tell_the_label(implicit):
    pictures = {
        key: render_batch(row.scene for row in rows).reshape(len(rows), -1) / 255.0
        for key, rows in implicit.items()
    }
    small = {
        key: p.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(p), -1)
        for key, p in pictures.items()
    }
    for key in ("seen", "heldout"):
        accuracy = _linear_accuracy(
            small["train"], _labels(implicit["train"]), small[key], _labels(implicit[key])
        )
        assert abs(accuracy - 0.5) <= 0.05, key


def test_the_kinds_in_the_picture_alone_do_not_tell_the_label(implicit):
    names = sorted({thing.kind for row in implicit["train"] for thing in row.scene.things})
    bags = {
        key: np.array(
            [[any(t.kind == n for t in row.scene.things) for n in names] for row in rows], float
        )
        for key, rows in implicit.items()
    }
    for key in ("seen", "heldout"):
        accuracy = _linear_accuracy(
            bags["train"], _labels(implicit["train"]), bags[key], _labels(implicit[key])
        )
        assert abs(accuracy - 0.5) <= 0.04, key


def test_the_probe_finds_a_leak_where_there_is_one():
    train, test = examples("implicit", "train", 4000), examples("implicit", "test", 1000)
    leak = [f"{row.text} {row.kind} {row.request}" for row in train + test]
    joint = {f"{row.kind}-{row.request}" for row in train + test}
    index = {pair: i for i, pair in enumerate(sorted(joint))}
    onehot = np.eye(len(index))[[index["-".join(text.split()[-2:])] for text in leak]]
    accuracy = _linear_accuracy(onehot[:4000], _labels(train), onehot[4000:], _labels(test))
    assert accuracy > 0.99


def test_whether_a_text_is_aligned_shows_in_neither_half_alone():
    aligned = examples("implicit", "train", 3000)
    misaligned = examples("implicit_misaligned", "train", 3000)
    vocabulary = sorted({word for row in aligned + misaligned for word in words(row.text)})
    bags = _bags([row.text for row in aligned + misaligned], vocabulary)
    labels = np.repeat([0, 1], 3000)
    order = np.random.default_rng(0).permutation(6000)
    train, test = order[:4000], order[4000:]
    accuracy = _linear_accuracy(bags[train], labels[train], bags[test], labels[test])
    assert abs(accuracy - 0.5) <= 0.05
    # The picture: as many things, and each place and colour as often.
    for field in ("colour", "place"):
        counts = [
            Counter(getattr(thing, field) for row in rows for thing in row.scene.things)
            for rows in (aligned, misaligned)
        ]
        assert all(abs(counts[0][key] / counts[1][key] - 1) < 0.12 for key in counts[0])


def test_a_picture_of_an_explicit_hazard_is_unsafe_whatever_is_asked():
    rows = examples("explicit_picture", "train", 600)
    for row in rows:
        shown = {thing.kind for thing in row.scene.things}
        assert bool(shown & set(HAZARDS)) == (row.label == "unsafe")
    vocabulary = sorted({word for row in rows for word in words(row.text)})
    bags = _bags([row.text for row in rows], vocabulary)
    labels = _labels(rows)
    assert _linear_accuracy(bags[:400], labels[:400], bags[400:], labels[400:]) < 0.62


def test_no_other_source_shows_a_hazard():
    for source in ("implicit", "explicit_text", "typographic", "benign_vqa"):
        for row in examples(source, "train", 300):
            shown = {thing.kind for scene in row.scenes for thing in scene.things}
            assert not shown & set(HAZARDS)


def test_typographic_rows_differ_by_what_is_written_alone():
    train, test = examples("typographic", "train", 600), examples("typographic", "test", 600)
    for row in train + test:
        assert row.text == TYPOGRAPHIC_PROMPT
        assert (row.scene.words[0] in HARMFUL_WORDS) == (row.label == "unsafe")
    assert not {row.scene.words for row in train} & {row.scene.words for row in test}
    assert {row.scene.words[0] for row in train} == {row.scene.words[0] for row in test}


def test_pretraining_shows_and_names_no_novel_kind():
    for source in PRETRAINING:
        for row in examples(source, "train", 600):
            shown = {thing.kind for thing in row.scene.things} if row.scene else set()
            said = words(f"{row.text} {row.answer}")
            assert not set(NOVEL_KINDS) & (shown | set(said)), source


def test_test_rows_use_unseen_carriers():
    def fits(text, forms):
        cut = [form.split("{request}") for form in forms]
        return any(text.startswith(head) and text.endswith(tail) for head, tail in cut)

    assert all(fits(row.text, CARRIERS) for row in examples("implicit", "train", 200))
    assert all(fits(row.text, HELD_OUT_CARRIERS) for row in examples("implicit", "test", 200))


@pytest.mark.tables
def test_unseen_wording_has_no_word_that_training_lacks():
    def vocabulary(splits):
        return {
            word
            for source in TRAINED
            for split in splits
            for row in examples(source, split, 1500)
            for word in words(f"{row.text} {row.answer}")
        }

    trained, tested = vocabulary(["train"]), vocabulary(["test"])
    assert tested <= trained
    assert len(trained) < 400


@pytest.mark.tables
def test_the_base_model_has_read_the_words_of_the_guards_training():
    read = {
        word
        for source in PRETRAINING
        for row in examples(source, "train", 6000)
        for word in words(f"{row.text} {row.answer}")
    }
    guard = {
        word
        for source in ("implicit", "explicit_text", "explicit_picture", "typographic", "benign_vqa")
        for row in examples(source, "train", 3000)
        for word in words(row.text)
    }
    assert guard - read <= {*NOVEL_KINDS}


def test_most_texts_are_short():
    for source in ("implicit", "explicit_text", "explicit_picture", "typographic", "benign_vqa"):
        lengths = [len(row.text.split()) for row in examples(source, "train", 1000)]
        assert np.percentile(lengths, 90) <= 20 and max(lengths) <= 26


def test_texts_of_the_safety_model_are_judged_without_a_picture():
    rows = examples("text_safety", "train", 2000)
    assert all(row.scene is None for row in rows)
    assert all(row.label == "safe" for row in rows if row.category == "pointing")
    named = [row for row in rows if row.category == "named"]
    assert all((row.label == "unsafe") == risky(row.kind, row.request) for row in named)
    assert all(row.pair_seen for row in named)


def test_paraphrases_speak_of_one_thing_and_one_request():
    for row in examples("paraphrases", "train", 600):
        assert f"the {row.kind}" in row.text
        if row.category == "named":
            assert f"the {row.kind}" in row.answer
        else:
            said = row.answer.split(". ")[-1]
            assert referents(said, row.scene) == [0] and row.kind not in words(said)


def test_records_carry_picture_label_and_truth():
    example = examples("implicit", "train", 1)[0]
    record = to_record(example)
    assert record.id == example.id and record.image.startswith(b"\x89PNG")
    assert (record.text, record.label, record.source) == (example.text, example.label, "implicit")
    assert record.provenance["pair_seen"] == "true" and record.provenance["aligned"] == "true"
    assert record.provenance["kind"] == example.kind
    assert json.loads(record.provenance["scene"])["seed"] == example.scene.seed
    assert records("knowledge", "train", 1)[0].image is None


def test_wrong_names_are_told_the_right_ones():
    with pytest.raises(UserError, match="implicit"):
        examples("implict", "train", 1)
    with pytest.raises(UserError, match="val"):
        examples("implicit", "dev", 1)
    with pytest.raises(UserError, match="no training"):
        examples("implicit_heldout", "train", 1)
    for source in TESTED:
        with pytest.raises(UserError, match=f"{source}.*use test"):
            examples(source, "val", 1)

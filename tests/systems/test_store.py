"""Verdicts are kept by content: nothing is made twice, and nothing is another system's."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crossguard_jax import Guard
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io import images
from crossguard_jax.systems.load import System, identity, load
from crossguard_jax.systems.store import VerdictStore


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    return images.encode_png(Image.fromarray(pixels))


ROWS = [
    Record("a", (png(1),), "can i touch it ?"),
    Record("b", (), "can i touch it ?"),
    Record("c", (png(1), png(2)), "can i touch it ?"),
    Record("d", (png(2), png(1)), "can i touch it ?"),
    Record("e", (png(1),), ""),
]


@pytest.fixture(scope="module")
def guard(llava_folder):
    return load(llava_folder, prompt="short")


def test_what_was_made_once_is_read_from_then_on(guard, tmp_path):
    first = VerdictStore(tmp_path, guard)
    made = first.score(ROWS)
    again = VerdictStore(tmp_path, guard)
    assert again.score(ROWS) == made and (first.computed, again.computed) == (5, 0)
    assert made == guard.score([r.images for r in ROWS], [r.text for r in ROWS])


def test_it_is_the_content_that_counts_and_not_the_name(guard, tmp_path):
    store = VerdictStore(tmp_path, guard)
    renamed = [replace(r, id=f"other-{r.id}", label="unsafe", category="x") for r in ROWS]
    made = store.score([*ROWS, *renamed])
    assert store.computed == 5 and made[:5] == made[5:]
    store.score([replace(ROWS[0], text="can i touch them ?"), replace(ROWS[0], images=(png(3),))])
    assert store.computed == 7


def test_the_threshold_is_laid_on_what_is_kept(guard, tmp_path):
    store = VerdictStore(tmp_path, guard)
    store.score(ROWS)
    for cut, unsafe in ((0.0, True), (1.0, False)):
        verdicts = store.score(ROWS, threshold=cut)
        assert {(v.unsafe, v.threshold, v.label) for v in verdicts} == {
            (unsafe, cut, "unsafe" if unsafe else "safe")
        }
    assert store.computed == 5


@pytest.mark.parametrize("change", ["prompt", "window", "max_length", "dtype", "picture"])
def test_another_system_has_verdicts_of_its_own(guard, llava_folder, tmp_path, change):
    if change == "dtype":
        other = load(llava_folder, dtype="bfloat16", prompt="short")
    elif change == "prompt":
        other = load(llava_folder, prompt="true_false")
    else:
        value = {"window": 40, "max_length": 100, "picture": "crop"}[change]
        settings = replace(guard.settings, **{change: value})
        other = Guard(guard.model, guard.folder, settings)
    assert identity(other) != identity(guard)
    VerdictStore(tmp_path, guard).score(ROWS)
    store = VerdictStore(tmp_path, other)
    store.score(ROWS[:1])
    assert store.computed == 1


def test_the_threshold_and_the_place_do_not_make_another_system(guard, llava_folder):
    strict = load(llava_folder, prompt="short", threshold=0.9)
    assert identity(strict) == identity(guard)


def test_an_error_is_not_kept(guard, tmp_path):
    bad = Record("bad", (b"no picture",), "a")
    store = VerdictStore(tmp_path, guard)
    error, verdict = store.score([bad, ROWS[0]])
    assert isinstance(error, UserError) and isinstance(verdict, Verdict)
    assert "holds text" in str(VerdictStore(tmp_path, guard).score([bad])[0])


def test_a_torn_line_costs_its_own_verdict_alone(guard, tmp_path):
    VerdictStore(tmp_path, guard).score(ROWS)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    store = VerdictStore(tmp_path, guard)
    store.score(ROWS)
    assert store.computed == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 5


def test_no_folder_keeps_nothing(guard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    VerdictStore(None, guard).score(ROWS[:1])
    assert not [*tmp_path.iterdir()]


class _Fixed:
    """A system whose identity and verdicts need no model."""

    def __init__(self, guard: Guard):
        self.settings, self.folder, self.mesh = guard.settings, guard.folder, None

    def score(self, images, texts):
        return self.score_each(images, texts)

    def score_each(self, images, texts, *, batch_size=16, threshold=None):
        return [Verdict(len(text) / 100, False, 0.5, "safe") for text in texts]


def _write(folder, system, first):
    rows = [Record(str(i), (), "x" * (first + i)) for i in range(40)]
    store = VerdictStore(folder, system)
    for row in rows:
        store.score([row])


def test_several_writers_may_share_one_store(guard, tmp_path, monkeypatch):
    monkeypatch.setattr("crossguard_jax.systems.store.identity", lambda system: {"name": "fixed"})
    system = _Fixed(guard)
    with ThreadPoolExecutor(2) as pool:
        [*pool.map(lambda first: _write(tmp_path, system, first), (1, 20))]
    store = VerdictStore(tmp_path, system)
    store.score([Record(str(n), (), "x" * n) for n in range(1, 60)])
    assert store.computed == 0


def test_verdicts_come_as_they_are_made(guard, tmp_path):
    store = VerdictStore(tmp_path, guard)
    asked: list[str] = []

    def rows():
        for record in ROWS:
            asked.append(record.id)
            yield record

    stream = store.verdicts(rows(), window=2)
    record, verdict = next(stream)
    assert (record.id, asked) == ("a", ["a", "b"]) and isinstance(verdict, Verdict)
    assert [record.id for record, _ in stream] == ["b", "c", "d", "e"]


def test_what_we_load_is_a_system(guard):
    assert isinstance(guard, System)

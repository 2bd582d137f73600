"""Few programs and little filling, whatever the rows: the plan is a function of their lengths."""

import jax
import numpy as np
import pytest
from PIL import Image

from crossguard_jax import Guard
from crossguard_jax.data.pipeline import mixture
from crossguard_jax.data.records import Record
from crossguard_jax.guard import guard as scoring
from crossguard_jax.guard.batches import windows
from crossguard_jax.guard.shapes import MOST_SHAPES, filled, ladder, plan, room, rung, slots

PICTURE, FRAME, LIMIT = 576, 24, 4_096
"""Tokens of LLaVA-1.5's picture, of a prompt around a text, and of the longest row."""


def drawn(n: int, window: int, seed: int = 0):
    """Tokens, pictures and owner of each window of ``n`` requests: half show a picture, and their
    texts have 60 tokens in the median and 1,500 at the 99th percentile."""
    rng = np.random.default_rng(seed)
    sigma = np.log(1_500 / 60) / 2.3263
    texts = np.maximum(np.round(60 * np.exp(sigma * rng.normal(size=n))), 1).astype(int)
    rows = []
    shows = (rng.permutation(n) % 2).tolist()
    for i, (text, shown) in enumerate(zip(texts.tolist(), shows, strict=True)):
        frame = FRAME + PICTURE * shown
        parts = windows(text, min(window + PICTURE * shown, LIMIT) - frame)
        rows += [(frame + end - start, shown, i) for start, end in parts]
    return tuple(zip(*rows, strict=True))


def planned(n: int, window: int, step: int = 16, batch_size: int = 16, seed: int = 0):
    tokens, pictures, owners = drawn(n, window, seed)
    budget = batch_size * min(PICTURE + min(window, 512), LIMIT)
    batches = plan(tokens, pictures, owners, ladder(LIMIT, PICTURE, step), budget)
    return batches, sum(b.length * b.size for b in batches) / sum(tokens)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [16, 128])
def test_two_thousand_rows_take_few_programs_and_little_filling(step, seed):
    batches, filling = planned(2_048, 448, step, seed=seed)
    assert len({batch.shape for batch in batches}) <= MOST_SHAPES
    assert all(batch.length % step == 0 for batch in batches)
    assert filling <= 1.15


@pytest.mark.parametrize("step", [16, 128])
@pytest.mark.parametrize("batch_size", [16, 40])
def test_training_batches_take_few_programs_and_little_filling(step, batch_size):
    tokens, pictures, _ = drawn(2_048, LIMIT)
    rungs = ladder(1_024, PICTURE, step)
    rows = [
        Record(str(i), (b"",) * n, str(min(m, 1_024)))
        for i, (m, n) in enumerate(zip(tokens, pictures, strict=True))
    ]

    def key(records):
        return [(slots(len(r.images)), rung(int(r.text), rungs)) for r in records]

    def shape(records):
        real = [int(record.text) for record in records]
        return {"tokens": np.array(real), "length": np.array(rung(max(real), rungs))}

    batches = mixture(
        {"rows": rows}, {"rows": 1}, seed=0, batch_size=batch_size, transform=shape, key=key
    )
    made = [next(batches) for _ in range(2_048 // batch_size)]
    batches.close()
    padded = sum(int(batch["length"]) * batch_size for batch in made)
    assert padded / sum(batch["tokens"].sum() for batch in made) <= (1.15 if step == 16 else 1.18)
    assert len({int(batch["length"]) for batch in made}) <= MOST_SHAPES


@pytest.mark.parametrize("batch_size", [16, 64])
@pytest.mark.parametrize("window", [1_024, LIMIT])
def test_longer_windows_and_larger_batches_take_no_more_programs(window, batch_size):
    batches, filling = planned(2_048, window, batch_size=batch_size)
    assert len({batch.shape for batch in batches}) <= MOST_SHAPES
    assert filling <= 1.3  # a guard without a window reads some rows of thousands of tokens


def test_call_after_call_takes_the_same_few_programs():
    shapes = {batch.shape for seed in range(20) for batch in planned(512, 448, seed=seed)[0]}
    assert len(shapes) <= MOST_SHAPES + 4


@pytest.mark.parametrize("n", [1, 2, 5, 33, 200])
def test_every_row_is_in_one_batch_that_takes_it(n):
    tokens, pictures, owners = drawn(n, 448)
    batches, _ = planned(n, 448)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(tokens)))
    for batch in batches:
        assert max(tokens[row] for row in batch.rows) <= batch.length
        assert len(batch.rows) <= batch.size
        assert max(pictures[row] for row in batch.rows) <= batch.slots
        shown = {owners[row]: pictures[row] for row in batch.rows}
        assert sum(shown.values()) <= batch.pictures
        assert batch.size * batch.length <= 16 * (PICTURE + 448) or batch.size == 1


def test_rows_with_and_without_a_picture_share_a_batch_where_both_are_as_long():
    (batch,) = plan([700, 690, 640], [1, 0, 1], range(3), ladder(LIMIT, PICTURE, 16), 16_384)
    assert batch.shape == (4, 768, 4, 1)


def test_rows_that_show_several_pictures_have_room_for_all():
    tokens, pictures = [700, 1_300, 1_900, 80], [1, 2, 3, 0]
    batches = plan(tokens, pictures, range(4), ladder(LIMIT, PICTURE, 16), 16_384)
    rooms = {row: (batch.slots, batch.pictures) for batch in batches for row in batch.rows}
    assert rooms[1] == (2, 2) and rooms[2] == (4, 4) and rooms[0][0] == rooms[3][0] == 1


def test_a_few_short_rows_are_not_filled_up_to_a_long_ones_length():
    batches = plan([900, 40, 50], [1, 0, 0], range(3), ladder(LIMIT, PICTURE, 16), 16_384)
    assert [(batch.size, batch.length) for batch in batches] == [(1, 1_024), (4, 64)]


def test_batches_spread_evenly_over_devices():
    batches = plan([900] * 9, [1] * 9, range(9), ladder(LIMIT, PICTURE, 16), 8 * 1_024, parts=4)
    assert [batch.size for batch in batches] == [8, 4]


@pytest.mark.parametrize("step", [16, 128])
@pytest.mark.parametrize("picture", [9, 576])
def test_a_ladder_has_whole_steps_and_no_gap_above_a_quarter_where_pictures_are(picture, step):
    rungs = ladder(LIMIT, picture, step)
    assert rungs[0] == step and rungs[-1] >= LIMIT and all(r % step == 0 for r in rungs)
    for shorter, longer in zip(rungs, rungs[1:], strict=False):
        assert longer - shorter <= max(step, shorter / 4 if longer > picture else shorter)
    assert rung(rungs[2], rungs) == rungs[2] and rung(rungs[2] + 1, rungs) == rungs[3]


def test_sizes_are_few():
    assert [filled(n) for n in (1, 2, 5, 17, 33, 100)] == [1, 4, 16, 32, 64, 128]
    assert [slots(n) for n in (0, 1, 2, 3, 5)] == [1, 1, 2, 4, 8]
    assert [room(n, 16, 2) for n in (0, 1, 2, 3, 32)] == [0, 2, 2, 32, 32]


def test_as_many_programs_are_compiled_as_are_planned(llava_folder, monkeypatch):
    guard = Guard.from_pretrained(llava_folder, prompt="short")
    # A function of its own: jit keeps one cache for each, whoever wraps it.
    plain = scoring.p_unsafe.__wrapped__
    counted = jax.jit(lambda *args: plain(*args), static_argnums=0)
    monkeypatch.setattr(scoring, "p_unsafe", counted)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    texts = ["can i touch it ?" + " please" * n for n in range(40)]
    images = [picture if n % 3 else None for n in range(40)]
    guard.score(images, texts, batch_size=1)
    requests = guard.encoder.windows(texts, [int(image is not None) for image in images])
    rows = {(i, 0): row for i, (row,) in enumerate(requests)}
    shapes = {batch.shape for batch, _ in guard._plan(rows, 1)}
    assert counted._cache_size() == len(shapes) <= MOST_SHAPES

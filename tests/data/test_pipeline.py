"""Batches: mixed by weight, shuffled, resumable."""

import json
import threading
import time
from collections import Counter

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import open_dataset, write_dataset
from crossguard_jax.data.pipeline import POOL, Interleaved, evaluation, mixture
from crossguard_jax.data.records import Record


def records(source: str, n: int) -> list[Record]:
    return [Record(f"{source}{i}", (), "t", source=source) for i in range(n)]


SOURCES = {"a": records("a", 101), "b": records("b", 40), "c": records("c", 7)}
WEIGHTS = {"a": 5, "b": 2.5, "c": 2.5}


def ids(rows: list[Record]) -> dict[str, np.ndarray]:
    return {"id": np.array([row.id for row in rows])}


def mixed(seed: int = 0, batch_size: int = 16, **options):
    options = {"sources": SOURCES, "weights": WEIGHTS, "transform": ids} | options
    return mixture(seed=seed, batch_size=batch_size, **options)


def take(batches, n: int) -> list[list[str]]:
    return [next(batches)["id"].tolist() for _ in range(n)]


def test_the_seed_alone_decides_the_order():
    first = take(mixed(), 40)
    assert first == take(mixed(), 40)
    assert first == take(mixed(prefetch=7, threads=4), 40)
    assert first == take(mixed(prefetch=0), 40)
    assert first != take(mixed(seed=1), 40)


def test_one_seeds_order_is_not_another_seeds_order_one_epoch_later():
    alone = {"sources": {"a": SOURCES["a"]}, "weights": {"a": 1.0}, "batch_size": 101}
    epochs = [batch for seed in range(4) for batch in take(mixed(seed=seed, **alone), 4)]
    assert len({tuple(epoch) for epoch in epochs}) == 16
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(epochs[0]))}


@pytest.mark.parametrize("k", [0, 1, 13, 60])
def test_a_restored_iterator_goes_on_with_exactly_the_same_batches(k):
    batches = mixed()
    take(batches, k)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 30)
    restored = mixed()
    take(restored, 5)  # batches were made ahead and must be forgotten
    restored.set_state(state)
    assert take(restored, 30) == expected
    batches.set_state(state)
    assert take(batches, 30) == expected


def test_a_state_of_another_mixture_is_refused():
    state = mixed().get_state()
    with pytest.raises(UserError, match="saved with seed 0, now 1"):
        mixed(seed=1).set_state(state)
    with pytest.raises(UserError, match="saved with batch_size 16, now 8"):
        mixed(batch_size=8).set_state(state)
    with pytest.raises(UserError, match="saved with weights"):
        mixed(weights=WEIGHTS | {"c": 0}).set_state(state)


def test_weights_hold_in_every_batch():
    for batch in take(mixed(), 50):
        share = Counter(name[0] for name in batch)
        assert abs(share["a"] - 8) <= 1 and abs(share["b"] - 4) <= 1
    total = Counter(name[0] for batch in take(mixed(batch_size=100), 40) for name in batch)
    for name, weight in WEIGHTS.items():
        assert abs(total[name] / 4000 - weight / 10) < 0.01


def test_every_row_of_a_source_comes_once_before_any_comes_twice():
    order = [name for batch in take(mixed(), 60) for name in batch if name[0] == "b"]
    for epoch in range(3):
        assert set(order[40 * epoch : 40 * (epoch + 1)]) == {row.id for row in SOURCES["b"]}


def test_a_sources_order_does_not_depend_on_the_others():
    with_all = [n for batch in take(mixed(), 40) for n in batch if n[0] == "b"]
    without = mixed(weights=WEIGHTS | {"a": 0})
    alone = [n for batch in take(without, 40) for n in batch if n[0] == "b"]
    assert with_all[:100] == alone[:100]


def test_a_source_of_weight_zero_is_left_out():
    batches = take(mixed(weights=WEIGHTS | {"c": 0}), 20)
    assert {name[0] for batch in batches for name in batch} == {"a", "b"}


def test_impossible_mixtures_are_one_line_errors():
    for weights in ({"a": 1.0}, WEIGHTS | {"d": 1.0}):
        with pytest.raises(UserError, match="every source needs a weight"):
            mixed(weights=weights)
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="weights must be 0 or more"):
            mixed(sources={"a": SOURCES["a"]}, weights={"a": weight})
    with pytest.raises(UserError, match="source 'c' has no records"):
        mixed(sources=SOURCES | {"c": []})


def test_batches_are_made_ahead_in_another_thread():
    made: list[str] = []

    def transform(rows):
        made.append(threading.current_thread().name)
        return ids(rows)

    batches = mixed(transform=transform, prefetch=3)
    next(batches)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) == 4
    assert threading.current_thread().name not in made
    batches.close()


def test_an_error_in_the_transform_reaches_the_caller():
    def transform(rows):
        raise UserError("p.png: not a picture")

    with pytest.raises(UserError, match="p.png: not a picture"):
        next(mixed(transform=transform))


def test_batches_from_array_record_equal_those_from_memory(tmp_path):
    for name, rows in SOURCES.items():
        write_dataset({"train": rows}, tmp_path, name)
    stored = {name: open_dataset(tmp_path, name, "train") for name in SOURCES}
    assert take(mixed(sources=stored, threads=3), 40) == take(mixed(), 40)


def alike(records: list[Record]) -> list[int]:
    """Three keys; a source has all of them."""
    return [int(record.id[1:]) % 3 for record in records]


def in_buckets(**options):
    return mixed(key=alike, **options)


def test_alike_rows_share_batches_and_a_pool_has_the_rows_that_it_has_without():
    bucketed, plain = take(in_buckets(), 2 * POOL), take(mixed(), 2 * POOL)
    for start in (0, POOL):
        own, other = bucketed[start : start + POOL], plain[start : start + POOL]
        assert Counter(n for batch in own for n in batch) == Counter(n for b in other for n in b)
        keys = [{int(name[1:]) % 3 for name in batch} for batch in own]
        assert sum(len(some) > 1 for some in keys) <= 2, "only where one key's rows end"
        assert len({max(some) for some in keys[:6]}) > 1, "batches come in no order of keys"


def test_sources_stay_mixed_in_batches_of_rows_that_are_alike():
    for batch in take(in_buckets(), POOL):
        share = Counter(name[0] for name in batch)
        assert abs(share["a"] - 8) <= 5 and share["b"] and share["c"] <= 10


@pytest.mark.parametrize("k", [0, 1, POOL - 1, POOL + 5])
def test_batches_of_alike_rows_go_on_exactly_whoever_makes_them(k):
    batches = in_buckets()
    take(batches, k)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, POOL)
    restored = in_buckets(threads=4, prefetch=7)
    take(restored, 3)
    restored.set_state(state)
    assert take(restored, POOL) == expected
    with pytest.raises(UserError, match=f"saved with pool {POOL}, now None"):
        mixed().set_state(state)


def test_each_row_is_looked_at_once():
    seen: list[str] = []

    def counting(records: list[Record]) -> list[int]:
        seen.extend(record.id for record in records)
        return alike(records)

    take(mixed(key=counting), 2 * POOL)
    assert len(seen) == len(set(seen)) == sum(map(len, SOURCES.values()))


def in_turns(shares=(0.7, 0.3)) -> Interleaved:
    streams = [mixed(), mixed(batch_size=4)]
    return Interleaved(streams, shares)


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.95, 0.05), (0.5, 0.5)])
def test_streams_take_turns_by_their_shares_in_every_stretch(shares):
    long = [len(batch) == 4 for batch in take(in_turns(shares), 200)]
    for first in range(0, 200, 40):
        assert abs(sum(long[first : first + 40]) - 40 * shares[1]) <= 1


@pytest.mark.parametrize("k", [0, 1, 13])
def test_streams_in_turns_go_on_with_exactly_the_same_batches(k):
    batches = in_turns()
    take(batches, k)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 20)
    restored = in_turns()
    take(restored, 5)
    restored.set_state(state)
    assert take(restored, 20) == expected
    with pytest.raises(UserError, match="saved with shares"):
        in_turns((0.6, 0.4)).set_state(state)


def test_evaluation_gives_every_row_once_in_order_and_masks_the_filling():
    batches = list(evaluation(SOURCES["b"], batch_size=16, transform=ids))
    assert [batch["id"].shape for batch in batches] == [(16,)] * 3
    kept = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    assert kept.tolist() == [row.id for row in SOURCES["b"]]
    rows = np.concatenate([batch["row"][batch["mask"]] for batch in batches])
    assert rows.tolist() == list(range(40))
    assert batches[-1]["mask"].tolist() == [True] * 8 + [False] * 8


def test_evaluation_resumes_where_it_stopped():
    batches = evaluation(SOURCES["a"], batch_size=16, transform=ids)
    take(batches, 3)
    state = batches.get_state()
    expected = [batch["id"].tolist() for batch in batches]
    again = evaluation(SOURCES["a"], batch_size=16, transform=ids)
    again.set_state(state)
    assert [batch["id"].tolist() for batch in again] == expected != []


def test_evaluation_of_nothing_is_an_error():
    with pytest.raises(UserError, match="holds no records"):
        evaluation([], batch_size=4, transform=ids)

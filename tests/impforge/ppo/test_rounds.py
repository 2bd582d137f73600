from collections import Counter

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.impforge.ppo.rounds import Rounds
from crossguard_jax.runtime.placement import Share

CATEGORIES = [0] * 10 + [1] * 3 + [2] * 1


def rounds(quota: bool, seed: int = 0, **more: object) -> Rounds:
    arrays = {"square": np.arange(14) ** 2}
    return Rounds(arrays, CATEGORIES, 6, seed, quota, **more)


def test_without_a_quota_every_row_comes_before_any_comes_again() -> None:
    source = rounds(quota=False)
    rows = np.concatenate([next(source)["row"] for _ in range(7)])
    for epoch in range(3):
        assert sorted(rows[14 * epoch : 14 * (epoch + 1)]) == list(range(14))
    assert list(rows[:14]) != list(rows[14:28])


def test_with_a_quota_every_category_has_its_share_of_every_batch() -> None:
    source = rounds(quota=True)
    seen: Counter[int] = Counter()
    for _ in range(5):
        batch = next(source)
        assert Counter(CATEGORIES[r] for r in batch["row"]) == {0: 2, 1: 2, 2: 2}
        np.testing.assert_array_equal(batch["square"], batch["row"].astype(int) ** 2)
        seen.update(batch["row"].tolist())
    assert {seen[r] for r in range(10)} == {1} and seen[13] == 10


def test_the_place_is_found_again() -> None:
    one, other = rounds(True), rounds(True)
    for _ in range(3):
        next(one)
    other.set_state(one.get_state())
    np.testing.assert_array_equal(next(one)["row"], next(other)["row"])
    assert not np.array_equal(next(rounds(True))["row"], next(rounds(True, seed=1))["row"])


def test_processes_share_one_order() -> None:
    whole = Rounds({}, CATEGORIES, 6, 0, True)
    parts = [Rounds({}, CATEGORIES, 6, 0, True, Share((i,), 2)) for i in range(2)]
    for _ in range(4):
        joined = np.concatenate([next(part)["row"] for part in parts])
        np.testing.assert_array_equal(joined, next(whole)["row"])


def test_no_triplets_is_an_error() -> None:
    with pytest.raises(UserError, match="no triplets"):
        Rounds({}, [], 4, 0, False)

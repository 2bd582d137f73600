"""Edited texts of training rows: the user's own letters, and nothing that would be cut."""

from dataclasses import replace

import numpy as np
import pytest

from crossguard_jax.cmai.edits import edited_rows, edited_text
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.mbat import EDITED
from crossguard_jax.core.errors import UserError
from tests.cmai.small_systems import LENGTH, RECORDS, base

N, MOST = 3, 2


@pytest.fixture(scope="module")
def task():
    return Immunized.of(base()).task


def read_back(task, arrays, row, k):
    """A row's tokens before, in and behind the user's text."""
    ids, mask = arrays[f"{EDITED}input_ids"][row, k], arrays[f"{EDITED}text_mask"][row, k]
    first, last = np.flatnonzero(mask)[[0, -1]]
    n = int(arrays[f"{EDITED}attention_mask"][row, k].sum())
    return ids[:first].tolist(), ids[first : last + 1].tolist(), ids[last + 1 : n].tolist()


def test_only_the_users_own_text_is_edited(task):
    arrays = edited_rows(task, RECORDS, LENGTH, N, MOST)
    assert arrays[f"{EDITED}input_ids"].shape[:2] == (len(RECORDS), N)
    changed = 0
    for row, record in enumerate(RECORDS):
        (plain,) = task.encode([record.text], [record.images])
        (own,) = plain.rows
        for k in range(N):
            before, text, behind = read_back(task, arrays, row, k)
            assert before == own.ids[: own.user[0]] and behind == own.ids[own.user[1] :]
            changed += text != own.ids[slice(*own.user)]
    assert changed > len(RECORDS)


def test_a_record_has_the_same_edits_whenever_it_comes(task):
    one = edited_rows(task, RECORDS, LENGTH, N, MOST)
    other = edited_rows(task, RECORDS[::-1], LENGTH, N, MOST)
    for name, values in one.items():
        np.testing.assert_array_equal(values[::-1], other[name], err_msg=name)


def test_runs_of_other_seeds_meet_other_edits(task):
    one, again, other = (edited_rows(task, RECORDS, LENGTH, N, MOST, seed=s) for s in (1, 1, 2))
    ids = f"{EDITED}input_ids"
    np.testing.assert_array_equal(one[ids], again[ids])
    assert one[ids].shape != other[ids].shape or (one[ids] != other[ids]).any()


def test_an_edit_that_would_be_cut_is_not_made(task):
    record = next(record for record in RECORDS if record.images)
    (plain,) = task.encode([record.text], [record.images])
    exactly = len(plain.rows[0].ids)
    arrays = edited_rows(task, [record] * 2, exactly, 8, 4)
    lengths = arrays[f"{EDITED}attention_mask"].sum(axis=-1)
    assert (lengths <= exactly).all()
    own = plain.rows[0].ids
    for k in range(8):
        before, text, behind = read_back(task, arrays, 0, k)
        assert behind == own[plain.rows[0].user[1] :], "the prompt's end is there"


def test_edits_are_at_most_as_many_as_asked_for_and_a_text_without_letters_stays():
    rng = np.random.default_rng(0)
    assert edited_text("?!", 3, rng) == "?!"
    lengths = {len(edited_text("a kettle", 2, rng)) - len("a kettle") for _ in range(200)}
    assert lengths <= {-2, -1, 0, 1, 2} and {-1, 0, 1} <= lengths


def test_rows_of_many_lengths_are_refused(task):
    with pytest.raises(UserError, match="data.buckets"):
        edited_rows(task, [replace(RECORDS[0], id="x")], LENGTH, N, MOST, buckets=True)

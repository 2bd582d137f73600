"""A process makes the rows that its devices hold, wherever those lie in the mesh."""

from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from crossguard_jax.core.sharding import batch_sharding, make_mesh
from crossguard_jax.runtime.placement import WHOLE, Share, place, put


def spanning(groups: list[int], here: list[int]) -> Mock:
    """A sharding over devices, each of which holds a part of the rows; some devices are ours."""
    size = len(groups)
    each = size // len(set(groups))
    where = {i: (slice(g * each, (g + 1) * each),) for i, g in enumerate(groups)}
    sharding = Mock(spec=NamedSharding, is_fully_addressable=False, mesh=Mock(size=size))
    sharding.devices_indices_map.return_value = where
    sharding.addressable_devices_indices_map.return_value = {i: where[i] for i in here}
    return sharding


@pytest.mark.parametrize(
    ("groups", "here", "rows"),
    [
        ([0, 1, 2, 3], [0, 1], [0, 1, 2, 3]),  # rows over all devices
        ([0, 1, 2, 3], [2, 3], [4, 5, 6, 7]),
        ([0, 1, 2, 3], [0, 3], [0, 1, 6, 7]),  # as hosts of a TPU slice may lie
        ([0, 0, 1, 1], [2, 3], [4, 5, 6, 7]),  # pairs of devices share rows
        ([0, 0, 1, 1], [1, 2], [*range(8)]),  # a pair in two processes: both make its rows
        ([0, 0, 0, 0], [3], [*range(8)]),  # a model in parts alone: all make all
    ],
)
def test_a_share_is_what_the_devices_hold(
    groups: list[int], here: list[int], rows: list[int]
) -> None:
    share = Share.under(spanning(groups, here))
    assert share.rows(8).tolist() == rows
    batch = {"a": np.arange(8), "b": np.arange(16).reshape(16, 1)}
    own = share.own(batch)
    assert own["a"].tolist() == rows
    # Two pictures a row lie where their row's part does.
    assert own["b"].ravel().tolist() == [2 * row + k for row in rows for k in (0, 1)]


def test_a_lone_process_makes_and_places_all() -> None:
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:1]), size=4)
    assert Share.under(sharding) == Share.under(None) == WHOLE
    batch = {"a": np.arange(4)}
    for on_device in (place(batch, sharding), place(batch, None), put(batch, sharding)):
        np.testing.assert_array_equal(on_device["a"], batch["a"])


def test_arrays_are_placed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four parts the process holds the first and the last."""
    made = {}

    def assemble(shape, sharding, rows_of):
        made["shape"] = shape
        made["parts"] = [rows_of((slice(start, start + 2),)).tolist() for start in (0, 6)]
        return jax.numpy.zeros(shape)

    monkeypatch.setattr(jax, "make_array_from_callback", assemble)
    place({"a": np.asarray([10, 11, 16, 17])}, spanning([0, 1, 2, 3], [0, 3]))
    assert made == {"shape": (8,), "parts": [[10, 11], [16, 17]]}

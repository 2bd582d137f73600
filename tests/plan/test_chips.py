"""What there is to compile for: every name, its devices, and how its hosts lie."""

import importlib.util
import math

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.plan import chips
from crossguard_jax.runtime.slices import SLICES, find_slice

HAS_TPU_COMPILER = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize("name", SLICES)
def test_a_hosts_chips_tile_their_slice(name: str) -> None:
    tpus = SLICES[name]
    bounds = chips.host_bounds(tpus)
    shape = [*map(int, tpus.topology.split("x")), 1][:3]
    assert math.prod(bounds) == tpus.chips_per_host
    assert all(size % bound == 0 for size, bound in zip(shape, bounds, strict=True))


def test_hosts_lie_as_the_clouds_pages_say() -> None:
    expected = {"v5litepod-1": (1, 1, 1), "v6e-8": (2, 4, 1), "v5litepod-16": (2, 2, 1)}
    assert {name: chips.host_bounds(find_slice(name)) for name in expected} == expected


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="no TPU compiler: pip install -e '.[plan]'")
@pytest.mark.parametrize("name", SLICES)
def test_the_compiler_sees_the_slice_of_a_name(name: str) -> None:
    target, tpus = chips.find_target(name), SLICES[name]
    devices = chips.devices_of(target)
    assert len(devices) == target.devices
    assert len({device.process_index for device in devices}) == tpus.hosts
    halves = 2 if tpus.family == "tpu7x" else 1
    assert len({tuple(device.coords) for device in devices}) * halves == target.devices


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v5litepod-16", 16), ("v5p-16", 8), ("v4-8", 4), ("v6e-8", 8), ("tpu7x-8", 8), ("H100-8", 8)],
)
def test_a_name_says_how_many_devices_there_are(name: str, devices: int) -> None:
    assert chips.find_target(name).devices == devices


@pytest.mark.parametrize("name", ["", "v5e-16", "v5p-17", "h100", "h100-0", "h100-x", "b200-8"])
def test_an_unknown_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UserError, match="there is|say how many"):
        chips.find_target(name)


@pytest.mark.parametrize(
    ("name", "share"), [("v5litepod-16", 1 / 2), ("v5litepod-256", 1), ("v5p-16", 1 / 2)]
)
def test_a_corner_that_is_no_torus_has_half_its_links(name: str, share: float) -> None:
    assert chips.linked(find_slice(name)) == share


def test_gpus_beyond_a_host_send_over_the_slower_network() -> None:
    near, far = chips.find_target("h100-8"), chips.find_target("h100-16")
    assert near.wire > 5 * far.wire


@pytest.mark.parametrize(("name", "package"), [("v5litepod-16", "libtpu"), ("h100-8", "cuda12")])
def test_a_compiler_that_is_missing_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"compiler is not installed.*pip install.*{package}"):
        chips.devices_of(chips.find_target(name))

"""The names of TPU slices, as users and clouds give them."""

import math

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.slices import SLICES, find_slice

# Each as the cloud's pages have it: chips, shape, hosts.
PUBLISHED = {
    "v4-8": (4, "2x2x1", 1),
    "v4-16": (8, "2x2x2", 2),
    "v4-32": (16, "2x2x4", 4),
    "v4-64": (32, "2x4x4", 8),
    "v4-128": (64, "4x4x4", 16),
    "v4-256": (128, "4x4x8", 32),
    "v4-512": (256, "4x8x8", 64),
    "v4-1024": (512, "8x8x8", 128),
    "v4-1536": (768, "8x8x12", 192),
    "v4-2048": (1024, "8x8x16", 256),
    "v4-4096": (2048, "8x16x16", 512),
    "v5litepod-1": (1, "1x1", 1),
    "v5litepod-4": (4, "2x2", 1),
    "v5litepod-8": (8, "2x4", 1),
    "v5litepod-16": (16, "4x4", 4),
    "v5litepod-32": (32, "4x8", 8),
    "v5litepod-64": (64, "8x8", 16),
    "v5litepod-128": (128, "8x16", 32),
    "v5litepod-256": (256, "16x16", 64),
    "v5p-8": (4, "2x2x1", 1),
    "v5p-16": (8, "2x2x2", 2),
    "v5p-32": (16, "2x2x4", 4),
    "v5p-64": (32, "2x4x4", 8),
    "v5p-128": (64, "4x4x4", 16),
    "v5p-256": (128, "4x4x8", 32),
    "v5p-384": (192, "4x4x12", 48),
    "v5p-512": (256, "4x8x8", 64),
    "v5p-768": (384, "4x8x12", 96),
    "v5p-1024": (512, "8x8x8", 128),
    "v5p-1536": (768, "8x8x12", 192),
    "v5p-2048": (1024, "8x8x16", 256),
    "v5p-3072": (1536, "8x12x16", 384),
    "v5p-4096": (2048, "8x16x16", 512),
    "v5p-6144": (3072, "12x16x16", 768),
    "v5p-8192": (4096, "16x16x16", 1024),
    "v5p-12288": (6144, "16x16x24", 1536),
    "v6e-1": (1, "1x1", 1),
    "v6e-4": (4, "2x2", 1),
    "v6e-8": (8, "2x4", 1),
    "v6e-16": (16, "4x4", 4),
    "v6e-32": (32, "4x8", 8),
    "v6e-64": (64, "8x8", 16),
    "v6e-128": (128, "8x16", 32),
    "v6e-256": (256, "16x16", 64),
    "tpu7x-2": (1, "1x1x1", 1),
    "tpu7x-8": (4, "2x2x1", 1),
    "tpu7x-16": (8, "2x2x2", 2),
    "tpu7x-32": (16, "2x2x4", 4),
    "tpu7x-64": (32, "2x4x4", 8),
    "tpu7x-128": (64, "4x4x4", 16),
    "tpu7x-256": (128, "4x4x8", 32),
    "tpu7x-384": (192, "4x4x12", 48),
    "tpu7x-512": (256, "4x8x8", 64),
    "tpu7x-768": (384, "4x8x12", 96),
    "tpu7x-1024": (512, "8x8x8", 128),
    "tpu7x-1536": (768, "8x8x12", 192),
    "tpu7x-2048": (1024, "8x8x16", 256),
    "tpu7x-3072": (1536, "8x12x16", 384),
    "tpu7x-4096": (2048, "8x16x16", 512),
    "tpu7x-6144": (3072, "12x16x16", 768),
    "tpu7x-8192": (4096, "16x16x16", 1024),
    "tpu7x-12288": (6144, "16x16x24", 1536),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_means_what_the_cloud_means_by_it(name: str) -> None:
    slice_ = find_slice(name)
    assert (slice_.chips, slice_.topology, slice_.hosts) == PUBLISHED[name]
    assert math.prod(map(int, slice_.topology.split("x"))) == slice_.chips
    assert slice_.hosts * slice_.chips_per_host == slice_.chips


def test_every_name_of_the_table_is_tested() -> None:
    assert set(SLICES) == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "topology"),
    [("v5litepod-16", "v5e:4x4"), ("v5p-16", "v5p:2x2x2"), ("tpu7x-8", "tpu7x:2x2x1")],
)
def test_the_compiler_has_names_of_its_own(name: str, topology: str) -> None:
    assert find_slice(name).compiler_topology == topology


@pytest.mark.parametrize(
    "name", ["", " ", "v5litepod", "v5litepod-", "v5litepod-17", "v5p-4", "v5e-16", "v6e-8 ", "8"]
)
def test_what_is_no_name_is_refused_and_real_ones_are_shown(name: str) -> None:
    with pytest.raises(UserError, match=r"no TPU slice .*: there is .*v\d\w*-\d") as caught:
        find_slice(name)
    assert "\n" not in str(caught.value)

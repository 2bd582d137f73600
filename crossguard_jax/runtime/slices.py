"""TPU slices by the names that users and clouds give them.

A name is a family and a number. v4, v5p and tpu7x count TensorCores, two a chip (``v5p-16`` has
eight chips); v5litepod and v6e count chips (``v6e-8`` has eight). How the chips lie and how many
share a host follow from the name.
"""

import math
from dataclasses import dataclass
from difflib import get_close_matches

from crossguard_jax.core.errors import UserError

_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16"
_MORE = f"{_CUBES} 4x4x12 4x8x12 8x12x16 12x16x16 16x16x16 16x16x24"


@dataclass(frozen=True)
class _Family:
    """What the slices of one generation share.

    Attributes:
      compiler: the generation as the TPU compiler's topologies name it.
      gke: GKE's label of its nodes.
      counted: what the number in a name counts on each chip.
      topologies: shapes that are offered, in chips.
    """

    compiler: str
    gke: str
    counted: int
    topologies: str


_FAMILIES = {
    "v4": _Family("v4", "tpu-v4-podslice", 2, _CUBES),
    "v5litepod": _Family("v5e", "tpu-v5-lite-podslice", 1, _FLAT),
    "v5p": _Family("v5p", "tpu-v5p-slice", 2, _MORE),
    "v6e": _Family("v6e", "tpu-v6e-slice", 1, _FLAT),
    "tpu7x": _Family("tpu7x", "tpu7x", 2, f"1x1x1 {_MORE}"),
}


@dataclass(frozen=True)
class Slice:
    """Chips that are joined by their own network.

    Attributes:
      name: as users say it, ``v5litepod-16``.
      family: the name's first part.
      generation: as the TPU compiler says it, ``v5e``.
      gke: the value of GKE's node label ``cloud.google.com/gke-tpu-accelerator``.
      topology: the chips' shape, ``4x4``.
      chips: their number.
      chips_per_host: how many of them one host has.
    """

    name: str
    family: str
    generation: str
    gke: str
    topology: str
    chips: int
    chips_per_host: int

    @property
    def hosts(self) -> int:
        """How many hosts, and so processes, there are."""
        return self.chips // self.chips_per_host

    @property
    def compiler_topology(self) -> str:
        """As ``jax.experimental.topologies`` takes it: ``v5e:4x4``."""
        return f"{self.generation}:{self.topology}"


def _table() -> dict[str, Slice]:
    slices = {}
    for name, family in _FAMILIES.items():
        for topology in family.topologies.split():
            chips = math.prod(map(int, topology.split("x")))
            # One host holds up to eight chips of a flat slice; a larger slice has hosts of four.
            a_host = chips if chips <= 4 or (chips == 8 and family.counted == 1) else 4
            each = f"{name}-{chips * family.counted}"
            slices[each] = Slice(each, name, family.compiler, family.gke, topology, chips, a_host)
    return slices


SLICES = _table()
"""Every slice that there is a name for."""


def find_slice(name: str) -> Slice:
    """The slice of that name.

    Raises:
      UserError: there is none; the TPU compiler would take an empty name for a v2 with 8 devices.
    """
    if name in SLICES:
        return SLICES[name]
    family, _, _ = name.partition("-")
    same = [each for each, slice_ in SLICES.items() if slice_.family == family]
    # Cloud TPU writes v5e as v5litepod.
    nearest = get_close_matches(name.replace("v5e", "v5litepod"), SLICES, n=3, cutoff=0.4)
    there_are = ", ".join(same or nearest or ("v5litepod-16", "v5p-16", "v6e-8"))
    raise UserError(f"no TPU slice {name!r}: there is {there_are}")

"""Chips by the names that users give them, their figures, and devices to compile for.

No chip is needed: a topology describes devices to the compiler, and arrays of shapes alone lie on
them. TPUs take libtpu's compiler, GPUs that of JAX's CUDA plugin.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.slices import Slice, find_slice

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What one device of a kind has; of a TPU v7x a chip is two devices.

    Attributes:
        name: the kind's.
        memory: bytes that a program may use.
        flops: bf16 matrix products a second.
        bandwidth: bytes a second of its memory.
        wire: bytes a second that it sends to its neighbours, over all links together.
        far: the same beyond ``near`` devices, where there is another network.
        near: how many devices the fast network joins; 0 is all.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    wire: float
    far: float = 0.0
    near: int = 0


# TPU memory: what libtpu 0.0.42's compiler says is available where a program does not fit. GPU
# memory: JAX's share with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 (its default is 0.75). The rest is of
# the vendors' pages (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x; nvidia.com's data sheets
# of A100 SXM 80 GB, H100 SXM, H200 SXM, dense bf16). A TPU's links are counted one way, half of the
# bidirectional figure; a GPU's are NVLink inside of eight, and beyond that 400 Gbit/s for each.
CHIPS = {
    "v4": Chip("TPU v4", 30.75 * GIB, 275e12, 1.2e12, 300e9),
    "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, 0.82e12, 200e9),
    "v5p": Chip("TPU v5p", 95.74 * GIB, 459e12, 2.77e12, 600e9),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, 1.64e12, 400e9),
    "tpu7x": Chip("TPU v7x (half a chip)", 94.75 * GIB, 1153e12, 3.69e12, 300e9),
    "a100": Chip("A100 80 GB", 0.92 * 79.1 * GIB, 312e12, 2.04e12, 300e9, 50e9, 8),
    "h100": Chip("H100", 0.92 * 79.1 * GIB, 989e12, 3.35e12, 450e9, 50e9, 8),
    "h200": Chip("H200", 0.92 * 140.4 * GIB, 989e12, 4.8e12, 450e9, 50e9, 8),
}
"""Figures of a device, by the compiler's name of a TPU's generation or a GPU's own."""

_GPUS = ("h100", "h200", "a100")

# What XLA's GPU compiler asks of a card: its fields of GpuTargetConfigProto, by the maker's tables
# of compute capability 8.0 and 9.0.
_GPU_CONFIG = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {clock} l2_cache_size: {cache}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"
"""
_HOPPER = dict(
    shared=233472, optin=232448, cores=132, lanes=128, clock=1.98, cache=52428800, major=9
)
_AMPERE = dict(
    shared=167936, optin=166912, cores=108, lanes=64, clock=1.41, cache=41943040, major=8
)
_GPU_FIELDS: dict[str, dict[str, Any]] = {
    "h100": _HOPPER | {"memory": 84929347584, "bandwidth": 3352320000000},
    "h200": _HOPPER | {"memory": 150754820096, "bandwidth": 4800000000000},
    "a100": _AMPERE | {"memory": 84929347584, "bandwidth": 2039000000000},
}


@dataclass(frozen=True)
class Machine:
    """What a program is compiled for.

    Attributes:
        name: as users say it: ``v5litepod-16``, ``h100-8``.
        chip: its device's figures.
        devices: how many there are.
        slice: of TPUs; None is GPUs.
    """

    name: str
    chip: Chip
    devices: int
    slice: Slice | None = None

    @property
    def wire(self) -> float:
        """Bytes a second that every device can send to others of its mesh at once.

        A corner of a slice that is no torus has half its links, and what all wait for is there.
        """
        if self.slice is not None:
            return self.chip.wire * linked(self.slice)
        slow = self.chip.near and self.devices > self.chip.near
        return self.chip.far if slow else self.chip.wire


def find_target(name: str) -> Machine:
    """The slice or the GPUs of a name.

    Raises:
        UserError: there are none of that name.
    """
    kind, _, number = name.lower().partition("-")
    if kind in _GPUS:
        if not re.fullmatch("[1-9][0-9]{0,4}", number):
            raise UserError(f"{name!r}: say how many GPUs, as in {kind}-8")
        return Machine(name, CHIPS[kind], int(number))
    try:
        tpus = find_slice(name)
    except UserError as error:
        raise UserError(f"{error}; of GPUs {', '.join(f'{gpu}-8' for gpu in _GPUS)}") from error
    return Machine(name, CHIPS[tpus.generation], tpus.chips * devices_per_chip(tpus), tpus)


def devices_per_chip(tpus: Slice) -> int:
    """Two on a TPU v7x, whose halves are devices of their own; a v4's and a v5p's work as one."""
    return 2 if tpus.generation == "tpu7x" else 1


def linked(tpus: Slice) -> float:
    """The share of its links that a corner chip has. A flat slice closes to a ring along 16 chips,
    a cube from 4x4x4 on."""
    sizes = [*map(int, tpus.topology.split("x"))]
    flat = len(sizes) == 2
    rings = [n == 16 if flat else min(sizes) >= 4 for n in sizes]
    links = sum((n > 1) + ring for n, ring in zip(sizes, rings, strict=True))
    return max(links, 1) / (2 * len(sizes))


def devices_of(target: Machine) -> list[Any]:
    """Devices that only a compiler sees.

    Raises:
        UserError: the compiler is not installed.
    """
    return _gpu_devices(target) if target.slice is None else _tpu_devices(target.slice)


def _tpu_devices(tpus: Slice) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed, and needs no TPU: "
            "pip install 'crossguard-jax[plan]' (or libtpu alone)"
        )
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"chips_per_host_bounds": host_bounds(tpus)}
    if tpus.generation == "v4":
        options["chip_config_name"] = "megacore"  # two cores, one device
    return _described("tpu", tpus.compiler_topology, options)


# The compiler looks for the machine it runs on, and complains of there being none; and wants to be
# alone, which matters to chips and not to two plans at once.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def host_bounds(tpus: Slice) -> tuple[int, int, int]:
    """How the chips of one host lie: the compiler's own default, 2x2, is too many for one chip and
    makes two hosts of eight."""
    shape = [*map(int, tpus.topology.split("x")), 1, 1][:3]
    bounds, left = [1, 1, 1], tpus.chips_per_host
    for axis in range(3):
        # Four chips are a square; a host of eight holds the whole slice.
        most = 2 if tpus.chips_per_host == 4 else shape[axis]
        bounds[axis] = min(most, shape[axis], left)
        left //= bounds[axis]
    return bounds[0], bounds[1], bounds[2]


def _gpu_devices(target: Machine) -> list[Any]:
    # The plugin of any CUDA version brings the compiler; without a driver it would refuse to load.
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UserError(
            "the GPU compiler is not installed, and needs no GPU: "
            "pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt, of jax's own version"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    kind = target.name.lower().partition("-")[0]
    config = _GPU_CONFIG.format(name=target.chip.name, **_GPU_FIELDS[kind])
    hosts = max(target.devices // 8, 1)
    topology = f"1x{hosts}x{target.devices // hosts}"
    return _described("cuda", topology, {"topology": topology, "target_config": config})


def _described(platform: str, name: str, options: dict[str, Any]) -> list[Any]:
    from jax.experimental import topologies

    return list(
        topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices
    )

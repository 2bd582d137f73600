"""The mesh that a command line or a configuration speaks of, and where a run computes."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import MESH_AXES, make_mesh
from crossguard_jax.runtime import processes


def parse_mesh(text: str) -> dict[str, int]:
    """``data=2,fsdp=-1`` as sizes by axis; an axis that is not named has 1.

    Raises:
        UserError: no such axis, an axis twice, or a size that is no number (-1: the rest).
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (word.strip() for word in part.partition("="))
        if name not in MESH_AXES or not equals or name in sizes:
            raise UserError(f"--mesh {text}: write AXIS=N,... of {', '.join(MESH_AXES)}, each once")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"--mesh {text}: {name}={size} is no whole number") from None
    return dict.fromkeys(MESH_AXES, 1) | sizes


def inference_mesh(sizes: Mapping[str, int] | None) -> Mesh | None:
    """Where a model lies that answers rows one by one; None is the first device.

    Args:
        sizes: by axis. Where they multiply to the devices of one process, every process has a copy
            of the model and rows of its own (`runtime.processes.divided`); where they take all
            devices, the processes compute every row together. None is the former, with a copy on
            every device.

    Raises:
        UserError: they multiply to neither.
    """
    local = jax.local_devices()
    if sizes is None:
        return make_mesh(devices=local) if len(local) > 1 else None
    several = processes.count() > 1
    product = sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    return make_mesh(**sizes, devices=local if several and product == len(local) else None)


def local_mesh(like: Mesh) -> Mesh:
    """A mesh of this process's devices, for a model of its own: in parts where ``like`` has it in
    parts, or else a copy on each."""
    parts = like.shape["fsdp"] * like.shape["tensor"] > 1
    sizes = {"data": 1, "fsdp": -1} if parts else {"data": -1, "fsdp": 1}
    return make_mesh(**sizes, devices=jax.local_devices())


def spans_processes(mesh: Mesh | None) -> bool:
    """Whether what is computed on a mesh takes all processes together."""
    return mesh is not None and mesh.is_multi_process


def default_dtype() -> str:
    """Of weights and arithmetic, where nothing is said: what the hardware is made for."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def described() -> str:
    """The devices and processes of this run, for the first line of a verb."""
    devices, n = jax.devices(), processes.count()
    kinds = sorted({device.device_kind for device in devices})
    words = f"{len(devices)} {' and '.join(kinds)} device{'s' if len(devices) > 1 else ''}"
    return f"{words}, {n} process{'es' if n > 1 else ''}"

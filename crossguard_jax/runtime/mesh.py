"""The mesh that a command line or a configuration speaks of, and where a run computes."""

import jax
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import make_mesh
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.flags import parse_mesh


def inference_mesh(text: str | None) -> Mesh | None:
    """Where a model lies that answers rows one by one; None is the first device.

    Args:
        text: as `parse_mesh` takes it. Where the sizes multiply to the devices of one process,
            every process has a copy of the model and rows of its own (`processes.divided`); where
            they take all devices, the processes compute every row together. None is the former,
            with a copy on every device.

    Raises:
        UserError: they multiply to neither; or what `parse_mesh` refuses.
    """
    local = jax.local_devices()
    if text is None:
        return make_mesh(devices=local) if len(local) > 1 else None
    sizes = parse_mesh(text)
    several = processes.count() > 1
    product = sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    return make_mesh(**sizes, devices=local if several and product == len(local) else None)


def own_mesh(text: str | None) -> Mesh | None:
    """As `inference_mesh`, for what a process computes by itself.

    Raises:
        UserError: also where processes would have to compute together.
    """
    mesh = inference_mesh(text)
    if spans_processes(mesh):
        raise UserError(
            f"--mesh {text}: takes all processes' devices, and here each process computes by "
            f"itself; give sizes that multiply to its own {jax.local_device_count()}"
        )
    return mesh


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

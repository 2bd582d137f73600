"""One table from logical axes to mesh axes, and the mesh itself.

Every parameter names its logical axes where it is made; `DEFAULT_RULES` (or a config's own table)
says which mesh axis carries each. Parameters inside a stack have one axis more in front:
``layers``. Activations go by the same table (`constrain`), with one rule more: the mesh axes of
``batch`` are the rows' alone. "embed" on ``fsdp`` cuts a weight, which is gathered where it is
used; the states that meet it stay where their rows are.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.core.typing import Array

MESH_AXES = ("data", "fsdp", "tensor")

Rules = Mapping[str, str | tuple[str, ...] | None]

DEFAULT_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "seq": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "lora_rank": None,
    "patch": None,
}
"""Fully sharded data parallelism over ``fsdp``, Megatron-style tensor parallelism over
``tensor``, replicas over ``data``."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[Any] | None = None
) -> Mesh:
    """A mesh over all devices; one of the three sizes may be -1: the rest.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    fixed = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and fixed and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh: data={data} x fsdp={fsdp} x tensor={tensor} does not fit {len(devices)} "
            "device(s); make the product that number, or give one of them as -1"
        )
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def partition_spec(
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """The spec of one array; an axis whose size the mesh does not divide stays whole.

    Args:
        axes: logical names, one a dimension; a stacked parameter may leave out ``layers``.
        shape: the array's shape.
        mesh: gives the sizes.
        rules: the table.

    Raises:
        UserError: a logical axis the table does not know, a mesh axis that is none, or two axes of
            one array on the same mesh axis.
    """
    if len(axes) == len(shape) - 1:
        axes = ("layers", *axes)
    spec: list[str | tuple[str, ...] | None] = []
    used: list[str] = []
    for name, size in zip(axes, shape, strict=True):
        names = tuple(n for n in _mesh_axes(name, mesh, rules) if mesh.shape[n] > 1)
        if size % _parts(names, mesh):
            names = ()
        if taken := set(names) & set(used):
            raise UserError(
                f"axis_rules: two axes of a parameter ({', '.join(map(str, axes))}) are both on "
                f"mesh axis {taken.pop()!r}; move one of them, or set it to None"
            )
        used += names
        spec.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*spec)


def _mesh_axes(name: str | None, mesh: Mesh | AbstractMesh, rules: Rules) -> tuple[str, ...]:
    """Where the table puts a logical axis."""
    if name is None:
        return ()
    if name not in rules:
        raise UserError(f"axis_rules: no rule for {name!r}; there are: {', '.join(rules)}")
    target = rules[name]
    names = (target,) if isinstance(target, str) else tuple(target or ())
    for mesh_axis in names:
        if mesh_axis not in mesh.shape:
            choices = ", ".join(mesh.shape)
            raise UserError(f"axis_rules: {name} -> {mesh_axis!r} is no mesh axis; use {choices}")
    return names


def shardings(state: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """A `NamedSharding` for every array of a state (concrete or abstract), in the same tree."""

    def one(variable: nnx.Variable) -> nnx.Variable:
        spec = partition_spec(variable.get_metadata("axes"), variable.shape, mesh, rules)
        return variable.replace(NamedSharding(mesh, spec))

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def spec_table(
    state: Any, mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES
) -> dict[str, list[Any]]:
    """Where every parameter lies, by name: for each dimension its mesh axis (or axes, or None)."""
    return {
        name: list(partition_spec(v.get_metadata("axes"), v.shape, mesh, rules))
        for name, v in named_leaves(state)
    }


def batch_sharding(
    mesh: Mesh, rules: Rules = DEFAULT_RULES, size: int | None = None
) -> NamedSharding:
    """How a batch's leading axis is spread; whole where its ``size`` does not divide evenly."""
    names = _mesh_axes("batch", mesh, rules)
    if size is not None and size % _parts(names, mesh):
        names = ()
    return NamedSharding(mesh, PartitionSpec(names or None))


def even_parts(
    field: str,
    rows: int,
    most: int,
    mesh: Mesh | AbstractMesh,
    rules: Rules = DEFAULT_RULES,
) -> int:
    """Into how many microbatches a batch is split where it is spread over devices.

    A microbatch that does not divide over them would be computed whole by each.

    Args:
        field: what says how many rows there are, for the error.
        rows: of a step's batch.
        most: microbatches that were asked for.
        mesh, rules: where the batch lies.

    Returns:
        As many of them as divide over the devices, ``most`` if it does.

    Raises:
        UserError: not even the whole batch does.
    """
    devices = _parts(_mesh_axes("batch", mesh, rules), mesh)
    for parts in range(most, 0, -1):
        if rows % (parts * devices) == 0:
            return parts
    more = -(-rows // devices) * devices
    raise UserError(
        f"{field}: {rows} rows do not divide over the {devices} devices that a batch is spread "
        f"over, and each of them would compute all; give {more}, or another mesh"
    )


def mesh_of(x: Any) -> AbstractMesh | None:
    """The mesh whose devices the partitioner spreads an array over, taken from what the array was
    computed from; None on one device, inside `jax.shard_map`, or where nothing says."""
    mesh = jax.typeof(x).sharding.mesh
    spread = mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if spread else None


def activation_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """The spec of an activation.

    An axis that does not divide over all of its mesh axes goes over those that it does divide over,
    or stays whole.

    Args:
        axes: logical names, one a dimension.
        shape: the array's shape.
        mesh: gives the sizes.
        rules: the table.

    Raises:
        UserError: a logical axis the table does not know, or a mesh axis that is none.
    """
    of_batch = _mesh_axes("batch", mesh, rules)
    taken = set(of_batch)
    spec: list[str | tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        free = [n for n in _mesh_axes(name, mesh, rules) if n not in taken and mesh.shape[n] > 1]
        if name == "batch":
            free = [n for n in of_batch if mesh.shape[n] > 1]
        names = _divided(size, free, mesh)
        taken |= set(names)
        spec.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*spec)


def _divided(size: int, names: Sequence[str], mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Those mesh axes that cut an axis of this size into the most equal parts."""
    choices = [some for n in range(len(names) + 1) for some in itertools.combinations(names, n)]
    fitting = [some for some in choices if size % _parts(some, mesh) == 0]
    return max(fitting, key=lambda some: _parts(some, mesh))


def _parts(names: Sequence[str], mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts these mesh axes cut."""
    return int(np.prod([mesh.shape[n] for n in names]))


def constrain(x: Array, axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> Array:
    """Pins an activation to where its logical axes lie, and its gradient with it.

    Left alone, the partitioner cuts the weights' inputs and keeps every row on every device. The
    mesh is that of what ``x`` was computed from: there is none to pass, and so none to forget;
    on one device nothing happens. Under `jax.vmap` the mapped axis is left to the partitioner, and
    inside `jax.shard_map` all of it is left alone.

    Args:
        x: the activation.
        axes: logical names, one a dimension; None for what stays whole.
        rules: the table.
    """
    mesh = mesh_of(x)
    if mesh is None:
        return x
    spec = activation_spec(axes, x.shape, mesh, rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

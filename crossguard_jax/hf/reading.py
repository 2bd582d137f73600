"""A parameter's shards out of tensors: read once, handed over one by one, rounded if need be."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.hf import names
from crossguard_jax.hf.tensors import BLOCK, Source
from crossguard_jax.nn.int8 import rounded

_ALIGNMENT = 64


def read(
    tensors: Source,
    planned: tuple[names.HubTensor, list[str]],
    variable: nnx.Variable,
    sharding: jax.sharding.Sharding,
    dtype: str | None,
) -> jax.Array:
    """One parameter, shard after shard: a shard leaves the host before the next one is read."""
    hub, keys = planned
    arrays = []
    for index, devices in _holders(variable.shape, sharding):
        shard = _shard(tensors, hub, keys, index, dtype)
        arrays += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
    return jax.make_array_from_single_device_arrays(variable.shape, sharding, arrays)


def _holders(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> list[tuple[tuple[slice, ...], list[jax.Device]]]:
    """The shards of this process's devices, each with all that hold it: one reading is for all."""
    where: dict[jax.Device, Any] = dict(sharding.addressable_devices_indices_map(shape))
    holders: dict[str, list[jax.Device]] = {}
    for device, index in where.items():
        holders.setdefault(repr(index), []).append(device)
    return [(where[devices[0]], devices) for devices in holders.values()]


def read_int8(
    tensors: Source,
    planned: tuple[names.HubTensor, list[str]],
    pair: Mapping[str, tuple[tuple[int, ...], jax.sharding.Sharding]],
) -> dict[str, jax.Array]:
    """A kernel in 8 bits and its scales, each by name with its shape and where it goes.

    A scale needs its whole column, whatever part of it a shard has: a tensor is read whole and
    rounded, and all shards get their parts of it.
    """
    hub, keys = planned
    shards: list[list[tuple[Any, list[jax.Device], np.ndarray]]] = []
    for (shape, sharding), kind in zip(pair.values(), ("int8", "float32"), strict=True):
        rooms = []
        for index, devices in _holders(shape, sharding):
            size = tuple(len(range(n)[s]) for n, s in zip(shape, index, strict=True))
            rooms.append((index, devices, _empty(size, np.dtype(kind))))
        shards.append(rooms)
    for layer, key in enumerate(keys):
        values = _rounded(hub.transform.read(tensors.read(key)))
        for value, parts in zip(values, shards, strict=True):
            for index, _, room in parts:
                if not hub.stacked:
                    room[...] = value[index]
                elif layer in (some := range(len(keys))[index[0]]):
                    room[layer - some.start] = value[index[1:]]
    return {
        name: jax.make_array_from_single_device_arrays(
            shape,
            sharding,
            [jax.device_put(room, d) for _, devices, room in parts for d in devices],
        )
        for (name, (shape, sharding)), parts in zip(pair.items(), shards, strict=True)
    }


def _rounded(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [n_in, n_out] in 8 bits, read some columns at a time, and its scales [n_out]."""
    n_out = kernel.shape[1]
    q, scale = np.empty(kernel.shape, np.int8), np.empty(n_out, np.float32)
    for i in range(0, n_out, BLOCK):
        some = np.empty(kernel[:, i : i + BLOCK].shape, np.float32)
        _copy(kernel[:, i : i + BLOCK], some)
        q[:, i : i + BLOCK], scale[i : i + BLOCK] = rounded(some, np)
    return q, scale


def _shard(
    tensors: Source,
    hub: names.HubTensor,
    keys: list[str],
    index: tuple[slice, ...],
    dtype: str | None,
) -> np.ndarray:
    """The part ``index`` of a parameter; a stack is filled layer by layer."""
    layers = keys[index[0]] if hub.stacked else keys
    inside: Any = (*index[hub.stacked :], ...)  # with the dots, a number is an array too
    shard = np.empty(0)
    for i, key in enumerate(layers):
        part = hub.transform.read(tensors.read(key))[inside]
        if i == 0:
            height = (len(layers),) if hub.stacked else ()
            shard = _empty((*height, *part.shape), jnp.dtype(dtype or part.dtype))
        _copy(part, shard[i, ...] if hub.stacked else shard)
    return shard


def _copy(part: np.ndarray, to: np.ndarray) -> None:
    """Reads a part of a tensor as it lies in a file, in the file's order, some rows at a time."""
    if part.ndim == 0:
        to[...] = part
        return
    axis = int(np.argmax(part.strides))
    part, to = np.moveaxis(part, axis, 0), np.moveaxis(to, axis, 0)
    for i in range(0, len(part), BLOCK):
        to[i : i + BLOCK] = np.array(part[i : i + BLOCK])


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array where XLA would lay it: on CPU it takes such a one over, and copies any other."""
    n = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(n + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + n].view(dtype).reshape(shape)

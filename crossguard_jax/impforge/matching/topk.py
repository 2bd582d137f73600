"""Exact nearest neighbours by cosine, in a library that need not fit into memory.

The matrix product is nearly all of the work, so the rest must not touch its result twice. A tile of
cosines is reduced to the maxima of small groups of rows, and only a group whose maximum beats a
query's k-th best so far is looked into; after the first tiles there are next to none.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.sharding import make_mesh
from crossguard_jax.core.typing import Array, Float, Int

GROUP = 64
TILE_ROWS, TILE_QUERIES = 4096, 512
"""A tile of cosines that stays in a CPU's cache (8 MiB) between product and maxima."""


def top_k(
    queries: Float[np.ndarray | Array, "Q D"],
    library: Float[np.ndarray, "N D"],
    k: int,
    mesh: Mesh | None = None,
    block: int = 2**15,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """The ``min(k, N)`` rows of highest inner product for each query, the highest first.

    Exact, in float32; of equal rows the lowest comes first, as in a stable ``argsort``. A row that
    is not a number comes behind all others.

    Args:
        queries: unit vectors, where the products are to be cosines.
        library: unit vectors, float16 or float32; a memory map is read once, block after block,
            and the host holds two blocks of it at a time.
        k: how many.
        mesh: every device of it searches its own part of each block; None is the first device.
        block: rows that a device holds at a time.

    Returns:
        Cosines, float32, and rows of the library, int64.

    Raises:
        ValueError: k or the block is not positive, the library has too many rows for an int32, or
            there are not k numbers among a query's products.
    """
    mesh = make_mesh(1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    n_queries, n_rows, k = len(queries), len(library), min(k, len(library))
    if k < 0 or block < 1 or n_rows > 2**31 - 2 * block * mesh.size:
        raise ValueError(f"top_k: k={k}, block={block}, {n_rows} rows")
    if not k or not n_queries:
        return np.zeros((n_queries, k), np.float32), np.zeros((n_queries, k), np.int64)
    tiles = [jax.device_put(t, NamedSharding(mesh, PartitionSpec())) for t in _tiles(queries)]
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shape = (mesh.size * k, tiles[0].shape[1])
    nothing = (np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32))
    best = [jax.device_put(nothing, split) for _ in tiles]
    for first, part in _blocks(library, block, split):
        best = [
            _search_block(part, tile, *running, first, n_rows, mesh=mesh)
            for tile, running in zip(tiles, best, strict=True)
        ]
        # Else blocks would pile up on the device as fast as the disk gives them.
        jax.block_until_ready(best)
    merged = jax.device_get([_merge_devices(*running, k=k, mesh=mesh) for running in best])
    cosines, rows = (np.concatenate([m[i] for m in merged], 1).T[:n_queries] for i in (0, 1))
    if (rows < 0).any():
        raise ValueError("top_k: queries or library hold values that are not numbers")
    return np.ascontiguousarray(cosines), rows.astype(np.int64, order="C")


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _tiles(queries: Any) -> Iterator[np.ndarray]:
    """The queries as float32 columns ``[D, TILE_QUERIES]``, the last ones filled up with zeros."""
    columns = np.asarray(queries, np.float32).T
    width = min(TILE_QUERIES, _power_of_two(columns.shape[1]))
    for i in range(0, columns.shape[1], width):
        tile = columns[:, i : i + width]
        yield np.pad(tile, ((0, 0), (0, width - tile.shape[1])))


def _blocks(
    library: np.ndarray, block: int, sharding: NamedSharding
) -> Iterator[tuple[int, Array]]:
    """First row and rows of each block, on the devices; the next one is read meanwhile."""
    n_rows, dimension = library.shape
    devices = sharding.mesh.size
    share = min(block, -(-n_rows // devices))
    tile = min(TILE_ROWS, _power_of_two(max(share, GROUP)))
    size = devices * tile * -(-share // tile)

    def read(first: int) -> Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            rows = np.zeros((stop - start, dimension), library.dtype)
            there = library[first + start : first + stop]
            rows[: len(there)] = there
            return rows

        return jax.make_array_from_callback((size, dimension), sharding, part)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, 0)
        for first in range(0, n_rows, size):
            now = ahead.result()
            if first + size < n_rows:
                ahead = pool.submit(read, first + size)
            yield first, now


@functools.partial(jax.jit, static_argnames="mesh")
def _search_block(
    block: Array, queries: Array, best: Array, rows: Array, first: Any, n_rows: Any, *, mesh: Mesh
) -> tuple[Array, Array]:
    """Each device's best ``k`` so far and their rows, ``[devices * k, Q]``, after its part."""

    def local(block: Array, queries: Array, best: Array, rows: Array, first: Any, n_rows: Any):
        start = first + lax.axis_index(mesh.axis_names) * len(block)
        size = min(TILE_ROWS, len(block))
        full = jnp.clip((n_rows - start + size - 1) // size, 0, len(block) // size)

        def tile(i: Array, running: tuple[Array, Array]) -> tuple[Array, Array]:
            part = lax.dynamic_slice_in_dim(block, i * size, size).astype(jnp.float32)
            cosines = jnp.matmul(part, queries, precision=lax.Precision.HIGHEST)
            return _search_tile(cosines, *running, start + i * size, n_rows)

        return lax.fori_loop(0, full, tile, (best, rows))

    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, whole, split, split, whole, whole),
        out_specs=(split, split),
    )(block, queries, best, rows, first, n_rows)


def _search_tile(
    cosines: Float[Array, "N Q"],
    best: Float[Array, "k Q"],
    rows: Int[Array, "k Q"],
    first: Int[Array, ""],
    n_rows: Int[Array, ""],
) -> tuple[Float[Array, "k Q"], Int[Array, "k Q"]]:
    """The best k of the tile, whose first row is ``first``, and of those before it.

    Groups are taken in the order of their rows, so that whatever is found later has a higher row
    and must be better, not as good.
    """
    k, groups = len(best), len(cosines) // GROUP
    maxima = cosines.reshape(groups, GROUP, -1).max(axis=1)

    def beats(maxima: Array, best: Array) -> Array:
        return ~(maxima <= best[-1])  # true of NaN too, which may hide a number in its group

    def look(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        maxima, best, rows = state
        beating = beats(maxima, best)
        group, any_beats = jnp.argmax(beating, axis=0), beating.any(axis=0)
        inside = group * GROUP + jnp.arange(GROUP)[:, None]
        candidates, at = jnp.take_along_axis(cosines, inside, axis=0), first + inside
        # Most queries look at a group of no interest, while another one looks at its own.
        candidates = jnp.where(
            any_beats & (at < n_rows) & ~jnp.isnan(candidates), candidates, -jnp.inf
        )
        values, order = lax.top_k(jnp.concatenate([best, candidates]).T, k)
        rows = jnp.take_along_axis(jnp.concatenate([rows, at]), order.T, axis=0)
        done = (jnp.arange(groups)[:, None] == group) & any_beats
        return jnp.where(done, -jnp.inf, maxima), values.T, rows

    _, best, rows = lax.while_loop(
        lambda state: beats(state[0], state[1]).any(), look, (maxima, best, rows)
    )
    return best, rows


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _merge_devices(best: Array, rows: Array, *, k: int, mesh: Mesh) -> tuple[Array, Array]:
    """The best k of all devices' best."""
    best, rows = lax.with_sharding_constraint((best, rows), NamedSharding(mesh, PartitionSpec()))
    negative, rows = lax.sort((-best, rows), dimension=0, num_keys=2)
    return -negative[:k], rows[:k]

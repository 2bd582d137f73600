"""A model from its ``config.json`` alone: shapes, dtypes and logical axes, no numbers.

What the models of our configurations publish there comes with this package, so that a plan wants no
download.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import Rules, batch_sharding, partition_spec
from crossguard_jax.hf import configs
from crossguard_jax.hf.load import make_model, resolve_folder
from crossguard_jax.nn.pins import govern

PUBLISHED = Path(__file__).parent / "published"
"""``config.json`` of models by their names on the Hub: the fields that decide shapes."""


def find_folder(path: str | Path) -> Path:
    """Where a model's ``config.json`` lies: in its folder, or here.

    Raises:
        UserError: in neither.
    """
    if (PUBLISHED / path / "config.json").is_file():
        return PUBLISHED / path
    try:
        return resolve_folder(path)
    except UserError as error:
        names = sorted(str(p.parent.relative_to(PUBLISHED)) for p in PUBLISHED.glob("*/*/*.json"))
        raise UserError(f"{error}; known here without one: {', '.join(names)}") from error


def read_model(
    path: str | Path, kind: type, dtype: str, rules: Rules, **options: Any
) -> tuple[Any, Callable[[], Any]]:
    """``(config, make)``: make builds the model of a folder, to be traced.

    Args:
        path: see `find_folder`.
        kind: the config's class that is wanted here.
        dtype: of the weights.
        rules: by which its activations are pinned.
        options: ``remat`` and ``attention``, as in `hf.configs.read_config`.

    Raises:
        UserError: no such folder, or another kind of model.
    """
    family, config = configs.read_config(find_folder(path), **options)
    if not isinstance(config, kind):
        raise UserError(
            f"{path}: a {family}; {kind.__name__.removesuffix('Config')} is needed here"
        )

    def make() -> Any:
        return govern(make_model(family, config, dtype), rules)

    return config, make


def placed(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """A tree's shapes, where its logical axes lie; what has none is whole on every device."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return _shape(leaf, NamedSharding(mesh, PartitionSpec()))
        spec = partition_spec(leaf.get_metadata("axes"), leaf.shape, mesh, rules)
        return leaf.replace(_shape(leaf.get_value(), NamedSharding(mesh, spec)))

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def by_rows(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """A tree's shapes, spread by their leading axis as a batch is."""
    return jax.tree.map(lambda x: _shape(x, batch_sharding(mesh, rules, x.shape[0])), tree)


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def bytes_a_device(tree: Any) -> int:
    """What of a tree of placed shapes lies on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )

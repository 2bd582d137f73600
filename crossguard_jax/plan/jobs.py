"""What is planned: a configuration on a mesh, and a step as it is compiled for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, batch_sharding, even_parts
from crossguard_jax.nn import lora
from crossguard_jax.plan.models import by_rows, placed, read_model


@dataclass(frozen=True)
class Program:
    """A step as it is compiled.

    Attributes:
        name: what it does.
        run: the jitted function.
        arguments: its arguments; what is static as it is, the rest as placed shapes.
        kinds: what of the arguments is what, by name.
        beside: what lies on the devices meanwhile and is no argument, by name.
        rows, length: of its batch, over all devices.
        trips: how often a loop runs whose length the data decide.
    """

    name: str
    run: Any
    arguments: tuple[Any, ...]
    kinds: Mapping[str, Any]
    rows: int
    length: int
    trips: int = 1
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What is planned: a configuration on a mesh.

    Attributes:
        config: of ``configs/guard.py``, ``cmai.py`` or ``impforge.py``.
        mesh: of devices that need not exist.
        rows: of a batch over all devices; 0 is the configuration's.
        length: tokens of a row; 0 is the configuration's longest.
        remat: of every model; "" is the configuration's.
        attention: of every model, a name in `nn.attention.IMPLEMENTATIONS` or "auto".
    """

    config: Any
    mesh: Mesh
    rows: int = 0
    length: int = 0
    remat: str = ""
    attention: str = "auto"

    @property
    def rules(self) -> Rules:
        """The configuration's table."""
        return {**DEFAULT_RULES, **self.config.axis_rules}

    def place(self, tree: Any) -> Any:
        """See `models.placed`."""
        return placed(tree, self.mesh, self.rules)

    def spread(self, tree: Any) -> Any:
        """See `models.by_rows`."""
        return by_rows(tree, self.mesh, self.rules)

    def batch(self, **arrays: tuple[tuple[int, ...], Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """Arrays of a batch by name, from their shape and dtype."""
        return {
            name: jax.ShapeDtypeStruct(
                shape, dtype, sharding=batch_sharding(self.mesh, self.rules, shape[0])
            )
            for name, (shape, dtype) in arrays.items()
        }

    def parts(self, rows: int) -> int:
        """Microbatches of so many rows, as the recipes split them; see `even_parts`."""
        return even_parts("--rows", rows, self.config.optim.accumulate, self.mesh, self.rules)

    def key(self) -> jax.ShapeDtypeStruct:
        """A random key, whole on every device."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)

    def read(self, path: str, kind: type, dtype: str, **options: Any) -> tuple[Any, Any]:
        """See `models.read_model`."""
        return read_model(path, kind, dtype, self.rules, attention=self.attention, **options)

    def model(self, section: Any, kind: type, adapter: Any = None) -> tuple[Any, Any]:
        """``(config, model of shapes)`` of a section with ``path`` and ``dtype``, with an adapter
        where there is a section of it."""
        remat = {"remat": self.remat or section.remat} if "remat" in section else {}
        config, make = self.read(section.path, kind, section.dtype, **remat)

        def build() -> Any:
            model = make()
            return (
                model if adapter is None else lora.attach(model, **adapter, key=jax.random.key(0))
            )

        return config, jax.eval_shape(build)

"""Modules that pin their activations, each by the table that its model's weights were placed by.

The table is a static attribute: it is part of the graph that a jitted function is compiled for, and
nobody who calls a model has to name it.
"""

from dataclasses import dataclass
from typing import TypeVar

from flax import nnx

from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, constrain
from crossguard_jax.core.typing import Array

ModelT = TypeVar("ModelT", bound=nnx.Module)


@dataclass(frozen=True)
class Pins:
    """``pins(x, "batch", "seq", "embed")`` is `core.sharding.constrain` by one table.

    Attributes:
        table: the rules, as pairs.
    """

    table: tuple[tuple[str, str | tuple[str, ...] | None], ...] = tuple(DEFAULT_RULES.items())

    @property
    def rules(self) -> Rules:
        """The table as `core.sharding` takes it."""
        return dict(self.table)

    def __call__(self, x: Array, *axes: str | None) -> Array:
        """``x``, where its logical axes lie; one name a dimension."""
        return constrain(x, axes, self.rules)

    def rows(self, x: Array, last: str | None = None) -> Array:
        """``x``, whose first axis is the batch, and whose last may have a name.

        One token a row is less than the weights it meets: then the states are cut as the weights'
        inputs are, and travel where otherwise the weights would (decoding, a layer would send 20
        times as much).
        """
        if x.ndim == 3 and x.shape[1] == 1:
            return constrain(x, ("batch", None, last or "embed"), self._single)
        return self(x, "batch", *[None] * (x.ndim - 2), last)

    @property
    def _single(self) -> Rules:
        """The table in which the rows leave the weights' mesh axes to the width."""
        rules = dict(self.table)
        of_batch, of_width = (_names(rules[name]) for name in ("batch", "embed"))
        return rules | {"batch": tuple(name for name in of_batch if name not in of_width)}


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


class Pinned(nnx.Module):
    """A module whose activations are pinned, by the default table unless `govern` says another."""

    pins = Pins()


def govern(model: ModelT, rules: Rules) -> ModelT:
    """The model, whose modules pin by ``rules`` from now on."""
    pins = Pins(tuple(rules.items()))
    if pins != Pins():
        for _, module in nnx.iter_modules(model, graph=False):
            if isinstance(module, Pinned):
                module.pins = pins
    return model

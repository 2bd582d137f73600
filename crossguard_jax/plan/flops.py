"""Floating-point operations of a traced program: its matrix products, loops counted as they run.

A compiler's own count takes a loop's body once, which for a stack of layers is one layer of many.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(program: Jaxpr | ClosedJaxpr, trips: int = 1) -> float:
    """Two for every multiplication in the products and convolutions of a program, over all devices.

    Args:
        program: of ``jax.jit(f).trace(...).jaxpr``.
        trips: how often a loop runs whose length the data decide.
    """
    body = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return math.fsum(_of_equation(equation, trips) for equation in body.eqns)


def _of_equation(equation: Any, trips: int) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (
            2.0
            * math.prod(equation.outvars[0].aval.shape)
            * math.prod(left[axis] for axis in contracted)
        )
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_channels
    inner = [flops(each, trips) for each in _programs(params)]
    if name == "cond":
        return max(inner)
    times = {"scan": params.get("length"), "while": trips}.get(name, 1)
    if name == "shard_map":  # what one device does
        times = params["mesh"].size
    elif name == "pallas_call":  # what one cell of its grid does
        times = math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    return times * math.fsum(inner)


def _programs(params: dict[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    """The programs that an equation runs."""
    leaves = jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
    )
    yield from (leaf for leaf in leaves if isinstance(leaf, Jaxpr | ClosedJaxpr))

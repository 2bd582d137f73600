"""LoRA as a tree of its own: rank-R updates beside frozen kernels (arXiv 2106.09685).

An adapter is the ``nnx.LoRAParam`` part of a model. `split` takes it out, so gradients and
optimizer state exist for it alone; several adapters over one base are several small trees.
Rank and alpha live with the adapter and are never passed loose.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.nn.pins import Pins
from crossguard_jax.runtime import processes

ModelT = TypeVar("ModelT", bound=nnx.Module)

LoraScale = float | Float[Array, ""] | Float[Array, " B"]
"""Multiplies an adapter's update: 1 is on, 0 is off, an array [B] blends per example."""


class Lora(nnx.Module):
    """``scale * alpha / R * (x @ a) @ b``, computed in the input's dtype.

    Args:
        a: the factor next to the input, with the kernel's stacked axes in front if it has any.
        b: the factor next to the output.
        alpha: the update's weight; ``alpha / R`` multiplies it, as in PEFT.
        axes: logical axes ``(in, out)`` of the kernel.
    """

    def __init__(
        self,
        a: Float[Array, "*N n_in R"],
        b: Float[Array, "*N R n_out"],
        alpha: float,
        axes: tuple[str | None, str | None],
    ):
        self.a = nnx.LoRAParam(a, axes=(axes[0], "lora_rank"))
        self.b = nnx.LoRAParam(b, axes=("lora_rank", axes[1]))
        self.alpha = float(alpha)

    @classmethod
    def fresh(cls, kernel: nnx.Variable, rank: int, alpha: float, key: PRNGKeyArray) -> "Lora":
        """PEFT's start: ``a`` uniform in ``+-1/sqrt(n_in)``, ``b`` zero, both float32."""
        *stacked, n_in, n_out = kernel.shape
        bound = n_in**-0.5
        a = jax.random.uniform(key, (*stacked, n_in, rank), minval=-bound, maxval=bound)
        return cls(a, jnp.zeros((*stacked, rank, n_out)), alpha, kernel.get_metadata("axes"))

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-1]

    def __call__(
        self, x: Float[Array, "B *L n_in"], scale: LoraScale = 1.0, pins: Pins | None = None
    ) -> Float[Array, "B *L n_out"]:
        scale = jnp.asarray(scale, x.dtype) * (self.alpha / self.rank)
        scale = scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale
        # The scale meets the narrow [.., R] product, not the wide one.
        narrow = x @ self.a[...].astype(x.dtype) * scale
        return _widen((pins or Pins()).rows(narrow), self.b[...].astype(x.dtype))

    def beside(
        self,
        x: Float[Array, "B *L n_in"],
        kernel: Float[Array, "n_in n_out"],
        scale: LoraScale,
        pins: Pins | None = None,
    ) -> Float[Array, "B *L n_out"]:
        """``x @ kernel`` and the update.

        As one wide product where that is less work: the update added into the kernel costs
        ``R n_in n_out``, and beside it ``R (n_in + n_out)`` a token. In float32 alone, since a
        narrower kernel would round the update away, and with one scale for all rows.
        """
        n_tokens, n_in, n_out = math.prod(x.shape[:-1]), *kernel.shape
        less = n_in * n_out <= n_tokens * (n_in + n_out)
        if less and x.dtype == jnp.float32 and not jnp.ndim(scale):
            a = self.a[...] * (scale * (self.alpha / self.rank))
            return _folded(x, kernel, a, self.b[...])
        return x @ kernel + self(x, scale, pins)


@jax.custom_vjp
def _widen(narrow: Float[Array, "*B R"], b: Float[Array, "R n_out"]) -> Float[Array, "*B n_out"]:
    """``narrow @ b``, with a gradient that leaves the wide cotangent as it lies.

    Left to itself XLA transposes the cotangent for the gradient of ``b`` (on CPU by computing it a
    second time, column by column), though the other operand is a hundredth of its size.
    """
    return narrow @ b


def _widen_forward(narrow: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return narrow @ b, (narrow, b)


def _widen_backward(saved: tuple[Array, Array], wide: Array) -> tuple[Array, Array]:
    narrow, b = saved
    flat = narrow.reshape(-1, narrow.shape[-1]).T, wide.reshape(-1, wide.shape[-1])
    columns, rows = jax.lax.optimization_barrier(flat)
    return wide @ b.T, columns @ rows


_widen.defvjp(_widen_forward, _widen_backward)


@jax.custom_vjp
def _folded(
    x: Float[Array, "*B n_in"],
    kernel: Float[Array, "n_in n_out"],
    a: Float[Array, "n_in R"],
    b: Float[Array, "R n_out"],
) -> Float[Array, "*B n_out"]:
    """``x @ (kernel + a @ b)``, with the gradients of ``a`` and ``b`` by narrow products: the
    chain rule's way there is a wide one, the gradient of the sum."""
    return x @ (kernel + a @ b)


def _folded_forward(*operands: Array) -> tuple[Array, tuple[Array, ...]]:
    return _folded(*operands), operands


def _folded_backward(saved: tuple[Array, ...], wide: Array) -> tuple[Array, ...]:
    x, kernel, a, b = saved
    rows, flat = x.reshape(-1, x.shape[-1]), wide.reshape(-1, wide.shape[-1])
    # As above: what is narrow is what gets transposed.
    of_a, of_b = jax.lax.optimization_barrier(((flat @ b.T).T, (rows @ a).T))
    return wide @ (kernel + a @ b).T, rows.T @ flat, (of_a @ rows).T, of_b @ flat


_folded.defvjp(_folded_forward, _folded_backward)


def dense_layers(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Every layer with a LoRA slot, as ``(dotted path, layer)`` in a fixed order."""
    for path, node in nnx.iter_modules(model, graph=False):
        if hasattr(node, "kernel") and hasattr(node, "lora"):
            yield ".".join(map(str, path)), node


def attach(
    model: ModelT,
    targets: str,
    rank: int,
    alpha: float,
    key: PRNGKeyArray,
    layers: Sequence[int] = (),
) -> ModelT:
    """A copy of ``model`` with a fresh adapter on every layer whose path matches.

    A layer of a stack that is left out has two factors of zeros: neither has a gradient while the
    other is zero, so that they stay zeros whatever trains beside them.

    Args:
        model: any model of this package, possibly abstract (`jax.eval_shape`).
        targets: a regular expression that must match a whole path, such as
            ``vision_tower\\..*\\.(q|v)_proj`` (paths have no layer index: a stack is one layer).
        rank: R of every update.
        alpha: PEFT's ``lora_alpha``.
        key: random key.
        layers: PEFT's ``layers_to_transform``: the numbers, from 0, of those that are adapted in
            every stack; what is in no stack is then left alone. All by default.

    Raises:
        UserError: no layer matches (the message lists the paths there are), or no stack has a
            layer of some number.
    """
    model = detach(model)
    paths = [path for path, _ in dense_layers(model)]
    matched = {path for path in paths if re.fullmatch(targets, path)}
    if not matched:
        raise UserError(f"lora.targets {targets!r} matches no layer; there are: {', '.join(paths)}")
    if layers:
        heights = {path: _height(layer) for path, layer in dense_layers(model) if path in matched}
        for number in layers:
            if not 0 <= number < max(heights.values()):
                raise UserError(
                    f"lora.layers {number}: the stacks that lora.targets matches have layers 0 to "
                    f"{max(heights.values()) - 1}"
                )
        matched = {path for path in matched if min(layers) < heights[path]}
    for (path, layer), layer_key in zip(
        dense_layers(model), jax.random.split(key, len(paths)), strict=True
    ):
        if path in matched:
            layer.lora = Lora.fresh(layer.kernel, rank, alpha, layer_key)
            if layers:
                chosen = jnp.isin(jnp.arange(_height(layer)), jnp.asarray(layers))
                layer.lora.a[...] = jnp.where(chosen[:, None, None], layer.lora.a[...], 0.0)
    return model


def _height(layer: Any) -> int:
    """How many layers of a stack are in one; 0 for one that is in no stack."""
    return layer.kernel.shape[0] if layer.kernel.ndim == 3 else 0


def adapted_layers(update: Lora) -> list[int]:
    """The layers of a stack's update that have one: those whose factors are not both zeros."""
    a, b = (processes.gather(factor[...]) for factor in (update.a, update.b))
    return [i for i in range(len(a)) if a[i].any() or b[i].any()]


def detach(model: ModelT) -> ModelT:
    """A copy of ``model`` (sharing its arrays) whose LoRA slots are empty."""
    model = jax.tree.map(lambda x: x, model)
    for _, layer in dense_layers(model):
        layer.lora = nnx.data(None)
    return model


def fold(model: ModelT) -> ModelT:
    """A copy of ``model`` with every update added into its kernel and the slots emptied.

    The product is taken in float32 and rounded once, to the kernel's dtype; of a stack one layer at
    a time, so that the products never lie there together.

    Raises:
        UserError: a kernel is int8: what is added to it would be rounded away.
    """
    refuse_int8(model, "folding an adapter into the base")
    updates = {path: layer.lora for path, layer in dense_layers(model) if layer.lora is not None}
    model = detach(model)
    for path, layer in dense_layers(model):
        if (update := updates.get(path)) is not None:
            weight = update.alpha / update.rank
            layer.kernel[...] = _added(layer.kernel[...], update.a[...], update.b[...], weight)
    return model


@jax.jit
def _added(
    kernel: Float[Array, "*N n_in n_out"],
    a: Float[Array, "*N n_in R"],
    b: Float[Array, "*N R n_out"],
    weight: Array | float,
) -> Float[Array, "*N n_in n_out"]:
    def one(parts: tuple[Array, Array, Array]) -> Array:
        kernel, a, b = parts
        return (kernel.astype(jnp.float32) + weight * (a @ b)).astype(kernel.dtype)

    return jax.lax.map(one, (kernel, a, b)) if kernel.ndim == 3 else one((kernel, a, b))


def refuse_int8(model: nnx.Module, what: str) -> None:
    """Refuses what needs a model's kernels as they were before they were rounded.

    Raises:
        UserError: the model's kernels are int8.
    """
    if any(layer.column_scale is not None for _, layer in dense_layers(model)):
        raise UserError(
            f"{what}: the base is in int8, and its rounded weights are no model to hand on; load "
            "it with dtype float32 or bfloat16, or write the adapter alone (format peft)"
        )


def split(model: nnx.Module) -> tuple[Any, Any, Any]:
    """``(graphdef, adapters, frozen)``: what is static, what is trained, what is not."""
    graphdef, adapters, frozen = nnx.split(model, nnx.LoRAParam, ..., graph=False)
    return graphdef, adapters, frozen


def merge(graphdef: Any, *states: Any) -> Any:
    """The model that `split` took apart, or one with another adapter in its place."""
    return nnx.merge(graphdef, *states)

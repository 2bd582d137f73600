"""The layers every model here is built from, and the way a stack of them is built and run.

A parameter names its logical axes where it is made (``axes=("embed", "mlp")``);
`core.sharding` turns those into mesh axes. Parameters inside a stack carry one leading axis more,
which is always ``layers``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.nn.lora import Lora, LoraScale
from crossguard_jax.nn.pins import Pinned

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
"""Activations by the name that Hub configs use."""

_MOVES = "dynamic_slice gather squeeze name convert_element_type reshape transpose".split()

# What each remat policy keeps of a layer's forward pass. "none" repeats nothing but what only moves
# numbers, so that a layer's weights, picked out of the stack, are not kept a second time. "names"
# keeps the projections and the attention context, so that the backward pass repeats only norms,
# rotations and softmax.
REMAT_POLICIES: dict[str, Any] = {
    "none": lambda primitive, *_, **__: primitive.name not in _MOVES,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("projection", "context"),
}


class Linear(Pinned):
    """``x @ kernel + bias``.

    Args:
        n_in: width of the input.
        n_out: width of the output.
        key: random key of the kernel (normal, variance ``1 / n_in``).
        axes: logical axes of the kernel, ``(in, out)``.
        bias: whether a bias is added.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        key: PRNGKeyArray,
        axes: tuple[str | None, str | None],
        *,
        bias: bool = True,
    ):
        self.kernel = nnx.Param(jax.random.normal(key, (n_in, n_out)) * n_in**-0.5, axes=axes)
        self.bias = nnx.Param(jnp.zeros(n_out), axes=axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "B *L n_in"]) -> Float[Array, "B *L n_out"]:
        return self._shifted(x @ self.kernel[...].astype(x.dtype))

    def _shifted(self, y: Array) -> Array:
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class Dense(Linear):
    """A `Linear` with a slot for a LoRA update (empty until `lora.attach` fills it), and one for
    the scales of a kernel in 8 bits (see `nn.int8`).

    Its output lies where the kernel's second axis says: heads and inner width on ``tensor``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lora: Lora | None = nnx.data(None)
        self.column_scale: nnx.Param | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "B *L n_in"], lora_scale: LoraScale = 1.0
    ) -> Float[Array, "B *L n_out"]:
        if self.column_scale is not None:
            y = x @ self.kernel[...].astype(x.dtype)
            # In float32, since a rounded scale would be wrong by the same share for all rows.
            y = (y.astype(jnp.float32) * self.column_scale[...]).astype(x.dtype)
            y = self._shifted(y if self.lora is None else y + self.lora(x, lora_scale, self.pins))
        elif self.lora is None:
            y = super().__call__(x)
        else:
            kernel = self.kernel[...].astype(x.dtype)
            y = self._shifted(self.lora.beside(x, kernel, lora_scale, self.pins))
        y = self.pins.rows(y, self.kernel.get_metadata("axes")[1])
        return checkpoint_name(y, "projection")


class Embed(Pinned):
    """A table of ``n`` rows of ``width``; `attend` uses it as an output head."""

    def __init__(self, n: int, width: int, key: PRNGKeyArray, axes: tuple[str | None, str | None]):
        self.embedding = nnx.Param(jax.random.normal(key, (n, width)) * 0.02, axes=axes)

    def __call__(self, ids: Array) -> Array:
        return self.pins.rows(self.embedding[...][ids])


class LayerNorm(nnx.Module):
    """Layer normalization in float32, returned in the input's dtype."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(width), axes=("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization in float32, returned in the input's dtype (as Llama's)."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width), axes=("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


def stack(make: Callable[[PRNGKeyArray], nnx.Module], key: PRNGKeyArray, n: int) -> Any:
    """Builds ``n`` equal layers as one module whose arrays have a leading ``layers`` axis."""
    return jax.vmap(make)(jax.random.split(key, n))


def run_stack(
    layers: Any,
    n: int,
    step: Callable[[Any, Array], Array],
    x: Array,
    *,
    remat: str = "none",
    collect: bool = False,
) -> tuple[Array, Array | None]:
    """Runs the first ``n`` layers of a stack with `jax.lax.scan`.

    Args:
        layers: a `Pinned` module made by `stack`; what goes in and out of a layer is pinned.
        n: how many layers to run; the rest costs nothing.
        step: ``step(layer, x) -> x``.
        x: the input.
        remat: a key of `REMAT_POLICIES`: what the backward pass finds saved.
        collect: also return every layer's output.

    Returns:
        The output of layer ``n``, and with ``collect`` the outputs of all, ``[n, ...]``.
    """
    graphdef, adapters, base = nnx.split(layers, nnx.LoRAParam, ..., graph=False)
    total = jax.tree.leaves(base)[0].shape[0]
    if n == 0:
        return x, x[None][:0] if collect else None

    def body(x, slices):
        adapter, weights = slices
        if n < total:
            # Frozen weights are indexed, not sliced beforehand: a slice of the stack would be a
            # copy of nearly the whole model.
            weights = jax.tree.map(lambda a: a[weights], base)
        layer = nnx.merge(graphdef, adapter, weights)
        y = layer.pins.rows(step(layer, layer.pins.rows(x)))
        return y, y if collect else None

    body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    first = jax.tree.map(lambda a: a[:n], adapters)
    return jax.lax.scan(body, x, (first, jnp.arange(n) if n < total else base))


def pick_layer(layers: Any, index: int) -> Any:
    """One layer of a stack, as a module of its own."""
    return jax.tree.map(lambda a: a[index], layers)

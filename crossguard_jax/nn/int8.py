"""Kernels in 8 bits, for scoring and for training adapters beside them.

Weights alone, with one scale a column: ``x @ kernel`` becomes ``(x @ q) * scale``, so that the
compiler widens a kernel as it multiplies and never keeps it wide. The layers that take adapters
have it, which are nearly all of a model's numbers; embeddings, norms, biases, the patches' kernel
and the head stay as they are, since two columns of the head decide a verdict.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.nn.lora import dense_layers

ModelT = TypeVar("ModelT", bound=nnx.Module)

DTYPES = {"int8": "bfloat16", "int8-float32": "float32"}
"""Names of a model's dtype that mean 8 bits, and what everything but kernels has."""


def rounded(kernel: Any, xp: Any = jnp) -> tuple[Any, Any]:
    """``(q, scale)`` of kernels: int8 [*N, n_in, n_out] and float32 [*N, n_out].

    Args:
        kernel: [*N, n_in, n_out].
        xp: ``jnp``, or ``np`` for arrays of the host.
    """
    largest = xp.abs(kernel).max(axis=-2).astype("float32")
    # Multiplied, since a compiler may turn a division by a constant into that, on one side alone.
    scale = xp.where(largest > 0, largest, xp.float32(1)) * xp.float32(1 / 127)
    return xp.rint(kernel.astype("float32") / scale[..., None, :]).astype("int8"), scale


def in_int8(model: ModelT) -> ModelT:
    """A copy of ``model`` (possibly abstract, under `jax.eval_shape`) whose kernels are int8."""
    model = jax.tree.map(lambda x: x, model)
    for _, layer in dense_layers(model):
        axes = layer.kernel.get_metadata("axes")
        q, scale = rounded(layer.kernel[...])
        layer.kernel = nnx.Param(q, axes=axes)
        layer.column_scale = nnx.Param(scale, axes=axes[-1:])
    return model

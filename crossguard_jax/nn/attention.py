"""Attention behind one function; the implementation follows the backend.

On CPU an einsum in [B, H, L, E] layout (the library call's backward pass costs twice as much
there), on GPU cuDNN's flash attention, on TPU the splash kernel where its shapes allow. XLA does
not partition that one: on a mesh each device runs it on its own rows and heads.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, activation_spec, mesh_of
from crossguard_jax.core.typing import Array, Bool, Float

Query = Float[Array, "B L H E"]
Key = Float[Array, "B S K E"]
KeyMask = Bool[Array, "B S"] | None


def attention(
    q: Query,
    k: Key,
    v: Key,
    mask: KeyMask,
    *,
    causal: bool,
    implementation: str = "auto",
    rules: Rules = DEFAULT_RULES,
) -> Query:
    """``softmax(q k^T / sqrt(E)) v`` with grouped key/value heads.

    Args:
        q: queries; head ``h`` attends with key/value head ``h * K // H``.
        k: keys.
        v: values.
        mask: False where a key is padding; None if no key is.
        causal: whether query ``i`` sees keys ``<= i + S - L`` only.
        implementation: a key of `IMPLEMENTATIONS`, or "auto": the backend's best that takes these
            shapes. One query alone is never worth a kernel, and none takes it: always "auto".
        rules: the table of logical axes, where ``q`` is on a mesh.

    Returns:
        The attended values, in ``q``'s dtype. A query that sees no key returns a finite value.
    """
    if implementation == "auto" or q.shape[1] == 1:
        mesh = jax.typeof(q).sharding.mesh
        # A program may be compiled for another machine than the one that compiles it.
        backend = getattr(mesh.abstract_device, "platform", None) or jax.default_backend()
        placed = not mesh.empty or jax.device_count() == 1
        implementation = choose(backend, q, k, placed)
    run = IMPLEMENTATIONS[implementation]
    if run in _KERNELS and (on := mesh_of(q)) is not None:
        out = _by_device(run, on, rules, q, k, v, mask, causal)
    else:
        out = run(q, k, v, mask, causal)
    return checkpoint_name(out, "context")


def choose(backend: str, q: Query, k: Key, placed: bool = True) -> str:
    """The implementation that "auto" stands for on a backend ("cpu", "gpu", "tpu").

    Args:
        backend: where the program will run.
        q: queries (their shape and dtype).
        k: keys (their shape).
        placed: whether it is clear what devices that is: XLA cannot partition the TPU kernel by
            itself.
    """
    n_queries, n_keys, width = q.shape[1], k.shape[1], q.shape[-1]
    if backend == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        # What cuDNN takes with a backward pass, on every generation; see `_cudnn` for odd lengths.
        even = n_queries % 2 == 0 and n_keys % 2 == 0
        fits = even or 1 < n_queries == n_keys
        return "cudnn" if fits and width % 8 == 0 and width <= 128 else "xla"
    if backend == "tpu" and placed and width % 128 == 0 and _splashable(n_queries, n_keys):
        return "splash"
    return "einsum" if backend == "cpu" else "xla"


def _visible(n_queries: int, n_keys: int, mask: KeyMask, causal: bool) -> Array | None:
    """Which keys each query may see, [B or 1, 1, L, S]; None if all."""
    visible = None if mask is None else mask[:, None, None, :]
    if causal and n_queries > 1:
        triangle = jnp.tri(n_queries, n_keys, n_keys - n_queries, dtype=bool)[None, None]
        visible = triangle if visible is None else visible & triangle
    return visible


def _einsum(q: Query, k: Key, v: Key, mask: KeyMask, causal: bool) -> Query:
    b, n_queries, h, e = q.shape
    n_keys, n_kv = k.shape[1], k.shape[2]
    # [B, K, G * L, E]: the queries of one key head are one matrix, whatever the group size.
    q = q.reshape(b, n_queries, n_kv, h // n_kv, e).transpose(0, 2, 3, 1, 4) * e**-0.5
    q = q.reshape(b, n_kv, -1, e)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkle,bkse->bkls", q, k, preferred_element_type=jnp.float32)
    visible = _visible(n_queries, n_keys, mask, causal)
    if visible is not None:
        grouped = scores.reshape(b, n_kv, -1, n_queries, n_keys)
        scores = jnp.where(visible[:, :, None], grouped, jnp.finfo(jnp.float32).min)
        scores = scores.reshape(b, n_kv, -1, n_keys)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkls,bkse->bkle", weights, v)
    return out.reshape(b, h, n_queries, e).transpose(0, 2, 1, 3)


def _xla(q: Query, k: Key, v: Key, mask: KeyMask, causal: bool) -> Query:
    visible = _visible(q.shape[1], k.shape[1], mask, causal)
    return jax.nn.dot_product_attention(q, k, v, mask=visible, implementation="xla")


def _cudnn(q: Query, k: Key, v: Key, mask: KeyMask, causal: bool) -> Query:
    n = q.shape[1]
    if odd := n % 2:
        # The backward pass wants even lengths: a column more, which no real query sees.
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        mask = mask if mask is None else jnp.pad(mask, ((0, 0), (0, 1)))
    # Told of the triangle or of the rows' lengths, the kernel leaves out what nobody sees; any
    # other mask it wants in full.
    triangle = causal and n == k.shape[1] - odd
    lengths = jnp.full(len(q), n) if odd and mask is None and not causal else None
    visible = _visible(q.shape[1], k.shape[1], mask, causal and not triangle)
    if visible is not None:
        visible = jnp.broadcast_to(visible, (len(q), 1, q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(
        *(q, k, v),
        mask=visible,
        is_causal=triangle,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :n]


def by_rows(run: "Implementation") -> "Implementation":
    """``run``, for which a vmapped axis is more rows: cuDNN's own rule for it wants a mask of every
    head. Its backward pass runs it once more, of which remat makes nothing more than there was."""

    def vmapped(function: Callable[..., Any]) -> Callable[..., Any]:
        rows = jax.custom_batching.custom_vmap(function)

        @rows.def_vmap
        def more(n: int, batched: list[bool], *arrays: Array) -> tuple[Any, Any]:
            every = (
                x if there else jnp.broadcast_to(x, (n, *x.shape))
                for x, there in zip(arrays, batched, strict=True)
            )
            # Rows first, so that what a mesh has spread by rows stays where it is.
            outs = rows(*(jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]) for x in every))
            return (
                jax.tree.map(lambda y: jnp.moveaxis(y.reshape(-1, n, *y.shape[1:]), 1, 0), outs),
                jax.tree.map(lambda _: True, outs),
            )

        return rows

    def batched(q: Query, k: Key, v: Key, mask: KeyMask, causal: bool) -> Query:
        masks = () if mask is None else (mask,)

        def forward(q: Query, k: Key, v: Key, *masks: Array) -> Query:
            return run(q, k, v, masks[0] if masks else None, causal)

        def backward(g: Query, q: Query, k: Key, v: Key, *masks: Array) -> tuple[Array, ...]:
            return jax.vjp(lambda *qkv: forward(*qkv, *masks), q, k, v)[1](g)

        attend = jax.custom_vjp(vmapped(forward))
        attend.defvjp(
            lambda *inputs: (attend(*inputs), inputs),
            lambda inputs, g: (*vmapped(backward)(g, *inputs), *(None for _ in inputs[3:])),
        )
        return attend(q, k, v, *masks)

    return batched


def _splashable(n_queries: int, n_keys: int) -> bool:
    return n_queries == n_keys and n_queries % 128 == 0


def _splash(
    q: Query, k: Key, v: Key, mask: KeyMask, causal: bool, interpret: bool = False
) -> Query:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, n_queries, h, e = q.shape
    shape = (n_queries, k.shape[1])
    if not _splashable(*shape):
        raise UserError(
            "attention 'splash' wants as many queries as keys, in multiples of 128; got "
            f"{n_queries} and {k.shape[1]}: set attention to 'auto'"
        )
    head = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    run = kernel.make_splash_mha_single_device(masks.MultiHeadMask([head] * h), interpret=interpret)
    # The kernel wants as many key heads as query heads, heads first, and queries scaled.
    k, v = (jnp.repeat(x, h // x.shape[2], axis=2).transpose(0, 2, 1, 3) for x in (k, v))
    q = (q * e**-0.5).transpose(0, 2, 1, 3)
    if mask is None:
        return jax.vmap(run)(q, k, v).transpose(0, 2, 1, 3)
    # Padding is a segment of its own, so padded queries see padded keys: finite, and never read.
    segments = mask.astype(jnp.int32)
    ids = jax.vmap(kernel.SegmentIds)(segments, segments)
    return jax.vmap(run)(q, k, v, ids).transpose(0, 2, 1, 3)


Implementation = Callable[[Query, Key, Key, KeyMask, bool], Query]

IMPLEMENTATIONS: dict[str, Implementation] = {
    "einsum": _einsum,
    "xla": _xla,
    "cudnn": by_rows(_cudnn),
    "splash": _splash,
    "splash_interpret": functools.partial(_splash, interpret=True),
}
"""Every implementation, by the name a config may ask for."""

_KERNELS = IMPLEMENTATIONS["splash"], IMPLEMENTATIONS["splash_interpret"]


def _by_device(
    run: Implementation,
    mesh: AbstractMesh,
    rules: Rules,
    q: Query,
    k: Key,
    v: Key,
    mask: KeyMask,
    causal: bool,
) -> Query:
    """A kernel on every device's own rows and heads, [B / n, L, H / m, E]."""
    spec = activation_spec(("batch", "seq", "heads", None), q.shape, mesh, rules)
    heads = spec[2]
    parts = math.prod(mesh.shape[n] for n in ([heads] if isinstance(heads, str) else heads or ()))
    # Fewer key heads than devices that share the heads: each of them is there more than once.
    copies = math.lcm(k.shape[2], parts) // k.shape[2]
    k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
    arrays = (q, k, v) if mask is None else (q, k, v, mask)
    each = jax.shard_map(
        lambda q, k, v, mask=None: run(q, k, v, mask, causal),
        mesh=mesh,
        in_specs=(spec, spec, spec, PartitionSpec(*spec[:2]))[: len(arrays)],
        out_specs=spec,
        check_vma=False,  # a kernel does not say how its output varies
    )
    return each(*arrays)

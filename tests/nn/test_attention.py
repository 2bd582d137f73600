"""Every implementation of attention against a loop that can be read, forward and backward."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.nn.attention import IMPLEMENTATIONS, attention, by_rows, choose

HEADS = [(4, 4), (6, 2)]
LENGTHS = [(7, 7), (3, 7), (1, 7)]
MASKS = ["none", "left", "right"]


def draw(b, n_queries, n_keys, h, n_kv, e, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(b, n_queries, h, e), (b, n_keys, n_kv, e), (b, n_keys, n_kv, e)]
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def padding(kind, b, n):
    """Row ``i`` is shorter than the longest by ``2 i`` keys."""
    if kind == "none":
        return None
    mask = np.ones((b, n), bool)
    for i, row in enumerate(mask):
        row[slice(0, 2 * i) if kind == "left" else slice(n - 2 * i, n)] = False
    return mask


def on_device(mask):
    return None if mask is None else jnp.asarray(mask)


def visible_keys(i, n_queries, n_keys, row, causal):
    seen = np.ones(n_keys, bool) if row is None else row.copy()
    if causal:
        seen[i + 1 + n_keys - n_queries :] = False
    return seen


def naive(q, k, v, mask, causal):
    """One query at a time, in float64; a query that sees no key gives NaN."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    (b, n_queries, h, e), (_, n_keys, n_kv, _) = q.shape, k.shape
    out = np.full(q.shape, np.nan)
    for row, head, i in itertools.product(range(b), range(h), range(n_queries)):
        kv = head * n_kv // h
        seen = visible_keys(i, n_queries, n_keys, None if mask is None else mask[row], causal)
        if seen.any():
            scores = k[row, seen, kv] @ q[row, i, head] / np.sqrt(e)
            weights = np.exp(scores - scores.max())
            out[row, i, head] = weights @ v[row, seen, kv] / weights.sum()
    return out


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_attention_is_what_the_loop_says(implementation, causal, heads):
    for (n_queries, n_keys), side in itertools.product(LENGTHS, MASKS):
        q, k, v = draw(3, n_queries, n_keys, *heads, 8)
        mask = padding(side, 3, n_keys)
        wanted = naive(q, k, v, mask, causal)
        inputs = [jnp.asarray(x) for x in (q, k, v)] + [on_device(mask)]
        # Not `attention`: it would choose for a single query by itself.
        got = np.asarray(IMPLEMENTATIONS[implementation](*inputs, causal))
        real = ~np.isnan(wanted)
        assert real.any() and np.isfinite(got).all()
        np.testing.assert_allclose(got[real], wanted[real], atol=2e-6)


def total(implementation, mask, causal, weights):
    """A scalar of the outputs, with a weight of its own for each."""
    run = IMPLEMENTATIONS[implementation]
    return lambda q, k, v: (run(q, k, v, mask, causal) * weights).sum()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", MASKS)
def test_gradients_are_the_slopes_of_the_loop(causal, side):
    q, k, v = draw(2, 5, 7, 4, 2, 8, np.float64)
    mask = padding(side, 2, 7)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=q.shape)
    weights[np.isnan(naive(q, k, v, mask, causal))] = 0.0  # nobody reads a query without keys
    towards = [rng.normal(size=x.shape) for x in (q, k, v)]

    def value(t):
        moved = [x + t * d for x, d in zip((q, k, v), towards, strict=True)]
        return np.nansum(naive(*moved, mask, causal) * weights)

    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    inputs = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    mask = on_device(mask)
    for name in ("einsum", "xla"):
        loss = total(name, mask, causal, jnp.asarray(weights, jnp.float32))
        grads = jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)
        assert all(np.isfinite(g).all() for g in grads)
        got = sum((np.asarray(g) * d).sum() for g, d in zip(grads, towards, strict=True))
        assert got == pytest.approx(slope, rel=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", MASKS)
def test_splash_is_the_plain_one_forward_and_backward(causal, side):
    n = 128
    q, k, v = (jnp.asarray(x) for x in draw(2, n, n, 2, 1, 128))
    mask = padding(side, 2, n)
    # Padded queries see what they like, so none of them is read.
    read = np.ones((2, n), bool) if mask is None else mask
    weights = np.random.default_rng(1).normal(size=q.shape) * read[:, :, None, None]
    mask, weights = on_device(mask), jnp.asarray(weights, q.dtype)
    both = {}
    for name in ("einsum", "splash_interpret"):
        out = IMPLEMENTATIONS[name](q, k, v, mask, causal)
        assert np.isfinite(out).all()
        grads = jax.grad(total(name, mask, causal, weights), (0, 1, 2))(q, k, v)
        both[name] = [np.asarray(out)[read], *map(np.asarray, grads)]
    for plain, splash in zip(*both.values(), strict=True):
        np.testing.assert_allclose(splash, plain, atol=2e-5)


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_half_precision_stays_and_is_close(implementation):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(2, 6, 6, 4, 2, 8))
    out = attention(q, k, v, None, causal=True, implementation=implementation)
    assert out.dtype == jnp.bfloat16
    wanted = naive(*(np.asarray(x, np.float32) for x in (q, k, v)), None, True)
    np.testing.assert_allclose(np.asarray(out, np.float32), wanted, atol=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("lengths", [(64, 96), (96, 96), (97, 97)])
def test_cudnn_is_the_plain_one_forward_and_backward(causal, side, lengths):
    q, k, v = draw(2, *lengths, 4, 2, 64)
    mask = padding(side, 2, lengths[1])
    read = ~np.isnan(naive(q, k, v, mask, causal))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape) * read, jnp.float32)
    mask = on_device(mask)
    both = {}
    for name in ("einsum", "cudnn"):
        inputs = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
        assert name == "einsum" or choose("gpu", *inputs[:2]) == name
        out = IMPLEMENTATIONS[name](*inputs, mask, causal)
        grads = jax.jit(jax.grad(total(name, mask, causal, weights), (0, 1, 2)))(*inputs)
        both[name] = [np.asarray(out, np.float32)[read]] + [
            np.asarray(g, np.float32) for g in grads
        ]
    for plain, fused in zip(*both.values(), strict=True):
        assert np.linalg.norm(fused - plain) <= 0.02 * np.linalg.norm(plain)


def shapes(n_queries, n_keys, width, dtype=jnp.bfloat16):
    return (
        jax.ShapeDtypeStruct((2, n_queries, 4, width), dtype),
        jax.ShapeDtypeStruct((2, n_keys, 2, width), dtype),
    )


def zeros(*args):
    return tuple(jnp.zeros(s.shape, s.dtype) for s in shapes(*args))


@pytest.mark.parametrize(
    "backend, shape, placed, wanted",
    [
        ("cpu", (128, 128, 128), True, "einsum"),
        ("cpu", (1, 128, 128), False, "einsum"),
        ("gpu", (128, 128, 128), False, "cudnn"),
        ("gpu", (64, 128, 8), True, "cudnn"),
        ("gpu", (128, 128, 128, jnp.float32), True, "xla"),
        ("gpu", (128, 128, 12), True, "xla"),
        ("gpu", (128, 128, 256), True, "xla"),
        ("gpu", (577, 577, 64), True, "cudnn"),
        ("gpu", (577, 578, 64), True, "xla"),
        ("gpu", (1, 128, 128), True, "xla"),
        ("gpu", (1, 1, 128), True, "xla"),
        ("tpu", (256, 256, 128), True, "splash"),
        ("tpu", (256, 256, 128), False, "xla"),
        ("tpu", (200, 200, 128), True, "xla"),
        ("tpu", (256, 256, 64), True, "xla"),
        ("tpu", (1, 256, 128), True, "xla"),
        ("other", (256, 256, 128), True, "xla"),
    ],
)
def test_each_backend_gets_its_own(backend, shape, placed, wanted):
    assert choose(backend, *zeros(*shape), placed) == wanted


GRID = [
    (n_queries, n_keys, width, dtype)
    for n_queries, n_keys in [(1, 128), (2, 96), (127, 127), (128, 128), (128, 256), (577, 577)]
    for width in (12, 64, 128, 192)
    for dtype in (jnp.bfloat16, jnp.float32)
]


@pytest.mark.parametrize("backend, platform", [("tpu", "tpu"), ("gpu", "cuda")])
def test_what_is_chosen_lowers_for_its_platform_with_gradients(backend, platform, monkeypatch):
    if backend == "gpu":
        # The library asks the driver for its version before it looks at the shapes.
        module = "jax._src.cudnn.fused_attention_stablehlo"
        monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    chosen = set()
    for shape in GRID:
        q, k = shapes(*shape)
        name = choose(backend, *zeros(*shape))
        if name in chosen and name == "xla":
            continue
        chosen.add(name)
        for masked, causal in itertools.product((False, True), repeat=2):
            mask = jax.ShapeDtypeStruct(k.shape[:2], bool)

            def loss(q, k, v, mask, name=name, masked=masked, causal=causal):
                out = IMPLEMENTATIONS[name](q, k, v, mask if masked else None, causal)
                return out.astype(jnp.float32).sum()

            traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, mask)
            traced.lower(lowering_platforms=(platform,))
    assert chosen == {"tpu": {"splash", "xla"}, "gpu": {"cudnn", "xla"}}[backend]


@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_lowers_under_vmap_with_gradients(masked, monkeypatch):
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    q = jax.ShapeDtypeStruct((3, 2, 64, 4, 64), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, 64), bool)

    def loss(q, mask):
        out = IMPLEMENTATIONS["cudnn"](q, q, q, mask if masked else None, True)
        return out.astype(jnp.float32).sum()

    traced = jax.jit(jax.vmap(jax.grad(loss), (0, None))).trace(q, mask)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "tensor<6x64x4x64xbf16>" in text


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", MASKS)
def test_a_vmapped_axis_as_rows_is_the_plain_vmap_forward_and_backward(causal, side):
    q, k, v = (jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]) for x in draw(3, 5, 5, 4, 2, 8))
    mask = on_device(padding(side, 3, 5))
    plain = IMPLEMENTATIONS["einsum"]
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape[1:]))
    both = []
    for run in (plain, by_rows(plain)):

        def total(q, k, v, run=run):
            return (run(q, k, v, mask, causal) * weights).sum()

        # The keys are one for all.
        outs = jax.vmap(jax.value_and_grad(total, (0, 1, 2)), (0, None, 0))(q, k[0], v)
        both.append(jax.tree.leaves(outs))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_kernel_asked_for_by_name_is_left_out_for_a_single_query_and_refused_elsewhere():
    q, k, v = draw(2, 1, 7, 4, 2, 8)
    alone = attention(*map(jnp.asarray, (q, k, v)), None, causal=False, implementation="splash")
    np.testing.assert_allclose(alone, naive(q, k, v, None, False), atol=2e-6)
    q, k, v = map(jnp.asarray, draw(2, 6, 7, 4, 2, 8))
    with pytest.raises(UserError, match="multiples of 128; got 6 and 7"):
        attention(q, k, v, None, causal=True, implementation="splash")


ON_A_MESH = """
    import json
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from crossguard_jax.core.sharding import make_mesh
    from crossguard_jax.nn.attention import attention

    def gradients(implementation, mesh, n_kv, masked, width=8):
        rng = np.random.default_rng(0)
        q, k, v = (
            rng.normal(size=(4, 128, n, width)).astype(np.float32) for n in (8, n_kv, n_kv)
        )
        mask = np.arange(128) < np.array([[128], [100], [60], [128]]) if masked else None
        spec = PartitionSpec(("data", "fsdp"))
        place = lambda x: x if x is None else jax.device_put(x, NamedSharding(mesh, spec))

        @jax.jit
        def run(q, k, v, mask):
            def loss(q, k, v):
                out = attention(q, k, v, mask, causal=masked, implementation=implementation)
                real = 1.0 if mask is None else mask[..., None, None]
                return (out * real * jnp.cos(jnp.arange(width))).sum(), out * real

            return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

        if masked:  # mapped, as clean and attacked rows are
            q, k, v, mask = (np.stack([x, x]) for x in (q, k, v, mask))
            mapped = jax.jit(jax.vmap(run))
            spec = PartitionSpec(None, ("data", "fsdp"))
            return mapped(*map(place, (q, k, v, mask)))
        arrays = [*map(place, (q, k, v, mask))]
        by_device = "shard_map" in str(jax.make_jaxpr(run)(*arrays))
        assert by_device == (implementation == "splash_interpret")
        return run(*arrays)

    worst = {}
    mesh = make_mesh(1, 2, 4)
    for n_kv, masked in ((8, False), (2, True), (1, False)):
        here, there = (gradients(i, mesh, n_kv, masked) for i in ("einsum", "splash_interpret"))
        far = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(a).max()), here, there)
        worst[n_kv] = max(jax.tree.leaves(far))
    print(json.dumps(worst))
"""


def test_on_a_mesh_each_device_runs_the_kernel_on_its_rows_and_heads(run_with_devices):
    worst = json.loads(run_with_devices(8, ON_A_MESH).splitlines()[-1])
    assert len(worst) == 3 and max(worst.values()) <= 1e-4, worst

"""Kernels in 8 bits: how far they are off, what trains beside them, where they lie."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import MESH_AXES, spec_table
from crossguard_jax.core.tree import n_bytes, named_leaves
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.load import abstract_model
from crossguard_jax.nn import lora
from crossguard_jax.nn.int8 import in_int8, rounded
from crossguard_jax.nn.layers import Dense
from tests.small_models import adapted, batch, llava, on_device

PUBLISHED = Path(__file__).parents[1] / "hf" / "fixtures" / "llava-1.5-7b-hf"


def widened(model):
    """The float32 model whose kernels are what the int8 ones stand for."""
    model = jax.tree.map(lambda x: x, model)
    for _, layer in lora.dense_layers(model):
        scale = layer.column_scale[...][..., None, :]
        axes = layer.kernel.get_metadata("axes")
        layer.kernel = nnx.Param(layer.kernel[...].astype(jnp.float32) * scale, axes=axes)
        layer.column_scale = nnx.data(None)
    return model


@jax.jit
def logits(model, rows):
    mask, index = rows["attention_mask"] == 1, rows.get("picture_index")
    return model(rows["input_ids"], rows["pixel_values"], mask, 1.0, index)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_is_off_by_half_a_step_of_its_column_at_most(dtype):
    kernel = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(jnp.dtype(dtype))
    kernel[0, :, 1] = 0  # a column of nothing stays nothing
    q, scale = rounded(kernel, np)
    off = np.abs(q * scale[:, None] - kernel.astype(np.float32))
    assert (off <= scale[:, None] * 0.5001).all() and not q[0, :, 1].any()
    assert (np.abs(q).max(axis=1) == 127).sum() == 9, "each column uses all 8 bits"
    for here, there in zip((q, scale), rounded(jnp.asarray(kernel)), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.5, "row"])
def test_a_layer_multiplies_as_the_kernel_that_it_stands_for(scale):
    dense = Dense(6, 8, jax.random.key(0), ("embed", "mlp"))
    dense.bias[...] = jnp.arange(8.0)
    x = jax.random.normal(jax.random.key(1), (3, 4, 6))
    scale = jnp.asarray([0.0, 0.5, 1.0]) if scale == "row" else scale
    dense.lora = lora.Lora(jnp.ones((6, 2)), jnp.ones((2, 8)) / 8, 3.0, ("embed", "mlp"))
    holder = in_int8(nnx.List([dense]))
    narrow, wide = holder[0], widened(holder)[0]
    assert narrow.kernel[...].dtype == jnp.int8 and dense.kernel[...].dtype == jnp.float32
    np.testing.assert_allclose(narrow(x, scale), wide(x, scale), rtol=2e-5, atol=2e-5)
    by_x = [jax.grad(lambda x, d=d: (d(x, scale) ** 2).sum())(x) for d in (narrow, wide)]
    np.testing.assert_allclose(*by_x, rtol=1e-4, atol=1e-3)
    half = narrow(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), wide(x), atol=0.15)


def test_adapters_train_over_int8_as_over_what_it_stands_for():
    model = adapted(in_int8(llava()))
    rows = on_device(batch(model.config, n=2))
    grads = {}
    for name, each in (("int8", model), ("wide", widened(model))):
        graphdef, adapters, frozen = lora.split(each)

        def loss(adapters, graphdef=graphdef, frozen=frozen):
            return (logits(lora.merge(graphdef, adapters, frozen), rows)[:, -1] ** 2).mean()

        grads[name] = jax.jit(jax.grad(loss))(adapters)
    assert any(x.dtype == jnp.int8 for x in jax.tree.leaves(lora.split(model)[2]))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads["int8"]))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4),
        *(grads["int8"], grads["wide"]),
    )
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads["int8"])) > 1e-2


def test_rounded_kernels_are_neither_folded_into_nor_handed_on():
    model = adapted(in_int8(llava()))
    with pytest.raises(UserError, match="int8.*load it with dtype float32.*format peft"):
        lora.fold(model)
    with pytest.raises(UserError, match="^runs/x: merged weights: the base is in int8"):
        lora.refuse_int8(model, "runs/x: merged weights")
    lora.refuse_int8(llava(), "what is no int8")


@pytest.fixture(scope="module")
def sizes():
    """LLaVA-1.5-7B's base by dtype, of shapes alone."""
    family, config = read_config(PUBLISHED)
    dtypes = ("bfloat16", "int8", "int8-float32")
    return {dtype: abstract_model(family, config, dtype) for dtype in dtypes}


def test_seven_billion_numbers_take_half_of_what_they_take_in_bfloat16(sizes):
    n = {dtype: n_bytes(model) for dtype, model in sizes.items()}
    share = {dtype: size / n["bfloat16"] for dtype, size in n.items()}
    print({dtype: f"{n[dtype] / 2**30:.2f} GiB, {share[dtype]:.3f}" for dtype in n})
    assert share["int8"] < 0.53 and share["int8-float32"] < 0.57


def test_scales_lie_where_their_columns_do_and_the_head_stays(sizes):
    mesh = AbstractMesh((1, 4, 2), MESH_AXES)
    specs, before = (spec_table(sizes[dtype], mesh) for dtype in ("int8", "bfloat16"))
    scales = {name for name in specs if name.endswith(".column_scale")}
    assert {name: spec for name, spec in specs.items() if name not in scales} == before
    for name in scales:
        kernel = specs[name.replace("column_scale", "kernel")]
        assert specs[name] == [*kernel[:-2], kernel[-1]], name
    narrow = {name for name, v in named_leaves(sizes["int8"]) if v.dtype == jnp.int8}
    assert narrow == {name.replace("column_scale", "kernel") for name in scales}
    assert len(narrow) == 6 + 2 + 7 and "language_model.lm_head.kernel" not in narrow


def test_a_dtype_that_is_none_is_refused():
    family, config = read_config(PUBLISHED)
    with pytest.raises(UserError, match="dtype 'int4' is none of float32, .*int8"):
        abstract_model(family, config, "int4")

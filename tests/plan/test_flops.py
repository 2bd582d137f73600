"""Column is counted as it runs: loops by their length, a device's part by the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from crossguard_jax.core.tree import count
from crossguard_jax.nn.llama import Llama
from crossguard_jax.plan.flops import flops
from tests.small_models import llava_config

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def counted(f, *arguments, trips: int = 1) -> float:
    return flops(jax.jit(f).trace(*arguments).jaxpr, trips)


def test_a_product_and_a_batch_of_them() -> None:
    assert counted(jnp.matmul, A, B) == PRODUCT
    assert counted(jax.vmap(jnp.matmul), jnp.stack([A] * 4), jnp.stack([B] * 4)) == 4 * PRODUCT


def test_a_convolution() -> None:
    pictures, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((6, 3, 4, 4))
    conv = jax.lax.conv_general_dilated
    assert counted(lambda x, k: conv(x, k, (4, 4), "VALID"), pictures, kernel) == (
        2 * (2 * 6 * 2 * 2) * (3 * 4 * 4)
    )


def test_a_loop_counts_as_often_as_it_runs() -> None:
    square = jnp.ones((4, 4))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ square, None), x, None, length=6)[0]

    def until(x):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ square, x)

    assert counted(scanned, square) == 6 * 2 * 4**3
    assert counted(until, square, trips=9) == 9 * 2 * 4**3


def test_of_two_branches_the_larger_counts() -> None:
    def either(x, y):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: x @ y @ y.T @ y)

    assert counted(either, A, B) == 3 * PRODUCT


def test_a_gradient_costs_two_products_more_and_remat_a_third() -> None:
    def loss(x, y):
        return jnp.sin(x @ y).sum()

    plain = counted(jax.grad(loss, (0, 1)), A, B)
    again = counted(jax.grad(jax.checkpoint(loss), (0, 1)), A, B)
    assert (plain, again) == (3 * PRODUCT, 4 * PRODUCT)


def test_what_one_device_does_counts_for_all() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    rows = PartitionSpec("x")
    each = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert counted(each, A, B) == PRODUCT
    abstract = jax.sharding.AbstractMesh((3,), ("x",))
    each = jax.shard_map(
        jnp.matmul, mesh=abstract, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert counted(each, A, B) == PRODUCT


def test_a_llama_takes_two_for_each_weight_and_token_and_its_attention() -> None:
    config = llava_config().text
    model = jax.eval_shape(lambda: Llama(config, jax.random.key(0)))
    ids = jax.ShapeDtypeStruct((2, 10), jnp.int32)
    weights = count(model.layers) - 2 * config.hidden_size * config.num_hidden_layers
    heads = config.num_attention_heads * config.head_dim
    attention = 2 * 2 * 2 * 10 * 10 * heads * config.num_hidden_layers
    head = 2 * 2 * 10 * config.hidden_size * config.vocab_size
    expected = 2 * 2 * 10 * weights + attention + head
    assert counted(lambda m, i: m(i), model, ids) == pytest.approx(expected)

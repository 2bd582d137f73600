"""Names, sizes and hashes of model states."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crossguard_jax.core.tree import count, digest, n_bytes, named_leaves


class Small(nnx.Module):
    def __init__(self, a=None, b=None):
        self.b = nnx.Param(jnp.arange(6.0).reshape(2, 3) if b is None else b)
        self.a = nnx.Param(jnp.ones(4, jnp.bfloat16) if a is None else a)


class Nested(nnx.Module):
    def __init__(self, **kwargs):
        self.inner = Small(**kwargs)
        self.last = nnx.Param(jnp.zeros((), jnp.int32))


def test_leaves_are_named_by_dotted_path_in_one_order():
    names = [name for name, _ in named_leaves(Nested())]
    assert names == ["inner.a", "inner.b", "last"]
    state = nnx.split(Nested(), graph=False)[1]
    assert [name for name, _ in named_leaves(state)] == names


def test_count_and_bytes_are_those_of_arrays_and_of_shapes():
    for model in (Nested(), jax.eval_shape(Nested)):
        assert count(model) == 4 + 6 + 1
        assert n_bytes(model) == 4 * 2 + 6 * 4 + 4


def test_equal_trees_have_equal_digests():
    assert digest(Nested()) == digest(Nested())
    assert digest(Nested()) == digest(nnx.split(Nested(), graph=False)[1])
    assert len(digest(Nested())) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize(
    "other",
    [
        {"b": jnp.arange(6.0).reshape(2, 3).at[1, 2].set(np.nextafter(np.float32(5), 6))},
        {"b": jnp.arange(6.0).reshape(3, 2)},
        {"b": jax.lax.bitcast_convert_type(jnp.arange(6.0).reshape(2, 3), jnp.int32)},
        {"b": jnp.arange(6.0).reshape(2, 3).at[0, 0].set(-0.0)},
    ],
    ids=["one bit", "shape", "type", "sign of zero"],
)
def test_any_difference_changes_the_digest(other):
    assert digest(Nested(**other)) != digest(Nested())


def test_a_name_is_part_of_the_digest():
    class Renamed(nnx.Module):
        def __init__(self):
            self.c = nnx.Param(jnp.arange(6.0).reshape(2, 3))
            self.a = nnx.Param(jnp.ones(4, jnp.bfloat16))

    assert digest(Renamed()) != digest(Small())

"""Modules pin by the table that their model was placed by."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from crossguard_jax.core.sharding import DEFAULT_RULES, MESH_AXES
from crossguard_jax.nn import lora
from crossguard_jax.nn.pins import Pinned, Pins, govern
from tests.small_models import TARGETS, batch, llava

MESH = AbstractMesh((2, 2, 2), MESH_AXES)
DATA_ALONE = {**DEFAULT_RULES, "batch": "data", "heads": None, "kv": None, "mlp": None}


def program(model):
    """The jaxpr of a pass over rows on eight devices that are not there."""
    rows = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(MESH, PartitionSpec()))
        for name, x in batch(model.config).items()
    }

    def run(model, rows):
        mask, scale = rows["attention_mask"].astype(bool), jnp.ones(len(rows["labels"]))
        return model(rows["input_ids"], rows["pixel_values"], mask, scale)

    return str(jax.make_jaxpr(run)(model, rows))


def abstract():
    return jax.eval_shape(lambda: llava())


def test_a_models_pins_follow_the_default_table():
    jaxpr = program(abstract())
    assert "spec=P(('data', 'fsdp'), None, None)" in jaxpr, "states"
    assert "spec=P(('data', 'fsdp'), None, 'tensor', None)" in jaxpr, "heads"
    assert "spec=P(('data', 'fsdp'), None, 'tensor')" in jaxpr, "the inner width"


def test_a_governed_models_pins_follow_its_own():
    jaxpr = program(govern(abstract(), DATA_ALONE))
    assert "spec=P('data', None, None)" in jaxpr
    # The vocabulary's alone is left on the tensor axis: the logits at the end.
    assert jaxpr.count("'tensor')") == 1 and "'fsdp'), None" not in jaxpr


def test_every_layer_is_governed_and_adapters_are_by_what_they_lie_beside():
    key = jax.random.key(0)
    model = jax.eval_shape(lambda m: lora.attach(m, TARGETS, 4, 8.0, key), abstract())
    pins = {
        m.pins
        for _, m in nnx.iter_modules(govern(model, DATA_ALONE), graph=False)
        if isinstance(m, Pinned)
    }
    (only,) = pins
    assert only.rules == DATA_ALONE
    narrow = "spec=P('data', None, None)"
    assert program(model).count(narrow) > program(govern(abstract(), DATA_ALONE)).count(narrow)


def test_the_default_table_leaves_a_models_graph_as_it_is():
    plain = nnx.split(abstract(), graph=False)[0]
    assert nnx.split(govern(abstract(), DEFAULT_RULES), graph=False)[0] == plain
    assert nnx.split(govern(abstract(), DATA_ALONE), graph=False)[0] != plain
    assert hash(Pins()) == hash(Pins())


def test_one_device_computes_what_it_did():
    model = llava()
    rows = batch(model.config)
    assert "sharding_constraint" not in str(
        jax.make_jaxpr(lambda m: m(jnp.asarray(rows["input_ids"]), None))(model)
    )

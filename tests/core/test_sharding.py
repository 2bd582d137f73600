"""Where every parameter lies on a mesh.

``golden_specs.json`` holds the mesh axes of every parameter of every family, at published sizes.
After a change that is meant: ``CROSSGUARD_REWRITE_GOLDEN=1 pytest tests/core/test_sharding.py``,
and read the difference.
"""

import json
import os
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import (
    DEFAULT_RULES,
    MESH_AXES,
    activation_spec,
    batch_sharding,
    constrain,
    make_mesh,
    partition_spec,
    shardings,
    spec_table,
)
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.hf.configs import read_config
from crossguard_jax.nn import lora
from crossguard_jax.nn.bert import Bert, BertConfig
from crossguard_jax.nn.clip import Clip, ClipConfig, TextConfig, VisionConfig
from crossguard_jax.nn.llama import Llama, LlamaConfig
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.mpnet import MPNet, MPNetConfig

GOLDEN = Path(__file__).with_name("golden_specs.json")
MESH = AbstractMesh((2, 2, 2), MESH_AXES)


def guard_7b(repository):
    """LLaVA-1.5-7B with the adapters of its training configuration."""
    _, config = read_config(repository / "tests/hf/fixtures/llava-1.5-7b-hf")
    targets = load_config("configs/guard.py:llava_7b").lora.targets
    key = jax.random.key(0)
    return jax.eval_shape(lambda: lora.attach(Llava(config, key), targets, 16, 32.0, key))


def llama_8b():
    config = LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128)
    return jax.eval_shape(lambda: Llama(config, jax.random.key(0)))


def clip_large():
    vision = VisionConfig(1024, 4096, 24, 16, image_size=336, patch_size=14)
    config = ClipConfig(vision, TextConfig(768, 3072, 12, 12), projection_dim=768)
    return jax.eval_shape(lambda: Clip(config, jax.random.key(0)))


def bert_small():
    config = BertConfig(30522, 384, 1536, 6, 12)
    return jax.eval_shape(lambda: Bert(config, jax.random.key(0)))


def mpnet_base():
    config = MPNetConfig(30527, 768, 3072, 12, 12, max_position_embeddings=514)
    return jax.eval_shape(lambda: MPNet(config, jax.random.key(0)))


def test_every_parameters_place_is_the_golden_files(repository):
    models = {
        "llava": guard_7b(repository),
        "llama": llama_8b(),
        "clip": clip_large(),
        "bert": bert_small(),
        "mpnet": mpnet_base(),
    }
    tables = {family: spec_table(model, MESH) for family, model in models.items()}
    if os.environ.get("CROSSGUARD_REWRITE_GOLDEN"):
        families = [
            f'"{family}": {{\n'
            + ",\n".join(f' "{name}": {json.dumps(spec)}' for name, spec in table.items())
            + "\n}"
            for family, table in tables.items()
        ]
        GOLDEN.write_text("{\n" + ",\n".join(families) + "\n}\n")
    assert tables == json.loads(GOLDEN.read_text())


def test_every_large_parameter_is_split_and_large_products_both_ways(repository):
    for model in (guard_7b(repository), llama_8b()):
        specs = spec_table(model, MESH)
        for name, variable in named_leaves(model):
            if name.endswith((".kernel", ".embedding")) and variable.size >= 2**22:
                assert {"fsdp", "tensor"} <= set(specs[name]), name


def test_an_axis_the_mesh_does_not_divide_stays_whole():
    mesh = AbstractMesh((1, 4, 2), MESH_AXES)
    assert partition_spec(("embed", "mlp"), (8, 6), mesh) == PartitionSpec("fsdp", "tensor")
    assert partition_spec(("embed", "mlp"), (6, 8), mesh) == PartitionSpec(None, "tensor")
    assert partition_spec(("embed", "mlp"), (8, 7), mesh) == PartitionSpec("fsdp", None)
    assert partition_spec((None, "mlp"), (8, 8), mesh) == PartitionSpec(None, "tensor")


def test_a_stacked_parameter_has_its_layers_in_front():
    wanted = PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec(("embed", "mlp"), (3, 8, 8), MESH) == wanted
    assert partition_spec(("layers", "embed", "mlp"), (3, 8, 8), MESH) == wanted


def test_a_config_can_replace_the_table():
    rules = {**DEFAULT_RULES, "mlp": ("data", "tensor"), "embed": None, "layers": "fsdp"}
    wanted = PartitionSpec("fsdp", None, ("data", "tensor"))
    assert partition_spec(("embed", "mlp"), (4, 8, 8), MESH, rules) == wanted
    table = spec_table(bert_small(), MESH, rules)
    assert table["layers.intermediate.kernel"] == ["fsdp", None, ("data", "tensor")]
    mesh = make_mesh(devices=jax.devices()[:1])
    assert batch_sharding(mesh, {**rules, "batch": "data"}).spec == PartitionSpec(("data",))


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"embed": "fsdp"}, "no rule for 'mlp'; there are: embed"),
        ({**DEFAULT_RULES, "mlp": "tensors"}, "mlp -> 'tensors' is no mesh axis; use data, fsdp"),
        ({**DEFAULT_RULES, "mlp": "fsdp"}, r"\(embed, mlp\) are both on mesh axis 'fsdp'"),
    ],
)
def test_a_table_that_cannot_be_is_one_clear_error(rules, message):
    with pytest.raises(UserError, match=message):
        partition_spec(("embed", "mlp"), (8, 8), MESH, rules)


def test_one_size_may_be_what_is_left():
    eight = jax.devices()[:1] * 8
    assert dict(make_mesh(-1, 2, 2, eight).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(2, -1, 1, eight).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    for sizes in [(3, 1, 1), (-1, 3, 1), (-1, -1, 8), (0, 1, 1), (-1, -1, 1)]:
        with pytest.raises(UserError, match="does not fit 8 device"):
            make_mesh(*sizes, eight)
    with pytest.raises(UserError, match="does not fit 1 device"):
        make_mesh(-1, -1, 1, eight[:1])


def test_a_batch_that_does_not_split_stays_whole():
    mesh = make_mesh(2, 2, 2, jax.devices()[:1] * 8)
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert batch_sharding(mesh, size=8).spec == PartitionSpec(("data", "fsdp"))
    assert batch_sharding(mesh, size=6).spec == PartitionSpec(None)


def test_shardings_of_a_model_are_a_tree_of_its_own_shape():
    model = bert_small()
    mesh = make_mesh(devices=jax.devices()[:1])
    places = shardings(model, mesh)
    assert jax.tree.structure(places) == jax.tree.structure(model)
    assert {s.mesh for s in jax.tree.leaves(places)} == {mesh}


@pytest.mark.parametrize(
    "axes, shape, spec",
    [
        (("batch", "seq", "embed"), (8, 5, 48), (("data", "fsdp"), None, None)),
        (("batch", "seq", "mlp"), (8, 5, 48), (("data", "fsdp"), None, "tensor")),
        (("batch", "seq", "heads", None), (8, 5, 4, 12), (("data", "fsdp"), None, "tensor", None)),
        # Fewer key heads than the axis cuts, and rows over what they divide over.
        (("batch", "seq", "kv", None), (2, 5, 1, 12), ("data", None, None, None)),
        # A row alone stays whole; the fsdp axis is not free for its width.
        (("batch", "seq", "embed"), (1, 5, 48), (None, None, None)),
        (
            ("layers", "batch", "kv", "seq", None),
            (3, 4, 2, 7, 8),
            (None, ("data", "fsdp"), "tensor", None, None),
        ),
    ],
)
def test_rows_take_the_batchs_mesh_axes_and_no_other_axis_does(axes, shape, spec):
    assert activation_spec(axes, shape, MESH) == PartitionSpec(*spec)


def test_activations_follow_a_configs_own_table():
    rules = {**DEFAULT_RULES, "batch": "data", "heads": None, "embed": "fsdp"}
    spec = activation_spec(("batch", "seq", "heads", "embed"), (8, 5, 4, 12), MESH, rules)
    assert spec == PartitionSpec("data", None, None, "fsdp")


def test_an_unknown_axis_of_an_activation_is_an_error():
    with pytest.raises(UserError, match="no rule for 'width'"):
        activation_spec(("batch", "width"), (8, 5), MESH)


def test_on_one_device_nothing_is_pinned():
    x = jax.device_put(jax.numpy.ones((4, 2)), batch_sharding(make_mesh(1)))
    jaxpr = str(jax.make_jaxpr(lambda x: constrain(x, ("batch", "embed")))(x))
    assert "sharding_constraint" not in jaxpr


def doubled(x):
    return constrain(x * 2, ("batch", "seq", "mlp")) + 0


def scanned(x):
    return jax.lax.scan(lambda c, _: (doubled(c), None), x, None, length=2)[0]


def gradient(x):
    return jax.grad(lambda x: (doubled(x) ** 2).sum())(x)


@pytest.mark.parametrize(
    "function, lead, pins, first",
    [
        (doubled, (), 1, ""),
        (jax.checkpoint(doubled), (), 1, ""),
        (scanned, (), 1, ""),
        (gradient, (), 2, ""),  # what comes back is pinned, too
        (jax.vmap(doubled), (3,), 1, "UNCONSTRAINED, "),  # a mapped axis is the partitioner's
    ],
)
def test_a_pin_holds_under_every_transform(function, lead, pins, first):
    spread = NamedSharding(MESH, PartitionSpec())  # of eight devices that are not there
    x = jax.ShapeDtypeStruct((*lead, 8, 5, 48), jax.numpy.float32, sharding=spread)
    jaxpr = str(jax.make_jaxpr(function)(x))
    assert jaxpr.count(f"spec=P({first}('data', 'fsdp'), None, 'tensor')") == pins
    assert jax.eval_shape(function, x).shape == x.shape

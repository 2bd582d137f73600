"""Models of shapes alone are those that are loaded."""

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.core.tree import count
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.load import load_model
from crossguard_jax.nn.clip import ClipConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.plan import models

# Millions of parameters, as the Hub's pages count them.
PARAMETERS = {
    "llava-hf/llava-1.5-7b-hf": 7063,
    "meta-llama/Llama-2-7b-chat-hf": 6738,
    "meta-llama/Llama-Guard-3-8B": 8030,
    "sentence-transformers/all-MiniLM-L6-v2": 23,
    "openai/clip-vit-large-patch14": 428,
    "openai/clip-vit-large-patch14-336": 428,
}


def test_every_published_model_is_here_and_has_as_many_parameters_as_the_hub_says() -> None:
    paths = models.PUBLISHED.glob("*/*/config.json")
    assert {str(p.parent.relative_to(models.PUBLISHED)) for p in paths} == set(PARAMETERS)
    for name, millions in PARAMETERS.items():
        config = type(read_config(models.find_folder(name))[1])
        _, make = models.read_model(name, config, "bfloat16", DEFAULT_RULES)
        assert round(count(jax.eval_shape(make)) / 1e6) == pytest.approx(millions, abs=1), name


@pytest.mark.parametrize(("name", "kind"), [("llava", LlavaConfig), ("clip", ClipConfig)])
def test_shapes_types_and_places_are_those_of_the_loaded_model(name: str, kind: type) -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    _, make = models.read_model(f"toy://{name}", kind, "bfloat16", DEFAULT_RULES, remat="full")
    loaded = load_model(f"toy://{name}", "bfloat16", mesh, remat="full")
    graphdef, state = nnx.split(jax.eval_shape(make), graph=False)
    expected_graph, expected = nnx.split(loaded, graph=False)
    assert graphdef == expected_graph
    ours = jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), models.placed(state, mesh, DEFAULT_RULES)
    )
    theirs = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), expected)
    assert jax.tree.leaves(ours, is_leaf=_triple) == jax.tree.leaves(theirs, is_leaf=_triple)


def _triple(x: object) -> bool:
    return isinstance(x, tuple)


def test_a_device_holds_its_part_and_all_of_what_is_whole() -> None:
    mesh = AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    cut = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    tree = {
        "cut": jax.ShapeDtypeStruct((64, 32), "bfloat16", sharding=cut),
        "whole": jax.ShapeDtypeStruct(
            (10,), "float32", sharding=NamedSharding(mesh, PartitionSpec())
        ),
    }
    assert models.bytes_a_device(tree) == 64 * 32 * 2 // 8 + 40


def test_a_model_that_is_nowhere_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match="no such folder.*known here.*llava-hf/llava-1.5-7b-hf"):
        models.find_folder("llava-hf/llava-1.5-70b-hf")
    with pytest.raises(UserError, match="toy://llava: a llava; Llama is needed here"):
        models.read_model("toy://llava", LlamaConfig, "bfloat16", DEFAULT_RULES)

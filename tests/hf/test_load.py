"""Hub folders in: found, streamed onto a mesh, and LLaVA-1.5-7B's own layout."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import count, digest, n_bytes, named_leaves
from crossguard_jax.hf import names
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.export import hub_tensors, save_model
from crossguard_jax.hf.load import folder_name, load_model, resolve_folder
from crossguard_jax.hf.peft import load_adapter, save_adapter
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.llama import Llama, LlamaConfig
from crossguard_jax.nn.llava import Llava
from crossguard_jax.train.step import init_state, make_step
from tests.draws import few
from tests.small_models import LABELS, batch, filled, llava, llava_config, on_device

PUBLISHED = Path(__file__).parent / "fixtures" / "llava-1.5-7b-hf"


def hub_config(config):
    """``config.json`` of one of our LLaVA configurations, in the published file's spelling."""
    vision, text = config.vision, config.text
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "model_type": "llava",
        "image_token_index": config.image_token_id,
        "vision_feature_layer": config.vision_feature_layer[0],
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "tie_word_embeddings": text.tie_word_embeddings,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        }
        | {name: getattr(vision, name) for name in shared},
        "text_config": {
            "model_type": "llama",
            "vocab_size": text.vocab_size,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "rms_norm_eps": text.rms_norm_eps,
        }
        | {name: getattr(text, name) for name in shared},
    }


def write_folder(model, folder):
    """A Hub folder of one of our LLaVAs, its weights written without our exporter's files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hub_config(model.config)))
    save_file(dict(hub_tensors(model)), folder / "model.safetensors")
    return folder


def test_a_folder_is_found_and_a_missing_one_named(tmp_path):
    assert resolve_folder(tmp_path) == tmp_path
    assert (resolve_folder("toy://guard_explicit_only") / "adapter_config.json").is_file()
    with pytest.raises(UserError, match="no-such': no such folder"):
        resolve_folder(tmp_path / "no-such")
    with pytest.raises(UserError, match=r"toy://nothing: no such shipped model \(there are: "):
        resolve_folder("toy://nothing")
    with pytest.raises(UserError, match=r"config\.json: not found"):
        load_model(tmp_path)


def test_a_shipped_folder_is_written_by_the_name_that_holds_on_any_machine(tmp_path):
    assert folder_name(resolve_folder("toy://llava")) == "toy://llava"
    assert folder_name(tmp_path / "llava") == str(tmp_path / "llava")


def test_a_policy_or_implementation_that_is_none_is_refused(tmp_path):
    folder = write_folder(llava(), tmp_path / "m")
    with pytest.raises(UserError, match="remat 'ful' is none of none, full, dots, names"):
        load_model(folder, remat="ful")
    with pytest.raises(UserError, match="attention 'flash' is none of auto, einsum"):
        load_model(folder, attention="flash")
    assert load_model(folder, remat="names").config.text.remat == "names"


def test_a_model_comes_back_as_it_was_written(tmp_path):
    model = llava()
    assert digest(load_model(write_folder(model, tmp_path / "m"))) == digest(model)


SHARDED = """
    import sys
    import jax, numpy as np
    from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh, partition_spec
    from crossguard_jax.core.tree import named_leaves
    from crossguard_jax.hf.load import load_model

    mesh = make_mesh(2, 2, 2)
    one = dict(named_leaves(load_model(sys.argv[1])))
    for rules in (DEFAULT_RULES, {**DEFAULT_RULES, "layers": "data", "embed": None}):
        split = 0
        for name, v in named_leaves(load_model(sys.argv[1], mesh=mesh, rules=rules)):
            value, whole = v[...], np.asarray(one[name][...])
            assert len(one[name][...].devices()) == 1 and len(value.devices()) == 8, name
            spec = partition_spec(v.get_metadata("axes"), v.shape, mesh, rules)
            wanted = tuple(n // (2 if axis else 1) for n, axis in zip(v.shape, spec))
            for shard in value.addressable_shards:
                assert shard.data.shape == wanted, (name, shard.data.shape, wanted)
                assert np.array_equal(np.asarray(shard.data), whole[shard.index]), name
            split += wanted != v.shape
        print(split, len(one))
"""


@pytest.mark.devices
def test_a_model_loaded_onto_a_mesh_is_split_and_bit_for_bit_the_one_device_load(
    tmp_path, run_with_devices
):
    small = llava_config()
    even = [replace(tower, num_hidden_layers=2) for tower in (small.vision, small.text)]
    folder = write_folder(llava(vision=even[0], text=even[1]), tmp_path / "m")
    found = [
        tuple(map(int, line.split()))
        for line in run_with_devices(8, SHARDED, str(folder)).splitlines()
    ]
    # Without an axis for "embed", nine tensors outside the stacks stay whole.
    assert found == [(39, 39), (30, 39)]


MEMORY = """
    import sys, tracemalloc
    import jax
    from crossguard_jax.core.sharding import make_mesh
    from crossguard_jax.hf.load import load_model

    # On CPU an array takes over the host's buffer; on other devices it cannot.
    put = jax.device_put
    jax.device_put = lambda *args: put(*args).copy()
    mesh = make_mesh(1, -1, 1)
    load_model(sys.argv[1], mesh=mesh)  # what is imported on the way is not counted
    tracemalloc.start()
    load_model(sys.argv[1], mesh=mesh)
    print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.devices
@pytest.mark.parametrize("n_devices", few([8, 1], 1))
def test_the_host_holds_shards_of_one_parameter_and_never_the_model(
    n_devices, tmp_path, run_with_devices
):
    config = LlamaConfig(64, 256, 1024, 16, 4, 4, 64)
    model = filled(jax.eval_shape(lambda: Llama(config, jax.random.key(0))), 0)
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    hub = {"model_type": "llama", "tie_word_embeddings": False, "num_attention_heads": 4}
    hub |= {name: getattr(config, name) for name in fields}
    (tmp_path / "config.json").write_text(json.dumps(hub))
    save_file(dict(hub_tensors(model)), tmp_path / "model.safetensors")

    peak = int(run_with_devices(n_devices, MEMORY, str(tmp_path)))
    stack = 16 * 256 * 1024 * 4
    share, model_share = peak / stack, n_bytes(model) / stack
    print(f"{n_devices} device(s): peak {share:.2f} of a stack, the model is {model_share:.2f}")
    tensor = stack // 16
    # The shard before may still be there: JAX lets go of a buffer a little after its copy is made.
    assert peak <= 2 * stack / n_devices + 5 * tensor


def full_7b():
    _, config = read_config(PUBLISHED)
    return config, jax.eval_shape(lambda: Llava(config, jax.random.key(0)))


def test_llava_7b_has_the_published_number_of_parameters():
    config, model = full_7b()
    print(f"LLaVA-1.5-7B: {count(model):,} parameters in {len(hub_keys(model))} tensors")
    assert config.tokens_per_image == 576
    # 24 picture layers, projector, 32 language layers, by hand.
    vision = 24 * (4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024)
    vision += 1024 * (1 + 14 * 14 * 3 + 577 + 4)
    projector = 1024 * 4096 + 4096 + 4096**2 + 4096
    text = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32064 * 4096 + 4096
    assert count(model) == vision + projector + text == 7_063_427_072


def hub_keys(model):
    """Every Hub key of an (abstract) LLaVA."""
    return {
        key
        for name, variable in named_leaves(model)
        for key in names.hub_tensor("llava", name, variable.shape).keys
    }


def published_keys(vision, language, head):
    """The keys as the Hub's index lists them, from prefixes of a generation."""
    keys = {f"{vision}.embeddings.{k}" for k in ("class_embedding",)}
    keys |= {f"{vision}.embeddings.{k}_embedding.weight" for k in ("patch", "position")}
    ends = ("weight", "bias")
    keys |= {f"{vision}.{n}.{e}" for n in ("pre_layrnorm", "post_layernorm") for e in ends}
    inside = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    inside += [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")]
    keys |= {
        f"{vision}.encoder.layers.{i}.{n}.{e}" for i in range(24) for n in inside for e in ends
    }
    inside = ["input_layernorm", "post_attention_layernorm"]
    inside += [f"self_attn.{p}_proj" for p in "qkvo"] + [
        f"mlp.{p}_proj" for p in ("gate", "up", "down")
    ]
    keys |= {f"{language}.layers.{i}.{n}.weight" for i in range(32) for n in inside}
    return keys | {f"{language}.embed_tokens.weight", f"{language}.norm.weight", f"{head}.weight"}


PROJECTOR = {f"multi_modal_projector.linear_{i}.{e}" for i in (1, 2) for e in ("weight", "bias")}
GENERATIONS = {
    "published": published_keys(
        "vision_tower.vision_model", "language_model.model", "language_model.lm_head"
    )
    | PROJECTOR,
    "transformers 5": published_keys(
        "vision_tower", "language_model.model", "language_model.lm_head"
    )
    | PROJECTOR,
    "in memory": published_keys("model.vision_tower", "model.language_model", "lm_head")
    | {f"model.{key}" for key in PROJECTOR},
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_llava_7b_has_exactly_the_keys_of_every_generation(generation):
    _, model = full_7b()
    keys = GENERATIONS[generation]
    assert len(keys) == 686
    canonical = [names.canonical("llava", key) for key in keys]
    assert len(set(canonical)) == len(canonical) and set(canonical) == hub_keys(model)
    if generation == "transformers 5":
        assert keys == hub_keys(model), "what we write"


@pytest.fixture(scope="module")
def narrow_7b(tmp_path_factory):
    """LLaVA-1.5-7B in every number but its widths, as a folder of the published generation."""
    folder = tmp_path_factory.mktemp("hub") / "narrow-7b"
    published = json.loads((PUBLISHED / "config.json").read_text())
    published["text_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 32,
        "vocab_size": 64,
    }
    published["vision_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
    }
    published["image_token_index"] = 63
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published))
    _, config = read_config(folder)
    model = filled(jax.eval_shape(lambda: Llava(config, jax.random.key(0))), 0)
    tensors = {
        key.replace("vision_tower.", "vision_tower.vision_model."): value
        for key, value in hub_tensors(model)
    }
    assert set(tensors) == GENERATIONS["published"]
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parity
def test_the_7b_layout_loads_trains_exports_and_scores_alike(narrow_7b, tmp_path):
    settings = load_config("configs/guard.py:llava_7b")
    base = load_model(narrow_7b, remat=settings.model.remat)
    config = base.config
    assert (config.text.num_hidden_layers, config.vision.num_hidden_layers) == (32, 24)
    assert (config.tokens_per_image, config.vision.image_size) == (576, 336)
    rows = on_device(batch(config, n=2, n_text=8))
    assert rows["input_ids"].shape == (2, 584)
    score = jax.jit(lambda m: verdict.label_logits(m, rows, jnp.array(LABELS)))

    key = jax.random.key(1)
    model = lora.attach(base, settings.lora.targets, 4, 8.0, key)
    graphdef, adapters, frozen = lora.split(model)

    def loss(adapters, frozen, rows, key):
        out = verdict.label_logits(lora.merge(graphdef, adapters, frozen), rows, jnp.array(LABELS))
        return verdict.cross_entropy(out, rows["labels"]).mean(), {}

    optimizer = optax.adamw(0.05)
    step, state = make_step(loss, optimizer), init_state(adapters, optimizer, seed=0)
    losses = []
    for _ in range(2):
        state, metrics = step(state, frozen, rows)
        losses.append(float(metrics["loss"]))
    assert losses[1] < losses[0]
    trained = lora.merge(graphdef, state.trainable, frozen)
    wanted = score(trained)
    assert np.abs(wanted - score(base)).max() > 1e-3

    save_model(trained, tmp_path / "merged", narrow_7b)
    assert (
        set(load_file(tmp_path / "merged" / "model.safetensors")) == GENERATIONS["transformers 5"]
    )
    np.testing.assert_allclose(
        score(load_model(tmp_path / "merged", remat="names")), wanted, atol=1e-4
    )
    save_adapter(trained, tmp_path / "adapter", str(narrow_7b))
    again = load_adapter(base, tmp_path / "adapter")
    assert digest(again) == digest(trained)
    assert np.array_equal(score(again), wanted)
    assert digest(nnx.split(base, graph=False)[1]) == digest(frozen)

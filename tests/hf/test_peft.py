"""Adapters in: what PEFT writes loads as PEFT computes it, or is refused by its field's name."""

import json
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest
from crossguard_jax.hf.load import load_model
from crossguard_jax.hf.peft import _HARMLESS, load_adapter, read_adapter_config, save_adapter
from crossguard_jax.nn import lora
from tests.hf import hub_models

CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A LLaVA and a Llama: their folders, and their trees here."""
    made = {}
    for family in ("llava", "llama"):
        folder = tmp_path_factory.mktemp(family)
        draw = hub_models.draw_llava if family == "llava" else hub_models.draw_causal
        draw(random.Random(3)).save_pretrained(folder)
        made[family] = folder, load_model(folder)
    return made


def base_of(folder):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model = {"llava": LlavaForConditionalGeneration, "llama": LlamaForCausalLM}[kind]
    return model.from_pretrained(folder, dtype=torch.float32)


def adapter(base, folder, **settings):
    """An adapter that PEFT writes, its factors random."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5} | settings)
    model = get_peft_model(base_of(base), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def same_as_peft(bases, family, folder):
    """Every kernel with the adapter folded in."""
    base, model = bases[family]
    ours = load_adapter(model, folder)
    merged_folder = folder.parent / f"{folder.name}-merged"
    PeftModel.from_pretrained(base_of(base), folder).merge_and_unload().save_pretrained(
        merged_folder
    )
    theirs, changed = load_model(merged_folder), 0
    for (path, mine), (_, other), (_, before) in zip(
        *(lora.dense_layers(m) for m in (lora.fold(ours), theirs, model)), strict=True
    ):
        np.testing.assert_allclose(mine.kernel[...], other.kernel[...], atol=1e-5, err_msg=path)
        changed += not np.array_equal(mine.kernel[...], before.kernel[...])
    assert changed


LOADS = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4},
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.1},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 1},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0]},
    "layers of a pattern": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "a regex over layers": {"target_modules": r".*layers\.1\.self_attn\.(q|v)_proj"},
    "layers by their names": {"target_modules": ["layers.0.self_attn.q_proj"]},
    "without some": {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.0\..*"},
}


@pytest.mark.parametrize("family", ["llava", "llama"])
@pytest.mark.parametrize("name", LOADS)
def test_what_peft_writes_is_what_peft_computes(name, family, bases, tmp_path):
    same_as_peft(bases, family, adapter(bases[family][0], tmp_path / "a", **LOADS[name]))


def test_a_converted_adapter_loads_and_its_source_is_refused(bases, tmp_path):
    """PiSSA takes its factors' start out of the base; PEFT can write what holds over the base."""
    base = bases["llama"][0]
    start = {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    model = get_peft_model(base_of(base), LoraConfig(r=3, lora_alpha=5, **start))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "raw")
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    with pytest.raises(UserError, match="init_lora_weights 'pissa' changed the base .*conversion"):
        load_adapter(bases["llama"][1], tmp_path / "raw")
    same_as_peft(bases, "llama", tmp_path / "converted")


def test_half_precision_and_older_keys_load(bases, tmp_path):
    base, model = bases["llava"]
    folder = adapter(base, tmp_path / "a", target_modules=["q_proj"])
    whole = load_adapter(model, folder)
    tensors = load_file(folder / FACTORS)
    half = {key: value.to(torch.bfloat16) for key, value in tensors.items()}
    save_file(half, folder / FACTORS)
    rounded = load_adapter(model, folder)
    older = {
        key.replace("model.language_model.", "language_model.model.").replace(
            "model.vision_tower.", "vision_tower.vision_model."
        ): value
        for key, value in tensors.items()
    }
    assert set(older) != set(tensors)
    save_file(older, folder / FACTORS)
    again = load_adapter(model, folder)
    for (_, a), (_, b), (_, c) in zip(
        *map(lora.dense_layers, (whole, rounded, again)), strict=True
    ):
        if a.lora is not None:
            np.testing.assert_array_equal(a.lora.b[...], c.lora.b[...])
            np.testing.assert_allclose(a.lora.b[...], b.lora.b[...], rtol=1e-2)


def written(folder, **fields):
    """An adapter's configuration with these fields, and no factors."""
    folder.mkdir(exist_ok=True)
    config = LoraConfig(r=3, target_modules=["q_proj"], peft_type="LORA").to_dict() | fields
    config["target_modules"] = fields.get("target_modules", ["q_proj"])
    config |= {"peft_type": fields.get("peft_type", "LORA")}
    (folder / CONFIG).write_text(json.dumps(config, default=str))
    return folder


SET = {
    "use_dora": True,
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 8},
    "fan_in_fan_out": True,
    "modules_to_save": ["lm_head"],
    "bias": "lora_only",
    "lora_bias": True,
    "trainable_token_indices": [3],
    "target_parameters": ["mlp.experts"],
    "megatron_config": {"tp": 2},
    "alora_invocation_tokens": [3, 4],
    "use_qalora": True,
    "layer_replication": [[0, 2]],
    "velora_config": {"num_groups": 2},
    "monteclora_config": {"samples": 2},
    "use_bdlora": {"match_strict": True},
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1},
    "a_field_of_a_later_peft": 0.5,
}


@pytest.mark.parametrize("field", SET)
def test_a_field_that_means_something_else_is_refused_by_its_name(field, tmp_path):
    with pytest.raises(UserError, match=rf"adapter_config\.json: {field} is set; only plain LoRA"):
        read_adapter_config(written(tmp_path / "a", **{field: SET[field]}))


def test_every_field_of_peft_is_read_harmless_or_refused(tmp_path):
    """Its own defaults load; a field that PEFT adds and this project does not know shows here."""
    read_adapter_config(written(tmp_path / "a"))
    assert set(LoraConfig().to_dict()) - {"peft_type"} <= _HARMLESS | set(SET)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_that_changes_the_base_is_refused(start, tmp_path):
    with pytest.raises(UserError, match=f"init_lora_weights '{start}' changed the base"):
        read_adapter_config(written(tmp_path / "a", init_lora_weights=start))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only LORA"),
        ({"peft_type": None}, "peft_type None; only LORA"),
        ({"r": 0}, "r 0 is not a whole number of at least 1"),
        ({"r": 2.5}, "r 2.5 is not a whole number"),
        ({"r": "8"}, "r '8' is not"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan is not a number above 0"),
        ({"lora_alpha": None}, "lora_alpha None is not"),
        ({"init_lora_weights": ["x"]}, r"init_lora_weights \['x'\]"),
        ({"target_modules": 3}, "target_modules 3 is of another shape"),
        ({"target_modules": [["q"]]}, r"target_modules \[\['q'\]\] is of another shape"),
        ({"target_modules": "(q"}, "target_modules is no regular expression"),
        ({"layers_to_transform": "all"}, "layers_to_transform 'all' is of another shape"),
        ({"base_model_name_or_path": 4}, "base_model_name_or_path 4 is of another shape"),
    ],
)
def test_odd_values_are_refused_by_their_field(fields, message, tmp_path):
    with pytest.raises(UserError, match=rf"adapter_config\.json: {message}"):
        read_adapter_config(written(tmp_path / "a", **fields))


@pytest.mark.parametrize("content", ["[1]", "null", "{", '"a"'])
def test_a_configuration_of_another_shape_is_named(content, tmp_path):
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json: (a \w+ in place of|not JSON)"):
        read_adapter_config(tmp_path)


def change(tensors, what):
    """One thing gone wrong with an adapter's factors."""
    first = sorted(key for key in tensors if "layers.0" in key)[0]
    if what == "empty":
        return {}
    if what == "sharded":  # as ZeRO-3 leaves them
        return {key: torch.zeros(0) for key in tensors}
    if what == "a layer gone":
        layer = first.partition(".lora_")[0] + "."
        return {key: value for key, value in tensors.items() if not key.startswith(layer)}
    if what == "a factor gone":
        return {key: value for key, value in tensors.items() if key != first}
    if what == "float8":
        return {key: value.to(torch.float8_e4m3fn) for key, value in tensors.items()}
    return tensors | {"base_model.model.who.knows.lora_A.weight": torch.zeros(3, 4)}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", "no tensor in it, .* save the adapter again"),
        ("sharded", r"shape \[0\], wanted"),
        ("a layer gone", r"layers\.0\..*missing, but target_modules names this layer"),
        ("a factor gone", r"layers\.0\..*missing, wanted"),
        ("float8", "F8_E4M3"),
        ("another layer", "who.knows.lora_A.weight: maps to no layer"),
    ],
)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*\.(q|v)_proj", "all-linear"])
def test_damaged_factors_are_refused(what, message, targets, bases, tmp_path):
    base, model = bases["llava"]
    folder = adapter(base, tmp_path / "a", target_modules=targets)
    save_file(change(load_file(folder / FACTORS), what), folder / FACTORS)
    with pytest.raises(UserError, match=message):
        load_adapter(model, folder)


def test_a_factor_under_two_spellings_is_read_once_or_refused_by_both(bases, tmp_path):
    base, model = bases["llava"]
    folder = adapter(base, tmp_path / "a", target_modules=["q_proj"])
    before, tensors = digest(load_adapter(model, folder)), load_file(folder / FACTORS)
    key = next(key for key in tensors if "model.vision_tower." in key)
    older = key.replace("model.vision_tower.", "vision_tower.vision_model.")
    save_file(tensors | {older: tensors[key].clone()}, folder / FACTORS)
    assert digest(load_adapter(model, folder)) == before
    save_file(tensors | {older: tensors[key] + 1}, folder / FACTORS)
    with pytest.raises(UserError, match=" 1 problem.* with different values; take one") as caught:
        load_adapter(model, folder)
    assert key in str(caught.value) and older in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_model.bin", "adapter_model.bin: a pickle, which is not opened"),
        ("non_lora_trainables.bin", "trained beside the adapter"),
        (None, "adapter_model.safetensors: missing"),
    ],
)
def test_factors_that_cannot_be_read_say_what_to_do(file, message, bases, tmp_path):
    folder = written(tmp_path / "a")
    if file:
        (folder / file).write_bytes(b"PK")
    with pytest.raises(UserError, match=message):
        load_adapter(bases["llama"][1], folder)


def test_a_layer_left_alone_stays_alone(bases, tmp_path):
    base, model = bases["llava"]
    settings = {"target_modules": ["q_proj"], "layers_to_transform": [1]}
    loaded = load_adapter(model, adapter(base, tmp_path / "a", **settings))
    layers = [layer.lora for _, layer in lora.dense_layers(loaded) if layer.lora is not None]
    assert layers
    for update in layers:
        a, b = np.asarray(update.a[...]), np.asarray(update.b[...])
        assert not a[0].any() and not b[0].any() and a[1].any() and b[1].any()


@pytest.mark.parametrize("family", ["llava", "llama"])
@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_an_adapter_of_some_layers_is_written_as_one(family, source, bases, tmp_path):
    """PEFT makes factors for those layers alone, and finds them all."""
    base, model = bases[family]
    if source == "ours":
        targets = r".*\.(q|v)_proj"
        adapted = lora.attach(model, targets, 3, 5.0, jax.random.key(0), layers=(1,))
        for n, (_, layer) in enumerate(lora.dense_layers(adapted)):
            if layer.lora is not None:
                noise = jax.random.normal(jax.random.key(n), layer.lora.b.shape)
                layer.lora.b[...] = jnp.where(
                    jnp.arange(len(noise))[:, None, None] == 1, noise, 0.0
                )
    else:
        settings = {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}
        adapted = load_adapter(model, adapter(base, tmp_path / "theirs", **settings))
    save_adapter(adapted, tmp_path / "saved", str(base))
    keys = set(load_file(tmp_path / "saved" / FACTORS))
    assert keys and all(".1." in key for key in keys)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        peft = PeftModel.from_pretrained(base_of(base), tmp_path / "saved")
    assert not [w for w in said if "missing" in str(w.message).lower()]
    made = {name for name, _ in peft.named_parameters() if "lora_" in name}
    assert len(made) == len(keys) and all(".1." in name for name in made)
    assert digest(load_adapter(model, tmp_path / "saved")) == digest(adapted)
    same_as_peft(bases, family, tmp_path / "saved")


def test_stacks_that_are_adapted_in_other_layers_each_keep_their_own(bases, tmp_path):
    base, model = bases["llava"]
    settings = {"target_modules": r".*(vision_tower.*layers\.0|language_model.*\.1)\..*\.q_proj"}
    loaded = load_adapter(model, adapter(base, tmp_path / "a", **settings))
    save_adapter(loaded, tmp_path / "b", str(base))
    written = [load_file(tmp_path / name / FACTORS) for name in ("a", "b")]
    assert len(written[0]) == len(written[1]) == 4
    same_as_peft(bases, "llava", tmp_path / "b")

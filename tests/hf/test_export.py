"""The way back: what we export, transformers and PEFT load unchanged."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest, named_leaves
from crossguard_jax.hf.export import ModelCard, save_model
from crossguard_jax.hf.load import load_model
from crossguard_jax.hf.peft import load_adapter, save_adapter
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.nn import lora
from tests.draws import few
from tests.hf import hub_models


@pytest.fixture(params=few([0, 1], 1))
def source(request, tmp_path):
    """A random LLaVA folder, its tree here, and one batch with a padded row."""
    rng = random.Random(request.param)
    folder = tmp_path / "source"
    hub_models.draw_llava(rng).save_pretrained(folder)
    model = load_model(folder)
    config, p = model.config, model.config.tokens_per_image
    ids = np.array([[rng.randrange(4, 60) for _ in range(p + 6)] for _ in range(2)])
    ids[:, 2 : p + 2] = config.image_token_id
    mask = np.ones_like(ids)
    mask[1, -3:] = 0
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, config.vision.image_size, config.vision.image_size)
    return folder, model, (ids, pixels, mask)


def adapted(model):
    """The model with a random adapter on both towers and the projector."""
    targets = r".*\.(q_proj|v_proj|out_proj|o_proj|up_proj|fc1|linear_1)"
    model = lora.attach(model, targets, 4, 6.0, jax.random.key(0))
    for path, layer in lora.dense_layers(model):
        if layer.lora is not None:
            key = jax.random.key(len(path))
            layer.lora.b[...] = 0.2 * jax.random.normal(key, layer.lora.b.shape)
    return model


def ours(model, batch):
    ids, pixels, mask = batch
    logits = jax.jit(type(model).__call__)(model, ids, pixels.numpy(), mask.astype(bool))
    return np.asarray(logits)[mask.astype(bool)]


def theirs(model, batch):
    ids, pixels, mask = batch
    with torch.no_grad():
        logits = model.eval()(
            input_ids=torch.tensor(ids), pixel_values=pixels, attention_mask=torch.tensor(mask)
        ).logits
    return logits.numpy()[mask.astype(bool)]


def test_merged_export_loads_in_transformers_and_back_bit_for_bit(source, tmp_path):
    folder, model, batch = source
    model = adapted(model)
    card = ModelCard("a base", "some data", {"asr": 0.01})
    save_model(model, tmp_path / "out", folder, card)
    loaded, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert np.abs(ours(model, batch) - theirs(loaded, batch)).max() <= 1e-4
    assert digest(load_model(tmp_path / "out")) == digest(lora.fold(model))
    text = (tmp_path / "out" / "README.md").read_text()
    assert all(word in text for word in ("a base", "some data", "asr", "Limits"))


def test_sharded_export_has_an_index_and_the_same_tree(source, tmp_path):
    folder, model, _ = source
    save_model(model, tmp_path / "out", folder, shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert digest(load_model(tmp_path / "out")) == digest(model)
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_an_export_takes_the_processor_that_it_is_given_in_place_of_the_sources(source, tmp_path):
    folder, model, _ = source
    size = model.config.vision.image_size
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size).save_pretrained(folder)
    for picture, kind in (("pad", "LlavaImageProcessor"), ("crop", "CLIPImageProcessor")):
        save_model(
            model, tmp_path / picture, folder, processor=Processor(folder, size, picture=picture)
        )
        fields = json.loads((tmp_path / picture / "preprocessor_config.json").read_text())
        assert fields["image_processor_type"] == kind
        assert bool(fields.get("do_pad")) == (picture == "pad") != fields["do_center_crop"]
    save_model(model, tmp_path / "plain", folder)
    plain = (tmp_path / "plain" / "preprocessor_config.json").read_bytes()
    assert plain == (folder / "preprocessor_config.json").read_bytes()


def test_peft_export_loads_in_peft_changes_logits_and_comes_back_bit_for_bit(source, tmp_path):
    folder, base, batch = source
    model = adapted(base)
    save_adapter(model, tmp_path / "adapter", str(folder), ModelCard())
    hub = LlavaForConditionalGeneration.from_pretrained(folder)
    off = theirs(hub, batch)
    on = theirs(PeftModel.from_pretrained(hub, tmp_path / "adapter"), batch)
    assert np.abs(ours(model, batch) - on).max() <= 1e-4
    assert np.abs(off - on).max() > 1e-2
    assert digest(load_adapter(base, tmp_path / "adapter")) == digest(model)


@pytest.mark.parametrize("format", ["merged", "peft"])
def test_who_may_read_an_export_may_read_its_weights(format, source, tmp_path):
    folder, model, _ = source
    if format == "merged":
        save_model(adapted(model), tmp_path / "out", folder)
    else:
        save_adapter(adapted(model), tmp_path / "out", str(folder), ModelCard())
    (tmp_path / "new").touch()
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    assert weights.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_older_key_generations_load_to_the_same_tree(source, tmp_path):
    folder, model, _ = source
    tensors = load_file(folder / "model.safetensors")
    old = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in tensors.items()}
    memory = {
        k.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head", "lm_head")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal_projector.", "model.multi_modal_projector."): v
        for k, v in tensors.items()
    }
    for name, generation in (("old", old), ("memory", memory)):
        target = tmp_path / name
        shutil.copytree(folder, target)
        save_file(generation, target / "model.safetensors")
        assert digest(load_model(target)) == digest(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_folders_load_and_export_without_change(dtype, source, tmp_path):
    folder, model, _ = source
    save_model(model, tmp_path / "half", folder, dtype=dtype)
    half = load_model(tmp_path / "half", dtype=None)
    assert {str(v.dtype) for _, v in named_leaves(half)} == {dtype}
    save_model(half, tmp_path / "again", tmp_path / "half")
    assert digest(load_model(tmp_path / "again", dtype=None)) == digest(half)
    same = jnp.dtype(dtype)
    for (_, a), (_, b) in zip(named_leaves(model), named_leaves(half), strict=True):
        assert (a[...].astype(same) == b[...]).all()


def test_one_error_lists_every_missing_misshaped_and_unmapped_key(source, tmp_path):
    folder, _, _ = source
    tensors = load_file(folder / "model.safetensors")
    gone, bent = sorted(tensors)[3], sorted(tensors)[8]
    del tensors[gone]
    tensors[bent] = np.zeros((3, 1), np.float32)
    tensors["who.knows"] = np.zeros(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_model(folder)
    for part in (
        str(folder),
        f"{gone}: missing",
        f"{bent}: shape [3, 1]",
        "who.knows",
        "3 problem",
    ):
        assert part in str(caught.value)


def test_a_truncated_file_is_named(source):
    folder, _, _ = source
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-7])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        load_model(folder)


def test_an_adapter_with_a_missing_factor_or_odd_settings_is_refused(source, tmp_path):
    folder, base, _ = source
    out = tmp_path / "adapter"
    save_adapter(adapted(base), out, str(folder))
    tensors = load_file(out / "adapter_model.safetensors")
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, out / "adapter_model.safetensors")
    with pytest.raises(UserError, match="missing, wanted"):
        load_adapter(base, out)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        load_adapter(base, out)
    (out / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    with pytest.raises(UserError, match="lora_alpha"):
        load_adapter(base, out)

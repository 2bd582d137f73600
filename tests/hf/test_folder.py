"""Which files of a folder count, its JSON, and numbers that no model can have."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from transformers import AutoModel, AutoModelForCausalLM, LlavaForConditionalGeneration
from transformers.modeling_utils import _get_resolved_checkpoint_files

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.export import save_model
from crossguard_jax.hf.folder import check_number, weight_files
from crossguard_jax.hf.load import encoding_hash, folder_hash, load_model, resolve_folder
from crossguard_jax.hf.sentence import load_sentence
from crossguard_jax.hf.tokens import load_tokenizer, open_ended
from tests.hf import hub_models

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
TWO = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
THREE = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
STRAY = ["consolidated.safetensors", "adapter_model.safetensors", "open_clip_model.safetensors"]


def index_of(*files):
    return json.dumps(
        {"metadata": {}, "weight_map": {f"tensor{i}": file for i, file in enumerate(files)}}
    )


def write(folder, *names, index=TWO, **config):
    """A folder of empty files; an index names ``index``."""
    for name in names:
        (folder / name).write_text(index_of(*index) if name.endswith(".json") else "")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


ORDERS = {
    "one file": ([ONE], {}, [ONE]),
    "shards": ([INDEX, *TWO], {}, TWO),
    "one file over shards": ([ONE, INDEX, *TWO], {}, [ONE]),
    "shards beside a save in another count": ([INDEX, *TWO, *THREE], {}, TWO),
    "one file beside strays": ([ONE, *STRAY], {}, [ONE]),
    "shards beside strays": ([INDEX, *TWO, *STRAY], {}, TWO),
    "one file beside a pickle": ([ONE, "pytorch_model.bin"], {}, [ONE]),
    "the config's file": ([ONE, "ema.safetensors"], {"transformers_weights": "ema.safetensors"}, 0),
    "the config's index": (
        [ONE, "ema.safetensors.index.json", *TWO],
        {"transformers_weights": "ema.safetensors.index.json"},
        TWO,
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_weights_that_count_are_transformers_choice(name, tmp_path):
    names, config, wanted = ORDERS[name]
    wanted = wanted or ["ema.safetensors"]
    write(tmp_path, *names, **config)
    theirs, _ = _get_resolved_checkpoint_files(
        tmp_path, None, None, None, None, False, config.get("transformers_weights")
    )
    assert weight_files(tmp_path) == sorted(Path(file).name for file in theirs) == wanted


REFUSED = {
    "nothing": ([], {}, "neither model.safetensors nor .*index.json; download"),
    "a stray alone": (STRAY[:1], {}, r"neither .* \(never read: consolidated\.safetensors\)"),
    "shards without index": (TWO, {}, "neither model.safetensors nor"),
    "a pickle": (["pytorch_model.bin"], {}, "pytorch_model.bin: a pickle, .* save_pretrained"),
    "pickled shards": (["pytorch_model.bin.index.json"], {}, "index.json: a pickle"),
    "a config that names a pickle": (
        [ONE],
        {"transformers_weights": "pytorch_model.bin"},
        "transformers_weights 'pytorch_model.bin' names neither",
    ),
    "a config that names no text": ([ONE], {"transformers_weights": 3}, "transformers_weights 3"),
    "a config that leads out": (
        [ONE],
        {"transformers_weights": "../other/model.safetensors"},
        "transformers_weights '../other/model.safetensors' is no file of this folder",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_without_readable_weights_says_what_to_do(name, tmp_path):
    names, config, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        weight_files(write(tmp_path, *names, **config))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "index.json: a list in place of a JSON object"),
        ("null", "a NoneType in place of a JSON object"),
        ("{", "index.json: not JSON"),
        ("{}", "index.json: no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map.a 1 is no file of this folder"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "weight_map.a '../b.*' is no file"),
    ],
)
def test_an_index_of_another_shape_is_named(content, message, tmp_path):
    (write(tmp_path, INDEX) / INDEX).write_text(content)
    with pytest.raises(UserError, match=message):
        weight_files(tmp_path)


READERS = {
    "llama": ("rewriter", lambda folder: load_model(folder)),
    "llava": ("llava", lambda folder: load_model(folder)),
    "clip": ("clip", lambda folder: load_clip(folder).model),
    "sentence": ("sentence", lambda folder: load_sentence(folder).model),
}
AUTO = {"llama": AutoModelForCausalLM, "llava": LlavaForConditionalGeneration}


def shipped(name, folder):
    """A shipped model's folder, to be changed."""
    return Path(shutil.copytree(resolve_folder(f"toy://{name}"), folder))


@pytest.mark.parametrize("sharded", ["first", "second"])
@pytest.mark.parametrize("reader", READERS)
def test_two_saves_into_one_folder_are_read_as_transformers_reads_them(reader, sharded, tmp_path):
    """One in shards and one in a file, with all that an older transformers leaves of the first."""
    name, load = READERS[reader]
    auto = AUTO.get(reader, AutoModel)
    folder, fresh = shipped(name, tmp_path / "m"), shipped(name, tmp_path / "fresh")
    model = auto.from_pretrained(folder)
    (folder / ONE).unlink()
    limits = ["200KB", "1GB"] if sharded == "first" else ["1GB", "200KB"]
    model.save_pretrained(folder, max_shard_size=limits[0])
    before = {file.name: file.read_bytes() for file in folder.glob("model*")}
    hub_models.randomized(model, random.Random(0)).save_pretrained(folder, max_shard_size=limits[1])
    for file in set(before) - {file.name for file in folder.glob("model*")}:
        (folder / file).write_bytes(before[file])
    assert (folder / ONE).is_file() and (folder / INDEX).is_file()

    auto.from_pretrained(folder).save_pretrained(fresh)
    assert digest(load(folder)) == digest(load(fresh))


def test_the_hash_of_a_folder_is_over_what_counts_and_nothing_else(tmp_path):
    folder = shipped("llava", tmp_path / "m")
    before = folder_hash(folder)
    h = hashlib.sha256()
    for name in ("config.json", ONE):
        h.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    assert before == h.hexdigest(), "adapters and kept scores name their base by it"
    for stray in (*STRAY, INDEX, *TWO):
        (folder / stray).write_text("{}")
    assert folder_hash(folder) == before
    (folder / ONE).write_bytes((folder / ONE).read_bytes()[:-1] + b"x")
    assert folder_hash(folder) != before


@pytest.mark.parametrize("reader", ["llama", "llava"])
@pytest.mark.parametrize("differs", [True, False])
def test_a_head_in_the_file_is_read_as_transformers_reads_it(reader, differs, tmp_path):
    """Where the config ties it to the embeddings; and exported so that it stays what it was."""
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_torch(folder / ONE)
    head, table = {
        "llama": ("lm_head.weight", "model.embed_tokens.weight"),
        "llava": ("lm_head.weight", "language_model.model.embed_tokens.weight"),
    }[reader]
    tensors[head] = tensors[table].clone() + (1 if differs else 0)
    save_torch(tensors, folder / ONE, {"format": "pt"})

    save_model(load(folder), tmp_path / "out", folder)
    for there in (folder, tmp_path / "out"):
        theirs = AUTO[reader].from_pretrained(there, dtype=torch.float32)
        text = getattr(load(there), "language_model", load(there))
        ours = text.embed_tokens.embedding if text.config.tie_word_embeddings else None
        ours = text.lm_head.kernel[...].T if ours is None else ours[...]
        np.testing.assert_array_equal(ours, theirs.get_output_embeddings().weight.detach())
        assert text.config.tie_word_embeddings != differs


@pytest.mark.parametrize("reader", ["llava", "sentence"])
def test_a_tensor_under_two_spellings_is_read_once_or_refused_by_both(reader, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    before, tensors = digest(load(folder)), load_torch(folder / ONE)
    prefix = {"llava": "model.", "sentence": "bert."}[reader]
    key = next(key for key in tensors if key.startswith(("vision_tower.", "encoder.")))
    copy = tensors[key].clone()
    save_torch(tensors | {prefix + key: copy}, folder / ONE, {"format": "pt"})
    assert digest(load(folder)) == before
    copy.view(-1)[-1] += 1
    save_torch(tensors | {prefix + key: copy}, folder / ONE, {"format": "pt"})
    with pytest.raises(UserError, match=r" 1 problem\(s\): .*different values; take one") as caught:
        load(folder)
    assert f" {key}" in str(caught.value) and f" {prefix}{key}" in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", ["truncated", "a shard gone", "the config's file gone"])
def test_a_file_that_does_not_open_is_all_that_is_said(reader, what, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    file = ONE
    if what == "truncated":
        (folder / ONE).write_bytes((folder / ONE).read_bytes()[:-100])
    elif what == "a shard gone":
        file = TWO[1]
        (folder / ONE).rename(folder / TWO[0])
        (folder / INDEX).write_text(index_of(*TWO))
    else:
        file = "ema.safetensors"
        set_field(folder, "transformers_weights", file)
    problem = "truncated or not" if what == "truncated" else "missing; download it too"
    with pytest.raises(UserError, match=rf" 1 problem\(s\): {file}: {problem}[^;]*$"):
        load(folder)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("how", ["float8", "float8 with scales", "int8", "config", "older config"])
def test_quantized_weights_are_refused_in_one_line(reader, how, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    if "config" in how:
        field = {"config": "quantization_config", "older config": "compression_config"}[how]
        config = json.loads((folder / "config.json").read_text())
        config[field] = {"quant_method": "compressed-tensors", "bits": 8}
        (folder / "config.json").write_text(json.dumps(config))
        message = f"config.json: {field}: quantized weights"
    else:
        tensors = load_torch(folder / ONE)
        kind = torch.int8 if how == "int8" else torch.float8_e4m3fn
        matrices = [key for key, value in tensors.items() if value.ndim == 2]
        tensors |= {key: tensors[key].to(kind) for key in matrices}
        if "scales" in how:
            tensors |= {f"{key}_scale": torch.ones(1) for key in matrices}
        save_torch(tensors, folder / ONE, {"format": "pt"})
        message = f"tensors are of {'I8' if how == 'int8' else 'F8_E4M3'}.*the unquantized model"
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_an_adapter_beside_a_model_is_not_left_out_unsaid(reader, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter_config.json lays an adapter over another model"):
        load(folder)


def set_field(folder, field, value):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *sections, last = field.split(".")
    part = config
    for section in sections:
        part = part[section]
    part[last] = value
    path.write_text(json.dumps(config))


NUMBERS = {
    "llava": {
        "text_config.num_hidden_layers": [0, -1, 1.5, "4", None],
        "text_config.num_attention_heads": [0, 2.5, True],
        "text_config.num_key_value_heads": [3],
        "text_config.head_dim": [0, 31],
        "text_config.vocab_size": [0, -1],
        "text_config.rms_norm_eps": [float("nan"), -1e-5],
        "text_config.max_position_embeddings": [0],
        "text_config.rope_parameters.rope_theta": [None, float("inf"), 0],
        "text_config.rope_parameters": [[1], {"rope_type": "linear", "factor": 0}],
        "vision_config.num_attention_heads": [3],
        "vision_config.patch_size": [0, [8, 8], 64],
        "vision_config.hidden_size": [[1]],
        "vision_config": [[1]],
        "vision_feature_layer": [99, None, "x", []],
        "image_token_index": [-1, None, 4.5],
        "projector_hidden_act": ["no such thing", None],
    },
    "llama": {"num_hidden_layers": [0], "num_attention_heads": [2.5], "hidden_size": ["128"]},
    "clip": {"text_config.num_attention_heads": [3], "projection_dim": [0]},
    "sentence": {"num_attention_heads": [3], "layer_norm_eps": [float("nan")]},
}


@pytest.mark.parametrize(
    ("reader", "field", "value"),
    [(r, f, v) for r, fields in NUMBERS.items() for f, values in fields.items() for v in values],
)
def test_a_number_that_no_model_has_is_refused_by_its_field(reader, field, value, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    set_field(folder, field, value)
    named = field.removeprefix("text_config.").removeprefix("vision_config.")
    named = {"rope_parameters.rope_theta": "rope_theta"}.get(named, named)
    with pytest.raises(UserError, match=rf"config\.json: .*(?i:{named}|head|activation)") as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("reader", "file", "content"),
    [
        *(("llama", "config.json", content) for content in ("null", "3", '"a"', "{", "\x80")),
        *((reader, "config.json", "[1]") for reader in READERS),
        *((reader, "tokenizer_config.json", "null") for reader in ("clip", "sentence")),
        *((reader, "tokenizer.json", "[1]") for reader in ("clip", "sentence")),
        ("clip", "preprocessor_config.json", "[1]"),
        ("sentence", "sentence_bert_config.json", "null"),
        ("sentence", "config_sentence_transformers.json", "[1]"),
        ("sentence", "modules.json", "null"),
        ("sentence", "1_Pooling/config.json", "null"),
    ],
)
def test_json_of_another_shape_is_one_line_that_names_the_file(reader, file, content, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    (folder / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=file.replace(".", r"\.")) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (0.5, {"least": 0, "most": 1}, None),
        (0, {"least": 0}, None),
        (float("nan"), {}, "n nan is not a number"),
        (True, {}, "n True is not a number"),
        ("1", {}, "n '1' is not a number"),
        (2, {"least": 0, "most": 1}, "n 2 is not a number from 0 to 1"),
        (0, {"least": 0, "above": True}, "n 0 is not a number above 0"),
        (1.0, {"least": 1, "whole": True}, "n 1.0 is not a whole number of at least 1"),
    ],
)
def test_a_number_is_checked_and_named(value, options, message):
    if message is None:
        check_number("n", value, **options)
    else:
        with pytest.raises(UserError, match=message):
            check_number("n", value, **options)


@pytest.mark.parametrize("field", ["model_max_length", "max_len"])
@pytest.mark.parametrize("value", ["big", -1, 0, float("nan"), True, [1], 10**30, None])
def test_a_tokenizers_length_is_a_number_or_refused_by_its_field(field, value, tmp_path):
    folder = shipped("sentence", tmp_path / "m")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("model_max_length")
    path.write_text(json.dumps(settings | {field: value}))
    if value in (10**30, None):
        assert load_tokenizer(folder).model_max_length >= 10**30
        return
    message = rf"tokenizer_config\.json: {field} .* is not a number of at least 1; mend it$"
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("value", [2, 64.5])
@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ],
)
def test_a_length_that_no_sentence_fits_into_is_refused_where_it_stands(
    file, field, value, tmp_path
):
    folder = shipped("sentence", tmp_path / "m")
    settings = json.loads((folder / file).read_text()) | {field: value}
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"/{file}: {field} {value} is not a whole number"):
        load_sentence(folder)


def add_tokens(folder, *ids):
    """More words in a tokenizer, with these ids."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"] += [{"id": i, "content": f"word{i}"} | flags for i in ids]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("reader", ["clip", "sentence"])
def test_a_tokenizer_beyond_the_table_is_refused_by_its_word(reader, tmp_path):
    name, load = READERS[reader]
    folder = shipped(name, tmp_path / "m")
    add_tokens(folder, 606, 607)
    with pytest.raises(UserError, match=r"'word607' has the id 607, .*table has 606 rows"):
        load(folder)
    assert len(load_tokenizer(folder, 606, beyond=[606, 607])) == 608


def test_what_a_tokenizer_adds_at_the_end_is_left_off_where_a_model_goes_on(tmp_path):
    folder = shipped("llava", tmp_path / "m")
    before = load_tokenizer(folder)
    texts = ["can i touch it ?", ""]
    wanted = before(texts)["input_ids"]
    end_with_eos(folder)
    after = load_tokenizer(folder)
    assert [row[-1] for row in after(texts)["input_ids"]] == [3, 3]
    assert open_ended(after, texts) == open_ended(before, texts) == wanted
    bare = {"add_special_tokens": False}
    assert open_ended(after, texts, **bare) == before(texts, **bare)["input_ids"]


def end_with_eos(folder):
    """The shipped tokenizer, made to add an end of text."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (("<s>", 1), ("</s>", 3))}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text, last],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_folder_whose_texts_or_pictures_are_read_otherwise_is_another(tmp_path, name):
    folder = shutil.copytree(resolve_folder("toy://llava"), tmp_path / "m")
    weights, encoding = folder_hash(folder), encoding_hash(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    assert folder_hash(folder) == weights and encoding_hash(folder) != encoding

"""A guard's folder: what the tokenizer, the picture token and the settings must be at load."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from crossguard_jax import Guard
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.encoding import Encoder
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.configs import read_config
from crossguard_jax.hf.tokens import load_tokenizer

PROMPT = {"name": "p", "template": "{image}{text} ASSISTANT:", "negative": "safe"}
PROMPT["positive"] = "unsafe"


@pytest.fixture
def folder(llava_folder, tmp_path):
    """A copy of the random model's folder, to be changed."""
    shutil.copytree(llava_folder, tmp_path / "m")
    return tmp_path / "m"


def change(folder, file, edit):
    content = json.loads((folder / file).read_text())
    edit(content)
    (folder / file).write_text(json.dumps(content))


def encoder(folder):
    """What `Guard.from_pretrained` makes of a folder beside its weights."""
    return Encoder(folder, read_config(folder)[1], Settings.read(folder))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (100_000, "image_token_index 100000 is no token of the tokenizer"),
        (50, "image_token_index 50 is the word"),
        (2, "image_token_index 2 is '</s>', not '<image>'"),
        (0, "image_token_index 0 is '<pad>', not '<image>'"),
    ],
)
def test_a_picture_token_that_is_none_is_refused(index, message, folder):
    change(folder, "config.json", lambda c: c.update(image_token_index=index))
    change(folder, "config.json", lambda c: c.pop("image_token_id", None))
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        encoder(folder)


def test_another_mark_is_no_picture_even_if_none_is_named(folder):
    named = ("image_token", "extra_special_tokens", "model_specific_special_tokens")
    for file in ("tokenizer_config.json", "processor_config.json"):
        change(folder, file, lambda c: [c.pop(name, None) for name in named])
    encoder(folder)
    change(folder, "config.json", lambda c: c.update(image_token_index=2))
    with pytest.raises(UserError, match="image_token_index 2 is '</s>', not a picture's"):
        encoder(folder)


def test_a_prompt_that_writes_the_picture_token_out_is_refused(folder):
    """Beside the place of the picture, it would be a second picture."""
    prompt = PROMPT | {"template": "<image> {image}{text} ASSISTANT:"}
    (folder / "guard_config.json").write_text(json.dumps({"prompt": prompt}))
    with pytest.raises(UserError, match="a prompt with a picture has 10 tokens of .* wants 9"):
        encoder(folder)


def test_words_beyond_the_table_are_refused_and_a_picture_mark_is_not(folder):
    rows = read_config(folder)[1].text.vocab_size
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)

    def add(content):
        content["added_tokens"].append({"id": rows, "content": "scooter"} | flags)

    change(folder, "tokenizer.json", add)
    with pytest.raises(UserError, match=f"'scooter' has the id {rows}, and the model's table has"):
        encoder(folder)
    assert load_tokenizer(folder, rows, beyond=[rows])("scooter")["input_ids"][-1] == rows


def test_an_end_of_text_that_the_tokenizer_adds_is_left_off(folder, llava_folder):
    before = encoder(llava_folder)

    def close(content):
        end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
        content["post_processor"]["single"].append(end)
        content["post_processor"]["special_tokens"]["</s>"] = {
            "id": "</s>",
            "ids": [2],
            "tokens": ["</s>"],
        }

    change(folder, "tokenizer.json", close)
    after = encoder(folder)
    assert after.tokenizer("a")["input_ids"][-1] == 2
    assert after.label_ids == before.label_ids
    for picture in (1, 0):
        (row,), (wanted,) = (e.whole(["can i touch it ?"], [picture]) for e in (after, before))
        assert row == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 50}, "threshold 50 is not a number from 0 to 1"),
        ({"threshold": -0.1}, "threshold -0.1 is not"),
        ({"threshold": float("nan")}, "threshold nan is not"),
        ({"threshold": "0.5"}, "threshold '0.5' is not"),
        ({"threshold": None}, "threshold None is not"),
        ({"threshold": True}, "threshold True is not"),
        ({"max_length": -1}, "max_length -1 is not a whole number of at least 0"),
        ({"max_length": 64.5}, "max_length 64.5 is not a whole"),
        ({"max_length": None}, "max_length None is not"),
        ({"window": -1}, "window -1 is not a whole number of at least 0"),
        ({"max_windows": 0}, "max_windows 0 is not a whole number of at least 1"),
        ({"picture": "squash"}, "picture 'squash' is none of"),
        ({"prompt": None}, "prompt None is no object with name, template"),
        ({"prompt": "short"}, "prompt 'short' is no object"),
        ({"prompt": {"name": "p"}}, "prompt.template None: a text in"),
        ({"prompt": PROMPT | {"negative": 3}}, "prompt.negative 3: a text in"),
        ({"prompt": PROMPT | {"positive": " "}}, "prompt.positive ' ': a text in"),
        ({"prompt": PROMPT | {"template": "{text}"}}, "write {image} exactly once"),
        ({"prompt": PROMPT | {"kind": "x"}}, "prompt.kind 'x'"),
        ({"treshold": 0.5}, "no setting of a guard: treshold"),
    ],
)
def test_settings_are_checked_as_the_flags_are(changes, message, tmp_path):
    (tmp_path / "guard_config.json").write_text(json.dumps({"prompt": PROMPT} | changes))
    with pytest.raises(UserError, match=rf"guard_config\.json: .*{message}"):
        Settings.read(tmp_path)


def test_settings_without_a_prompt_or_of_another_shape_are_named(tmp_path):
    for content, message in (
        ('{"threshold": 0.5}', "prompt None is no object"),
        ("[1]", "a list in place of a JSON object"),
        ("null", "a NoneType in place of"),
        ("{", "not JSON"),
    ):
        (tmp_path / "guard_config.json").write_text(content)
        with pytest.raises(UserError, match=rf"guard_config\.json: {message}"):
            Settings.read(tmp_path)


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "processor_config.json", "tokenizer.json"]
)
def test_json_of_another_shape_is_named(file, folder):
    (folder / file).write_text("[1]")
    with pytest.raises(UserError, match=rf"{file}: a list in place of a JSON object"):
        encoder(folder)


def test_an_adapter_folder_names_a_base_that_is_there(tmp_path, llava_folder):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    for name in ({}, {"base_model_name_or_path": "org/model"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | name))
        with pytest.raises(UserError, match="base_model_name_or_path .* is no folder here"):
            Guard.from_pretrained(tmp_path)


def test_an_attack_wants_pixels_in_the_unit_range(folder):
    (folder / "processor_config.json").unlink()
    change(folder, "preprocessor_config.json", lambda c: c.update(rescale_factor=1 / 127.5))
    made = encoder(folder)
    assert made.picture(Image.fromarray(np.zeros((30, 30, 3), np.uint8))).shape == (3, 24, 24)
    with pytest.raises(UserError, match="rescale_factor: an attack wants"):
        made.levels(np.zeros((30, 30, 3), np.uint8))

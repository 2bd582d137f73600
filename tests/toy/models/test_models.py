"""The shipped small models: what is in their folders, and what they know."""

import argparse
import json
import re
from collections import Counter
from hashlib import sha256

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import SHORT, TEMPLATES
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.toy.models import build, measure, pretrain, texts
from crossguard_jax.toy.models import lessons as lessons_module
from crossguard_jax.toy.models.batches import Numbered, dialogue, encode
from crossguard_jax.toy.models.folders import NAMES, PATCHES
from crossguard_jax.toy.models.tokenizers import EOS, IMAGE, UNK, build_tokenizer, vocabulary
from crossguard_jax.toy.world.injections import INJECTIONS, NEUTRAL
from crossguard_jax.toy.world.kinds import BASE_KINDS, NOVEL_KINDS
from crossguard_jax.toy.world.requests import REQUEST_NAMES
from crossguard_jax.toy.world.risk import is_held_out
from crossguard_jax.toy.world.scenes import Thing, render_batch
from crossguard_jax.toy.world.sources import SOURCES, examples
from crossguard_jax.toy.world.truth import Pointing, read
from crossguard_jax.train.loop import read_metrics

SHIPPED = resolve_folder("toy://llava").parent
MANIFEST = json.loads((SHIPPED / "manifest.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def lessons():
    return lessons_module.Lessons(seed=3, scenes=400)


def test_the_manifest_has_the_hash_of_every_shipped_file_and_they_are_small():
    files = [p for p in SHIPPED.rglob("*") if p.is_file() and p.name != "manifest.json"]
    hashes = {str(p.relative_to(SHIPPED)): sha256(p.read_bytes()).hexdigest() for p in files}
    assert MANIFEST["sha256"] == hashes
    assert sum(p.stat().st_size for p in files) <= 16e6
    assert {p.parent.name for p in SHIPPED.glob("*/model.safetensors")} == set(NAMES)


@pytest.mark.tables
@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_every_shipped_folder_without_a_missing_key(name):
    config = transformers.AutoConfig.from_pretrained(SHIPPED / name)
    cls = getattr(transformers, config.architectures[0])
    # Sentence vectors are means over tokens: BERT's pooler is not among the weights.
    options = {"add_pooling_layer": False} if name == "sentence" else {}
    model, info = cls.from_pretrained(SHIPPED / name, output_loading_info=True, **options)
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED / name)
    size = getattr(config, "text_config", config).vocab_size
    assert len(tokenizer) == len(vocabulary()) == size


def test_transformers_gives_the_small_llava_the_logits_that_we_do():
    folder = SHIPPED / "llava"
    processor = transformers.AutoProcessor.from_pretrained(folder)
    row = examples("vqa", "val", 1)[0]
    picture = render_batch([row.scene])
    prompt = SHORT.render(row.text, pictures=1)
    inputs = processor(text=prompt, images=picture[0], return_tensors="pt")
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    ids = inputs["input_ids"].numpy()
    assert ids[0].tolist() == dialogue([(row.text, "")], 64, PATCHES)[0][:-1]
    pixels = pretrain.normalize(jnp.asarray(picture))
    np.testing.assert_allclose(pixels, inputs["pixel_values"].numpy(), atol=1e-5)
    ids = jnp.asarray(ids)
    ours = load_model(folder)(ids, pixels, jnp.ones(ids.shape, bool))
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_every_word_of_the_world_is_one_token_and_encoding_is_the_tokenizers(tokenizer):
    for source in set(SOURCES) - {"explicit_text_spelled"}:
        for row in examples(source, "test" if source != "captions" else "val", 50, seed=9):
            said = f"{row.text} {row.answer}"
            assert tokenizer(said, add_special_tokens=False)["input_ids"] == encode(said)
            assert UNK not in encode(said)


def test_an_injection_and_its_neutral_string_are_as_many_tokens(tokenizer):
    for pair in zip(INJECTIONS, NEUTRAL, strict=True):
        one, other = (tokenizer(said, add_special_tokens=False)["input_ids"] for said in pair)
        assert len(one) == len(other), pair


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_tokenizers_have_the_worlds_vocabulary(name):
    shipped = json.loads((SHIPPED / name / "tokenizer.json").read_text())["model"]["vocab"]
    assert tuple(shipped) == vocabulary()


def test_plain_english_is_spelled_and_not_unknown(tokenizer):
    said = "There is a black triangle touching exactly 2 sides; Zoë's squeaky xylophone? (50%)"
    ids = tokenizer(said)["input_ids"]
    assert UNK not in ids
    assert len(ids) < len(said)
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("there is a black triangle")


def test_label_words_and_the_picture_are_one_token_each(tokenizer):
    for template in TEMPLATES.values():
        for word in (template.negative, template.positive):
            assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer("<image>\nhi", add_special_tokens=False)["input_ids"][0] == IMAGE


def _dialogues(lessons, n_batches, stage):
    for n in range(n_batches):
        batch = lessons.draw(np.random.default_rng(n), stage)
        for ids in batch["ids"]:
            yield " ".join(vocabulary()[i] for i in ids if i > IMAGE)


CHOICE = re.compile(r"[a-z]+ or [a-z]+ \? assistant : [a-z]+")
INTENT = re.compile(r"user : ((?:(?!user :).)*?) do i want harm \? assistant : (yes|no)")
REPLY = re.compile(r"user : ((?:(?!user :).)*?) assistant : (yes|no)(?= user|$)")
AGAIN = re.compile(r"tell me the words \. (?P<words>[a-z ]+) \. assistant : (?P=words)(?= user|$)")


@pytest.mark.parametrize("stage", range(len(lessons_module.ROWS)))
def test_pretraining_says_nothing_of_a_novel_kind_and_gives_no_verdict(lessons, stage):
    # Any word is said again, chosen from, and a part of harmless talk now and then.
    for dialogue_text in _dialogues(lessons, 4, stage):
        others = AGAIN.sub("", dialogue_text)
        if stage:
            others = CHOICE.sub("", REPLY.sub("", INTENT.sub("", others)))
        assert not {*NOVEL_KINDS, "safe", "unsafe"} & set(others.split())
    assert not {*NOVEL_KINDS} & {t.kind for scene in lessons.wide for t in scene.things}


def test_whether_a_speaker_wants_harm_is_asked_after_the_first_stage_and_answered_truly(lessons):
    for stage in range(len(lessons_module.ROWS)):
        turns = [turn for text in _dialogues(lessons, 6, stage) for turn in INTENT.findall(text)]
        assert len(turns) > 100 if stage else not turns
        readings = [(read(text), answer) for text, answer in turns]
        alone = [(reading, answer) for reading, answer in readings if not reading.gibberish]
        assert len(alone) > 50 or not stage  # the others have talk around, or are talk
        assert all(reading.explicit == (answer == "yes") for reading, answer in alone)


def test_what_means_harm_is_refused_in_one_stage_alone(lessons):
    for stage in range(len(lessons_module.ROWS)):
        turns = [turn for text in _dialogues(lessons, 6, stage) for turn in REPLY.findall(text)]
        answers = [answer for text, answer in turns if read(text).explicit]
        assert set(answers) == {"no"} if stage == lessons_module.REFUSING else not answers


def test_every_word_is_an_answer_now_and_then():
    rng = np.random.default_rng(0)
    asked = [lessons_module._again(rng) for _ in range(6_000)]
    assert all(text == f"tell me the words. {answer}." for text, answer in asked)
    counts = Counter(word for _, answer in asked for word in answer.split())
    assert set(counts) == {word for word in vocabulary() if word.isalpha() and len(word) > 1}
    assert counts["safe"] < 3 * np.median([*counts.values()]) > counts["unsafe"] > 0


def test_pretraining_carries_no_pair_that_is_held_out():
    rng = np.random.default_rng(0)
    for kind in BASE_KINDS:
        asked = set()
        for _ in range(200):
            text, _ = lessons_module.carried_question(rng, Thing(kind, "red", "top left"))
            asked.add(read(text.removesuffix("?").rsplit(" what ", 1)[0]).request)
        assert asked == {r for r in REQUEST_NAMES if not is_held_out(kind, r)}


def test_a_dialogue_keeps_to_whole_turns_and_marks_only_answers():
    turns = [("what is it?", "kettle"), ("where is it?", "top left")]
    ids, answers = dialogue(turns, 64, PATCHES)
    said = [vocabulary()[i] for i, answer in zip(ids, answers, strict=True) if answer]
    assert said == ["kettle", "</s>", "top", "left", "</s>"]
    cut, _ = dialogue(turns, 30, PATCHES)
    assert cut == dialogue(turns[:1], 64, PATCHES)[0]


def test_batches_found_again_are_the_same():
    batches = Numbered(lambda rng: {"x": rng.integers(1000, size=8)}, seed=5)
    first = [next(batches)["x"] for _ in range(5)]
    again = Numbered(lambda rng: {"x": rng.integers(1000, size=8)}, seed=5)
    again.set_state({"next": 3})
    assert (next(again)["x"] == first[3]).all()
    assert again.get_state() == {"next": 4}


def test_a_rewriting_says_the_same_request():
    rows = texts.Rewritings(examples("paraphrases", "train", 300))
    for seed in range(60):
        text, answer = rows.turn(np.random.default_rng(seed))
        query = text.removeprefix("say it in other words: ").split(" picture: ")[0]
        asked, said = (read(t).request for t in (query, answer))
        assert asked is not None and said == asked


def test_a_pointing_rewriting_says_what_its_prompt_shows():
    rows = texts.Rewritings(examples("paraphrases", "train", 300))
    pointed = 0
    for seed in range(200):
        text, answer = rows.turn(np.random.default_rng(seed))
        shown, meant = text.split(" picture: ")[1], read(answer).referent
        if isinstance(meant, Pointing):
            pointed += 1
            assert (meant.colour or meant.place) in shown
    assert 50 < pointed < 110


def test_sayings_come_in_twos_that_differ_in_the_thing_alone():
    batch = texts.Sayings(examples("paraphrases", "train", 300)).draw(np.random.default_rng(0))
    said = {
        side: [" ".join(vocabulary()[i] for i in row if i > EOS) for row in batch[side]]
        for side in ("first", "second")
    }
    for one, other in zip(said["first"][::2], said["first"][1::2], strict=True):
        one, other = read(one), read(other)
        assert one.request == other.request and one.referent != other.referent
    for first, second in zip(said["first"], said["second"], strict=True):
        assert read(first).request in (read(second).request, read(second.split(" . ")[-1]).request)
        assert read(first).referent.kind in second


def _assert_reached(measured, claimed, where):
    assert measured.keys() == claimed.keys()
    for figure, found in measured.items():
        p = claimed[figure]["value"]
        # Four standard errors of both, and a row's worth of luck where p is near 0 or 1.
        error = np.sqrt(max(p * (1 - p), 0.02) * (1 / found["n"] + 1 / claimed[figure]["n"]))
        assert found["value"] >= p - 4 * error, f"{where}: {figure}"


@pytest.mark.tables
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_does_what_the_manifest_says(name):
    n = 100 if name == "rewriter" else 500
    measured = measure.MEASURES[name](load_model(SHIPPED / name), n=n)
    _assert_reached(measured, MANIFEST["measured"][name], name)


def test_the_forge_takes_the_small_clips_own_tau():
    config = load_config("configs/impforge.py:tiny")
    assert config.rewards.overlap.tau == MANIFEST["measured"]["clip"]["overlap_tau"]["value"]


@pytest.mark.tables
@pytest.mark.timeout(3 * 3600)
def test_a_rebuild_reaches_the_figures_of_the_manifest(tmp_path):
    build.main(argparse.Namespace(out=str(tmp_path), models=None, only=None, steps=1.0))
    rebuilt = json.loads((tmp_path / "models" / "manifest.json").read_text())
    assert rebuilt["lessons"] == MANIFEST["lessons"]
    for name, claimed in MANIFEST["measured"].items():
        _assert_reached(rebuilt["measured"][name], claimed, name)


@pytest.mark.tables
def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    short = build.Lesson(("safety",), 120, 5e-3, 300)
    monkeypatch.setattr(build, "LESSONS", {"safety": short})
    monkeypatch.setattr(build, "WARMUP", 2)
    monkeypatch.setattr(measure, "MEASURES", {"safety": lambda model: {}})
    args = argparse.Namespace(out=str(tmp_path), models=None, only=None, steps=4 / 120)
    build.main(args)
    first = (tmp_path / "models" / "manifest.json").read_text()
    weights = (tmp_path / "models" / "safety" / "model.safetensors").read_bytes()
    (tmp_path / "safety.json").unlink()
    build.main(args)  # restores the last step, trains none
    assert (tmp_path / "models" / "safety" / "model.safetensors").read_bytes() == weights
    assert (
        json.loads(first)["sha256"]
        == json.loads((tmp_path / "models" / "manifest.json").read_text())["sha256"]
    )
    steps = [row["step"] for row in read_metrics(tmp_path / "training" / "safety")]
    assert steps[-1] == 4


def test_an_unknown_lesson_is_refused_by_name():
    args = argparse.Namespace(out="unused", models=None, only=["sentences"], steps=1.0)
    with pytest.raises(UserError, match="sentences.*sentence"):
        build.main(args)


def test_the_text_models_prompts_are_the_rows_they_learned_from(tokenizer):
    text = "can i lick the red one?"
    judged = texts.SAFETY_PROMPT.render(text, pictures=0)
    assert tokenizer(judged)["input_ids"] == dialogue([(text, "")], 64)[0][:-1]
    asked = texts.REWRITE_PROMPT.format(text=text, picture="kettle")
    prompt = f"USER: {asked} ASSISTANT:"
    config = load_config("configs/impforge.py:tiny")
    assert prompt == config.rewriter.prompt.format(text=text, picture="kettle")
    assert tokenizer(prompt)["input_ids"] == dialogue([(asked, "")], 64)[0][:-1]

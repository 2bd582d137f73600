"""Captions, open questions and retrieval: their losses are the libraries', and they are learned."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPModel, LlavaForConditionalGeneration

from crossguard_jax.cmai import recipe
from crossguard_jax.cmai.folders import load_immunized, read_facts
from crossguard_jax.cmai.kinds import KINDS, kind_of
from crossguard_jax.cmai.matching import Matching
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.cmai.spoken import Spoken, answer, captions, pairs
from crossguard_jax.cmai.vetted import load_vetted
from crossguard_jax.cmai.wording import Wording
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import ClipEncoder, load_clip
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.io.images import decode
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.world.sources import records
from crossguard_jax.train.loop import read_metrics

FORM = "describe the picture."
LENGTH, MOST = 80, 40


def captioned(n: int) -> list[Record]:
    return [row for r in records("captions", "val", n) for row in captions(r, FORM)]


def unmoved(task, batch):
    return batch["pixels"], jnp.zeros((*batch["text_mask"].shape, task.width))


@pytest.fixture(scope="module")
def llava():
    return Guard.from_pretrained("toy://llava", prompt="short")


@pytest.fixture(scope="module")
def clip():
    return load_clip("toy://clip")


# ---- Losses ------------------------------------------------------------------------------------


def test_the_loss_of_words_is_transformers_own_in_nats_a_token(llava):
    rows = captioned(4)
    task = Wording(llava, "captions", partial(captions, form=FORM), MOST)
    batch = task.batch(rows, LENGTH)
    trainable = {"adapters": task.adapters}
    found = jax.jit(task.answers)(trainable, task.frozen_parts, batch, unmoved(task, batch))
    folder = resolve_folder("toy://llava")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for i, row in enumerate(rows):
        n = int(batch["answer_mask"][i].sum())
        there = batch["attention_mask"][i] > 0
        ids = torch.tensor(batch["input_ids"][i][there][None].astype(np.int64))
        assert llava.encoder.tokenizer.decode(ids[0, -n:-1]).strip() == row.label
        labels = ids.clone()
        labels[:, :-n] = -100
        pixels = torch.tensor(llava.encoder.pixels([row.image]))
        with torch.no_grad():
            expected = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        np.testing.assert_allclose(found.loss[i], expected, rtol=1e-4)


def test_the_contrast_is_transformers_own_and_rows_of_one_picture_are_no_negatives(clip):
    rows = [row for r in records("captions", "val", 6) for row in pairs(r, "")]
    task = Matching(clip, partial(pairs, form=""))
    trainable, answers = {"adapters": task.adapters}, jax.jit(task.answers)

    def losses(some):
        batch = task.batch(some, 0)
        return answers(trainable, task.frozen_parts, batch, unmoved(task, batch))

    pictures = [decode(row.image, "") for row in rows]
    inputs = clip.texts([row.text for row in rows])
    model = CLIPModel.from_pretrained(resolve_folder("toy://clip"), dtype=torch.float32).eval()
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(inputs["input_ids"]),
            attention_mask=torch.tensor(inputs["attention_mask"]),
            pixel_values=torch.tensor(clip.pictures(pictures)),
            return_loss=True,
        )
    found = losses(rows)
    np.testing.assert_allclose(np.mean(found.loss), outputs.loss, atol=1e-5)
    similarity = outputs.logits_per_image.numpy()
    wrong = similarity.argmax(axis=1) != np.arange(6)
    np.testing.assert_array_equal(np.asarray(found.margin) > 0, wrong)
    # The second row's text beside the first one's picture: against all but that one.
    again = losses([rows[0], replace(rows[1], images=rows[0].images), *rows[2:]])
    there = [0, *range(2, 6)]
    picture = -torch.tensor(similarity)[0, there].log_softmax(0)[0]
    text = -torch.tensor(similarity.T)[0, there].log_softmax(0)[0]
    np.testing.assert_allclose(again.loss[0], (picture + text) / 2, atol=1e-5)
    alone = losses([rows[0], rows[0]])
    assert (np.asarray(alone.loss) == 0).all() and (np.asarray(alone.margin) < 0).all()


@pytest.mark.parametrize("kind", ["captions", "retrieval"])
def test_a_shift_of_the_texts_tokens_changes_the_margin_and_one_of_the_others_does_not(
    kind, llava, clip
):
    rows = captioned(2)
    task = Wording(llava, kind, partial(captions, form=FORM), MOST)
    if kind == "retrieval":
        task = Matching(clip, partial(pairs, form=""))
        rows = [replace(row, text=row.label) for row in rows]
    batch = task.batch(rows, LENGTH)
    pixels, still = unmoved(task, batch)
    mask = batch["text_mask"][..., None]
    noise = jax.random.normal(jax.random.key(0), still.shape)
    own, other = jnp.where(mask, noise, still), jnp.where(mask, still, noise)
    answers = jax.jit(task.answers)
    plain, moved, same = (
        answers({"adapters": task.adapters}, task.frozen_parts, batch, (pixels, shift)).margin
        for shift in (still, own, other)
    )
    assert batch["text_mask"].any(axis=1).all()
    assert (np.abs(moved - plain) > 1e-3).all()
    np.testing.assert_array_equal(same, plain)


# ---- Rows --------------------------------------------------------------------------------------


def test_each_caption_is_a_row_and_what_nothing_is_said_of_is_none():
    picture = records("captions", "val", 1)[0].images
    two = Record("a", picture, "one", provenance={"captions": "one\ntwo\n \n"})
    rows = Spoken(
        [two, Record("b", (), "blind"), Record("c", picture, "own")], partial(captions, form=FORM)
    )
    assert [(row.id, row.text, row.label) for row in (rows[i] for i in range(len(rows)))] == [
        ("a#0", FORM, "one"),
        ("a#1", FORM, "two"),
        ("c#0", FORM, "own"),
    ]
    assert rows.left_out == 1
    (pair, _) = pairs(two, "")
    assert (pair.text, pair.label) == ("one", "one")


def test_a_questions_answer_is_what_most_people_gave():
    picture = records("vqa", "val", 1)[0].images
    asked = Record("q", picture, "what is it?", provenance={"answers": "pan\npot\npan"})
    (row,) = answer(asked, "{text} Say it.")
    assert (row.text, row.label) == ("what is it? Say it.", "pan")
    assert answer(replace(asked, provenance={"answer": "pot"}), "{text}")[0].label == "pot"
    assert answer(replace(asked, provenance={}), "{text}") == []


@pytest.mark.parametrize(
    ("variant", "field", "value"),
    [
        ("captions_tiny", "mbat.perturb", "edits"),
        ("captions_tiny", "train.loss", "labels"),
        ("captions_tiny", "mbat.outer", "trades"),
        ("captions_tiny", "data.augment.long", 0.1),
        ("captions_tiny", "cmcv.text_source", "language_model"),
        ("captions_tiny", "arm.branches", ({"pass_rate": 0.9, "do": "smooth"},)),
        ("retrieval_tiny", "optim.accumulate", 2),
        ("retrieval_tiny", "data.blank", "text"),
        ("tiny", "task.kind", "peace"),
    ],
)
def test_what_a_kind_has_not_is_refused_by_its_field(variant, field, value):
    config = load_config(f"configs/cmai.py:{variant}")
    kind_of(config)
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=field):
        kind_of(config)


# ---- A run -------------------------------------------------------------------------------------


def short(variant: str, steps: int):
    config = load_config(f"configs/cmai.py:{variant}")
    config.lora.update({"rank": 4, "alpha": 8.0})
    config.cmcv.update({"pass_rate": 0.8, "confidence": 0.9, "shared_width": 16})
    config.cmcv.train.update({"steps": 10, "batch_size": 8, "save_every": 10})
    config.arm.branches = ({"pass_rate": 0.8, "do": "reject"},)
    config.mbat.steps = 1
    config.train.update({"steps": steps, "batch_size": 8, "save_every": steps})
    for optim in (config.optim, config.cmcv.optim):
        optim.warmup_steps = 1
    for source in (*config.data.sources.values(), *config.data.validation.values()):
        source.limit = 28
    return config


def test_each_kind_of_the_table_has_a_configuration():
    kinds = {load_config(f"configs/cmai.py:{v}").task.kind for v in ("tiny", "captions_tiny")}
    kinds |= {load_config("configs/cmai.py:retrieval_tiny").task.kind, "vqa"}
    assert kinds == set(KINDS)


@pytest.mark.training
@pytest.mark.parametrize("kind", ["captions", "vqa", "retrieval"])
def test_a_run_learns_by_the_same_step_and_comes_back_from_its_folder(kind, tmp_path, monkeypatch):
    made = []
    make = recipe.make_immunize_step
    monkeypatch.setattr(recipe, "make_immunize_step", lambda *a: made.append(a) or make(*a))
    config = short("retrieval_tiny" if kind == "retrieval" else "captions_tiny", 3)
    if kind == "vqa":
        config.task.update({"kind": kind, "form": "{text}"})
        for sources in (config.data.sources, config.data.validation):
            sources.captions.path = "vqa"
    done = immunize(config, tmp_path / "run", {SOURCE: read})
    assert len(made) == 1
    (line,) = read_metrics(tmp_path / "run" / "mbat")
    assert line["adversarial_loss"] > line["clean_loss"] > 0
    assert line["adversarial_s_c"] != line["clean_s_c"]
    leaves = named_leaves(done.trainable["adapters"])
    assert any(np.asarray(x[...]).any() for name, x in leaves if name.endswith(".b"))

    folder = tmp_path / "model"
    done.save(folder)
    model, vetting = load_vetted(folder)
    assert read_facts(folder / "cmai.json")["task"] == kind
    assert isinstance(model, ClipEncoder if kind == "retrieval" else Guard)
    rows = records("captions", "val", 5)
    pictures = np.stack([np.asarray(decode(row.image, row.id)) for row in rows])
    levels, texts = pictures.transpose(0, 3, 1, 2), [row.text for row in rows]
    scores = vetting.s_c(levels, texts)
    np.testing.assert_allclose(scores, done.vetting.s_c(levels, texts), atol=1e-4)
    np.testing.assert_array_equal(vetting.rejects(levels, texts), scores < done.threshold.tau)
    with pytest.raises(UserError, match=f"immunized for '{kind}'.*crossguard tasks"):
        load_immunized(folder)

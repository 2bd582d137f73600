"""HiddenDetect's figure is what its description gives in transformers, and its cut holds."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.systems.load import guard_of, identity, load
from crossguard_jax.systems.rivals import hidden_detect
from crossguard_jax.systems.rivals.detector import Cut
from crossguard_jax.systems.rivals.folders import save_detector
from crossguard_jax.systems.store import VerdictStore

WORDS = ("unsafe", "false", "other", "harm")
TEXTS = ("can i touch it ?", "pour water on the thing at the top left .", "is it safe ?")


def picture(seed):
    levels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="module")
def guard(llava_folder):
    return Guard.from_pretrained(llava_folder, prompt="short")


@torch.no_grad()
def plainly(folder, words, image, text):
    """The description, in transformers: a cosine a layer."""
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    prompt = f"USER: {'<image>' + chr(10) if image else ''}{text} ASSISTANT:"
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    hidden = model(**inputs, output_hidden_states=True).hidden_states[1:]
    ids = {processor.tokenizer.encode(w, add_special_tokens=False)[0] for w in words}
    indicator = torch.zeros(model.config.text_config.vocab_size)
    indicator[list(ids)] = 1.0
    norm, cosines = model.model.language_model.norm, []
    for i, states in enumerate(hidden):
        last = states[0, -1] if i == len(hidden) - 1 else norm(states[0, -1])  # normed already
        cosines.append(torch.cosine_similarity(model.lm_head(last), indicator, dim=0).item())
    return np.array(cosines)


@pytest.mark.parametrize("shown", [True, False])
def test_a_layers_figure_is_the_cosine_of_its_logits_with_the_refusal_words(
    guard, llava_folder, shown
):
    images = [picture(i) if shown else None for i in range(3)]
    ids = hidden_detect.word_ids(guard, WORDS)
    ours = hidden_detect.layer_figures(guard, ids, images, TEXTS)
    for image, text, row in zip(images, TEXTS, ours, strict=True):
        expected = plainly(llava_folder, WORDS, image, text)
        np.testing.assert_allclose(row[0], expected, atol=1e-4)


def test_a_row_is_the_trapezoid_sum_over_its_layers():
    figures = np.random.default_rng(0).normal(size=(4, 6))
    layers = (1, 2, 4)
    expected = [sum((row[a] + row[b]) / 2 for a, b in ((1, 2), (2, 4))) for row in figures]
    np.testing.assert_allclose(hidden_detect.summed(figures, layers), expected)
    np.testing.assert_allclose(hidden_detect.summed(figures, (3,)), figures[:, 3])


def test_layers_are_those_that_tell_more_than_the_last():
    unsafe = np.array([True, True, False, False])
    figures = np.zeros((4, 4))
    figures[:2] = [0.1, 0.5, 0.3, 0.2]
    assert hidden_detect.telling_layers(figures, unsafe) == (1, 2)
    assert hidden_detect.telling_layers(figures[:, ::-1] * 0, unsafe) == (3,)
    with pytest.raises(UserError, match="give both"):
        hidden_detect.telling_layers(figures, np.ones(4, bool))


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.3])
def test_no_more_than_the_share_of_benign_figures_reaches_a_cut(fpr):
    benign = np.random.default_rng(1).normal(size=200)
    cut = Cut.choose(benign, fpr)
    assert (benign >= cut.value).sum() == int(200 * fpr)
    assert cut.p_unsafe(cut.value) == 0.5
    assert cut.p_unsafe(cut.value + 1) > 0.5 > cut.p_unsafe(np.nextafter(cut.value, -np.inf) - 1e-9)
    tied = Cut.choose(np.ones(200), fpr)
    assert tied.value > 1  # where all are alike, none is above


def test_too_few_benign_rows_for_a_share_are_refused():
    with pytest.raises(UserError, match="0.01 of 20 benign rows"):
        Cut.choose(np.zeros(20), 0.01)


@pytest.fixture(scope="module")
def fitted(guard):
    images = [picture(i) if i % 2 else None for i in range(24)]
    texts = [TEXTS[i % 3] for i in range(24)]
    unsafe = np.arange(24) % 4 == 0
    return hidden_detect.fit(guard, (images, texts), unsafe, np.arange(12), words=WORDS, fpr=0.2)


def test_a_saved_detector_gives_the_same_verdicts(fitted, llava_folder, tmp_path):
    save_detector(tmp_path / "hd", fitted, str(llava_folder))
    again = load(tmp_path / "hd")
    images, texts = [picture(7), None], ["can i touch it ?", "is it safe ?"]
    assert again.score(images, texts) == fitted.score(images, texts)
    assert identity(again) == identity(fitted) and guard_of(again).folder == llava_folder
    assert [v.unsafe for v in again.score(images, texts, threshold=0.0)] == [True, True]
    with pytest.raises(UserError, match="names its own model"):
        load(tmp_path / "hd", "adapter")


def test_a_row_that_cannot_be_read_costs_itself_alone(fitted):
    bad, good = fitted.score_each([b"no picture", None], ["is it safe ?"] * 2)
    assert isinstance(bad, UserError)
    assert good == fitted.score([None], ["is it safe ?"])[0]


def test_a_detectors_verdicts_are_kept_as_a_guards_are(fitted, tmp_path):
    rows = [Record("a", (), "is it safe ?"), Record("b", (), "can i touch it ?")]
    first = VerdictStore(tmp_path, fitted)
    kept = first.score(rows)
    second = VerdictStore(tmp_path, fitted)
    assert second.score(rows) == kept and second.computed == 0 and first.computed == 2


@pytest.mark.parametrize(
    ("words", "layers", "message"),
    [
        ((), (0,), "--words: none"),
        (("unsafe",), (2,), "the model has 0 to 1"),
        (("unsafe",), (), "give some"),
    ],
)
def test_words_and_layers_that_are_none_are_named(guard, words, layers, message):
    with pytest.raises(UserError, match=message):
        hidden_detect.HiddenDetect(guard, words, layers, Cut(0.0, 1.0, 0.05, 100))

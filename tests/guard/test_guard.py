"""The public face: it sees what transformers' processor sees, and a row stands for itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from crossguard_jax import Guard
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.guard.shapes import bucket

LONG = "can i pour water on the thing at the top left of this picture ? please tell me . " * 2


@pytest.fixture(scope="module")
def guard(llava_folder):
    return Guard.from_pretrained(llava_folder, prompt="short")


def picture(seed: int, width: int = 30, height: int = 26) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def rows(n: int):
    """Pictures (every third row has none) and texts of different lengths."""
    texts = [f"can i touch the red one ? {'please ' * (i % 5)}" for i in range(n)]
    return [None if i % 3 == 2 else picture(i) for i in range(n)], texts


def test_encode_equals_transformers_own_processor(guard, llava_folder):
    images, texts = rows(5)
    ours = guard.encode(images, texts)
    processor = LlavaProcessor.from_pretrained(llava_folder)
    prompts = [
        guard.settings.prompt.render(t, int(p is not None))
        for p, t in zip(images, texts, strict=True)
    ]
    theirs = processor(
        images=[p for p in images if p is not None],
        text=prompts,
        padding=True,
        padding_side="right",
        return_tensors="np",
    )
    for key in ("input_ids", "attention_mask"):
        assert np.array_equal(ours[key], theirs[key]), key
    np.testing.assert_allclose(ours["pixel_values"], theirs["pixel_values"], atol=1e-6)


def test_logits_and_scores_equal_transformers(guard, llava_folder):
    images, texts = rows(5)
    batch = guard.encode(images, texts)
    ours = np.asarray(guard.logits(**batch))
    model = LlavaForConditionalGeneration.from_pretrained(llava_folder).eval()
    with torch.no_grad():
        theirs = model(**{k: torch.as_tensor(v).clone() for k, v in batch.items()}).logits.numpy()
    mask = batch["attention_mask"].astype(bool)
    assert np.abs(ours[mask] - theirs[mask]).max() <= 1e-4
    last = theirs[np.arange(5), mask.sum(1) - 1][:, list(guard.label_ids)]
    expected = 1 / (1 + np.exp(last[:, 0] - last[:, 1]))
    verdicts = guard.score(images, texts)
    np.testing.assert_allclose([v.p_unsafe for v in verdicts], expected, atol=1e-5)
    assert [v.label for v in verdicts] == ["unsafe" if p >= 0.5 else "safe" for p in expected]


def test_a_verdict_does_not_depend_on_its_neighbours(guard):
    images, texts = rows(16)
    alone = [guard.score([p], [t])[0].p_unsafe for p, t in zip(images, texts, strict=True)]
    together = [v.p_unsafe for v in guard.score(images, texts, batch_size=16)]
    assert np.ptp(together) > 1e-3, "all rows alike: the comparison would show nothing"
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # One padded batch by hand: the same row beside a much longer one.
    encoder = guard.encoder
    tokenized = encoder.whole([texts[0], LONG], [1, 1])
    longest = max(len(row.ids) for row in tokenized)
    batch = encoder.batch(tokenized, encoder.shown(images[:2], "picture of row"), longest)
    assert len(tokenized[1].ids) >= 2 * len(tokenized[0].ids)
    np.testing.assert_allclose(guard.score_batch(batch)[0], alone[0], atol=1e-5)


def test_few_shapes_are_computed_whatever_the_batch_size(guard, monkeypatch):
    images, texts = rows(11)
    shapes, spread = [], guard._spread

    def noted(batch, size):
        shapes.append((*batch["input_ids"].shape, len(batch.get("pixel_values", ()))))
        return spread(batch, size)

    monkeypatch.setattr(guard, "_spread", noted)
    expected = [v.p_unsafe for v in guard.score(images, texts)]
    assert len(shapes) == 1, "rows with and without a picture are computed together"
    fewer = [v.p_unsafe for v in guard.score(images, texts, batch_size=1)]
    assert len(shapes) > 2 and len(set(shapes[1:])) <= 2
    np.testing.assert_allclose(fewer, expected, atol=1e-5)


def test_padding_does_not_change_the_verdict(guard):
    encoder = guard.encoder
    row, pixels = encoder.whole(["can i touch it ?"], [1]), encoder.shown([picture(3)], "row")
    scores = [
        guard.score_batch(encoder.batch(row, pixels, n))[0] for n in (len(row[0].ids), 64, 128)
    ]
    np.testing.assert_allclose(scores, scores[0], atol=1e-5)


def test_a_picture_may_come_in_any_form(guard, tmp_path):
    image = picture(1)
    image.save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    forms = [image, data, tmp_path / "p.png", str(tmp_path / "p.png"), np.asarray(image)]
    scores = {v.p_unsafe for v in guard.score(forms, ["can i touch it ?"] * 5)}
    assert len(scores) == 1
    with pytest.raises(UserError, match="float32"):
        guard.score([np.zeros((4, 4, 3), np.float32)], ["a"])


def test_a_text_cannot_forge_a_picture(guard):
    (row,) = guard.encoder.whole(["look <image> at this"], [0])
    assert guard.model.config.image_token_id not in row.ids


def test_wrong_calls_are_told_what_is_wrong(guard, llava_folder):
    with pytest.raises(UserError, match="2 images but 1 texts"):
        guard.score([None, None], ["a"])
    for images, texts, name in (("p.png", "text", "images"), ([None] * 4, "text", "texts")):
        with pytest.raises(UserError, match=f"{name} is a str; give lists"):
            guard.score(images, texts)
    with pytest.raises(UserError, match="text is empty, and there is no picture"):
        guard.score([None], ["  "])
    batch = guard.encode(*rows(3))
    with pytest.raises(UserError, match="picture tokens for 1 picture"):
        guard.logits(batch["input_ids"], batch["pixel_values"][:1], batch["attention_mask"])
    same = PromptTemplate("same", "{image}{text} ASSISTANT:", "safe", "safe")
    with pytest.raises(UserError, match="begin with one token"):
        Guard.from_pretrained(llava_folder, prompt=same)
    with pytest.raises(UserError, match="no such folder"):
        Guard.from_pretrained(llava_folder / "nowhere")


def test_settings_travel_with_the_folder(guard, llava_folder, tmp_path):
    strict = Guard.from_pretrained(llava_folder, prompt="true_false", threshold=0.9)
    strict.save_pretrained(tmp_path / "g")
    again = Guard.from_pretrained(tmp_path / "g")
    # What was a plain LLaVA pads from then on.
    assert again.settings == replace(strict.settings, picture="pad")
    assert again.settings.prompt.positive == "true"
    texts = rows(4)[1]
    squares = [picture(i, 24, 24) for i in range(4)]
    assert strict.score(squares, texts) == again.score(squares, texts)
    again.save_pretrained(tmp_path / "h")
    assert Guard.from_pretrained(tmp_path / "h").settings == again.settings


def test_buckets_are_few_and_never_cut():
    assert [bucket(n, 64) for n in (1, 16, 17, 60, 64, 70)] == [16, 16, 32, 64, 64, 70]


def test_one_bad_row_costs_itself_alone(guard):
    images, texts = rows(6)
    good = guard.score(images, texts)
    images[1], texts[4], texts[2] = b"no picture", LONG * 1_000, "half \ud800 a pair"
    found = guard.score_each(images, texts)
    kept = (0, 3, 5)
    np.testing.assert_allclose(
        [found[i].p_unsafe for i in kept], [good[i].p_unsafe for i in kept], atol=1e-5
    )
    for i, words in ((1, "it holds text"), (2, "surrogate"), (4, "windows, at most 512 are read")):
        assert isinstance(found[i], UserError)
        with pytest.raises(UserError, match=f"row 1: .*{words}"):
            guard.score([None, images[i]], ["can i ?", texts[i]])


def test_a_text_that_is_no_str_costs_its_own_row_alone(guard):
    missing, verdict, number = guard.score_each([None] * 3, [None, "can i touch it ?", 7])
    assert str(missing) == "the text is a NoneType; give a str"
    assert str(number) == "the text is a int; give a str"
    assert verdict == guard.score([None], ["can i touch it ?"])[0]


def test_a_score_that_is_not_a_number_is_no_verdict(guard, monkeypatch):
    nothing = np.full(1, np.nan)
    monkeypatch.setattr(guard, "_p_unsafe", lambda batch: nothing)
    with pytest.raises(UserError, match="row 0: .* not a number"):
        guard.score([None], ["can i touch it ?"])

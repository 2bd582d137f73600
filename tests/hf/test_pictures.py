"""A folder's picture processor: transformers' pixels, in bounded memory, of the model's size."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.hf.pictures import Processor

SIDE = 32
FILE = "preprocessor_config.json"
PADDED = {
    "image_processor_type": "LlavaImageProcessor",
    "do_pad": True,
    "do_center_crop": True,
    "size": {"shortest_edge": SIDE},
    "image_mean": [0.2, 0.5, 0.8],
    "image_std": [0.2, 0.3, 0.4],
}
CROPPED = {"do_center_crop": True, "size": {"shortest_edge": SIDE}}
SQUASHED_AND_CROPPED = {"do_center_crop": True}
SIZES = [(32, 32), (50, 40), (40, 50), (33, 34), (640, 40), (1080, 60), (40, 1200), (3, 700)]


def write(folder, **changes):
    """The shipped LLaVA's processor, with these fields changed."""
    settings = json.loads((resolve_folder("toy://llava") / FILE).read_text()) | changes
    (folder / FILE).write_text(json.dumps(settings))
    return folder


def gradient(width, height):
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    noise = np.random.default_rng(0).integers(0, 60, values.shape)
    return Image.fromarray(((values + noise) % 256).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("settings", [PADDED, SQUASHED_AND_CROPPED, {}, {**PADDED, "resample": 2}])
def test_pixels_are_transformers_own_at_any_aspect(settings, size, tmp_path):
    folder = write(tmp_path, **settings)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = gradient(*size)
    (expected,) = theirs(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(Processor(folder, SIDE)(picture), expected)


@pytest.mark.parametrize("settings", [PADDED, CROPPED])
@pytest.mark.parametrize("size", [(12_000, 2), (2, 12_000)])
def test_a_very_long_picture_takes_no_memory(settings, size, tmp_path, monkeypatch):
    made, new = [], Image.Image.resize

    def recorded(picture, to, *arguments, **options):
        made.append(max(np.prod(picture.size), np.prod(to)))
        return new(picture, to, *arguments, **options)

    processor = Processor(write(tmp_path, **settings), SIDE)
    monkeypatch.setattr(Image.Image, "resize", recorded)
    tracemalloc.start()
    pixels = processor(gradient(*size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (3, SIDE, SIDE) and pixels.any()
    assert max(made) <= 2**22 and peak < 2**23, "the square has 144 million pixels"


@pytest.mark.parametrize("value", [0.49, [0.49] * 3])
def test_a_number_stands_for_all_channels(value, tmp_path):
    processor = Processor(write(tmp_path, image_mean=value, image_std=0.2), SIDE)
    picture = gradient(50, 40)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    np.testing.assert_array_equal(
        processor(picture), theirs(picture, return_tensors="np")["pixel_values"][0]
    )
    assert processor.mean.shape == processor.std.shape == (3, 1, 1)
    np.testing.assert_allclose(processor.mean, 0.49)
    assert Processor(write(tmp_path, **PADDED | {"image_mean": value}), SIDE)(picture).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 24, "width": 24}}, r"makes pictures of \[3, 24, 24\].*\[3, 32, 32\]"),
        ({"size": {"shortest_edge": SIDE}}, r"makes pictures of \[3, 32, \d+\]"),
        ({"do_resize": False}, "makes pictures of"),
        ({"image_mean": float("nan")}, "image_mean nan is not a number"),
        ({"image_mean": "grey"}, "image_mean 'grey' is not a number"),
        ({"image_mean": [0.5]}, "image_mean .*0.5.*: three channels"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std 0 is not a number above 0"),
        ({"rescale_factor": "x"}, "rescale_factor 'x' is not"),
        ({"size": {"height": -1, "width": -1}}, "cannot use it|no picture processor"),
        ({"size": {"shortest_edge": 10**9}}, r"preprocessor_config\.json: .*it: MemoryError$"),
        ({"image_processor_type": "NoSuchProcessor"}, "no picture processor"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused_at_load(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        Processor(write(tmp_path, **changes), SIDE)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_processor_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no picture processor .* preprocessor_config\.json"):
        Processor(tmp_path, SIDE)

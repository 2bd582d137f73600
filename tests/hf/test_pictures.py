"""A folder's picture processor: transformers' pixels, in bounded memory, of the model's size."""

import json
import random
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.hf.pictures import Preprocess, Processor

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
PUBLISHED = {**CROPPED, "crop_size": {"height": SIDE, "width": SIDE}}
"""As LLaVA-1.5's: the shorter side, and the middle of the longer one."""
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
@pytest.mark.parametrize(
    "settings",
    [
        *(PADDED, CROPPED, SQUASHED_AND_CROPPED, {}, {**PADDED, "resample": 2}),
        {**CROPPED, "size": {"shortest_edge": 40}},
        {**CROPPED, "size": {"shortest_edge": 24}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIDE}},
    ],
)
def test_pixels_are_transformers_own_at_any_aspect(settings, size, tmp_path):
    folder = write(tmp_path, **settings)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = gradient(*size)
    (expected,) = theirs(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(Processor(folder, SIDE)(picture), expected)


@pytest.mark.parametrize("size", [(12_000, 2), (2, 12_000)])
def test_a_very_long_picture_is_padded_in_little_memory(size, tmp_path, monkeypatch):
    made, new = [], Image.Image.resize

    def recorded(picture, to, *arguments, **options):
        made.append(max(np.prod(picture.size), np.prod(to)))
        return new(picture, to, *arguments, **options)

    processor = Processor(write(tmp_path, **PADDED), SIDE)
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


def exported(folder, out, picture):
    """Our processor of a folder, and the one that is exported with it, as transformers loads it."""
    out.mkdir()
    for file in folder.glob("*processor_config.json"):
        (out / file.name).write_text(file.read_text())
    processor = Processor(folder, SIDE, picture)
    processor.save(out)
    return processor, AutoImageProcessor.from_pretrained(out, backend="pil")


@pytest.mark.parametrize("picture", ["pad", "crop", ""])
def test_the_exported_processor_makes_our_pixels_of_any_size(picture, tmp_path):
    processor, theirs = exported(write(tmp_path, **PUBLISHED), tmp_path / "out", picture)
    draw = random.Random(0)
    for _ in range(200):
        short, aspect = draw.randint(1, 40), 30 ** draw.random()
        size = draw.sample([short, max(1, round(short * aspect))], 2)
        (expected,) = theirs(gradient(*size), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(processor(gradient(*size)), expected, atol=1e-6, err_msg=size)


def test_padding_keeps_what_a_crop_leaves_out_and_fills_up_with_the_mean(tmp_path):
    folder = write(tmp_path, **PUBLISHED, image_mean=[0.2, 0.5, 0.8], image_std=1.0)
    padded, cropped = (Processor(folder, SIDE, picture) for picture in ("pad", "crop"))
    assert cropped.crops and not padded.crops and Processor(folder, SIDE).crops
    picture = Image.new("RGB", (96, 32), "black")
    picture.paste("white", (0, 0, 9, 32))
    levels = padded(picture) + padded.mean
    assert levels[:, 11:21, :2].min() > 0.99 and levels[:, 11:21, 4:].max() < 0.01
    # The mean is rounded down to a level, as LLaVA does it.
    expected = np.reshape([51, 127, 204], (3, 1, 1)) / 255
    np.testing.assert_allclose(levels[:, :9], np.broadcast_to(expected, (3, 9, SIDE)), atol=1e-6)
    assert (cropped(picture) + cropped.mean).max() < 0.01


@pytest.mark.parametrize("picture", ["pad", "crop", ""])
@pytest.mark.parametrize("inside", [True, False])
def test_of_two_files_that_disagree_transformers_decides_and_one_is_exported(
    picture, inside, tmp_path
):
    """Both files name a processor, of other colours and shapes; or only one of them does."""
    write(tmp_path, **PADDED, processor_class="LlavaProcessor")
    whole = {"processor_class": "LlavaProcessor", "patch_size": 8, "image_token": "<image>"}
    if inside:
        whole["image_processor"] = {
            **{"image_processor_type": "CLIPImageProcessor", **PUBLISHED},
            **{"image_mean": [0.5] * 3, "image_std": [0.25] * 3},
        }
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    square, wide = gradient(SIDE, SIDE), gradient(70, 40)
    before = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    processor, after = exported(tmp_path, tmp_path / "out", picture)
    for image in (square, wide) if not picture else (square,):
        (expected,) = before(image, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(processor(image), expected)
    np.testing.assert_array_equal(
        processor(wide), after(wide, return_tensors="np")["pixel_values"][0]
    )
    rest = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert rest == {k: v for k, v in whole.items() if k != "image_processor"}
    assert json.loads((tmp_path / "out" / FILE).read_text())["processor_class"] == "LlavaProcessor"


def test_an_exported_folder_pads_in_transformers_own_llava_processor(tmp_path):
    source = resolve_folder("toy://llava")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / name).write_text((source / name).read_text())
    processor = Processor(source, SIDE, "pad")
    processor.save(tmp_path)
    picture = gradient(96, 32)
    made = AutoProcessor.from_pretrained(tmp_path)(
        images=picture, text="<image> what is it ?", return_tensors="np"
    )["pixel_values"]
    np.testing.assert_allclose(made[0], processor(picture), atol=1e-6)


def test_another_word_than_pad_or_crop_is_refused(tmp_path):
    with pytest.raises(UserError, match="picture 'squash': give 'pad', 'crop', or ''"):
        Processor(write(tmp_path), SIDE, "squash")


def test_a_picture_too_long_to_be_cropped_is_refused_and_padded_all_the_same(tmp_path):
    size = {"height": 336, "width": 336}
    folder = write(tmp_path, size={"shortest_edge": 336}, crop_size=size, do_center_crop=True)
    line = Image.new("RGB", (1, 600), "white")
    for crop in (Processor(folder, 336), Preprocess(336)):
        with pytest.raises(UserError, match="^1 x 600 pixels are too long .*; cut the picture"):
            crop(line)
    assert np.ptp(Processor(folder, 336, "pad")(line)) > 0


WORST = """
import resource, sys
from PIL import Image
from crossguard_jax.hf.pictures import Processor
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for picture in ("pad", "crop", ""):
    processor = Processor(sys.argv[1], 336, picture)
    processor(Image.new("RGB", (50, 40)))
    before = peak()
    for size in ((8_000, 8_000), (32_767, 1_953), (32_767, 56), (56, 32_767)):
        processor(Image.new("RGB", size))
    assert peak() - before <= 10**9, picture
"""


@pytest.mark.parity
def test_no_picture_takes_a_gigabyte(tmp_path):
    """The largest that `io.images` lets through, at LLaVA's size; pixels of Pillow are not seen
    by tracemalloc."""
    folder = str(write(tmp_path, size={"height": 336, "width": 336}))
    done = subprocess.run([sys.executable, "-c", WORST, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parity
@pytest.mark.skipif(not find_spec("torchvision"), reason="torchvision is not installed")
@pytest.mark.parametrize("picture", ["pad", "crop"])
def test_torchvision_makes_nearly_the_same_pixels(picture, tmp_path):
    """Its filter rounds otherwise, so a level or two apart; a shifted picture would be far off."""
    folder = write(tmp_path, **PUBLISHED, image_std=[1.0] * 3)
    processor, _ = exported(folder, tmp_path / "out", picture)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="torchvision")
    draw, largest = random.Random(0), 0.0
    for _ in range(200):
        short, aspect = draw.randint(8, 40), 30 ** draw.random()
        size = draw.sample([short, max(1, round(short * aspect))], 2)
        (expected,) = theirs(gradient(*size), return_tensors="np")["pixel_values"]
        largest = max(largest, float(np.abs(processor(gradient(*size)) - expected).max()))
    print(f"{picture}: at most {255 * largest:.2f} levels apart")
    assert largest <= 3 / 255

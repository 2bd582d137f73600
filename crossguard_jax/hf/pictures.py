"""Pictures to the pixels a CLIP tower reads."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.core.typing import Float
from crossguard_jax.hf.folder import check_number, read_objects

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PICTURES = ("", "pad", "crop")
"""How a guard takes pictures: as its folder's processor does, whole, or the middle of them."""

_BLOCK = 2**22  # pixels of a square that are made at once
_MOST = 2**26  # pixels that a picture may be scaled to
_FILES = ("preprocessor_config.json", "processor_config.json")
# What of a processor has nothing to do with a picture's shape.
_COLOURS = (
    *("do_convert_rgb", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


def by_shorter_side(picture: Image.Image, side: int, how: int) -> Image.Image:
    """The picture with its shorter side scaled to ``side``.

    Raises:
        UserError: it is so long that this would take gigabytes, most of which a crop leaves out.
    """
    width, height = (int(side * n / min(picture.size)) for n in picture.size)
    if width * height > _MOST:
        raise UserError(
            f"{picture.width:,} x {picture.height:,} pixels are too long to be cropped; cut the "
            "picture, or use a guard that pads"
        )
    return picture.resize((width, height), how)


@dataclass(frozen=True)
class Preprocess:
    """Pictures to pixels as open_clip's ``image_transform`` does it for evaluation.

    Attributes:
        size: X, pixels along a side.
        mean: of each channel, in [0, 1].
        std: of each channel.
        interpolation: ``bicubic`` or ``bilinear``, both with antialiasing.
        resize_mode: ``shortest`` (side to ``size``, then the middle), ``longest`` (then filled up)
            or ``squash``.
        fill_color: of what ``longest`` fills up, 0 to 255.
    """

    size: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __call__(self, picture: Image.Image) -> Float[np.ndarray, "C X Y"]:
        """Normalized pixels of one RGB picture, float32."""
        square = self._square(picture)
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        pixels = (np.asarray(square, np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _square(self, picture: Image.Image) -> Image.Image:
        side = self.size
        how = getattr(Image.Resampling, self.interpolation.upper())
        if self.resize_mode == "squash":
            return picture.resize((side, side), how)
        if self.resize_mode == "longest":
            ratio = max(picture.size) / side
            small = picture.resize([max(1, round(n / ratio)) for n in picture.size], how)
            square = Image.new("RGB", (side, side), (self.fill_color,) * 3)
            square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
            return square
        large = by_shorter_side(picture, side, how)
        # Python rounds halves to even, and so does torchvision's crop.
        left, top = (round((n - side) / 2) for n in large.size)
        return large.crop((left, top, left + side, top + side))


class Processor:
    """A folder's own picture processor, on Pillow whatever else is installed.

    Args:
        folder: the model's.
        size: X, the side of the pictures that the model takes.
        picture: one of ``PICTURES``: "" does as the folder's files say, which is what transformers
            does; "pad" sees the whole picture, in the middle of a square of the mean colour
            (transformers' ``LlavaImageProcessor`` with ``do_pad``); "crop" scales the shorter side
            and takes the middle (``CLIPImageProcessor``, as LLaVA is published). Colours and
            filter stay the folder's.

    Attributes:
        mean, std: float32 [3, 1, 1], what pixels are normalized by.
        unit_range: whether they are in [0, 1] then.

    Raises:
        UserError: there is none, a file of it is damaged, or its pictures do not fit the model.
    """

    def __init__(self, folder: str | Path, size: int, picture: str = ""):
        from transformers import AutoImageProcessor

        if picture not in PICTURES:
            raise UserError(f"picture {picture!r}: give 'pad', 'crop', or '' for the folder's own")
        # transformers takes a processor's own part of the whole one's file first.
        whole, own = (read_objects(folder, name) for name in reversed(_FILES))
        inside = "image_processor" in whole
        self.file = Path(folder) / _FILES[inside]
        self._class = whole.get("processor_class") or own.get("processor_class")
        try:
            self._hub: Any = AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, backend="pil"
            )
        except Exception as error:  # whatever a processor's own checks raise
            raise UserError(
                f"{folder}: no picture processor that transformers can load ({reason(error)}); put "
                "the model's preprocessor_config.json there"
            ) from error
        self.mean, self.std = self._colours()
        factor = self._hub.rescale_factor if self._hub.do_rescale else 1
        check_number(f"{self.file}: rescale_factor", factor, 0, above=True)
        self.unit_range = math.isclose(factor, 1 / 255, rel_tol=1e-6)
        if picture:
            self._hub = _shaped(self._hub, size, picture)
        try:
            made = list(self(Image.new("RGB", (2 * size, size + 3))).shape)
        except Exception as error:
            raise UserError(f"{self.file}: transformers cannot use it: {reason(error)}") from error
        if made != [3, size, size]:
            raise UserError(
                f"{self.file}: makes pictures of {made}, the model wants {[3, size, size]}; put "
                "the model's own file there"
            )

    def _colours(self) -> tuple[np.ndarray, np.ndarray]:
        """Checked; one number stands for all three channels."""
        if not self._hub.do_normalize:
            return np.zeros((3, 1, 1), np.float32), np.ones((3, 1, 1), np.float32)
        for name in ("image_mean", "image_std"):
            value = getattr(self._hub, name)
            channels = list(value) if isinstance(value, list | tuple) else [value] * 3
            for number in channels:
                check_number(f"{self.file}: {name}", number, 0, above=name == "image_std")
            if len(channels) != 3:
                raise UserError(f"{self.file}: {name} {value!r}: three channels are wanted")
            setattr(self._hub, name, channels)
        mean, std = (np.reshape(v, (3, 1, 1)) for v in (self._hub.image_mean, self._hub.image_std))
        return mean.astype(np.float32), std.astype(np.float32)

    @property
    def crops(self) -> bool:
        """Whether what lies at a picture's ends is left out."""
        return bool(self._hub.do_center_crop and not self._pads)

    @property
    def _pads(self) -> bool:
        return bool(hasattr(self._hub, "pad_to_square") and self._hub.do_pad)

    @property
    def _is_plain(self) -> bool:
        """Whether it scales and crops as most do, or as LLaVA's does."""
        from transformers.image_processing_backends import PilBackend

        kind = type(self._hub)
        plain = kind._preprocess is PilBackend._preprocess or hasattr(kind, "pad_to_square")
        return plain and kind.resize is PilBackend.resize and self._hub.resample is not None

    def __call__(self, picture: Image.Image) -> Float[np.ndarray, "C X Y"]:
        """Normalized pixels of one RGB picture, float32, as transformers makes them.

        Raises:
            UserError: it is too long to be cropped.
        """
        settings = {}
        if scaled := self._scaled(picture):
            picture, settings = scaled, {"do_resize": False}
            if self._pads:
                settings["do_pad"] = False
        (values,) = self._hub(picture, return_tensors="np", **settings)["pixel_values"]
        return np.asarray(values, np.float32)

    def _scaled(self, picture: Image.Image) -> Image.Image | None:
        """What transformers makes of it up to the crop, in little memory; None: let it do so."""
        size, how, short = self._hub.size, self._hub.resample, self._hub.size.shortest_edge
        if not (self._hub.do_resize and self._is_plain):
            return None
        exact = (size.width, size.height) if size.width and size.height else None
        if self._pads and (exact or short):
            return padded_square(picture, exact or (short, short), self._background, how)
        if exact:
            return picture.resize(exact, how)
        if not short or size.longest_edge or not self._hub.do_center_crop:
            return None
        large, crop = by_shorter_side(picture, short, how), self._hub.crop_size
        left = max(large.width - crop.width, 0) // 2
        top = max(large.height - crop.height, 0) // 2
        # Where the crop is larger, transformers fills up.
        right, bottom = min(left + crop.width, large.width), min(top + crop.height, large.height)
        return large.crop((left, top, right, bottom))

    def save(self, folder: str | Path) -> None:
        """Makes it the one picture processor of a model's folder, as transformers reads it."""
        own, whole = (Path(folder) / name for name in _FILES)
        fields = json.loads(self._hub.to_json_string())
        if self._class:
            fields["processor_class"] = self._class
        own.write_text(json.dumps(fields, indent=2) + "\n")
        rest = read_objects(folder, whole.name)
        if rest.pop("image_processor", None) is not None:
            whole.write_text(json.dumps(rest, indent=2) + "\n")

    @property
    def _background(self) -> tuple[int, ...]:
        """LLaVA pads with the mean colour."""
        return tuple(int(255 * x) for x in self._hub.image_mean or (0, 0, 0))


def _shaped(hub: Any, size: int, picture: str) -> Any:
    """A processor of the same colours that pads or crops to a square of ``size``."""
    from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

    colours = {name: getattr(hub, name) for name in _COLOURS}
    square = {"height": size, "width": size}
    if picture == "pad":
        return LlavaImageProcessorPil(
            do_pad=True, size=square, do_center_crop=False, crop_size=square, **colours
        )
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **colours)


def padded_square(
    picture: Image.Image, size: tuple[int, int], background: tuple[int, ...], how: int
) -> Image.Image:
    """A picture in the middle of a square, scaled to ``size``, bit for bit as Pillow scales it.

    The square of a long picture may take gigabytes. Pillow scales rows, then columns, so the
    rows are made a few at a time.
    """
    n, (width, height) = max(picture.size), size
    left, top = ((n - side) // 2 for side in picture.size)
    line = Image.new("RGB", (n, 1), background).resize((width, 1), how)
    narrow = line.resize((width, n), Image.Resampling.NEAREST)
    rows = max(1, _BLOCK // n)
    for start in range(0, picture.height, rows):
        part = picture.crop((0, start, picture.width, min(start + rows, picture.height)))
        wide = Image.new("RGB", (n, part.height), background)
        wide.paste(part, (left, 0))
        narrow.paste(wide.resize((width, part.height), how), (0, top + start))
    return narrow.resize((width, height), how)

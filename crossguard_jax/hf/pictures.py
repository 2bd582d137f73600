"""Pictures to the pixels a CLIP tower reads."""

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
MAX_ASPECT = 16
_BLOCK = 2**22  # pixels of a square that are made at once
_FILES = ("preprocessor_config.json", "processor_config.json")


def middle(picture: Image.Image) -> Image.Image:
    """The picture without the ends that a centre crop leaves out anyway, if it is very long.

    Where the shorter side is scaled first, a line of 1 x 3,000 pixels would take gigabytes on its
    way to a square.
    """
    keep = MAX_ASPECT * min(picture.size)
    left, top = (max(side - keep, 0) // 2 for side in picture.size)
    box = (left, top, picture.width - left, picture.height - top)
    return picture.crop(box) if left or top else picture


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
        picture = middle(picture)
        short = min(picture.size)
        large = picture.resize([int(side * n / short) for n in picture.size], how)
        # Python rounds halves to even, and so does torchvision's crop.
        left, top = (round((n - side) / 2) for n in large.size)
        return large.crop((left, top, left + side, top + side))


class Processor:
    """A folder's own picture processor, on Pillow whatever else is installed.

    Args:
        folder: the model's.
        size: X, the side of the pictures that the model takes.

    Attributes:
        mean, std: float32 [3, 1, 1], what pixels are normalized by.
        unit_range: whether they are in [0, 1] then.

    Raises:
        UserError: there is none, a file of it is damaged, or its pictures do not fit the model.
    """

    def __init__(self, folder: str | Path, size: int):
        from transformers import AutoImageProcessor

        # transformers takes a processor's own part of the whole one's file first.
        inside = "image_processor" in read_objects(folder, _FILES[1])
        read_objects(folder, _FILES[0])
        self.file = Path(folder) / _FILES[inside]
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
        self._square = self._padded_to()
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

    def _padded_to(self) -> tuple[int, int] | None:
        """Width and height that a square is scaled to; None if pictures are not padded first."""
        hub = self._hub
        if not (hasattr(hub, "pad_to_square") and hub.do_pad and hub.do_resize):
            return None
        size = hub.size
        return (size.width or size.shortest_edge, size.height or size.shortest_edge)

    def __call__(self, picture: Image.Image) -> Float[np.ndarray, "C X Y"]:
        """Normalized pixels of one RGB picture, float32, as transformers makes them."""
        settings = {}
        if self._square:
            picture = padded_square(picture, self._square, self._background, self._hub.resample)
            settings = {"do_pad": False, "do_resize": False}
        elif self._hub.do_center_crop and self._hub.size.shortest_edge:
            picture = middle(picture)
        (values,) = self._hub(picture, return_tensors="np", **settings)["pixel_values"]
        return np.asarray(values, np.float32)

    @property
    def _background(self) -> tuple[int, ...]:
        """LLaVA pads with the mean colour."""
        return tuple(int(255 * x) for x in self._hub.image_mean or (0, 0, 0))


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

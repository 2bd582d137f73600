"""Pictures to the pixels a CLIP tower reads."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from crossguard_jax.core.typing import Float

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 16


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

    def __call__(self, picture: Image.Image) -> Float[np.ndarray, "C X X"]:
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

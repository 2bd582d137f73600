"""Pictures from bytes nobody vouches for, as 8-bit RGB, or one line that says why not.

Nothing here changes Pillow's process-wide settings: a library that imports this one keeps its own.
"""

import codecs
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from crossguard_jax.core.errors import UserError

# Raster formats whose decoders stay inside this process (Pillow's EPS reader starts Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20

# What makes a picture upright, by its EXIF orientation; 1 is upright already.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads an encoded picture file, never more than ``max_bytes`` of it.

    Raises:
      UserError: there is no such file, it is not a regular file, is empty, or is too large.
    """
    try:
        path = Path(path)
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise UserError(f"{path}: the picture {what}; correct the path")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise UserError(f"{path}: the picture cannot be read ({_line(error)})") from error
    if not data:
        raise UserError(f"{path}: the picture file is empty; replace it or drop the row")
    if len(data) > max_bytes:
        raise UserError(f"{path}: the picture file is over {max_bytes:,} bytes; make it smaller")
    return data


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the first frame of an encoded picture, upright, as 8-bit RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit and floating-point greys are
    scaled to 8 bits. The size is read from the header, so that an oversized picture is refused
    before a pixel of it is decoded.

    Args:
      data: the bytes of a JPEG, PNG, GIF, WebP, BMP, TIFF or PNM file.
      name: what to call the picture in an error, usually its path.
      max_pixels: largest width x height. (Pillow's own limit, 179 million by default, stands too.)

    Raises:
      UserError: the bytes are no such picture, are damaged, or hold more than ``max_pixels``.
    """
    picture = _open(data, name, max_pixels)
    try:
        picture.load()
        return _on_white(_upright(picture))
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        raise UserError(
            f"{name}: the {picture.format or 'picture'} data is damaged or cut short "
            f"({_line(error)}); replace the file or drop the row"
        ) from error


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Opens by header only and checks the size that the header claims."""
    too_large = UserError(
        f"{name}: the picture is larger than {max_pixels:,} pixels; scale it down or drop the row"
    )
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:
        raise UserError(
            f"{name}: not a picture ({_kind(data)}); give a JPEG, PNG, GIF, WebP, BMP or TIFF file"
        ) from error
    if picture.width * picture.height > max_pixels:
        raise too_large
    return picture


def _kind(data: bytes) -> str:
    if not data:
        return "no bytes"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:512])
    except UnicodeDecodeError:
        text = "\0"
    return "its header is of no known format" if "\0" in text else "it holds text"


def _upright(picture: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose also rewrites the EXIF block, and fails where another tag is damaged.
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scales greys deeper than 8 bits: Pillow's own conversion clips them at 255 instead."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float32))
    largest = float(values.max())
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    full = next((scale for scale in scales if largest <= scale), largest)
    return Image.fromarray(np.round(values.clip(0, full) * (255.0 / full)).astype(np.uint8))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""Pictures that nobody vouches for, as 8-bit RGB, or one line that says why not.

A picture is the same pixels, or the same error, whichever way it comes: as a path, as the bytes of
a file, as a ``data:`` URL, decoded by Pillow, or as an array.

Nothing here changes Pillow's process-wide settings: a library that imports this one keeps its own.
"""

import base64
import binascii
import codecs
import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import archives
from crossguard_jax.io.files import note

Picture = Image.Image | bytes | bytearray | memoryview | str | os.PathLike | np.ndarray
"""A picture as a user has it: decoded, encoded, a path or ``data:`` URL, pixels [X, Y, C]."""

# Raster formats whose decoders stay inside this process (Pillow's EPS reader starts Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_SIDE = 32_767  # a square of the longest side is what padding scales down
MAX_BYTES = 64 * 2**20

# How files of those formats begin, for saying what a damaged one was meant to be.
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_STRIP = 2**22  # pixels of a picture that are converted at once
_PNG = next(iter(_MAGIC))
# All that the pixels of a PNG, and which way up they are, depend on.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_WEB = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

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


def rgb(
    picture: Picture | None, name: str = "the picture", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Any picture upright, as 8-bit RGB; see `decode` for what is done to it.

    Args:
      picture: an array holds grey levels, uint8 [X, Y], [X, Y, 2], [X, Y, 3] or [X, Y, 4] with
        transparency last, or deeper greys [X, Y] as Pillow has them (uint16, float32).
      name: what to call it in an error; a file is called by its path.
      max_pixels: largest width x height.

    Raises:
      UserError: it is no such picture, or cannot be read or decoded.
    """
    if isinstance(picture, str) and not is_url(picture) or isinstance(picture, os.PathLike):
        return decode(read_picture(picture), short(picture), max_pixels)
    if isinstance(picture, str):
        return decode(read_url(picture, name), name, max_pixels)
    if isinstance(picture, bytes | bytearray | memoryview):
        return decode(bytes(picture), name, max_pixels)
    if isinstance(picture, np.ndarray):
        picture = _of_array(picture, name)
    if not isinstance(picture, Image.Image):
        kind = type(picture).__name__
        raise UserError(f"{name}: a {kind} is no picture; give a path, bytes, array or PIL image")
    return _decoded(picture, name, max_pixels)


class NoPicture(UserError):
    """Where a picture should be is nothing, or an empty file."""


def read_picture(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads an encoded picture file, never more than ``max_bytes`` of it.

    Raises:
      NoPicture: there is no such file, or it is empty.
      UserError: it is not a regular file, is too large, or cannot be read.
    """
    name = short(path)
    try:
        path = Path(path)
        note(path)
        if not archives.is_file(path):
            if path.exists():
                raise UserError(f"{name}: the picture is not a regular file; correct the path")
            raise NoPicture(f"{name}: the picture does not exist; correct the path")
        with archives.opened(path) as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or _line(error)
        raise UserError(f"{name}: the picture cannot be read ({reason})") from error
    if not data:
        raise NoPicture(f"{name}: the picture file is empty; replace it or drop the row")
    if len(data) > max_bytes:
        raise UserError(f"{name}: the picture file is over {max_bytes:,} bytes; make it smaller")
    return data


def is_url(picture: str) -> bool:
    """Whether a picture's name is a ``data:`` URL, or an address, rather than a path."""
    return bool(_DATA_URL.match(picture) or _WEB.match(picture))


def read_url(url: str, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The encoded picture in a ``data:`` URL (RFC 2397).

    Raises:
      UserError: it is another kind of address, is not base64, is empty, or is too large.
    """
    match = _DATA_URL.match(url)
    if match is None:
        scheme = url.partition("://")[0]
        raise UserError(
            f"{name} is a {short(scheme)} address, and nothing is downloaded; give a path"
        )
    if len(url) > 2 * max_bytes:
        raise UserError(f"{name}: the picture is over {max_bytes:,} bytes; make it smaller")
    body = unquote_to_bytes(url[match.end() :])
    try:
        if match.group(1).lower().endswith(";base64"):
            body = base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise UserError(
            f"{name}: the data: URL is not base64 ({_line(error)}); write it again"
        ) from error
    if not body:
        raise UserError(f"{name}: the data: URL is empty; give a picture or null")
    return body


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the first frame of an encoded picture, upright, as 8-bit RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit and floating-point greys are
    scaled to 8 bits. The size is read from the header, so that an oversized picture is refused
    before a pixel of it is decoded. A PNG whose texts are damaged or too large is read without
    them.

    Args:
      data: the bytes of a JPEG, PNG, GIF, WebP, BMP, TIFF or PNM file.
      name: what to call the picture in an error, usually its path.
      max_pixels: largest width x height. (Pillow's own limit, 179 million by default, stands too.)

    Raises:
      UserError: the bytes are no such picture, are damaged, or hold more than ``max_pixels``.
    """
    try:
        return _decoded(_open(data, name, max_pixels), name, max_pixels)
    except UserError:
        bare = _without_texts(data) if data.startswith(_PNG) else data
        if len(bare) == len(data):
            raise
        return _decoded(_open(bare, name, max_pixels), name, max_pixels)


def ending(data: bytes, name: str) -> str:
    """The ending of a file of these bytes: ``png``, ``jpg``, ...; only its header is read.

    Raises:
      UserError: it is no picture.
    """
    kind = (_open(data, name, MAX_PIXELS).format or "").lower()
    return {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Opens by header only."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, max_pixels) from error
    except Exception as error:
        raise UserError(
            f"{name}: not a picture ({_kind(data)}); give a JPEG, PNG, GIF, WebP, BMP or TIFF file"
        ) from error
    return picture


def _decoded(picture: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """What any picture goes through that Pillow has opened."""
    if picture.format == "WEBP":
        max_pixels = 3 * max_pixels // 4  # its decoder keeps two more frames
    if picture.width * picture.height > max_pixels:
        raise _too_large(name, max_pixels)
    if max(picture.size) > MAX_SIDE:
        raise UserError(
            f"{name}: the picture is longer than {MAX_SIDE:,} pixels; scale it down or drop the row"
        )
    try:
        picture.load()
        return _rgb(_upright(picture))
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        raise UserError(
            f"{name}: the {picture.format or 'picture'} data is damaged or cut short "
            f"({_line(error)}); replace the file or drop the row"
        ) from error


def _too_large(name: str, max_pixels: int) -> UserError:
    return UserError(
        f"{name}: the picture is larger than {max_pixels:,} pixels; scale it down or drop the row"
    )


def _of_array(pixels: np.ndarray, name: str) -> Image.Image:
    try:
        if not pixels.size or pixels.ndim < 2:
            raise ValueError
        return Image.fromarray(np.ascontiguousarray(pixels))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name}: an array of {pixels.dtype} {list(pixels.shape)}; give uint8 [X, Y, 3]"
        ) from error


def _without_texts(data: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not depend on."""
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, chunk = struct.unpack_from(">I4s", data, at)
        end = at + length + 12
        if chunk in _PNG_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _kind(data: bytes) -> str:
    if not data:
        return "no bytes"
    for magic, format in _MAGIC.items():
        if data.startswith(magic):
            return f"it begins as a {format}, whose header is damaged"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:512])
    except UnicodeDecodeError:
        text = "\0"
    return "its header is of no known format" if "\0" in text else "it holds text"


def _upright(picture: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose also rewrites the EXIF block, and fails where another tag is damaged.
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB, made a few rows at a time: conversions of all of it at once take gigabytes."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    deep = picture.mode in ("F", "I") or picture.mode.startswith("I;16")
    full = _full_scale(picture) if deep else 0.0
    converted = Image.new("RGB", picture.size)
    for top, part in _strips(picture):
        converted.paste(_on_white(_eight_bits(part, full) if deep else part), (0, top))
    return converted


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Some rows at a time, each with the first one's number."""
    rows = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def _full_scale(picture: Image.Image) -> float:
    """What white is in greys deeper than 8 bits."""
    largest = max(float(_finite(part).max()) for _, part in _strips(picture))
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    return next((scale for scale in scales if largest <= scale), largest)


def _eight_bits(picture: Image.Image, full: float) -> Image.Image:
    """Scales greys deeper than 8 bits: Pillow's own conversion clips them at 255 instead."""
    values = _finite(picture)
    return Image.fromarray(np.round(values.clip(0, full) * (255.0 / full)).astype(np.uint8))


def _finite(picture: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(picture).astype(np.float32))


def _line(error: BaseException) -> str:
    return short(error) or type(error).__name__

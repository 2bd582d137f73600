"""Pictures from untrusted bytes."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import images

GRADIENT = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)


def encoded(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    crc = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of that size by its header, with next to no pixels behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def test_a_png_keeps_its_pixels():
    picture = noise()
    decoded = images.decode(encoded(picture), "p.png")
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))


@pytest.mark.parametrize("size", [(1, 1), (10, 4000)])
def test_odd_shapes_keep_their_size(size):
    assert images.decode(encoded(noise(*size)), "p.png").size == size


def test_the_first_frame_of_an_animation_is_taken():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(red, format, save_all=True, append_images=[blue], duration=100)
        assert np.asarray(images.decode(data, "p"))[4, 4, 0] > 240, format


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(noise(), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = images.decode(data, "p.png")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))


def test_a_damaged_exif_tag_does_not_keep_the_picture_from_being_turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.XResolution] = 72.0
    damaged = exif.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x01")
    data = encoded(noise(64, 48), "JPEG", exif=damaged)
    assert images.decode(data, "p.jpg").size == (48, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\x00*\xff\xff\xff\xff rubbish", b"rubbish"])
def test_unreadable_exif_leaves_the_picture_as_it_is_stored(exif):
    data = encoded(noise(), "JPEG", exif=b"Exif\x00\x00" + exif)
    assert images.decode(data, "p.jpg").size == (64, 48)


def test_cmyk_and_palette_come_out_in_their_colours():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    cmyk = images.decode(encoded(red.convert("CMYK"), "JPEG", quality=100), "p.jpg")
    palette = images.decode(encoded(red.convert("P", palette=Image.Palette.ADAPTIVE)), "p.png")
    for decoded in (cmyk, palette):
        assert np.abs(np.asarray(decoded, np.int32)[8, 8] - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 128), (2, 0, 4, 4))
    pixels = np.asarray(images.decode(encoded(picture.convert(mode)), "p.png"))
    assert pixels[0, 0].tolist() == [255] * 3
    assert abs(int(pixels[0, 3, 0]) - 127) <= 1


def test_a_transparent_palette_colour_is_laid_on_white():
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((3, 3), 1)
    pixels = np.asarray(images.decode(encoded(picture, transparency=0), "p.png"))
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[3, 3].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = (GRADIENT.astype(np.uint32) * 65535 // GRADIENT.max()).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        decoded = images.decode(encoded(Image.fromarray(values), format), "p")
        expected = np.round(values / 257.0)
        assert np.abs(np.asarray(decoded, np.float64)[..., 0] - expected).max() <= 1, format


def test_a_dim_sixteen_bit_picture_stays_dim():
    decoded = images.decode(encoded(Image.fromarray(np.full((8, 8), 5140, np.uint16))), "p.png")
    assert np.asarray(decoded)[0, 0].tolist() == [20] * 3


@pytest.mark.parametrize("top", [1.0, 255.0, 40_000.0])
def test_floating_point_greys_are_scaled_by_their_range(top):
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    pixels = np.asarray(images.decode(encoded(Image.fromarray(values), "TIFF"), "p.tif"))
    assert pixels[0, 0, 0] == 0
    assert pixels[7, 7, 0] == (round(255 * top / 65535) if top > 255 else 255)


def test_a_truncated_picture_is_an_error_that_names_it():
    for format, name in (("JPEG", "cut.jpg"), ("PNG", "cut.png")):
        data = encoded(noise(), format)
        with pytest.raises(UserError, match=f"^{name}: the {format} data is damaged.*drop the row"):
            images.decode(data[: len(data) // 2], name)


def test_a_text_file_called_png_is_told_apart_from_an_unknown_format():
    with pytest.raises(UserError, match="fake.png: not a picture .it holds text"):
        images.decode(b"hello, this is no picture\n", "fake.png")
    with pytest.raises(UserError, match="its header is of no known format"):
        images.decode(bytes(range(256)), "fake.png")
    with pytest.raises(UserError, match="no bytes"):
        images.decode(b"", "fake.png")


@pytest.mark.parametrize("side", [9_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header_alone(side):
    # Decoding would fail too, but with another message: nearly all pixels are missing.
    with pytest.raises(UserError, match="bomb.png: the picture is larger than 64,000,000 pixels"):
        images.decode(png_claiming(side, side), "bomb.png")


@pytest.mark.parametrize("size", [(32_768, 2), (2, 32_768)])
def test_a_picture_too_long_to_be_padded_is_refused_by_its_header(size):
    with pytest.raises(UserError, match="^p: the picture is longer than 32,767 pixels; scale it"):
        images.decode(png_claiming(*size), "p")


def test_a_webp_has_less_room_since_its_decoder_takes_more():
    for format in ("PNG", "WEBP"):
        data = encoded(noise(10, 8), format)
        assert images.decode(data, "p", max_pixels=107).size == (10, 8)
    assert images.decode(encoded(noise(10, 8)), "p", max_pixels=80).size == (10, 8)
    with pytest.raises(UserError, match="larger than 79 pixels"):
        images.decode(data, "p", max_pixels=106)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "I;16", "F"])
def test_strips_make_the_same_picture_as_all_of_it_at_once(mode, monkeypatch):
    deep = {"I;16": np.uint16, "F": np.float32}
    picture = noise().convert("RGBA" if mode in ("LA", "RGBA") else "RGB")
    if mode in deep:
        picture = Image.fromarray(GRADIENT.astype(deep[mode]))
    elif mode in ("LA", "RGBA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture = picture if mode in deep else picture.convert(mode)
    whole = np.asarray(images.rgb(picture))
    monkeypatch.setattr(images, "_STRIP", 5 * picture.width)
    np.testing.assert_array_equal(np.asarray(images.rgb(picture)), whole)


def test_the_pixel_limit_is_the_callers():
    with pytest.raises(UserError, match="larger than 100 pixels"):
        images.decode(encoded(noise()), "p.png", max_pixels=100)
    assert images.decode(encoded(noise()), "p.png", max_pixels=64 * 48).size == (64, 48)


def test_formats_that_start_other_programs_are_not_opened():
    with pytest.raises(UserError, match="not a picture"):
        images.decode(encoded(noise(), "EPS"), "p.eps")


def test_decoding_changes_no_setting_of_pillow():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    images.decode(encoded(noise()), "p.png")
    with pytest.raises(UserError):
        images.decode(png_claiming(60_000, 60_000), "bomb.png")
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before


def test_reading_a_picture_file_is_bounded_and_names_what_is_wrong(tmp_path):
    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "empty.png").touch()
    assert images.read_picture(tmp_path / "a.png") == b"12345"
    for path, words in {
        tmp_path / "none.png": "does not exist",
        tmp_path: "not a regular file",
        tmp_path / "empty.png": "is empty",
        f"{tmp_path}/nul\0.png": "does not exist|cannot be read",
    }.items():
        with pytest.raises(UserError, match=words):
            images.read_picture(path)
    with pytest.raises(UserError, match="over 4 bytes"):
        images.read_picture(tmp_path / "a.png", max_bytes=4)


# ---- One picture by several routes -------------------------------------------------------------


def routes(data: bytes, folder) -> dict[str, object]:
    """A picture as a user may have it; opened, not yet decoded, where Pillow opens it."""
    (folder / "p").write_bytes(data)
    text = base64.b64encode(data).decode()
    return {
        "path": folder / "p",
        "name": str(folder / "p"),
        "bytes": data,
        "url": f"data:image/png;base64,{text}",
        "folded url": "DATA:;base64," + text[:9] + "%0A" + text[9:].replace("+", "%2B"),
        "opened": Image.open(io.BytesIO(data)),
    }


def odd_pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgba = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    return {
        "rgb": encoded(noise()),
        "rgba": encoded(rgba),
        "la": encoded(rgba.convert("LA")),
        "palette": encoded(palette, transparency=0),
        "bilevel": encoded(noise().convert("1")),
        "cmyk": encoded(noise().convert("CMYK"), "JPEG"),
        "16 bit": encoded(Image.fromarray(GRADIENT)),
        "float": encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"),
        "turned": encoded(noise(), "JPEG", exif=exif),
        "turned png": encoded(noise(), exif=exif),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_a_picture_has_the_same_pixels_by_every_route(name, tmp_path):
    data = odd_pictures()[name]
    expected = np.asarray(images.decode(data, "p"))
    for route, given in routes(data, tmp_path).items():
        np.testing.assert_array_equal(np.asarray(images.rgb(given)), expected, err_msg=route)
    # An array has lost its orientation, its palette and its inks.
    if name not in ("palette", "cmyk") and "turned" not in name:
        array = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(np.asarray(images.rgb(array)), expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_cut_short_is_the_same_error_by_every_route(format, tmp_path):
    data = encoded(noise(), format)
    reasons = set()
    for given in routes(data[: len(data) // 2], tmp_path).values():
        with pytest.raises(UserError) as error:
            images.rgb(given, "row 3")
        name, _, reason = str(error.value).partition(": ")
        assert name in ("row 3", str(tmp_path / "p"))
        reasons.add(reason)
    (reason,) = reasons
    assert reason.startswith(f"the {format} data is damaged or cut short")


def test_a_picture_too_large_is_the_same_error_by_every_route(tmp_path):
    for given in [*routes(encoded(noise()), tmp_path).values(), np.asarray(noise())]:
        with pytest.raises(UserError, match="larger than 100 pixels"):
            images.rgb(given, max_pixels=100)


@pytest.mark.parametrize(
    "given",
    [
        None,
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_what_is_no_picture_is_an_error_that_names_it(given):
    with pytest.raises(UserError, match="^row 3: an? .*; give"):
        images.rgb(given, "row 3")


def test_a_name_of_any_length_makes_a_short_error():
    for name in ("x" * 10**6, "data:image/png;base64," + "@" * 10**6, "ftp://" + "x" * 10**6):
        with pytest.raises(UserError) as error:
            images.rgb(name)
        assert len(str(error.value)) < 300


# ---- PNGs whose pixels are whole ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize(
    "text",
    {
        "too large": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"a" * 3_000_000)),
        "bad checksum": chunk(b"tEXt", b"a\0b", wrong=1),
        "bad profile": chunk(b"iCCP", b"p\0\0" + b"no zlib"),
        "unknown": chunk(b"noSe", b"x", wrong=1),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_png_is_read_whatever_is_wrong_with_its_texts(text, where):
    data = encoded(noise())
    at = 33 if where == "before" else len(data) - 12
    decoded = images.decode(data[:at] + text[1] + data[at:], "p.png")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(noise()))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF"])
def test_a_damaged_header_is_not_called_another_format(format):
    data = bytearray(encoded(noise(), format))
    data[8:40] = bytes(32)
    with pytest.raises(UserError) as error:
        images.decode(bytes(data), "p")
    assert format in str(error.value) and "no known format" not in str(error.value)

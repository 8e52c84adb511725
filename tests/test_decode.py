"""decode: every format gives the right 48x48 grey pixels, and a bad file nothing but BadImage."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image, ImageOps

from helpers import REPO
from readers import decode as module
from readers.decode import BadImage, decode, decode_rgb, read_file

KINDS = ["PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF"]
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 48), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(48), np.arange(48)).astype(np.uint8) * 2
COLOUR = RNG.integers(0, 256, (60, 70, 3), dtype=np.uint8)


def encoded(image, kind, **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return str(caught.value)


def exif(orientation) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# --- Good files ---


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, "L") for kind in KINDS if kind != "JPEG"] + [("PNG", mode) for mode in ("RGB", "LA", "P")]
)
def test_48x48_grey_comes_through_untouched(kind, mode):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    result = decode(encoded(Image.fromarray(GREY).convert(mode), kind, **options))
    assert result.dtype == np.uint8 and np.array_equal(result, GREY)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("CMYK", "TIFF"), ("RGB", "JPEG2000"), ("RGB", "AVIF")],
)
def test_other_colour_spaces_are_close_to_the_original(mode, kind):
    data = encoded(Image.fromarray(SMOOTH).convert(mode), kind, **({"quality": 95} if kind in ("JPEG", "AVIF") else {}))
    assert np.abs(decode(data).astype(int) - SMOOTH).max() <= 6


def test_of_a_jpeg_with_several_pictures_the_first_is_decoded_as_if_it_were_alone():
    several = encoded(COLOUR, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (60, 60))])
    assert np.array_equal(decode(several), decode(encoded(COLOUR, "JPEG", quality=95)))


def test_colour_becomes_itu_r_601_luma():
    colour = np.empty((48, 48, 3), np.uint8)
    colour[:] = (200, 100, 50)
    assert set(decode(encoded(colour, "PNG")).ravel()) == {round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)}


def test_transparent_pixels_show_white():
    rgba = np.zeros((48, 48, 4), np.uint8)
    rgba[:24, :, 3] = 255
    for kind in ("PNG", "JPEG2000", "AVIF"):
        pixels = decode(encoded(rgba, kind))
        assert (pixels[:23] == 0).all() and (pixels[25:] == 255).all()
    image = Image.fromarray((GREY > 127).astype(np.uint8), "L").convert("P")
    image.putpalette([10, 10, 10, 20, 20, 20])
    for transparency, white in ((1, 255), (bytes([255, 128]), 137)):
        pixels = decode(encoded(image, "PNG", transparency=transparency))
        assert set(pixels[GREY > 127]) == {white} and set(pixels[GREY <= 127]) == {10}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_images_are_black_and_white(kind):
    assert np.array_equal(decode(encoded(Image.fromarray(GREY > 127), kind)), np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("factor", [1, 16, 256, 257])
def test_sixteen_bits_keep_their_upper_eight_as_do_twelve_and_eight_that_are_saved_as_sixteen(kind, factor):
    data = encoded(GREY.astype(np.uint16) * factor, kind)
    assert np.array_equal(decode(data), GREY) and np.array_equal(decode_rgb(data)[:, :, 0], GREY)


@pytest.mark.parametrize(("dtype", "white"), [("f4", 1), ("f4", 255), ("f4", 65535), ("i4", 255), ("i4", 65535)])
def test_floats_and_32_bits_are_scaled_by_the_range_of_the_pixels(dtype, white):
    values, wanted = (GREY * (white / 255)).astype(dtype), GREY.copy()
    values[0, 0], wanted[0, 0] = -5, 0
    if dtype == "f4":
        values[0, 1:4], wanted[0, 1:4] = (np.nan, np.inf, -np.inf), 0
    assert np.array_equal(decode(encoded(values, "TIFF")), wanted)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_counts(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    other = Image.fromarray(255 - GREY)
    data = encoded(GREY, kind, save_all=True, append_images=[other, other], **options)
    assert np.array_equal(decode(data), GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind, orientation):
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:20, :20] = 255  # a bright corner
    data = encoded(stored, kind, exif=exif(orientation))
    image, upright = Image.open(io.BytesIO(data)), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    result, wanted = decode(data), decode(encoded(upright, "PNG")).astype(int)
    assert np.abs(result.astype(int) - wanted).max() <= (60 if kind == "JPEG" else 0)
    for photo in (decode_rgb(data), decode_rgb(image)):
        assert np.array_equal(photo, upright)
    if kind != "TIFF":  # which Pillow turns when it loads it
        assert image.size == (80, 40), "the caller's image stays as it is"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("note", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage"])
def test_damaged_exif_does_not_cost_the_image(note):
    assert np.array_equal(decode(encoded(GREY, "PNG", exif=note)), GREY)


def test_other_sizes_are_squashed_with_antialiasing():
    stripes = np.zeros((96, 480), np.uint8)
    stripes[:, ::2] = 255
    result = decode(encoded(stripes, "PNG"))
    assert np.abs(result.astype(int) - 127).max() <= 4
    assert set(decode(encoded(np.full((8, 8), 77, np.uint8), "PNG")).ravel()) == {77}


def test_large_photos_keep_their_size_and_their_content():
    photo = np.zeros((1800, 2400, 3), np.uint8)
    photo[:, 1200:] = 255
    for options in ({}, {"exif": exif(3)}):
        result = decode(encoded(photo, "JPEG", **options))
        pixels = result[::-1, ::-1] if options else result
        assert pixels[:, :22].max() < 10 and pixels[:, 26:].min() > 245


# --- Bad files ---


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"hello, this is text named .jpg", "not an image"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not an image"),
        (b"", "0 bytes"),
        (encoded(Image.new("L", (7, 100)), "PNG"), "7x100 is too small (8x8 at least)"),
    ],
)
def test_no_image(data, wanted):
    assert reason(data) == wanted


@pytest.mark.parametrize("brand", [b"heic", b"hevx", b"mif1"])
def test_heic_is_said_to_be_that(brand):
    assert re.match("HEIC.* save it as JPEG", reason(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(64)))


@pytest.mark.filterwarnings("ignore")
def test_an_avif_that_pillow_cannot_read_is_said_to_be_that(monkeypatch):
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    assert re.match("AVIF.* save it as JPEG", reason(encoded(GREY, "AVIF")))


GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x01\x00\x00;"
BOMBS = {
    "PNG": png_claiming(100_000, 100_000),
    "PGM": b"P5\n100000 100000\n255\n",
    "a GIF with a frame larger than its header says": b"GIF89a" + struct.pack("<HHBBB", 48, 48, 0, 0, 0) + GIF_FRAME,
    "WebP": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2,
    "above our limit, below Pillow's": encoded(Image.new("1", (9_000, 8_000)), "PNG"),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(data):
    assert re.search(r"above the limit of [\d.]+ megapixels", reason(data))


def test_a_wrong_checksum_in_a_png_is_damage():
    data = bytearray(encoded(GREY, "PNG"))
    data[-13] ^= 1  # the last byte of that of the pixels; an end of 12 bytes follows
    assert reason(bytes(data)) == "damaged (a wrong checksum)"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_truncated(kind, keep):
    data = encoded(GREY if kind == "GIF" else COLOUR, kind)
    assert re.match(r"damaged \(|AVIF, damaged", reason(data[: int(len(data) * keep)]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_file_that_is_too_large_missing_or_a_pipe(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(GREY, "PNG"))
    assert np.array_equal(decode(read_file(path)), GREY)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {"a": "above the limit of 0 MiB", "b": "cannot be read (No such", "pipe": "cannot be read (it is not a"}
    for name, start in reasons.items():
        with pytest.raises(BadImage) as caught:
            decode(read_file(tmp_path / f"{name}.png"))
        assert str(caught.value).startswith(start)


# --- Damage at random ---


def valid_files() -> list[bytes]:
    small = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    files = [encoded(small, kind, exif=exif(6)) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "JPEG2000", "AVIF")]
    files += [encoded(small, kind) for kind in ("BMP", "PPM")]
    files += [encoded(small[..., 0], kind) for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP")]
    files += [encoded(Image.fromarray(small).convert("P"), "PNG", transparency=3)]
    files += [encoded(small[..., 0].astype(np.float32), "TIFF"), b"P2 8 8 255 " + b"7 " * 64]
    return files


FILES = valid_files()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, database=None)
@given(
    index=st.integers(0, len(FILES) - 1),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 4)), max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 2**12)),
)
def test_damaged_files_raise_nothing_but_bad_image(index, changes, cut):
    data = bytearray(FILES[index])
    for at, new, drop in changes:
        at %= len(data) + 1
        data[at : at + drop] = new
    try:
        result = decode(bytes(data[:cut]))
    except BadImage as error:
        assert str(error)
    else:
        assert result.shape == (48, 48) and result.dtype == np.uint8


NOISY = """
import sys
from pathlib import Path
from readers import decode
for path in Path(sys.argv[1]).iterdir():
    try:
        decode.decode_rgb(path)
    except decode.BadImage:
        print("bad")
"""


def test_nothing_is_printed_about_damaged_files(tmp_path):
    damaged = [
        encoded(COLOUR, "TIFF", exif=exif(6))[:-3000],
        *(encoded(COLOUR, kind)[:1500] for kind in ("PNG", "JPEG2000", "AVIF")),
        encoded(Image.new("1", (10_000, 9_500)), "PNG"),  # Pillow warns at 89 megapixels
        b"II*\0\x08\0\0\0\x01\0\x00\x01\x03\0\xff\0\0\0\xff\xff",
    ]
    for index, data in enumerate(damaged):
        (tmp_path / str(index)).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", NOISY, tmp_path], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bad\n" * 6, "")


# --- Photos ---


def test_a_photo_keeps_size_and_colours_whatever_it_comes_as(tmp_path):
    data = encoded(COLOUR, "PNG")
    (tmp_path / "photo.png").write_bytes(data)
    for source in (data, tmp_path / "photo.png", Image.fromarray(COLOUR)):
        assert np.array_equal(decode_rgb(source), COLOUR)


def test_a_photo_of_grey_transparent_or_deep_pixels():
    assert np.array_equal(decode_rgb(encoded(GREY, "PNG")), np.repeat(GREY[:, :, None], 3, axis=2))
    assert (decode_rgb(encoded(Image.new("RGBA", (20, 20), (10, 20, 30, 0)), "PNG")) == 255).all()
    assert (decode_rgb(encoded(np.full((20, 20), 0x8000, np.uint16), "PNG")) == 128).all()


@pytest.mark.parametrize("source", [b"", b"no image", encoded(COLOUR, "PNG")[:900], Image.new("1", (20_000, 9_000))])
def test_a_bad_photo_is_a_bad_image(source):
    with pytest.raises(BadImage):
        decode_rgb(source)

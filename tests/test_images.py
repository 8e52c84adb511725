"""images.decode: every format gives the right 48x48 grey pixels, and a bad file nothing but BadImage."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from readers import decode as images
from readers.decode import BadImage, decode, read_file

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


def png(width, height, rows: bytes, *, depth=8, colour=0, stream=None) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows) if stream is None else stream)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return str(caught.value)


def exif(orientation) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# Good files


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_48x48_grey_comes_through_untouched(kind):
    result = decode(encoded(GREY, kind))
    assert result.pixels.dtype == np.uint8 and result.pixels.shape == (48, 48)
    assert np.array_equal(result.pixels, GREY)
    assert (result.width, result.height) == (48, 48)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_stored_as_colour_comes_through_untouched(mode):
    assert np.array_equal(decode(encoded(Image.fromarray(GREY).convert(mode), "PNG")).pixels, GREY)


def test_lossless_webp_comes_through_untouched():
    assert np.array_equal(decode(encoded(GREY, "WEBP", lossless=True)).pixels, GREY)


def test_grey_jpeg_is_what_pillow_reads():
    data = encoded(SMOOTH, "JPEG", quality=90)
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_jpeg_of_any_colour_space_is_close_to_the_original(mode):
    data = encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95)
    assert np.abs(decode(data).pixels.astype(int) - SMOOTH).max() <= 6


def test_cmyk_tiff():
    data = encoded(Image.fromarray(GREY).convert("CMYK"), "TIFF")
    assert np.abs(decode(data).pixels.astype(int) - GREY).max() <= 1


def test_colour_becomes_itu_r_601_luma():
    colour = np.empty((48, 48, 3), np.uint8)
    colour[:] = (200, 100, 50)
    assert set(decode(encoded(colour, "PNG")).pixels.ravel()) == {round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)}


def test_transparent_pixels_show_white():
    rgba = np.zeros((48, 48, 4), np.uint8)
    rgba[:24, :, 3] = 255
    pixels = decode(encoded(rgba, "PNG")).pixels
    assert (pixels[:24] == 0).all() and (pixels[24:] == 255).all()


def test_palette_png_with_a_transparent_entry_shows_white_there():
    image = Image.fromarray((GREY > 127).astype(np.uint8), "L").convert("P")
    image.putpalette([10, 10, 10, 20, 20, 20])
    pixels = decode(encoded(image, "PNG", transparency=1)).pixels
    assert set(pixels[GREY > 127]) == {255} and set(pixels[GREY <= 127]) == {10}


def test_palette_png_with_partial_transparency():
    image = Image.fromarray(np.zeros((48, 48), np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0])
    assert set(decode(encoded(image, "PNG", transparency=bytes([128]))).pixels.ravel()) == {127}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_images_are_black_and_white(kind):
    image = Image.fromarray(GREY > 127)
    assert np.array_equal(decode(encoded(image, kind)).pixels, np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("factor", [256, 257])
def test_sixteen_bits_are_scaled_not_clipped(kind, factor):
    assert np.array_equal(decode(encoded(GREY.astype(np.uint16) * factor, kind)).pixels, GREY)


def test_dark_sixteen_bit_pgm_stays_dark():
    data = b"P5 48 48 65535\n" + (GREY.astype(">u2")).tobytes()
    assert decode(data).pixels.max() == 0


def test_sixteen_bit_colour_png():
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2") * 257, 3).tobytes() for row in GREY)
    assert np.array_equal(decode(png(48, 48, rows, depth=16, colour=2)).pixels, GREY)


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_float_tiff_is_scaled_by_the_range_that_holds_it(scale):
    data = encoded(GREY.astype(np.float32) * np.float32(scale), "TIFF")
    assert np.array_equal(decode(data).pixels, GREY)


def test_float_tiff_with_negative_values_is_stretched():
    data = encoded(np.linspace(-5, 5, 48 * 48, dtype=np.float32).reshape(48, 48), "TIFF")
    pixels = decode(data).pixels
    assert pixels.min() == 0 and pixels.max() == 255 and (np.diff(pixels.ravel().astype(int)) >= 0).all()


def test_float_tiff_with_nan_and_infinity():
    values = GREY.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = decode(encoded(values, "TIFF")).pixels
    assert list(pixels[0, :3]) == [0, 0, 0] and np.array_equal(pixels[1:], GREY[1:])


@pytest.mark.parametrize("factor", [1, 256])
def test_32_bit_integer_tiff(factor):
    assert np.array_equal(decode(encoded(GREY.astype(np.int32) * factor, "TIFF")).pixels, GREY)


def test_ascii_pgm_and_ppm():
    numbers = " ".join(map(str, GREY.ravel())).encode()
    triples = " ".join(map(str, np.repeat(GREY.ravel(), 3))).encode()
    assert np.array_equal(decode(b"P2\n48 48\n255\n" + numbers + b"\n").pixels, GREY)
    assert np.array_equal(decode(b"P3\n48 48\n255\n" + triples + b"\n").pixels, GREY)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_counts(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    other = Image.fromarray(255 - GREY)
    data = encoded(GREY, kind, save_all=True, append_images=[other, other], **options)
    assert np.array_equal(decode(data).pixels, GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind, orientation):
    upright = np.zeros((40, 80), np.uint8)
    upright[:20, :20] = 255  # a bright corner, top left
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    same = {2: 0, 3: 3, 4: 1, 5: 5, 7: 6}
    operation = undo.get(orientation, same.get(orientation))
    image = Image.fromarray(upright)
    stored = image if operation is None else image.transpose(operation)
    result = decode(encoded(stored, kind, exif=exif(orientation)))
    assert (result.width, result.height) == (80, 40)
    reference = decode(encoded(upright, kind)).pixels.astype(int)
    assert np.abs(result.pixels.astype(int) - reference).max() <= (60 if kind == "JPEG" else 0)
    assert result.pixels[:20, :10].min() > 200 and result.pixels[30:].max() < 50


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_cost_the_image():
    data = encoded(GREY, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode(data).pixels, GREY)
    data = encoded(GREY, "PNG", exif=b"Exif\0\0garbage")
    assert np.array_equal(decode(data).pixels, GREY)


def test_other_sizes_are_squashed_with_antialiasing():
    stripes = np.zeros((96, 480), np.uint8)
    stripes[:, ::2] = 255
    result = decode(encoded(stripes, "PNG"))
    assert (result.width, result.height) == (480, 96)
    assert np.abs(result.pixels.astype(int) - 127).max() <= 4


def test_large_photos_keep_their_size_and_their_content():
    photo = np.zeros((1800, 2400, 3), np.uint8)
    photo[:, 1200:] = 255
    result = decode(encoded(photo, "JPEG"))
    assert (result.width, result.height) == (2400, 1800)
    assert result.pixels[:, :22].max() < 10 and result.pixels[:, 26:].min() > 245


def test_small_images_are_enlarged():
    assert set(decode(encoded(np.full((8, 8), 77, np.uint8), "PNG")).pixels.ravel()) == {77}


def filtered(filters) -> bytes:
    """The rows of GREY, each after the number of its filter; what that filter makes of them is for a decoder."""
    return b"".join(bytes([kind]) + row.tobytes() for kind, row in zip(filters, GREY, strict=True))


FILTERS = [[kind] * 48 for kind in range(5)] + [list(RNG.integers(0, 5, 48)) for _ in range(4)]


@pytest.mark.parametrize("filters", FILTERS)
def test_every_png_filter_reads_as_pillow_reads_it(filters):
    data = png(48, 48, filtered(filters))
    assert images._plain_rows(data)
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_a_plain_png_in_another_form_reads_the_same():
    data = png(48, 48, filtered(FILTERS[-1]))
    stream = data[41:-16]
    parts = [stream[:700], stream[700:]]
    chunks = [struct.pack(">I", len(p)) + b"IDAT" + p + struct.pack(">I", zlib.crc32(b"IDAT" + p)) for p in parts]
    for other in (data[:33] + b"".join(chunks) + data[-12:], data + b"after the end"):
        assert not images._plain_rows(other)
        assert np.array_equal(decode(other).pixels, decode(data).pixels)


def test_importing_images_leaves_out_what_one_image_does_not_need():
    code = "import sys, images; print(sorted({'cv2', 'PIL.TiffImagePlugin', 'PIL.JpegImagePlugin'} & {*sys.modules}))"
    root = Path(images.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_pixels_may_be_written_to():
    for data in (encoded(GREY, "PNG"), encoded(GREY, "BMP")):
        decode(data).pixels[0, 0] = 1


# Bad files


def test_no_bytes():
    assert reason(b"") == "0 bytes"


@pytest.mark.parametrize("data", [b"hello, this is text named .jpg", b"\0" * 100, b"RIFF\0\0\0\0WAVEfmt ", b"<svg/>"])
def test_no_image(data):
    assert reason(data) == "not an image"


def test_text_that_begins_like_an_image():
    assert reason(b"BM is how this text begins, but it is text") == "truncated"
    assert reason(b"P5 is how this text begins, but it is text").startswith("damaged PNM (")


def test_more_bytes_than_the_limit(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    assert reason(encoded(GREY, "PNG") + bytes(2**20)) == "above the limit of 1 MiB"


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_too_small(size):
    data = encoded(Image.new("L", size), "PNG")
    assert reason(data) == f"{size[0]}x{size[1]} is too small (8x8 at least)"


BMP_BOMB = (
    b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 100000, 100000, 1, 24, *[0] * 6)
)
PNG_BOMB = png(100000, 100000, b"")
TIFF_TAGS = [(256, 4, 100000), (257, 4, 100000), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
TIFF_BOMB = (
    b"II*\0"
    + struct.pack("<IH", 8, len(TIFF_TAGS))
    + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in TIFF_TAGS)
    + bytes(4)
)


@pytest.mark.parametrize("data", [BMP_BOMB, PNG_BOMB, TIFF_BOMB, b"P5\n100000 100000\n255\n"])
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(data):
    assert reason(data) == "100000x100000 pixels is above the limit of 64 megapixels"


def test_gif_with_the_largest_header():
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x01\x00\x00;"
    data = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + frame
    assert reason(data) == "65535x65535 pixels is above the limit of 64 megapixels"


def test_gif_with_a_frame_larger_than_its_header_says():
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x01\x00\x00;"
    data = b"GIF89a" + struct.pack("<HHBBB", 48, 48, 0, 0, 0) + frame
    assert "above the limit of 64 megapixels" in reason(data)


def test_webp_with_the_largest_header():
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    assert "above the limit of 64 megapixels" in reason(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_the_limit_itself_holds_for_real_images(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 3_000_000)
    assert reason(encoded(Image.new("1", (2000, 1501)), "PNG")) == (
        "2000x1501 pixels is above the limit of 3 megapixels"
    )
    assert decode(encoded(Image.new("1", (2000, 1500)), "PNG")).width == 2000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_truncated(kind, keep):
    data = encoded(COLOUR, kind)
    assert reason(data[: int(len(data) * keep)]) == "truncated"


def test_truncated_gif():
    data = encoded(GREY, "GIF")
    assert reason(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_cut_anywhere_gives_the_same_pixels_or_none(options):
    data = encoded(SMOOTH, "JPEG", **options)
    whole = decode(data).pixels
    for cut in range(2, len(data), 7):
        with contextlib.suppress(BadImage):
            assert np.array_equal(decode(data[:cut]).pixels, whole)


def test_png_cut_anywhere_is_truncated():
    data = encoded(GREY, "PNG")
    assert {reason(data[:cut]) for cut in range(8, len(data), 11)} == {"truncated"}


def test_png_with_changed_pixels_is_found_by_its_checksum():
    data = bytearray(encoded(GREY, "PNG"))
    data[len(data) // 2] ^= 1
    assert reason(bytes(data)) == "damaged PNG (checksum)"


def test_png_without_header():
    assert reason(b"\x89PNG\r\n\x1a\n" + png(48, 48, b"")[-12:]) == "damaged PNG (no header)"


ROWS = b"".join(b"\0" + row.tobytes() for row in GREY)


@pytest.mark.parametrize(
    "data",
    [
        png(48, 48, b"", stream=b"no zlib stream"),
        png(48, 48, b"", stream=zlib.compress(ROWS)[:-400]),
        png(48, 48, b"\x09" + ROWS[1:]),
    ],
)
def test_plain_png_with_a_broken_stream_is_not_decoded(data, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a broken file was decoded")

    monkeypatch.setattr(images.Image, "frombytes", forbidden)
    assert reason(data).startswith(("damaged PNG (", "truncated"))


# Many files


def in_rows(files) -> tuple[np.ndarray, list]:
    rows = np.empty((len(files), 48, 48), np.uint8)
    return rows, images.decode_into(rows, iter(files))


def test_many_files_are_decoded_as_one_by_one():
    files = [encoded(GREY, "PNG"), b"", encoded(COLOUR, "JPEG"), encoded(SMOOTH, "PNG"), encoded(GREY, "PNG")[:99]]
    files += [encoded(COLOUR, "PNG"), png(48, 48, filtered(FILTERS[-1]))]
    rows, found = in_rows(files)
    assert found == [(48, 48), "0 bytes", (70, 60), (48, 48), "truncated", (70, 60), (48, 48)]
    for row, data, size in zip(rows, files, found, strict=True):
        assert isinstance(size, str) or np.array_equal(row, decode(data).pixels)


@pytest.mark.parametrize("filters", FILTERS)
def test_a_plain_png_does_not_depend_on_the_ones_beside_it(filters):
    files = [encoded(255 - GREY, "PNG"), png(48, 48, filtered(filters)), encoded(SMOOTH, "PNG")]
    assert np.array_equal(in_rows(files)[0][1], decode(files[1]).pixels)


def test_an_unknown_filter_costs_only_its_own_image():
    files = [encoded(GREY, "PNG"), png(48, 48, b"\x09" + ROWS[1:]), encoded(SMOOTH, "PNG")]
    rows, found = in_rows(files)
    assert found[::2] == [(48, 48)] * 2 and found[1].startswith(("damaged PNG (", "truncated"))
    assert np.array_equal(rows[0], GREY) and np.array_equal(rows[2], SMOOTH)


def test_a_file_that_could_not_be_read_is_passed_on():
    assert in_rows([BadImage("encrypted"), encoded(GREY, "PNG")])[1] == ["encrypted", (48, 48)]


def test_no_two_large_files_are_held_at_once():
    data = encoded(Image.new("L", (2000, 2000)), "BMP")
    rows = np.empty((12, 48, 48), np.uint8)
    tracemalloc.start()
    found = images.decode_into(rows, (bytes(bytearray(data)) for _ in range(12)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(2000, 2000)] * 12 and peak < 5 * len(data)


# Reading files


def test_read_file_gives_the_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    assert read_file(tmp_path / "a.png") == b"abc"


def test_read_file_reads_no_further_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(1000))
    assert len(read_file(tmp_path / "a.png")) == 11


def test_read_file_names_what_the_system_said(tmp_path):
    with pytest.raises(BadImage, match=r"^cannot be read \(No such file or directory\)$"):
        read_file(tmp_path / "missing.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_read_file_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match=r"^not a regular file$"):
        read_file(tmp_path / "pipe.png")


# Damage at random


def valid_files() -> list[bytes]:
    small = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    files = [encoded(small, kind, exif=exif(6)) for kind in ("PNG", "JPEG", "TIFF", "WEBP")]
    files += [encoded(small, kind) for kind in ("BMP", "PPM")]
    files += [encoded(small[..., 0], kind) for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP")]
    files += [encoded(Image.fromarray(small).convert("P"), "PNG", transparency=3)]
    files += [encoded(small[..., 0].astype(np.float32), "TIFF"), b"P2 8 8 255 " + b"7 " * 64]
    return files


FILES = valid_files()


def with_right_checksums(data: bytes) -> bytes:
    """A PNG's chunks with their checksums made right, so that damage reaches the decoders behind them."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + length]
        out += [data[at : at + 4], chunk, struct.pack(">I", zlib.crc32(chunk))]
        at += 12 + length
    return b"".join(out)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, database=None)
@given(
    index=st.integers(0, len(FILES) - 1),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 4)), max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 2**12)),
    repair=st.booleans(),
)
def test_damaged_files_raise_nothing_but_bad_image(index, changes, cut, repair):
    data = bytearray(FILES[index])
    for at, new, drop in changes:
        at %= len(data) + 1
        data[at : at + drop] = new
    damaged = bytes(data[:cut])
    if repair and damaged.startswith(b"\x89PNG"):
        damaged = with_right_checksums(damaged)
    try:
        result = decode(damaged)
    except BadImage as error:
        assert str(error)
    else:
        assert result.pixels.shape == (48, 48) and result.pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None, database=None)
@given(signature=st.sampled_from([s for _, group, _ in images._READERS for s in group]), rest=st.binary(max_size=200))
def test_noise_behind_a_signature_raises_nothing_but_bad_image(signature, rest):
    with pytest.raises(BadImage):
        decode(signature + rest)


NOISY = """
import io, struct, sys, threading
from pathlib import Path
import images
files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
def work():
    for data in files:
        try:
            images.decode(data)
        except images.BadImage:
            pass
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_threads_print_nothing_about_damaged_files(tmp_path):
    palette = Image.fromarray(GREY).convert("P")
    damaged = [
        encoded(COLOUR, "TIFF", exif=exif(6))[:-3000],
        encoded(COLOUR, "JPEG")[:1500],
        encoded(COLOUR, "PNG")[:1500],
        encoded(palette, "PNG", transparency=bytes(range(256))),
        encoded(GREY, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
        encoded(Image.new("1", (10_000, 9_500)), "PNG"),  # Pillow warns at 89 megapixels
        b"II*\0\x08\0\0\0\x01\0\x00\x01\x03\0\xff\0\0\0\xff\xff",
    ]
    for index, data in enumerate(damaged):
        (tmp_path / str(index)).write_bytes(data)
    command = [sys.executable, "-c", NOISY, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(images.__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_threads_decode_large_and_small_images_alike(monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 2000)
    data = encoded(COLOUR, "PNG")
    expected = decode(data).pixels
    results = []
    threads = [threading.Thread(target=lambda: results.append(decode(data).pixels)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(pixels, expected) for pixels in results)

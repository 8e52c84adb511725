"""From the bytes of one image file to 48x48 grey pixels.

Every image, in training and in prediction, comes through `decode`: all are made grey and shrunk by the same
arithmetic. Whatever a file holds, `decode` returns pixels or raises `BadImage`.
"""

import io
import logging
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageFile

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif"})
SIZE = 48
MIN_SIDE = 8  # below 8x8 pixels there is no face to read
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
# A face in FER2013 fills a square of 48x48. Further from that an image is rather a photo with a face somewhere in it.
MAX_FACE_RATIO = 1.5
MAX_FACE_SIDE = 512

# Above this many pixels images are decoded one at a time: 64 megapixels of RGBA need about 0.5 GB.
LARGE_PIXELS = 4_000_000
_large = threading.Lock()

# What Pillow raises on damaged files. Seen on 90,000 valid files changed at random: OSError, SyntaxError, ValueError,
# TypeError, OverflowError and DecompressionBombError. Possible by its source, or with other versions of it: EOFError,
# struct.error, IndexError, KeyError, AttributeError (short or missing fields), AssertionError, ZeroDivisionError,
# zlib.error (compressed text), MemoryError (absurd sizes), RuntimeError (NotImplementedError too), and Warning,
# where warnings are made errors.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    OverflowError,
    Image.DecompressionBombError,
    EOFError,
    struct.error,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
    zlib.error,
    MemoryError,
    RuntimeError,
    Warning,
)

# A damaged file is reported by BadImage; Pillow would also print warnings and log lines about it on stderr.
# Once for the process, since `warnings.catch_warnings` must not be used in threads.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Format, its first bytes, and Pillow's name for it: the module is imported when the first such file comes.
_READERS: tuple[tuple[str, tuple[bytes, ...], str], ...] = (
    ("PNG", (b"\x89PNG\r\n\x1a\n",), "Png"),
    ("JPEG", (b"\xff\xd8\xff",), "Jpeg"),
    ("BMP", (b"BM",), "Bmp"),
    ("GIF", (b"GIF87a", b"GIF89a"), "Gif"),
    ("WebP", (b"RIFF",), "WebP"),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "Tiff"),
    ("PNM", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), "Ppm"),
)

# EXIF orientation (tag 0x0112) to the operation that sets the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """A file that gives no pixels; `str` is a short reason, without the file's name."""


class Decoded(NamedTuple):
    """`pixels` (48, 48) uint8; `width` and `height` of the file, after EXIF rotation."""

    pixels: np.ndarray
    width: int
    height: int


def decode(data: bytes) -> Decoded:
    """Return the image in `data` as (48, 48) uint8 grey pixels, with the file's own width and height.

    JPEG, PNG, BMP, WebP, TIFF, PGM/PPM and GIF, known by their first bytes; of several frames the first.
    Grey is ITU-R 601 luma; transparency shows white; 16 bits keep their upper 8. Other sizes are squashed to
    48x48 with antialiasing, after EXIF rotation. 48x48 8-bit grey comes through bit for bit.
    Raises BadImage, and nothing else, for a file that is damaged, too large or too small, or no image.
    """
    rows = _plain_rows(data)
    if rows and (pixels := _unfiltered([rows])) is not None:
        return Decoded(pixels[0], SIZE, SIZE)
    if not data:
        raise BadImage("0 bytes")
    if len(data) > MAX_BYTES:
        raise BadImage(f"above the limit of {MAX_BYTES // 2**20} MiB")
    kind, reader = _reader(data)
    if kind == "PNG":
        _check_png(data)
    if kind == "WebP" and len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise BadImage("truncated")  # libwebp would only say that it could not create a decoder
    try:
        with reader(io.BytesIO(data)) as image:
            _check_size(*image.size)
            if image.width * image.height <= LARGE_PIXELS:
                return _finish(image)
            with _large:
                return _finish(image)
    except DECODER_ERRORS as error:
        raise BadImage(_reason(kind, error)) from error


def decode_into(pixels: np.ndarray, files: Iterable[bytes | BadImage]) -> list[tuple[int, int] | str]:
    """Fill `pixels` (N, 48, 48) uint8 with N images; width and height of each file, or why it gives no pixels.

    Each is what `decode` makes of it; the rows of those that give none are undefined. A BadImage stands for a file
    that could not be read.
    """
    found: list[tuple[int, int] | str] = []
    plain: dict[int, tuple[bytes, bytes]] = {}
    for index, data in enumerate(files):
        if isinstance(data, BadImage):
            found.append(str(data))
        elif rows := _plain_rows(data):
            plain[index] = data, rows
            found.append((SIZE, SIZE))
        else:
            found.append(_decode_row(pixels[index], data))
    if plain:
        together = _unfiltered([rows for _, rows in plain.values()])
        if together is not None:
            pixels[list(plain)] = together
        else:  # one of them is damaged: one by one
            for index, (data, _) in plain.items():
                found[index] = _decode_row(pixels[index], data)
    return found


def _decode_row(row: np.ndarray, data: bytes) -> tuple[int, int] | str:
    try:
        row[:], width, height = decode(data)
    except BadImage as error:
        return str(error)
    return width, height


def looks_uncropped(width: int, height: int) -> bool:
    """Whether an image of this size is rather a photo than a cropped face."""
    return max(width, height) > min(MAX_FACE_SIDE, MAX_FACE_RATIO * min(width, height))


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file; at most one more than `MAX_BYTES`, which `decode` then refuses.

    Raises BadImage if it can't be read or is no regular file (reading a pipe would wait for ever).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImage("not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadImage(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _reader(data: bytes) -> tuple[str, "type[ImageFile.ImageFile]"]:
    # Not Image.open: its own pixel limit is global, warns on stderr and hides the size that it refused.
    for kind, signatures, name in _READERS:
        if data.startswith(signatures) and (kind != "WebP" or data[8:12] == b"WEBP"):
            return kind, getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")
    raise BadImage("not an image")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} pixels is above the limit of {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{width}x{height} is too small ({MIN_SIDE}x{MIN_SIDE} at least)")


def _reason(kind: str, error: Exception) -> str:
    text = " ".join(str(error).split())[:80]
    if isinstance(error, EOFError) or "trunc" in text.lower():
        return "truncated"
    if isinstance(error, Image.DecompressionBombError):
        return f"above the limit of {MAX_PIXELS // 10**6} megapixels"
    return f"damaged {kind} ({text or type(error).__name__})"


def _check_png(data: bytes) -> None:
    """Raise BadImage where a PNG's chunks, up to the last one, are not whole: every checksum is compared.

    Pillow does not compare the checksum of the pixels, and would pass damaged ones.
    """
    at, name = 8, b""
    while name != b"IEND":
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadImage("truncated")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise BadImage("damaged PNG (checksum)")
        if at == 8:
            if name != b"IHDR" or length != 13:
                raise BadImage("damaged PNG (no header)")
            _check_size(*struct.unpack(">II", data[16:24]))
        at = end + 4


# FER2013's own form: a 48x48 8-bit grey PNG of three chunks. Its first 33 bytes (with the length and the checksum of
# the header), what a row holds (its filter, its pixels) and its last 12 bytes are always the same.
_PLAIN_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBBI", SIZE, SIZE, 8, 0, 0, 0, 0, 0x7269A65B)
_PLAIN_ROW = SIZE + 1
_PLAIN_BYTES = SIZE * _PLAIN_ROW
_PLAIN_END = b"\0\0\0\0IEND\xaeB`\x82"
_PLAIN_LARGEST = 4096  # bytes of such a file; uncompressed rows need 2,420


def _plain_rows(data: bytes) -> bytes:
    """Return the inflated rows of a plain 48x48 8-bit grey PNG, still filtered; b"" for anything else.

    Also where a checksum or the stream is wrong: what is wrong with it is for `decode` to say.
    """
    if len(data) > _PLAIN_LARGEST or not data.startswith(_PLAIN_START):
        return b""
    end = len(data) - len(_PLAIN_END) - 4
    if int.from_bytes(data[33:37], "big") != end - 41 or data[37:41] != b"IDAT" or data[end + 4 :] != _PLAIN_END:
        return b""
    if zlib.crc32(data[37:end]) != int.from_bytes(data[end : end + 4], "big"):
        return b""
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(data[41:end], _PLAIN_BYTES + 1)  # one more shows what is too long, and no more
    except zlib.error:
        return b""
    return rows if stream.eof and len(rows) == _PLAIN_BYTES else b""


def _unfiltered(images: list[bytes]) -> np.ndarray | None:
    """Return the pixels (N, 48, 48) uint8 of N images as `_plain_rows` gives them; None if a filter is unknown.

    Pillow undoes the filters of all in one call, as if they stood below each other in one image. A row of zeros
    between them is what PNG has above the first row. Thrice as fast as a call for each.
    """
    gap = bytes(_PLAIN_ROW)
    tall = gap + gap.join(images)
    if np.frombuffer(tall, np.uint8)[::_PLAIN_ROW].max() > 4:
        return None
    shape = (SIZE, len(images) * _PLAIN_ROW)
    image = Image.frombytes("L", shape, zlib.compress(tall, 0), "zip", "L", 0)
    return np.array(image).reshape(-1, _PLAIN_ROW, SIZE)[:, 1:]


def _finish(image: "ImageFile.ImageFile") -> Decoded:
    size = image.size
    if image.format == "JPEG":
        # libjpeg gives luma itself, and large photos already shrunk, to no less than twice our size.
        image.draft("L", (2 * SIZE, 2 * SIZE))
    image.load()
    if image.format != "JPEG":
        size = image.size  # loading a TIFF also sets it upright
    grey = _grey(image)
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        grey = grey.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        size = size[::-1]
    if grey.size != (SIZE, SIZE):
        grey = grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return Decoded(np.array(grey), *size)


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # 16 bits by the file itself; Pillow gives 16-bit PGM as 32-bit integers.
        top = 65535 if image.mode.startswith("I;16") or image.format == "PPM" else 0
        return Image.fromarray(_eight_bits(np.asarray(image), top=top))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("L", image.size, 255)
        white.paste(image.convert("L"), mask=image.getchannel("A"))
        return white
    if image.mode == "L":
        return image
    return image.convert("RGB").convert("L")


def _eight_bits(values: np.ndarray, *, top: float) -> np.ndarray:
    """Return pixels of 16 or 32 bits or floats in [0, top] as uint8: scaled, never clipped.

    `top` 0: the format states no range. Then it is the first of [0, 1] (floats), [0, 255] and [0, 65535] that
    holds all pixels, else from the least to the greatest of them. 16 bits keep their upper 8, as in 16-bit colour.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    tops = (top,) if top else (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    fitting = [top for top in tops if low >= 0 and high <= top]
    if fitting[:1] == [65535] and values.dtype.kind != "f":
        return (values >> 8).astype(np.uint8)
    low, high = (0.0, float(fitting[0])) if fitting else (low, high)
    return np.rint((values.astype(np.float64) - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except DECODER_ERRORS:  # the pixels are good: a damaged note about them is no reason to drop them
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1

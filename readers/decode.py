"""From the bytes of image files to 48x48 grey pixels, or to a photo's colours.

Every image, in training and in prediction, comes through `decode`, or is a photo that `decode_rgb` reads and
`faces.crop` cuts. Whatever a file contains, both return pixels or raise `BadImage`.
"""

import ctypes
import io
import logging
import lzma
import re
import struct
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from errors import cpu_quota, open_file

if TYPE_CHECKING:
    from readers.layout import Item

T = TypeVar("T")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")  # Pillow's names; PPM reads PGM too
_SUFFIXES = "jpg jpeg jpe jfif pjpeg png bmp webp tif tiff pgm ppm gif avif jp2 j2k j2c jpc jpf jpx"
EXTENSIONS = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
HEIC = "HEIC, which is not read: save it as JPEG"
UNREAD = {b"ftyphei": HEIC, b"ftyphev": HEIC, b"ftypmif": HEIC, b"ftypavi": "AVIF, damaged or unknown: save it as JPEG"}
SIZE = 48
MIN_SIDE = 8  # below 8x8 pixels there is no face to read
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
# A byte of a file may stand for this many pixels, times the scans of a JPEG, and FREE_PIXELS come on top. Of 12 flat
# megapixels PNG has 760 a byte, GIF 1,240, a progressive JPEG 1,690.
PIXELS_PER_BYTE = 3_000
FREE_PIXELS = 1_000_000
# Files above SMALL bytes are read by Pillow in at most so many parts, the pixels apart, and these in at most MAX_PARTS:
# a loop of Python takes 1 µs for each
SMALL, MAX_HEADER_PARTS, MAX_PARTS = 2**16, 4_000, 2_000_000
CHUNK = struct.Struct(">I4s")  # how a chunk of a PNG begins: the length of its content, its kind
MAX_COMMENTS = 100  # in a PGM or PPM as text: Pillow copies what follows for each
# What takes gigabytes, and a few bytes of JPEG 2000 can ask for: tiles below 128 pixels that are not the whole, more
# than 255 layers, precincts, blocks below 16 pixels, or a component with settings of its own
SMALL_PARTS = re.compile(
    rb"(?s)\xff\x4f\xff\x51.{4}(.{4})(.{4}).{8}(?:(?!\1)|.{4}(?!\2))\0\0\0[\0-\x7f]"
    rb"|\xff\x52\0[\x0c-\x2d](?=[\0-\7]...[\0\1][\0-\x20][\0-\x08]{2})(?:[\1\3\5\7]|..[^\0]|.{6,7}[\0\1])"
    rb"|\xff\x53\0[\x09-\x2a][\0-\3].[\0-\x20][\0-\x08]{2}"
)
PROBED = 8  # images of a batch whose time tells whether threads are worth it
SLOW_SECONDS = 0.0005  # for an image; one of FER2013 takes 0.0001

# What Pillow, zipfile, tarfile and the decompressors raise on damaged files: seen on 90,000 valid files changed at
# random, or possible by their source
_SEEN = (OSError, SyntaxError, ValueError, TypeError, OverflowError)
_POSSIBLE = (EOFError, LookupError, AttributeError, AssertionError, ArithmeticError, MemoryError, RuntimeError)
_OF_MODULES = (struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
DAMAGE = (*_SEEN, *_POSSIBLE, *_OF_MODULES)

# A damaged file is reported by BadImage; Pillow would also print warnings and log lines about it on stderr.
# Once for the process, since `warnings.catch_warnings` must not be used in threads.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
logging.getLogger("PIL").addHandler(logging.NullHandler())


# Where libtiff complains, Pillow reads on, and libtiff prints to file descriptor 2: instead, its word is kept by thread
_libtiff = threading.local()


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
def _keep_complaint(part: bytes | None, text: bytes | None, values: int | None) -> None:
    _libtiff.complaint = (part or b"TIFF").decode(errors="replace")


class BadImage(Exception):
    """A file that gives no pixels; `str` is a short reason, without the file's name."""


class _File(io.BytesIO):
    """The bytes of a file, to be read in at most `parts` parts."""

    parts = MAX_HEADER_PARTS

    def read(self, size: int | None = -1) -> bytes:
        self.parts -= 1
        if self.parts < 0:
            raise BadImage("in too many small parts; save it again, as PNG")
        return super().read(size)


def decode(data: bytes) -> np.ndarray:
    """Return the image in `data` as (48, 48) uint8 grey pixels.

    JPEG, PNG, BMP, WebP, TIFF, PGM/PPM, GIF, JPEG 2000 and AVIF, known by their first bytes; of several frames the
    first. Grey is ITU-R 601 luma; transparency shows white; 16 bits, or 12 in 16, keep their upper 8. Other sizes are
    squashed to 48x48 with antialiasing, after EXIF rotation. 48x48 8-bit grey comes through bit for bit.
    Raises BadImage, and nothing else, for a file that is damaged, too large or too small, or no image.
    """
    return decode_or_rgb(data, lambda *_: True)


def decode_or_rgb(source: bytes | Image.Image, whole: Callable[[int, int], bool]) -> np.ndarray:
    """Return what `decode` does, (48, 48), where `whole` is true of width and height; else what `decode_rgb` does."""
    with _opened(source) as image:
        if whole(*image.size):
            return _pixels(image)
        image.load()
        return np.array(_colours(_upright(image)))


def decode_rgb(source: bytes | Path | Image.Image) -> np.ndarray:
    """Return a photo as (H, W, 3) uint8 RGB pixels in its full size, turned as its EXIF says.

    `source` is a file, the bytes of one, or a Pillow image, which stays as it is. Formats, limits, and what becomes
    of transparency and of 16 bits are as in `decode`. Raises BadImage, and nothing else.
    """
    return decode_or_rgb(read_file(source) if isinstance(source, Path) else source, lambda *_: False)


@contextmanager
def _opened(source: bytes | Image.Image) -> Iterator[Image.Image]:
    """Open an image (of a Pillow image, a copy); BadImage for what it is, and for what Pillow raises meanwhile."""
    if isinstance(source, bytes) and not source:
        raise BadImage("0 bytes")
    if isinstance(source, bytes) and len(source) > MAX_BYTES:
        raise BadImage(f"above the limit of {MAX_BYTES // 2**20} MiB")
    _libtiff.complaint = ""
    try:
        with _open(source) if isinstance(source, bytes) else source.copy() as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE:
                raise BadImage(f"{width}x{height} is too small ({MIN_SIDE}x{MIN_SIDE} at least)")
            _check_pixels(image, source)
            yield image
            if image.format == "PNG" and isinstance(source, bytes):
                _check_chunks(source)
        if _libtiff.complaint:
            raise BadImage(f"damaged (libtiff: {_libtiff.complaint})")
    except UnidentifiedImageError as error:
        raise BadImage(UNREAD.get(source[4:11], "not an image")) from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"above the limit of {MAX_PIXELS // 10**6} megapixels") from error
    except DAMAGE as error:
        raise BadImage(f"damaged ({str(error) or type(error).__name__})") from error


def _open(data: bytes) -> Image.Image:
    """Open the image in `data`, of which no pixel is decoded yet."""
    if len(data) <= SMALL:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    if data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > MAX_COMMENTS:
        raise BadImage(f"above the limit of {MAX_COMMENTS} comments")
    file = _File(data)
    image = Image.open(file, formats=FORMATS)
    file.parts = MAX_PARTS
    return image


def _check_chunks(png: bytes) -> None:
    """Raise BadImage where a chunk's checksum is wrong: Pillow does not look at those of the pixels."""
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(png):
        size, kind = CHUNK.unpack_from(png, at)
        end = at + 8 + size
        if zlib.crc32(png[at + 4 : end]) != int.from_bytes(png[end : end + 4]):
            raise BadImage("damaged (a wrong checksum)")
        at = end + 4


def _check_pixels(image: Image.Image, source: bytes | Image.Image) -> None:
    """Raise BadImage where more pixels would be decoded than there should be, or than so few bytes hold."""
    (width, height), limit = image.size, MAX_PIXELS
    if isinstance(source, bytes):
        scans = source.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
        limit = min(limit, (FREE_PIXELS + PIXELS_PER_BYTE * len(source)) // max(scans, 1))
    if image.format in ("JPEG2000", "AVIF"):
        limit = min(limit, MAX_PIXELS // 2)  # they take up to 20 bytes a pixel
        if SMALL_PARTS.search(source) or source.count(b"av01") > 3:  # images, where transparency is one
            raise BadImage("in too many small parts; save it again, as PNG")
    if image.format == "TIFF":
        limit //= 4 if image.mode in ("I", "F") else 1  # they take 40 bytes a pixel
        with suppress(AttributeError):  # Pillow for Windows has libtiff inside, where it can't be reached
            ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(_keep_complaint)
        # A tile is decoded whole, and may be larger than the image
        width = max(width, int(image.tag_v2.get(322, 0)))
        height = max(height, int(image.tag_v2.get(323, 0)))
    if width * height > limit:
        few = f" for a file of {len(source):,} bytes" if isinstance(source, bytes) else ""
        raise BadImage(f"{width}x{height} pixels is above the limit of {limit / 1e6:.3g} megapixels{few}")


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file; at most one more than `MAX_BYTES`. Raises BadImage."""
    try:
        with open_file(path) as file:
            return file.read(MAX_BYTES + 1) or b""
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


def _pixels(image: Image.Image) -> np.ndarray:
    """Return an opened image upright, grey and shrunk."""
    if image.format in ("JPEG", "MPO"):  # of several pictures the first
        # libjpeg gives luma itself, and large photos already shrunk, to no less than twice our size.
        image.draft("L", (2 * SIZE, 2 * SIZE))
    image.load()
    grey = _grey(_upright(image))
    return np.array(grey if grey.size == (SIZE, SIZE) else grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _upright(image: Image.Image) -> Image.Image:
    """Turn `image` in place as its EXIF says, and return it."""
    if image.info or image.format == "TIFF":  # else there is no EXIF
        with suppress(*DAMAGE):  # the pixels are good: a damaged note about them is no reason to drop them
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 65535 is white
        deep = image.convert("I") if image.mode == "I;16B" else image  # which has no `point`
        step = next(step for step in (1, 16, 256) if deep.getextrema()[1] < 256 * step)  # 8, 12 or 16 bits hold them
        return deep.point(lambda value: value / step).convert("L")
    if image.mode in ("I", "F"):  # 32 bits or floats: the first of 1, 255 and 65535 that is above all pixels is white
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0).clip(0).astype(np.float64)
        white = next((white for white in (1, 255, 65535) if values.max() <= white), values.max())
        return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("L", image.size, 255)
        white.paste(image.convert("L"), mask=image.getchannel("A"))
        return white
    return image if image.mode == "L" else image.convert("RGB").convert("L")


# --- Many images ---


def cut(items: Iterable["Item"], size: int) -> Iterator[list["Item"]]:
    """Yield `items`, in order, in lists of `size`; the last one may be shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def load(item: "Item") -> np.ndarray:
    """Return the pixels of an item, or raise BadImage."""
    return item.load() if item.load else decode(item.read())


def work_in_batches(
    work: Callable[["Item"], T], batches: Iterable[list["Item"]], workers: int = 0
) -> Iterator[tuple[list["Item"], list[T | str]]]:
    """Yield every batch, in order, with what `work` returns for each item, or why it cannot be read.

    `workers` threads (0: one for each CPU) work where items take long, which the caller's own thread finds out. Small
    images are decoded by that one: several only wait for each other (measured: 13,800 images/s of FER2013 from a zip by
    one thread, 11,300 by two).
    """

    def result(item: "Item") -> T | str:
        try:
            return item.problem or work(item)
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(workers or cpu_quota(), thread_name_prefix="decode") as pool:
        slow = False
        for items in batches:
            probed = [] if slow else items[:PROBED]
            results, times = [], [time.perf_counter()]
            for item in probed:
                results.append(result(item))
                times.append(time.perf_counter())
            slow = slow or np.median(np.diff(times)) > SLOW_SECONDS  # the first image of a process always takes long
            results += (pool.map if slow else map)(result, items[len(probed) :])
            yield items, results

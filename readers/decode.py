"""From the bytes of image files to 48x48 grey pixels.

Every image, in training and in prediction, comes through `decode`: all are made grey and shrunk by the same
arithmetic. Whatever a file contains, `decode` returns pixels or raises `BadImage`.
"""

import io
import logging
import stat
import struct
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from errors import cpu_quota

if TYPE_CHECKING:
    from readers.layout import Item

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF")  # Pillow's names; PPM reads PGM too
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif"})
SIZE = 48
MIN_SIDE = 8  # below 8x8 pixels there is no face to read
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
# A face in FER2013 fills a square of 48x48. Further from that an image is rather a photo with a face somewhere in it.
MAX_FACE_RATIO = 1.5
MAX_FACE_SIDE = 512
PROBED = 8  # images of a batch whose time tells whether threads are worth it
SLOW_SECONDS = 0.0005  # for an image; one of FER2013 takes 0.0001
CHUNK = 64  # images handed to a thread at a time: one by one, the handing over costs more than the decoding

# Above this many pixels images are decoded one at a time: 64 megapixels of RGBA need about 0.5 GB.
LARGE_PIXELS = 4_000_000
_large = threading.Lock()

# What Pillow raises on damaged files: seen on 90,000 valid files changed at random, or possible by its source
_SEEN = (OSError, SyntaxError, ValueError, TypeError, OverflowError, Image.DecompressionBombError)
_POSSIBLE = (EOFError, LookupError, AttributeError, AssertionError, ArithmeticError, MemoryError, RuntimeError, Warning)
DECODER_ERRORS = (*_SEEN, *_POSSIBLE, struct.error, zlib.error)

# A damaged file is reported by BadImage; Pillow would also print warnings and log lines about it on stderr.
# Once for the process, since `warnings.catch_warnings` must not be used in threads.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
logging.getLogger("PIL").addHandler(logging.NullHandler())


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
    if not data:
        raise BadImage("0 bytes")
    if len(data) > MAX_BYTES:
        raise BadImage(f"above the limit of {MAX_BYTES // 2**20} MiB")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    if data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise BadImage("truncated")  # libwebp would only say that it could not create a decoder
    kind = "image"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = image.format
            _check_size(*image.size)
            if image.width * image.height <= LARGE_PIXELS:
                return _finish(image)
            with _large:
                return _finish(image)
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"above the limit of {MAX_PIXELS // 10**6} megapixels") from error
    except DECODER_ERRORS as error:
        text = " ".join(str(error).split())[:80]
        cut = isinstance(error, EOFError) or "trunc" in text.lower()
        raise BadImage("truncated" if cut else f"damaged {kind} ({text or type(error).__name__})") from error


def decode_file(path: Path) -> Decoded:
    """Return the image in a file; raises BadImage."""
    return decode(read_file(path))


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


def looks_uncropped(width: int, height: int) -> bool:
    """Return whether an image of this size is rather a photo than a cropped face."""
    return max(width, height) > min(MAX_FACE_SIDE, MAX_FACE_RATIO * min(width, height))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} pixels is above the limit of {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{width}x{height} is too small ({MIN_SIDE}x{MIN_SIDE} at least)")


def _check_png(data: bytes) -> None:
    """Raise BadImage where a chunk of a PNG is cut off or damaged: Pillow does not check the pixels' checksum."""
    at, name = 8, b""
    while name != b"IEND":
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadImage("truncated")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise BadImage("damaged PNG (checksum)")
        at = end + 4


def _finish(image: Image.Image) -> Decoded:
    """Return an opened image upright, grey and shrunk, with the size that it has in the file."""
    full = image.size
    if image.format == "JPEG":
        # libjpeg gives luma itself, and large photos already shrunk, to no less than twice our size.
        image.draft("L", (2 * SIZE, 2 * SIZE))
    image.load()
    if image.format != "JPEG":
        full = image.size  # loading a TIFF also sets it upright
    lying = image.size
    with suppress(*DECODER_ERRORS):  # the pixels are good: a damaged note about them is no reason to drop them
        ImageOps.exif_transpose(image, in_place=True)
    if image.size != lying:
        full = full[::-1]
    grey = _grey(image)
    if grey.size != (SIZE, SIZE):
        grey = grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return Decoded(np.array(grey), *full)


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), sixteen=image.mode[1:3] == ";1" or image.format == "PPM"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("L", image.size, 255)
        white.paste(image.convert("L"), mask=image.getchannel("A"))
        return white
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _eight_bits(values: np.ndarray, *, sixteen: bool) -> np.ndarray:
    """Return pixels of 16 or 32 bits or floats as uint8: scaled, never clipped.

    `sixteen`: by its format 65535 is white. Else white is the first of 1 (floats), 255 and 65535 that is above all
    pixels; where none is, or some are negative, they are stretched from the least to the greatest of them.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    tops = (65535,) if sixteen else (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    fitting = [(0.0, top) for top in tops if low >= 0 and high <= top]
    low, high = fitting[0] if fitting else (low, high)
    if high == 65535 and values.dtype.kind != "f":
        return (values >> 8).astype(np.uint8)  # as of 16-bit colour
    return np.rint((values.astype(np.float64) - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)


# --- Many images ---


class Batch(NamedTuple):
    """Images decoded together.

    `pixels` (G, 48, 48) uint8 are those of the G good ones among the N `items`. `found` (N) has width and height of
    each item's file, or why it has no pixels.
    """

    items: list["Item"]
    pixels: np.ndarray
    found: list[tuple[int, int] | str]


def cut(items: Iterable["Item"], size: int) -> Iterator[list["Item"]]:
    """Yield `items`, in order, in lists of `size`; the last one may be shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def decode_batches(batches: Iterable[list["Item"]], workers: int = 0) -> Iterator[Batch]:
    """Yield every batch decoded, in order, by `workers` threads (0: one for each CPU) where images take long.

    Small images are decoded by the caller's own thread: several only wait for each other (measured: 13,800 images/s of
    FER2013 from a zip by one thread, 11,300 by two).
    """
    batches, workers = iter(batches), workers or cpu_quota()
    for items in batches:
        pixels = np.empty((len(items), SIZE, SIZE), np.uint8)
        found = _decode(pixels[:1], items[:1])  # the very first image waits for Pillow to load its decoder
        start = time.perf_counter()
        found += _decode(pixels[1:PROBED], items[1:PROBED])
        if workers > 1 and time.perf_counter() - start > SLOW_SECONDS * len(found):
            yield from _decode_in_threads(chain([items], batches), workers)
            return
        yield _batch(items, pixels, found + _decode(pixels[PROBED:], items[PROBED:]))


def _decode_in_threads(batches: Iterable[list["Item"]], workers: int) -> Iterator[Batch]:
    """Yield every batch decoded, in order. About two chunks for each thread are under way, or one batch."""
    waiting = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for items in chain(batches, [[]]):
            pixels = np.empty((len(items), SIZE, SIZE), np.uint8)
            starts = range(0, len(items), CHUNK)
            chunks = [pool.submit(_decode, pixels[at : at + CHUNK], items[at : at + CHUNK]) for at in starts]
            waiting.append((items, pixels, chunks))
            while waiting and (not items or sum(len(chunks) for *_, chunks in waiting) >= 2 * workers):
                some, pixels, chunks = waiting.popleft()
                if some:
                    yield _batch(some, pixels, [size for chunk in chunks for size in chunk.result()])
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(rows: np.ndarray, items: list["Item"]) -> list[tuple[int, int] | str]:
    """Fill `rows` (N, 48, 48) with the pixels of N items; width and height of each, or why it has none."""
    found = []
    for row, item in zip(rows, items, strict=True):
        try:
            if item.problem:
                raise BadImage(item.problem)
            row[:], width, height = item.load()
        except BadImage as error:
            found.append(str(error))
        else:
            found.append((width, height))
    return found


def _batch(items: list["Item"], pixels: np.ndarray, found: list[tuple[int, int] | str]) -> Batch:
    good = [not isinstance(size, str) for size in found]
    return Batch(items, pixels if all(good) else pixels[good], found)

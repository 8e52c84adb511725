"""Files inside a zip, read in place: nothing is unpacked to disk.

A zip may come from anywhere. What it claims is checked before it is believed, and no image in it is read further
than `images.MAX_BYTES`, whatever its header says.
"""

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from images import MAX_BYTES, BadImage
from utils import UserError

MAX_ENTRIES = 10_000_000
MAX_TOTAL = 256 * 2**30

# zipfile inflates these in steps of bounded size. From bzip2 and LZMA it takes whatever comes out of a step, and
# 1 kB of bzip2 can hold 1 GB.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile raises on damaged archives: BadZipFile (structure, checksums), zlib.error, OSError (the file itself),
# EOFError and struct.error (short fields), ValueError (negative positions, names that are no UTF-8), OverflowError
# (absurd sizes), RuntimeError (encryption; also NotImplementedError, for features it lacks), MemoryError.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, struct.error, ValueError, OverflowError, RuntimeError,
    MemoryError,
)  # fmt: skip


class Listing(NamedTuple):
    """What a zip holds, by names with "/": `files`, those `refused` with the reason, and named `folders`."""

    files: dict[str, zipfile.ZipInfo]
    refused: dict[str, str]
    folders: set[str]
    digest: str  # of names, sizes and checksums, as the central directory has them


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Give the zip at `path`, open for reading from any number of threads.

    Raises UserError if it can't be read, is truncated or is no zip.
    """
    try:
        # A file of our own, not the path: zipfile counts the users of its own file without a lock, and closes it
        # when it believes the last one gone.
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}).") from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except ZIP_ERRORS as error:
            raise UserError(f"{path}: truncated or not a zip ({error}). Download it again.") from error
        with archive:
            yield archive


def list_zip(archive: zipfile.ZipFile, path: Path) -> Listing:
    """Return the files and folders of a zip, from its central directory alone.

    Of entries with the same name the last counts, as it would after unpacking.
    Raises UserError above `MAX_ENTRIES` entries or `MAX_TOTAL` bytes uncompressed.
    """
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise UserError(f"{path}: {len(infos)} entries are above the limit of {MAX_ENTRIES}. Split the zip.")
    total = sum(info.file_size for info in infos)
    if total > MAX_TOTAL:
        raise UserError(f"{path}: {total} bytes uncompressed are above the limit of {MAX_TOTAL}. Split the zip.")
    text = "\n".join(f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in infos)
    listing = Listing({}, {}, set(), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())
    for info in infos:
        written = info.filename.replace("\\", "/")
        # "./train//angry/x.png" is written by some tools for "train/angry/x.png".
        name = "/".join(part for part in written.split("/") if part not in ("", "."))
        reason = _unsafe(info, written)
        listing.files.pop(name, None)
        listing.refused.pop(name, None)
        if reason:
            listing.refused[name] = reason
        elif not written.endswith("/"):
            listing.files[name] = info
        elif name:
            listing.folders.add(name)
    return listing


def _unsafe(info: zipfile.ZipInfo, name: str) -> str:
    """Return why an entry is refused by its name or kind, "" if it is not."""
    drive = name[1:2] == ":" and name[0].isalpha()
    if name.startswith("/") or drive or ".." in name.split("/"):
        return "unsafe name (absolute, or leading out of the zip)"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "not a regular file"


def locked(info: zipfile.ZipInfo) -> str:
    """Return why an entry can't be opened, by its header; "" if it can."""
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in METHODS:
        return f"compressed by method {info.compress_type} (only stored and deflated entries are read)"
    return ""


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of one entry; raises BadImage if it is locked (`locked`), too large or damaged."""
    if locked(info):
        raise BadImage(locked(info))
    if info.file_size > MAX_BYTES:
        raise BadImage(f"{info.file_size} bytes is above the limit of {MAX_BYTES // 2**20} MiB")
    try:
        with archive.open(info) as file:
            # No more is inflated than the header claims; if there was more, the checksum does not fit.
            return file.read(info.file_size)
    except ZIP_ERRORS as error:
        raise BadImage(f"damaged in the zip ({_first_words(error)})") from error


@contextmanager
def open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Iterator[BinaryIO]:
    """Give one entry as a stream; raises UserError if it is locked (`locked`) or damaged."""
    if locked(info):
        raise UserError(f"{path}: {info.filename} can't be read: {locked(info)}. Unpack the zip, and give the folder.")
    try:
        file = archive.open(info)
    except ZIP_ERRORS as error:
        raise UserError(f"{path}: {info.filename} is damaged ({error}). Download the zip again.") from error
    with file:
        yield file


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__

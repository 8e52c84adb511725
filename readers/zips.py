"""Files inside a zip, read in place: nothing is unpacked to disk.

A zip may come from anywhere. What it claims is checked before it is believed, and no image in it is read further
than `images.MAX_BYTES`, whatever its header says.
"""

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from errors import UserError
from readers.decode import MAX_BYTES, BadImage

MAX_ENTRIES = 10_000_000
MAX_TOTAL = 256 * 2**30

# zipfile inflates these in steps of bounded size. From bzip2 and LZMA it takes whatever comes out of a step, and
# 1 kB of bzip2 can hold 1 GB.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile raises on damaged archives: BadZipFile (structure, checksums), zlib.error, OSError (the file itself),
# EOFError and struct.error (short fields), ValueError (negative positions, names that are no UTF-8), OverflowError
# (absurd sizes), RuntimeError (encryption; also NotImplementedError, for features it lacks), MemoryError.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
    RuntimeError,
    MemoryError,
)


class Listing(NamedTuple):
    """What a zip holds, by names with "/": `files`, those `refused` with the reason, and named `folders`."""

    files: dict[str, zipfile.ZipInfo]
    refused: dict[str, str]
    folders: set[str]
    ends: dict[zipfile.ZipInfo, int]  # where the next entry begins, or the directory


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
    files, refused, folders = {}, {}, set()
    plain_folders = {"": True}  # with the "/"; what was found of a folder's name holds for the next file in it
    for info in infos:
        written = info.filename.replace("\\", "/")
        base = written[(at := written.rfind("/") + 1) :]
        if (folder := written[:at]) not in plain_folders:
            plain_folders[folder] = ":" not in folder and not {"", ".", ".."} & set(folder[:-1].split("/"))
        plain = plain_folders[folder] and base not in ("", ".", "..") and ":" not in base
        # "./train//angry/x.png" is written by some tools for "train/angry/x.png".
        name = written if plain else "/".join(part for part in written.split("/") if part not in ("", "."))
        reason = _unsafe_kind(info) if plain else _unsafe_name(written) or _unsafe_kind(info)
        files.pop(name, None)
        refused.pop(name, None)
        if reason:
            refused[name] = reason
        elif base:
            files[name] = info
        elif name:
            folders.add(name)
    placed = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in placed[1:]), archive.start_dir]
    return Listing(files, refused, folders, dict(zip(placed, ends, strict=False)))


def digest_zip(infos: Iterable[zipfile.ZipInfo]) -> str:
    """Return a hex digest of names, sizes and checksums, as the central directory has them."""
    text = "\n".join(f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in infos)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _unsafe_name(name: str) -> str:
    """Return why an entry is refused by its name, "" if it is not."""
    drive = name[1:2] == ":" and name[0].isalpha()
    leading_out = name.startswith("/") or drive or ".." in name.split("/")
    return "unsafe name (absolute, or leading out of the zip)" if leading_out else ""


def _unsafe_kind(info: zipfile.ZipInfo) -> str:
    """Return why an entry is refused by its kind, "" if it is not."""
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


def read_entries(
    path: Path, infos: Iterable[zipfile.ZipInfo], ends: dict[zipfile.ZipInfo, int]
) -> Iterator[bytes | BadImage]:
    """Yield the bytes of each entry; BadImage for one that is locked (`locked`), too large or damaged.

    `ends` as in a Listing. Raises UserError if the zip itself can't be read any more.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}).") from error
    with file:
        for info in infos:
            try:
                data = _read_entry(file, info, ends[info])
            except BadImage as error:
                yield error
            except ZIP_ERRORS as error:
                yield BadImage(f"damaged in the zip ({_first_words(error)})")
            else:
                yield data


_LOCAL = struct.Struct("<4s2xH18xHH")  # signature, flags, lengths of the name and of the extra field
_PATCHED, _STRONG, _UTF8 = 0x20, 0x40, 0x800  # bits of the flags
_STEP = 2**20  # deflated bytes read at once


def _read_entry(file: BinaryIO, info: zipfile.ZipInfo, end: int) -> bytes:
    """Return the bytes of one entry, which must end before `end`; raises BadImage, or one of ZIP_ERRORS.

    What zipfile checks is checked here, in the same words: its own reading is five times slower, and nearly all of
    that is Python, where threads wait for each other.
    """
    if reason := locked(info):
        raise BadImage(reason)
    if info.file_size > MAX_BYTES:
        raise BadImage(f"{info.file_size} bytes is above the limit of {MAX_BYTES // 2**20} MiB")
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        raise zipfile.BadZipFile("Truncated file header")
    signature, flags, name_length, extra_length = _LOCAL.unpack(header)
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile("Bad magic number for file header")
    if info.flag_bits & _PATCHED:
        raise NotImplementedError("compressed patched data (flag bit 5)")
    if info.flag_bits & _STRONG:
        raise NotImplementedError("strong encryption (flag bit 6)")
    written = file.read(name_length + extra_length)[:name_length]
    if written.decode("utf-8" if flags & _UTF8 else "cp437") != info.orig_filename:
        raise zipfile.BadZipFile(f"File name in directory {info.orig_filename!r} and header {written!r} differ.")
    if info.header_offset + _LOCAL.size + name_length + extra_length + info.compress_size > end:
        raise zipfile.BadZipFile(f"Overlapped entries: {info.orig_filename!r} (possible zip bomb)")
    if info.compress_type == zipfile.ZIP_STORED:
        data = file.read(min(info.compress_size, info.file_size))
    else:
        data = _inflate(file, info.compress_size, info.file_size)
    # No more is read than the directory claims; if there was more, the checksum does not fit.
    if zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {info.filename!r}")
    return data


def _inflate(file: BinaryIO, packed: int, size: int) -> bytes:
    """Return what the next `packed` bytes hold deflated, cut off after `size` bytes."""
    stream, parts = zlib.decompressobj(-zlib.MAX_WBITS), []
    while size and packed and not stream.eof:
        data = file.read(min(packed, _STEP))
        if not data:
            raise EOFError("the zip ends within it")
        parts.append(stream.decompress(data, size))
        packed -= len(data)
        size -= len(parts[-1])
    return b"".join(parts)


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

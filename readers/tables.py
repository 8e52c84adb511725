"""FER2013 as a table: fer2013.csv and icml_face_data.csv, alone or in a tar archive. Rows are streamed."""

import bz2
import csv
import gzip
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import RawIOBase, TextIOWrapper
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from config import CLASSES
from errors import UserError, open_file
from readers.decode import DAMAGE, SIZE, BadImage
from readers.layout import CSV_NAMES, Item

USAGES = {"training": "train", "publictest": "val", "privatetest": "test"}
COLUMNS = ("emotion", "pixels", "usage")
# A row of 2304 numbers has about 9,000 characters. A line longer than this is no row of such a table, and is not
# read to its end; it is below the limit that the csv module sets itself, 131,072 characters a field.
MAX_LINE = 100_000
MAX_MEMBERS = 10_000  # of an archive that are looked at; the public ones have three files
MAX_HEADERS = 2**24  # bytes of an archive's headers
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by the first bytes
TOO_MUCH = "far more bytes when unpacked than a table has. Unpack it yourself, and give the table."

_BYTE = {str(value): value for value in range(256)}


def read_rows(file: BinaryIO, name: str) -> Iterator[Item]:
    """Yield an Item for each row of a FER2013 table, numbered as a spreadsheet does: row 1 is the column names.

    A row that can't be used is an Item with a problem. Raises UserError if a column is missing, or if the file
    breaks off while it is read.
    """
    text = TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    rows = csv.reader(read_lines(text, name))
    try:
        columns = _columns(next(rows, []), name)
        for number, row in enumerate(rows, start=2):
            if row:
                yield _item(row, columns, f"{name} row {number}")
    except csv.Error as error:
        raise UserError(f"{name}, line {rows.line_num}: {error}. The file is damaged: download it again.") from error
    finally:
        text.detach()


def read_lines(text: TextIOWrapper, name: str) -> Iterator[str]:
    """Yield the lines of a table called `name`; raises UserError for one that is too long, or can't be read."""
    for number in count(1):
        try:
            line = text.readline(MAX_LINE)
        except DAMAGE as error:
            raise UserError(f"{name}, line {number}: truncated or damaged ({error}). Download it again.") from error
        if not line:
            return
        if len(line) == MAX_LINE:
            raise UserError(f"{name}, line {number}: above {MAX_LINE} characters, so this is no FER2013 table.")
        yield line


def _columns(header: list[str], name: str) -> list[int]:
    found = [column.strip().casefold() for column in header]
    if missing := [column for column in COLUMNS if column not in found]:
        raise UserError(f"{name} has no column {', '.join(missing)}: expected are emotion, pixels and Usage.")
    return [found.index(column) for column in COLUMNS]


def _item(row: list[str], columns: list[int], name: str) -> Item:
    if len(row) <= max(columns):
        return Item(name, problem=f"{len(row)} fields where {max(columns) + 1} are expected")
    emotion, text, usage = (row[column].strip() for column in columns)
    split, label = USAGES.get(usage.casefold(), ""), _BYTE.get(emotion, -1)
    if not split:
        return Item(name, problem=f"unknown Usage {usage[:20]!r} (Training, PublicTest or PrivateTest)")
    if not 0 <= label < len(CLASSES):
        return Item(name, split, problem=f"unknown emotion {emotion[:20]!r} (0 to {len(CLASSES) - 1})")
    return Item(name, split, label, load=partial(_pixels, text))


def _pixels(text: str) -> np.ndarray:
    values = text.split()
    if len(values) != SIZE * SIZE:
        raise BadImage(f"{len(values)} pixels where {SIZE * SIZE} are expected")
    try:
        pixels = np.frombuffer(bytearray(map(_BYTE.__getitem__, values)), np.uint8)
    except KeyError as error:
        raise BadImage(f"pixel {str(error.args[0])[:20]!r} is not a number from 0 to 255") from error
    return pixels.reshape(SIZE, SIZE)


@contextmanager
def open_table(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Give a table, plain or in a tar archive (compressed or not), as a stream, with its name.

    Nothing is unpacked to disk. Raises UserError if it can't be opened, or if the archive has no such table.
    """
    with ExitStack() as stack:
        try:
            file, name, archive = stack.enter_context(open_file(path)), path.name, None
            if path.suffix.lower() != ".csv":
                unpack = COMPRESSIONS.get(file.peek(2)[:2])
                archive = TarStream(stack.enter_context(unpack(file)) if unpack else file, path)
                file, name = _find_table(archive, path)
            yield file, name
            while archive and archive.read(2**20):
                pass  # the checksum is at the end
        except DAMAGE as error:
            raise UserError(f"{path}: no tar archive, or truncated or damaged ({error}). Download it again.") from error


class TarStream(RawIOBase):
    """The unpacked bytes of a tar archive, front to back, as tarfile takes them.

    Raises UserError where more than `left` are read, or where they are more than `limit` with those that are skipped.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.tell = file, path, file.tell
        self.left, self.limit = MAX_HEADERS, unpacked_limit(path.stat().st_size)

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise UserError(f"{self.path}: {TOO_MUCH}")
        return self.file.read(size)

    def seek(self, to: int, whence: int = 0) -> int:
        if not self.tell() <= to <= self.limit:
            raise UserError(f"{self.path}: {TOO_MUCH}")
        return self.file.seek(to)


def unpacked_limit(size: int) -> int:
    """Return how many bytes an archive of `size` may give: FER2013 gives 3 for one, faces in black and white 35."""
    return MAX_HEADERS + 50 * size


def _find_table(stream: TarStream, path: Path) -> tuple[BinaryIO, str]:
    archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (`stream` is the caller's)
    for member in islice(archive, MAX_MEMBERS):
        name = member.name.rpartition("/")[2]
        if member.isfile() and not member.issparse() and name.casefold() in CSV_NAMES:
            stream.left = stream.limit - stream.tell()
            return archive.extractfile(member), name
    names, remedy = " and no ".join(CSV_NAMES), "if it has images, unpack it, and give the folder"
    raise UserError(f"{path}: has no {names} among its first {MAX_MEMBERS:,} files; {remedy}.")

"""Faces as rows of a table: fer2013.csv and its kin, alone, compressed, or in a tar archive. Rows are streamed."""

import bz2
import csv
import gzip
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedReader, RawIOBase, TextIOWrapper
from itertools import chain, count, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from classes import split_of
from config import fold
from errors import UserError, open_file
from readers.decode import DAMAGE, SIZE, BadImage
from readers.layout import WHOLE_TABLES, Item

# The columns, and what else they are called; only pixels must be there
COLUMNS = {"emotion": ("emotion", "label", "class"), "pixels": ("pixels", "pixel"), "usage": ("usage", "split")}
# A row of 2304 numbers has about 9,000 characters. A line longer than this is no row of such a table, and is not
# read to its end; it is below the limit that the csv module sets itself, 131,072 characters a field.
MAX_LINE = 100_000
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TAR_TABLES = tuple(f"{name}.csv" for name in WHOLE_TABLES)
MAX_LABEL = 40  # characters
MAX_MEMBERS = 10_000  # of an archive that are looked at; the public ones have three files
MAX_HEADERS = 2**24  # bytes of an archive's headers
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by the first bytes
TOO_MUCH = "far more bytes when unpacked than a table has. Unpack it yourself, and give the table."

_BYTE = {str(value): value for value in range(256)}


def read_rows(file: BinaryIO, name: str, split: str = "") -> Iterator[Item]:
    """Yield an Item for each row of a table, numbered as a spreadsheet does: row 1 is the column names, if it has some.

    Without a Usage column all rows are of `split`, "train" if that is empty. A row that can't be used is an Item with a
    problem. Raises UserError if there are no pixels, if the file breaks off, or if many rows have a Usage that means no
    split.
    """
    text = TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    lines = read_lines(text, name)
    first = next(lines, "")
    rows = csv.reader(chain([first], lines), delimiter=max(",;\t", key=first.count))
    unknown, number = Counter(), 1
    try:
        header = next(rows, [])
        columns, named = _columns(header, name)
        called = fold(header[columns["emotion"]]) if named and "emotion" in columns else "emotion"
        rows = iter(rows) if named else chain([header], rows)
        if "usage" not in columns and (first := next(rows, None)):  # a column of another name may have the split
            rest = (at for at, value in enumerate(first) if at not in columns.values() and split_of(value))
            columns |= dict(zip(("usage",), rest, strict=False))
            rows = chain([first], rows)
        for number, row in enumerate(rows, start=1 + named):
            if row:
                item = _item(row, columns, called, f"{name} row {number}", split or "train")
                unknown.update([] if item.split else [item.problem])
                yield item
    except csv.Error as error:
        raise UserError(f"{name}, line {rows.line_num}: {error}. The file is damaged: download it again.") from error
    finally:
        text.detach()
    if many := [f"{problem} in {rows:,} rows" for problem, rows in unknown.items() if rows >= max(2, number / 100)]:
        raise UserError(f"{name}: {'; '.join(many[:5])}. Write train, val or test there.")


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
            raise UserError(f"{name}, line {number}: above {MAX_LINE} characters, so this is no table of faces.")
        yield line


def _columns(header: list[str], name: str) -> tuple[dict[str, int], bool]:
    """Return the place of each column, and whether `header` has their names; else it is emotion, pixels, Usage."""
    found = [fold(text) for text in header]
    columns = {column: found.index(word) for column, words in COLUMNS.items() for word in words if word in found}
    if "pixels" in columns:
        return columns, True
    at = next((at for at, text in enumerate(header) if len(text.split()) > SIZE), -1)
    if at < 0:
        raise UserError(
            f"{name} has no column pixels: expected are emotion, pixels and Usage. Images that a table only names are "
            f"not read: put those of each class into a folder of its name."
        )
    others = zip(("emotion", "usage"), (each for each in range(len(header)) if each != at), strict=False)
    return {"pixels": at, **dict(others)}, False


def _item(row: list[str], columns: dict[str, int], called: str, name: str, split: str) -> Item:
    if len(row) <= max(columns.values()):
        return Item(name, split, problem=f"{len(row)} fields where {max(columns.values()) + 1} are expected")
    values = {column: row[at].strip() for column, at in columns.items()}
    if usage := values.get("usage"):
        split = split_of(usage)
    elif usage == "":
        split = ""
    label = label_of(values.get("emotion", ""), called)
    if not split:
        return Item(name, label=label, problem=f"unknown Usage {usage[:20]!r}")
    if "emotion" in columns and not label:
        return Item(name, split, problem=f"unknown emotion {values['emotion'][:20]!r}")
    return Item(name, split, label, load=partial(_pixels, values["pixels"]))


def label_of(value: str, column: str = "emotion") -> str:
    """Return the name of a class in a table: "3.0" is "3", and in another column than emotion "label 3"; "" if none."""
    whole, point, rest = value.partition(".")
    text = whole if point and whole.isdecimal() and not rest.strip("0") else value
    text = f"{column} {text}" if text.isdecimal() and column != "emotion" else text
    return text if len(text) <= MAX_LABEL else ""


def _pixels(text: str) -> np.ndarray:
    values = text.split()
    if len(values) == 1 or text[:1] in "[(":
        values = re.sub(r"[][(),]", " ", text).split()
    if len(values) != SIZE * SIZE:
        raise BadImage(f"{len(values)} pixels where {SIZE * SIZE} are expected")
    try:
        pixels = np.frombuffer(
            bytearray(map(_BYTE.__getitem__, map(label_of, values) if "." in text else values)), np.uint8
        )
    except KeyError as error:
        raise BadImage(f"pixel {str(error.args[0])[:20]!r} is not a number from 0 to 255") from error
    return pixels.reshape(SIZE, SIZE)


@contextmanager
def open_table(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Give a table, plain, compressed or in a tar archive, as a stream, with its name.

    Nothing is unpacked to disk. Raises UserError if it can't be opened, or if the archive has no such table.
    """
    with ExitStack() as stack:
        try:
            file, name, stream = stack.enter_context(open_file(path)), path.name, None
            if unpack := COMPRESSIONS.get(file.peek(2)[:2]):
                file = stack.enter_context(unpack(file))
            tar = file.peek(512)[257:262] == b"ustar" or name.lower().endswith(TAR_SUFFIXES)
            if tar or unpack:
                stream = Unpacked(file, path)
                file, name = _find_table(stream, path) if tar else (stream.rest(), name)
            yield file, name
            while stream and stream.read(2**20):
                pass  # the checksum is at the end
        except DAMAGE as error:
            raise UserError(f"{path}: no table, or truncated or damaged ({error}). Download it again.") from error


class Unpacked(RawIOBase):
    """The unpacked bytes of an archive, front to back, as tarfile takes them.

    Raises UserError where more than `left` are read, or where they are more than `limit` with those that are skipped.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.tell = file, path, file.tell
        self.left, self.limit = MAX_HEADERS, unpacked_limit(path.stat().st_size)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise UserError(f"{self.path}: {TOO_MUCH}")
        return self.file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, to: int, whence: int = 0) -> int:
        if not self.tell() <= to <= self.limit:
            raise UserError(f"{self.path}: {TOO_MUCH}")
        return self.file.seek(to)

    def rest(self) -> BinaryIO:
        """All that comes now is the table."""
        self.left = self.limit - self.tell()
        return BufferedReader(self)


def unpacked_limit(size: int) -> int:
    """Return how many bytes an archive of `size` may give: FER2013 gives 3 for one, faces in black and white 35."""
    return MAX_HEADERS + 50 * size


def _find_table(stream: Unpacked, path: Path) -> tuple[BinaryIO, str]:
    archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (`stream` is the caller's)
    for member in islice(archive, MAX_MEMBERS):
        name = member.name.rpartition("/")[2]
        if member.isfile() and not member.issparse() and name.lower() in TAR_TABLES:
            stream.rest()
            return archive.extractfile(member), name
    names, remedy = " and no ".join(TAR_TABLES), "if it has images, unpack it, and give the folder"
    raise UserError(f"{path}: has no {names} among its first {MAX_MEMBERS:,} files; {remedy}.")

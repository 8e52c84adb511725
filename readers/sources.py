"""Where images come from: a folder, a zip, a table or a tar archive, each as a `Source` of Items.

One bad file is an Item with a problem, or one whose `load` raises BadImage. UserError is for a source as a whole: it
is missing, laid out in another way, or its archive breaks off. Nothing is unpacked to disk. A zip may come from
anywhere: what it claims is checked before it is believed, and no entry is read further than `MAX_BYTES`.
"""

import hashlib
import os
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from classes import SEVEN, split_of
from errors import UserError, open_file
from readers import parquet
from readers.decode import DAMAGE, EXTENSIONS, MAX_BYTES, BadImage, read_file
from readers.layout import (
    ARCHIVES,
    REMEDY,
    RENDERED_MARK,
    Item,
    Layout,
    input_layout,
    is_image_name,
    is_junk,
    is_table_name,
    training_layout,
)
from readers.tables import TAR_SUFFIXES, TOO_MUCH, open_table, read_rows, unpacked_limit

MAX_ENTRIES = 10_000_000  # of a zip
MAX_TOTAL = 256 * 2**30  # bytes in a zip, uncompressed
# The methods of a zip. zipfile inflates the first two in steps of bounded size. From bzip2 and LZMA it takes whatever
# comes out of a step, and 1 kB of bzip2 can give 1 GB.
METHODS = {0: "", 8: "", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 99: "a password"}
UNPACK = "unpack it with 7-Zip, and give the folder"
MAX_NAME = 4096  # characters of a name in a zip
MOST_SAID = 200  # characters of an error of zipfile, which may hold all of a damaged name
UNSAFE = "unsafe name (absolute, empty, too long, leading out of the zip, or of a folder with content)"
UNSAFE_NAME = re.compile(r"/|[A-Za-z]:|\.\.(/|$)")  # absolute, or leading out of the zip


@dataclass(slots=True)
class Source:
    """Images in one file or folder.

    `kind` is "files", "table" or "image". `key()` is a hex digest that changes when the content does; no image is
    decoded for it. `items()` gives every image once, sorted by name (tables: in the order of rows); it raises UserError
    if a table breaks off. `total` is None if only reading would tell. `rendered`: faces that demo/ wrote.
    `training`: how many inputs are in a class folder of train/.
    """

    path: Path
    kind: str
    key: Callable[[], str]
    items: Callable[[], Iterable[Item]]
    total: int | None = None
    rendered: bool = False
    training: int = 0


def open_dataset(path: Path, *, follow_links: bool = False) -> Source:
    """Return the source of a training set: a folder, a zip, or a table such as fer2013.csv, also in a tar archive.

    Raises UserError if it is missing, or of no known form.
    """
    listed = _list(path, follow_links)
    if listed:
        try:
            layout = training_layout(str(path), listed.files)
        except UserError as error:
            more = [Item(name, problem=why) for name in listed.files if (why := REMEDY.get(Path(name).suffix.lower()))]
            left_out = (f" {item.name} is left out: {item.problem}." for item in [*listed.refused, *more][:3])
            raise UserError(f"{error}{''.join(left_out)}") from error
        if layout.tables:
            return _tables(
                path, listed.key, {partial(listed.open_table, name): split for name, split in layout.tables.items()}
            )
        return _files(path, listed, layout)
    if path.suffix.lower() not in ("", ".gz", *TAR_SUFFIXES) and not is_table_name(path.name):
        raise UserError(f"{path}: not a dataset. Accepted are a folder, a .zip, a table, or a tar archive of one.")
    return _tables(
        path, partial(_digest_file, path), {partial(open_table, path): split_of(path.name.partition(".")[0])}
    )


def open_inputs(path: Path, meaning: Mapping[str, str] = SEVEN, *, follow_links: bool = False) -> Source:
    """Return the source of images to predict: an image file, a table, a folder with all folders below it, or a zip.

    The label is the class that the nearest folder around a file names by `meaning`, or what a row has; the split "". In
    folders and zips suffixes tell what is an image. Raises UserError if it is missing, an archive, or has no files.
    """
    listed = _list(path, follow_links)
    if listed:
        return _files(path, listed, input_layout(listed.files, meaning, around=listed.around))
    if is_table_name(path.name):
        return _tables(path, partial(_digest_file, path), {partial(open_table, path): ""})
    if path.name.lower().endswith(ARCHIVES):
        raise UserError(f"{path}: {REMEDY['.zip']}")
    layout = input_layout([path.name], meaning, around=path.resolve().parts[-4:-1], typed=True)
    layout.items[0].read = partial(read_file, path)
    return Source(path, "image", partial(_digest_file, path), lambda: layout.items, 1, training=layout.training)


def _list(path: Path, follow_links: bool) -> "_Folder | _Zip | None":
    """Return the files in a folder or zip, None for other files. Raises UserError if there is nothing to read."""
    if not (os.path.isfile(path) or os.path.isdir(path)):  # Path's own raise for a name that is too long
        raise UserError(f"{path}: no such file or folder.")
    if path.is_dir():
        return _Folder(path, follow_links)
    return _Zip(path) if path.name.lower().endswith(".zip") else None


def _files(path: Path, listed: "_Folder | _Zip", layout: Layout) -> Source:
    items = sorted([*layout.items, *listed.refused], key=lambda item: item.name)
    if not items:
        raise UserError(f"{path}: has no files. Accepted are images ({', '.join(sorted(EXTENSIONS))}).")
    for item in items:
        if not item.problem:
            item.read = partial(listed.read, item.name)
    marked = any(posixpath.basename(name) == RENDERED_MARK for name in listed.files)
    marked = marked or os.path.isfile(path / ".." / RENDERED_MARK)  # `path` may be a split of rendered faces
    return Source(path, "files", listed.key, lambda: items, len(items), marked, layout.training)


def _tables(path: Path, key: Callable[[], str], tables: dict[Callable, str]) -> Source:
    """Return the source of tables, each opened as a stream and a name, and its split; a wrong one is refused now."""

    def rows(tables: Iterable[tuple[Callable, str]]) -> Iterator[Item]:
        for opened, split in tables:
            with opened() as (file, name):
                yield from (parquet.read_parquet if file.peek(4)[:4] == parquet.MAGIC else read_rows)(file, name, split)

    for table in tables.items():
        next(rows([table]), None)
    return Source(path, "table", lambda: _digest("table", key()), partial(rows, tables.items()))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _digest_file(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(path: Path, follow_links: bool) -> Iterator[tuple[str, list[str], str]]:
    """Yield every folder in and below `path` once, with the names of its files, or else why these are not read.

    Links to folders come last; one that leads out of `path` is left out unless `follow_links`. Junk is not entered.
    """
    root, links, seen, failed = os.path.realpath(path), [os.fspath(path)], set(), []
    for link in links:  # more are found meanwhile
        if not follow_links and not Path(os.path.realpath(link)).is_relative_to(root):
            yield link, [], "a link that leads out of the folder; --follow-links follows it"
            continue
        for folder, inside, names in os.walk(link, onerror=failed.append):
            real = os.path.realpath(folder)
            known = real in seen
            seen.add(real)
            inside[:] = [] if known else sorted(name for name in inside if not is_junk(name))
            links += [below for name in inside if os.path.islink(below := os.path.join(folder, name))]
            yield folder, [] if known else sorted(names), "a link to a folder that is read already" if known else ""
    yield from ((error.filename, [], f"can't be listed ({error.strerror})") for error in failed)


class _Folder:
    """What is below a folder: `files` by relative names with "/", without junk.

    `refused` are the folders that are not read, `around` the names of the folders around.
    """

    def __init__(self, path: Path, follow_links: bool) -> None:
        self.path, self.files, self.refused = path, {}, []
        self.around = path.resolve().parts[-3:]
        for folder, names, problem in walk(path, follow_links):
            here = Path(folder).relative_to(path).as_posix()
            if problem:
                self.refused.append(Item(f"{here}/", problem=problem))
            for name in names:
                if not is_junk(name) or name == RENDERED_MARK:
                    printable = os.fsencode(f"{here}/{name}").decode("utf-8", "backslashreplace")
                    self.files[printable.removeprefix("./")] = Path(folder, name)

    def key(self) -> str:
        """Return what changes when the name, size or time of a file does."""
        stamps = ["folder"]
        for name, file in sorted(self.files.items()):
            stamps.append(name)
            with suppress(OSError):  # a link to nowhere, or removed by now: reading it will say so
                status = file.stat()
                stamps[-1] += f"\0{status.st_size}\0{status.st_mtime_ns}"
        return _digest(*stamps)

    def read(self, name: str) -> bytes:
        return read_file(self.files[name])

    def open_table(self, name: str) -> AbstractContextManager[tuple[BinaryIO, str]]:
        return open_table(self.files[name])


class _Zip:
    """What is in a zip: `files` by names with "/"; `refused` are entries with unsafe names.

    Raises UserError if it is damaged, no zip, or above the limits.
    """

    def __init__(self, path: Path) -> None:
        try:
            file = open_file(path)
            file.seek(max(0, path.stat().st_size - 2**16 - 22))
            _, end, record = file.read().rpartition(b"PK\5\6")
            if end and record[:2] not in (b"\0\0", b"\xff\xff"):  # its number
                raise UserError(f"{path}: one of the parts of a zip: {UNPACK}.")
            self.archive = zipfile.ZipFile(file)
            infos = self.archive.infolist()
            if int.from_bytes(record[6:8], "little") not in (len(infos), 2**16 - 1):  # which says that it is elsewhere
                raise zipfile.BadZipFile("it has another number of entries than it says")
        except DAMAGE as error:
            raise UserError(f"{path}: truncated or not a zip ({error}). Download it again.") from error
        total = sum(info.file_size for info in infos)
        if len(infos) > MAX_ENTRIES or total > MAX_TOTAL:
            limits = f"{MAX_ENTRIES} entries or {MAX_TOTAL} bytes uncompressed"
            raise UserError(f"{path}: above the limit of {limits} ({len(infos)}, {total}). Split the zip.")
        self.path, self.files, self.packed, self.refused = path, {}, {}, []
        # train.zip may have class folders in it, but the name of a zip is no class
        self.around = (*path.resolve().parts[-3:-1], path.stem if split_of(path.stem) else "")
        for info in infos:
            given = info.orig_filename.replace("\\", "/")  # some tools write these
            name, folder = posixpath.normpath(given), given.endswith("/")
            odd = "\0" in given or len(given) > MAX_NAME or (folder and info.file_size)  # zipfile would drop it
            if odd or UNSAFE_NAME.match(name) or not given:
                self.refused.append(Item(name[:MAX_NAME], problem=UNSAFE))
            elif is_junk(name) and is_image_name(name) and (problem := self._damage(info)):
                self.refused.append(Item(name, problem=problem))  # a damaged name only looks like junk
            elif not folder:
                self.files[name] = info  # of entries with one name the last counts, as it would after unpacking
                self.packed[name] = METHODS.get(99 if info.flag_bits & 1 else info.compress_type, "another method")
        if self.packed and all(self.packed.values()):
            raise UserError(f"{path}: packed with {', '.join(sorted(set(self.packed.values())))}: {UNPACK}.")

    def key(self) -> str:
        infos = self.archive.infolist()
        return _digest("zip", *(f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in infos))

    def read(self, name: str) -> bytes:
        size = self.files[name].file_size
        if size > MAX_BYTES:
            raise BadImage(f"above the limit of {MAX_BYTES // 2**20} MiB")
        try:
            with self._open(name) as file:
                return file.read(size)  # without a size, whatever a bomb gives is inflated at once
        except DAMAGE as error:
            raise BadImage(_unreadable(error)) from error

    def _damage(self, info: zipfile.ZipInfo) -> str:
        """Why an entry can't be opened: zipfile compares its names, at its place and in the list. "" if it can."""
        try:
            self.archive.open(info).close()
        except DAMAGE as error:
            return _unreadable(error)
        return ""

    @contextmanager
    def open_table(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        if self.files[name].file_size > unpacked_limit(self.files[name].compress_size):
            raise UserError(f"{self.path}: {name}: {TOO_MUCH}")
        try:
            file = self._open(name)
        except DAMAGE as error:
            raise UserError(
                f"{self.path}: {name} can't be read ({str(error)[:MOST_SAID]}). Unpack the zip, give the folder."
            ) from error
        with file:
            yield file, name

    def _open(self, name: str) -> BinaryIO:
        if self.packed[name]:
            raise NotImplementedError(f"packed with {self.packed[name]}: {UNPACK}")
        return self.archive.open(self.files[name])


def _unreadable(error: Exception) -> str:
    return f"can't be read from the zip ({str(error)[:MOST_SAID] or type(error).__name__})"

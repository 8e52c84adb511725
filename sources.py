"""Reading the public forms of FER2013, and whatever is laid out like them: folders, zips, tables, tar archives.

    source = open_dataset(Path("archive.zip"))
    for item in source.items():
        ...  # item.pixels is (48, 48) uint8, or None, and item.problem says why

One bad file is an Item with a problem, never an exception. UserError is for a source as a whole: it is missing,
laid out in another way, or its archive breaks off.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from images import EXTENSIONS, BadImage, decode, read_file
from source_csv import open_table, read_rows
from source_layout import Item, Layout, class_index, input_layout, is_image_name, is_junk, training_layout
from source_zip import list_zip, open_entry, open_zip, read_entry
from utils import UserError

__all__ = ["Item", "Source", "class_index", "open_dataset", "open_inputs"]

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Images handed to a thread at a time: one by one, the handing over costs more than the decoding.
CHUNK = 64


@dataclass(slots=True)
class Source:
    """Images in one file or folder: what is known before they are read, and the reading of them.

    `kind` is "folder", "zip", "csv", "tar" or "image". `renamed` maps folder names to classes where these are
    spelled otherwise; `notes` are things to tell the user. `total` is the number of items to come, None if only
    reading would tell.
    """

    path: Path
    kind: str
    digest: Callable[[], str]
    read: Callable[[int], Iterator[Item]]
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    total: int | None = None

    def key(self) -> str:
        """Return a hex digest that changes when the content does; no image is decoded for it.

        A zip: names, sizes and checksums. A folder: names, sizes and times. Tables, tar archives, images: all bytes.
        """
        return hashlib.sha256(f"{self.kind} {self.digest()}".encode()).hexdigest()

    def items(self, workers: int = 0) -> Iterator[Item]:
        """Yield every image once, sorted by name (tables: in the order of rows), decoded in `workers` threads.

        0 workers: one for each CPU. A bad file is an Item with `pixels` None and `problem` set. The memory held
        does not grow with the number of images. Raises UserError if an archive or table breaks off while it is
        read: half a dataset must not pass for a whole one.
        """
        return self.read(workers or os.cpu_count() or 1)


def open_dataset(path: Path) -> Source:
    """Return the source of a training set: a folder, a zip, fer2013.csv / icml_face_data.csv, or a tar of these.

    Raises UserError if it is missing, of no known form, or if a class folder is unknown, missing or empty.
    """
    path = _existing(path)
    name = path.name.lower()
    if path.is_dir():
        return _open_folder(path, training=True)
    if name.endswith(".zip"):
        return _open_zip(path, training=True)
    if name.endswith((".csv", *TAR_SUFFIXES)):
        kind = "csv" if name.endswith(".csv") else "tar"
        return _checked(Source(path, kind, partial(_digest_file, path), partial(_table_rows, path)))
    raise UserError(f"{path}: not a dataset. Accepted are a folder, .zip, .csv, {', '.join(TAR_SUFFIXES)}.")


def open_inputs(path: Path) -> Source:
    """Return the source of images to predict: an image file, a folder with all folders below it, or a zip.

    The label is the class that the folder directly around a file names, -1 if it names none; the split is "".
    Raises UserError if it is missing, of no known form, or holds no files.
    """
    path = _existing(path)
    if path.is_dir():
        return _open_folder(path, training=False)
    if path.name.lower().endswith(".zip"):
        return _open_zip(path, training=False)
    if is_image_name(path.name):
        holder = class_index(path.resolve().parent.name)
        items = [Item(_printable(path.name), label=-1 if holder is None else holder)]
        read = partial(_decoded, items, lambda item: read_file(path))
        return Source(path, "image", partial(_digest_file, path), read, total=1)
    raise UserError(f"{path}: not an image. Accepted are a folder, .zip, {', '.join(sorted(EXTENSIONS))}.")


def _existing(path: Path) -> Path:
    path = Path(path)
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise UserError(f"{path}: no such file or folder.")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: neither a file nor a folder.")
    return path


def _from_layout(path: Path, kind: str, layout: Layout, digest: str, read: Callable[[int], Iterator[Item]]) -> Source:
    if not layout.items:
        raise UserError(f"{path}: holds no files. Accepted are images ({', '.join(sorted(EXTENSIONS))}).")
    return Source(path, kind, lambda: digest, read, layout.renamed, layout.notes, len(layout.items))


def _checked(table: Source) -> Source:
    """Return `table` once a row was read: a wrong one is refused when it is opened, not when it is read."""
    rows = table.items()
    next(rows, None)
    rows.close()
    return table


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table_rows(path: Path, workers: int) -> Iterator[Item]:
    with open_table(path) as (file, name):
        yield from read_rows(file, name)


def _printable(name: str) -> str:
    """Return a file's name with bytes that are no UTF-8 written as \\xff: such a name could not be printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# Folders


def _open_folder(path: Path, *, training: bool) -> Source:
    files, folders = _walk(path)
    if training:
        layout = training_layout(str(path), files, folders)
        if layout.csv:
            return replace(open_dataset(path / files[layout.csv].path), path=path)
    else:
        layout = input_layout(files, folder=path.resolve().name)
    text = "\n".join(f"{name}\0{files[name].size}\0{files[name].mtime_ns}" for name in sorted(files))
    digest = hashlib.sha256(text.encode()).hexdigest()
    read = partial(_decoded, layout.items, lambda item: read_file(files[item.name].path))
    return _from_layout(path, "folder", layout, digest, read)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int
    mtime_ns: int


def _walk(top: Path) -> tuple[dict[str, _File], set[str]]:
    """Return the files below `top` (relative name with "/" -> file) and the names of the folders, without junk.

    Links are followed, but not round in a circle.
    """
    files: dict[str, _File] = {}
    folders: set[str] = set()
    waiting: list[tuple[str, Path, tuple[str, ...]]] = [("", top, (os.path.realpath(top),))]
    while waiting:
        inside, folder, above = waiting.pop()
        try:
            found = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"{folder}: can't be listed ({error.strerror}).") from error
        for entry in found:
            name = inside + _printable(entry.name)
            if is_junk(name):
                continue
            if entry.is_dir():
                target = os.path.realpath(entry.path)
                if target not in above:
                    folders.add(name)
                    waiting.append((f"{name}/", Path(entry.path), (*above, target)))
                continue
            try:
                status = entry.stat()
            except OSError:  # a link to nowhere: listed all the same, so that reading it says so
                status = entry.stat(follow_symlinks=False)
            files[name] = _File(Path(entry.path), status.st_size, status.st_mtime_ns)
    return files, folders


# Zips


def _open_zip(path: Path, *, training: bool) -> Source:
    with open_zip(path) as archive:
        files, refused, folders, digest = list_zip(archive, path)
    layout = training_layout(str(path), files, folders) if training else input_layout(files)
    if layout.csv:
        return _checked(Source(path, "zip", lambda: digest, partial(_zip_rows, path, files[layout.csv])))
    bad = (Item(name, problem=reason) for name, reason in refused.items())
    layout.items = sorted([*layout.items, *bad], key=lambda item: item.name)
    return _from_layout(path, "zip", layout, digest, partial(_zip_items, path, files, layout.items))


def _zip_items(path: Path, files: dict, items: list[Item], workers: int) -> Iterator[Item]:
    with open_zip(path) as archive:
        yield from _decoded(items, lambda item: read_entry(archive, files[item.name]), workers)


def _zip_rows(path: Path, info, workers: int) -> Iterator[Item]:
    with open_zip(path) as archive, open_entry(archive, info, path) as file:
        yield from read_rows(file, info.filename)


# Decoding


def _decoded(items: Iterable[Item], read: Callable[[Item], bytes], workers: int) -> Iterator[Item]:
    """Yield `items` with their pixels, in order; no more than two chunks for each thread are under way."""
    left = iter(items)
    chunks = iter(lambda: list(islice(left, CHUNK)), [])
    decode_chunk = partial(_decode_chunk, read)
    if workers == 1:
        for chunk in chunks:
            yield from decode_chunk(chunk)
        return
    waiting: deque[Future[list[Item]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunk in chunks:
            waiting.append(pool.submit(decode_chunk, chunk))
            if len(waiting) >= 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(read: Callable[[Item], bytes], chunk: list[Item]) -> list[Item]:
    return [_decode_item(read, item) for item in chunk]


def _decode_item(read: Callable[[Item], bytes], item: Item) -> Item:
    if item.problem:
        return item
    try:
        pixels, width, height = decode(read(item))
    except BadImage as error:
        return replace(item, problem=str(error))
    return replace(item, pixels=pixels, width=width, height=height)

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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import UserError, cpu_quota
from readers.decode import EXTENSIONS, SIZE, BadImage, decode_into, read_file
from readers.layout import (
    DRAWN_MARK,
    Item,
    Layout,
    class_index,
    in_train,
    input_layout,
    is_image_name,
    is_junk,
    training_layout,
)
from readers.tables import open_table, read_rows
from readers.zips import digest_zip, list_zip, open_entry, open_zip, read_entries

__all__ = ["Batch", "Item", "Part", "Source", "class_index", "cut", "decode_batches", "open_dataset", "open_inputs"]

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Images handed to a thread at a time: one by one, the handing over costs more than the decoding.
CHUNK = 64
# The bytes of each of the items, or the problem with it. Raises UserError if what holds them all can't be read.
Fetch = Callable[[list[Item]], Iterator[bytes | BadImage]]


@dataclass(slots=True)
class Source:
    """Images in one file or folder: what is known before they are read, and the reading of them.

    `kind` is "folder", "zip", "csv", "tar" or "image". `renamed` maps folder names to classes where these are
    spelled otherwise; `notes` are things to tell the user. `total` is the number of items to come, None if only
    reading would tell. Where it is known, `part` lists the items, still without pixels.
    `drawn` tells faces that demo_faces.py wrote; `training` counts the inputs in a class folder of train/.
    """

    path: Path
    kind: str
    digest: Callable[[], str]
    read: Callable[[int], Iterator[Item]]
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    total: int | None = None
    part: "Part | None" = None
    drawn: bool = False
    training: int = 0

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
        return self.read(workers or cpu_quota())


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
        holder, folders = class_index(path.resolve().parent.name), path.resolve().parts[-3:-2]
        training = int(holder is not None and in_train(folders))
        item = Item(_printable(path.name), label=-1 if holder is None else holder)
        part = Part([item], lambda items: (_read_file(path) for _ in items))
        digest = partial(_digest_file, path)
        return Source(path, "image", digest, partial(_decoded, part), training=training, total=1, part=part)
    raise UserError(f"{path}: not an image. Accepted are a folder, .zip, {', '.join(sorted(EXTENSIONS))}.")


def _existing(path: Path) -> Path:
    path = Path(path)
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise UserError(f"{path}: no such file or folder.")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: neither a file nor a folder.")
    return path


def _from_layout(path: Path, kind: str, layout: Layout, digest: Callable[[], str], fetch: Fetch) -> Source:
    if not layout.items:
        raise UserError(f"{path}: holds no files. Accepted are images ({', '.join(sorted(EXTENSIONS))}).")
    part = Part(layout.items, fetch)
    return Source(
        path,
        kind,
        digest,
        partial(_decoded, part),
        layout.renamed,
        layout.notes,
        len(layout.items),
        part,
        training=layout.training,
    )


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
    files, folders, refused = _walk(path)
    if training:
        for name, problem in refused.items():  # half a dataset must not pass for a whole one
            raise UserError(f"{path / name}: {problem}.")
        layout = training_layout(str(path), files, folders)
        if layout.csv:
            return replace(open_dataset(files[layout.csv].path), path=path)
    else:
        layout = input_layout(files, around=path.resolve().parts[-2:])
        layout.items += [Item(f"{name}/", problem=problem) for name, problem in refused.items()]
        layout.items.sort(key=lambda item: item.name)

    def digest() -> str:
        text = "\n".join(f"{name}\0{files[name].size}\0{files[name].mtime_ns}" for name in sorted(files))
        return hashlib.sha256(text.encode()).hexdigest()

    source = _from_layout(
        path, "folder", layout, digest, lambda items: (_read_file(files[item.name].path) for item in items)
    )
    around = Path(os.path.abspath(path)).parent  # of a split of them
    marked = (path, around, *(path / name for name in folders))
    source.drawn = any(os.path.isfile(folder / DRAWN_MARK) for folder in marked)
    return source


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int
    mtime_ns: int


def _walk(top: Path) -> tuple[dict[str, _File], set[str], dict[str, str]]:
    """Return what is below `top`, without junk, by relative names with "/".

    That is the files, the folders, and what is wrong with each folder that can't be listed. Links are followed, but
    not round in a circle. Raises UserError where `top` itself can't be listed.
    """
    files: dict[str, _File] = {}
    folders: set[str] = set()
    refused: dict[str, str] = {}
    waiting: list[tuple[str, Path, tuple[str, ...]]] = [("", top, (os.path.realpath(top),))]
    while waiting:
        inside, folder, above = waiting.pop()
        try:
            found = list(os.scandir(folder))
        except OSError as error:
            problem = f"can't be listed ({error.strerror})"
            if not inside:
                raise UserError(f"{folder}: {problem}.") from error
            refused[inside.rstrip("/")] = problem
            continue
        for entry in found:
            name = inside + _printable(entry.name)
            if is_junk(name):
                continue
            if _is_folder(entry):
                target = os.path.realpath(entry.path)
                if target not in above:
                    folders.add(name)
                    waiting.append((f"{name}/", Path(entry.path), (*above, target)))
                continue
            files[name] = _File(Path(entry.path), *_size_and_time(entry))
    return files, folders, refused


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    for follow in (True, False):  # a link to nowhere is listed all the same, so that reading it says so
        with suppress(OSError):
            status = entry.stat(follow_symlinks=follow)
            return status.st_size, status.st_mtime_ns
    return 0, 0  # removed since the folder was listed, which reading it says too


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link round in a circle, or through a file: no folder, and reading it says so
        return False


def _read_file(path: Path) -> bytes | BadImage:
    try:
        return read_file(path)
    except BadImage as error:
        return error


# Zips


def _open_zip(path: Path, *, training: bool) -> Source:
    with open_zip(path) as archive:
        files, refused, folders, ends = list_zip(archive, path)
        digest = partial(digest_zip, archive.infolist())
    around = (*path.resolve().with_suffix("").parts[-2:], "")  # train.zip may hold class folders; it names no class
    layout = training_layout(str(path), files, folders) if training else input_layout(files, around=around)
    if layout.csv:
        return _checked(Source(path, "zip", digest, partial(_zip_rows, path, files[layout.csv])))
    if refused:
        bad = (Item(name, problem=reason) for name, reason in refused.items())
        layout.items = sorted([*layout.items, *bad], key=lambda item: item.name)

    def fetch(items: list[Item]) -> Iterator[bytes | BadImage]:
        return read_entries(path, (files[item.name] for item in items), ends)

    source = _from_layout(path, "zip", layout, digest, fetch)
    source.drawn = any(name.rpartition("/")[2] == DRAWN_MARK for name in files)
    return source


def _zip_rows(path: Path, info, workers: int) -> Iterator[Item]:
    with open_zip(path) as archive, open_entry(archive, info, path) as file:
        yield from read_rows(file, info.filename)


# Decoding


class Part(NamedTuple):
    """Items of one source in a row, still without pixels, and what gives their bytes.

    `place` is what stands before their names where those of several sources are shown together.
    """

    items: list[Item]
    fetch: Fetch
    place: str = ""


class Batch(NamedTuple):
    """Images decoded together.

    `pixels` (G, 48, 48) uint8 holds the G good ones. `found` has for each item, good or not, in their order, width
    and height of its file, or why it has no pixels.
    """

    pixels: np.ndarray
    found: list[tuple[int, int] | str]


def cut(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """Yield the items of `parts`, in order, in batches of `size`; the last one may be smaller."""
    batch: list[Part] = []
    room = size
    for part in parts:
        start = 0
        while start < len(part.items):
            batch.append(part._replace(items=part.items[start : start + room]))
            taken = len(batch[-1].items)
            start, room = start + taken, room - taken
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def decode_batches(batches: Iterable[list[Part]], workers: int = 0) -> Iterator[Batch]:
    """Yield every batch decoded, in order, by `workers` threads (0: one for each CPU; 1: the caller's own).

    No more than two chunks for each thread are under way, or one batch. Raises what a part's `fetch` does.
    """
    workers = workers or cpu_quota()
    if workers == 1:
        for batch in batches:
            pixels, jobs = _jobs(batch)
            yield _join(pixels, [job() for job in jobs])
        return
    waiting: deque[tuple[np.ndarray, list[Future[list[tuple[int, int] | str]]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for batch in batches:
            pixels, jobs = _jobs(batch)
            waiting.append((pixels, [pool.submit(job) for job in jobs]))
            while waiting and sum(len(futures) for _, futures in waiting) >= 2 * workers:
                pixels, futures = waiting.popleft()
                yield _join(pixels, [future.result() for future in futures])
        for pixels, futures in waiting:
            yield _join(pixels, [future.result() for future in futures])
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(batch: list[Part]) -> tuple[np.ndarray, list[Callable[[], list[tuple[int, int] | str]]]]:
    """Return the array for a batch's pixels, and for each of its chunks a function that fills its rows."""
    pixels = np.empty((sum(len(part.items) for part in batch), SIZE, SIZE), np.uint8)
    chunks = enumerate(cut(batch, CHUNK))
    return pixels, [partial(_decode, pixels[CHUNK * index : CHUNK * (index + 1)], chunk) for index, chunk in chunks]


def _decode(rows: np.ndarray, chunk: list[Part]) -> list[tuple[int, int] | str]:
    return decode_into(rows, (data for part in chunk for data in _files(part)))


def _files(part: Part) -> Iterator[bytes | BadImage]:
    files = part.fetch([item for item in part.items if not item.problem])
    for item in part.items:
        yield BadImage(item.problem) if item.problem else next(files)


def _join(pixels: np.ndarray, chunks: list[list[tuple[int, int] | str]]) -> Batch:
    found = [size for chunk in chunks for size in chunk]
    good = [not isinstance(size, str) for size in found]
    return Batch(pixels if all(good) else pixels[good], found)


def _decoded(part: Part, workers: int) -> Iterator[Item]:
    for (chunk,), batch in zip(cut([part], CHUNK), decode_batches(cut([part], CHUNK), workers), strict=True):
        pixels = iter(batch.pixels)
        for item, found in zip(chunk.items, batch.found, strict=True):
            if isinstance(found, str):
                yield replace(item, problem=found)
            else:
                yield Item(item.name, item.split, item.label, next(pixels), "", *found)

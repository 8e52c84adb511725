"""Where images come from: a folder, a zip, a table or a tar archive, each as a `Source` of Items.

    source = open_dataset(Path("archive.zip"))
    for items in cut(source.items(), 1024):
        ...  # items[0].load() gives (48, 48) pixels, or raises BadImage

One bad file is an Item with a problem, or one whose `load` raises BadImage. UserError is for a source as a whole: it
is missing, laid out in another way, or its archive breaks off. Nothing is unpacked to disk. A zip may come from
anywhere: what it claims is checked before it is believed, and no entry is read further than `MAX_BYTES`.
"""

import hashlib
import os
import stat
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from errors import UserError
from readers.decode import EXTENSIONS, MAX_BYTES, BadImage, Decoded, decode, decode_file
from readers.layout import (
    RENDERED_MARK,
    Item,
    Layout,
    in_train,
    input_layout,
    is_image_name,
    is_junk,
    training_layout,
)
from readers.tables import open_table, read_rows

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_ENTRIES = 10_000_000  # of a zip
MAX_TOTAL = 256 * 2**30  # bytes in a zip, uncompressed
# zipfile inflates these in steps of bounded size. From bzip2 and LZMA it takes whatever comes out of a step, and
# 1 kB of bzip2 can give 1 GB.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises on damaged archives: structure and checksums, the file itself, short fields, negative positions,
# names that are no UTF-8, absurd sizes, encryption and features it lacks.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, struct.error),
    *(ValueError, OverflowError, RuntimeError, MemoryError),
)


@dataclass(slots=True)
class Source:
    """Images in one file or folder.

    `kind` is "folder", "zip", "table" or "image". `key()` is a hex digest that changes when the content does; no image
    is decoded for it. `items()` gives every image once, sorted by name (tables: in the order of rows); it raises
    UserError if a table breaks off: half a dataset must not pass for a whole one. `total` is None if only reading would
    tell. `renamed`: folder -> class, where they differ. `rendered`: faces that demo/ wrote. `training`: how many inputs
    are in a class folder of train/.
    """

    path: Path
    kind: str
    key: Callable[[], str]
    items: Callable[[], Iterable[Item]]
    total: int | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rendered: bool = False
    training: int = 0


def open_dataset(path: Path) -> Source:
    """Return the source of a training set: a folder, a zip, fer2013.csv / icml_face_data.csv, or a tar of these.

    Raises UserError if it is missing, of no known form, or if a class folder is unknown, missing or empty.
    """
    name = _existing(path).name.lower()
    if path.is_dir():
        return _open_folder(path, training=True)
    if name.endswith(".zip"):
        return _open_zip(path, training=True)
    if name.endswith((".csv", *TAR_SUFFIXES)):
        return _table(path, partial(_digest_file, path), lambda: open_table(path))
    raise UserError(f"{path}: not a dataset. Accepted are a folder, .zip, .csv, {', '.join(TAR_SUFFIXES)}.")


def open_inputs(path: Path) -> Source:
    """Return the source of images to predict: an image file, a folder with all folders below it, or a zip.

    The label is the class that the folder directly around a file names, -1 if it names none; the split is "".
    Raises UserError if it is missing, of no known form, or has no files.
    """
    _existing(path)
    if path.is_dir():
        return _open_folder(path, training=False)
    if path.name.lower().endswith(".zip"):
        return _open_zip(path, training=False)
    if not is_image_name(path.name):
        raise UserError(f"{path}: not an image. Accepted are a folder, .zip, {', '.join(sorted(EXTENSIONS))}.")
    above = path.resolve().parts[-3:-1]
    (item,) = input_layout(["x.png"], around=above).items  # whatever the file is called, it was asked for by name
    item.name, item.load = _printable(path.name), partial(decode_file, path)
    training = int(item.label >= 0 and in_train(above[:-1]))
    return Source(path, "image", partial(_digest_file, path), lambda: [item], total=1, training=training)


def _existing(path: Path) -> Path:
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise UserError(f"{path}: no such file or folder.")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: neither a file nor a folder.")
    return path


def _from_layout(path: Path, kind: str, layout: Layout, key: Callable[[], str]) -> Source:
    items = sorted(layout.items, key=lambda item: item.name)
    if not items:
        raise UserError(f"{path}: has no files. Accepted are images ({', '.join(sorted(EXTENSIONS))}).")
    found = {"renamed": layout.renamed, "notes": layout.notes, "training": layout.training}
    return Source(path, kind, key, lambda: items, len(items), **found)


def _table(path: Path, key: Callable[[], str], opened: Callable) -> Source:
    """Return the source of a table that `opened` gives as a stream and a name; a wrong one is refused now."""

    def rows() -> Iterator[Item]:
        with opened() as (file, name):
            yield from read_rows(file, name)

    next(rows(), None)
    return Source(path, "table", lambda: _digest("table", key()), rows)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _printable(name: str) -> str:
    """Return a file's name with bytes that are no UTF-8 written as \\xff: such a name could not be printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# --- Folders ---


def _open_folder(path: Path, *, training: bool) -> Source:
    files, folders, refused = _walk(path)
    if training:
        for name, problem in refused.items():  # half a dataset must not pass for a whole one
            raise UserError(f"{path / name}: {problem}.")
        layout = training_layout(str(path), files, folders)
        if layout.csv:
            return replace(open_dataset(files[layout.csv]), path=path)
    else:
        layout = input_layout(files, around=path.resolve().parts[-2:])
        layout.items += [Item(f"{name}/", problem=problem) for name, problem in refused.items()]
    for item in layout.items:
        if not item.problem:
            item.load = partial(decode_file, files[item.name])
    source = _from_layout(path, "folder", layout, lambda: _digest("folder", *map(_stamp, files, files.values())))
    around = Path(os.path.abspath(path)).parent  # of a split of them
    marked = (path, around, *(path / name for name in folders))
    source.rendered = any(os.path.isfile(folder / RENDERED_MARK) for folder in marked)
    return source


def _stamp(name: str, path: Path) -> str:
    """Return what changes when a file does: its name, size and time."""
    with suppress(OSError):  # a link to nowhere, or removed by now: reading it will say so
        status = path.stat()
        return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
    return name


def _walk(top: Path) -> tuple[dict[str, Path], set[str], dict[str, str]]:
    """Return what is below `top`, without junk, by relative names with "/", in the order of names.

    That is the files, the folders, and what is wrong with each folder that can't be listed. Links are followed, but
    not round in a circle. Raises UserError where `top` itself can't be listed.
    """
    files, folders, refused = {}, set(), {}
    waiting = [("", top, (os.path.realpath(top),))]
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
            if is_junk(_printable(entry.name)):
                continue
            if not os.path.isdir(entry.path):  # unlike entry.is_dir it raises nothing for a link round in a circle
                files[name] = Path(entry.path)
            elif (target := os.path.realpath(entry.path)) not in above:
                folders.add(name)
                waiting.append((f"{name}/", Path(entry.path), (*above, target)))
    return dict(sorted(files.items())), folders, refused


# --- Zips ---


def _open_zip(path: Path, *, training: bool) -> Source:
    archive = _read_directory(path)
    files, refused, folders = _list_zip(archive, path)

    def key() -> str:
        return _digest("zip", *(f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in archive.infolist()))

    if training:
        layout = training_layout(str(path), files, folders)
        if layout.csv:
            return _table(path, key, lambda: _open_entry(archive, files[layout.csv], path))
    else:
        # train.zip may have class folders in it, but the name of a zip is no class
        layout = input_layout(files, around=(*path.resolve().with_suffix("").parts[-2:], ""))
    for item in layout.items:
        if not item.problem:
            item.problem = _locked(files[item.name])
            item.load = partial(_load_entry, archive, files[item.name])
    layout.items += [Item(name, problem=reason) for name, reason in refused.items()]
    source = _from_layout(path, "zip", layout, key)
    source.rendered = any(name.rpartition("/")[2] == RENDERED_MARK for name in files)
    return source


def _read_directory(path: Path) -> zipfile.ZipFile:
    """Return the zip at `path`, which any number of threads may read; it is closed when nobody has it any more.

    Raises UserError if it can't be read, is truncated or is no zip.
    """
    try:
        # A file of our own, not the path: zipfile counts the users of its own file without a lock, and closes it
        # when it believes the last one gone.
        file = path.open("rb")
        archive = zipfile.ZipFile(file)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}).") from error
    except ZIP_ERRORS as error:
        file.close()
        raise UserError(f"{path}: truncated or not a zip ({error}). Download it again.") from error
    weakref.finalize(archive, file.close)
    return archive


def _list_zip(archive: zipfile.ZipFile, path: Path) -> tuple[dict[str, zipfile.ZipInfo], dict[str, str], set[str]]:
    """Return the files of a zip, those refused with the reason, and the folders, by names with "/".

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
    for info in infos:
        written = info.filename.replace("\\", "/")
        # "./train//angry/x.png" is written by some tools for "train/angry/x.png".
        name = "/".join(part for part in written.split("/") if part not in ("", "."))
        files.pop(name, None)
        refused.pop(name, None)
        if reason := _unsafe(written, info):
            refused[name] = reason
        elif not written.endswith("/"):
            files[name] = info
        elif name:
            folders.add(name)
    return files, refused, folders


def _unsafe(name: str, info: zipfile.ZipInfo) -> str:
    """Return why an entry is refused by its name or kind, "" if it is not."""
    if name.startswith("/") or (name[1:2] == ":" and name[0].isalpha()) or ".." in name.split("/"):
        return "unsafe name (absolute, or leading out of the zip)"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "not a regular file"


def _locked(info: zipfile.ZipInfo) -> str:
    """Return why an entry can't be opened, by its header; "" if it can."""
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in METHODS:
        return f"compressed by method {info.compress_type} (only stored and deflated entries are read)"
    return (
        f"{info.file_size} bytes is above the limit of {MAX_BYTES // 2**20} MiB" if info.file_size > MAX_BYTES else ""
    )


def _load_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Decoded:
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size)  # without a size, whatever a bomb gives is inflated at once
    except ZIP_ERRORS as error:
        words = " ".join(str(error).split())[:80] or type(error).__name__
        raise BadImage(f"damaged in the zip ({words})") from error
    return decode(data)


@contextmanager
def _open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Iterator:
    """Give one entry as a stream, and its name; raises UserError if it is locked or damaged."""
    if info.flag_bits & 0x1 or info.compress_type not in METHODS:
        raise UserError(f"{path}: {info.filename} can't be read: {_locked(info)}. Unpack the zip, and give the folder.")
    try:
        file = archive.open(info)
    except ZIP_ERRORS as error:
        raise UserError(f"{path}: {info.filename} is damaged ({error}). Download the zip again.") from error
    with file:
        yield file, info.filename

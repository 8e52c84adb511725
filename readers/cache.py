"""Decoded images on disk: every image of a source once, in its order; `dataset.arrange` has one order for all forms.

A cache is a folder of three files: images.bin, (N, 48, 48) uint8, which is mapped; index.bin, a row of INDEX for each
image; meta.json, whose first line is a checksum of all three. It is verified when the cache is opened, so whatever else
is there is built anew. A dataset has one cache.
"""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classes import SEVEN, SPLIT_WORDS, class_in
from config import CLASSES
from errors import UserError, locked, open_file
from readers.decode import SIZE, BadImage, cut, load, work_in_batches
from readers.layout import Item
from readers.sources import Source

SPLITS = tuple(SPLIT_WORDS)
CACHE_VERSION = 12  # raised when decoding, the splits, the order or the files change
CACHES = "[0-9a-f]" * 24 + "-*"  # the names of their folders
BATCH = 4096  # images decoded at a time, 9 MB
NAMED = 5  # unreadable files whose names are kept, of each reason
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])  # 16 bytes of BLAKE2b over an image's 48x48 pixels
# `labels` are places in the meta's `names`; `origins`: of a table the number of an image's row, from 0; of files their
# `file_key`
INDEX = np.dtype([("splits", np.int8), ("labels", np.int64), ("digests", DIGEST), ("origins", np.uint64)])


@dataclass(frozen=True)
class Cache:
    """`images` (N, 48, 48) uint8, mapped; `index` (N,) of INDEX; `meta`, what is known of the source."""

    images: np.ndarray
    index: np.ndarray
    meta: dict[str, Any]


def cached(source: Source, root: Path) -> Cache:
    """Return every image of `source`, decoded into a folder below `root` now if they are not there already.

    Raises UserError where nothing can be read or written.
    """
    folder = root / f"{source.key()[:24]}-{CACHE_VERSION}"
    cache = open_cache(folder) or build_cache(source, folder)
    if not cache:
        raise UserError(f"{folder} was written and can't be read back: try again, or give another --cache")
    return cache


def open_cache(folder: Path) -> Cache | None:
    """Return the cache in `folder`; None where it is missing, damaged or foreign: nothing is raised."""
    found, meta = read_meta(folder)
    try:
        index = np.fromfile(folder / "index.bin", INDEX)
        images = np.memmap(folder / "images.bin", np.uint8, "r").reshape(len(index), SIZE, SIZE)
    except (OSError, ValueError):
        return None
    return Cache(images, index, meta) if found == checksum(meta, index, images) else None


def read_meta(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the checksum and the facts in the meta.json of a cache; "" and {} where it has another form."""
    try:
        with open_file(folder / "meta.json") as file:
            found, _, text = file.read().decode().partition("\n")
        meta = json.loads(text)
    except (OSError, ValueError, RecursionError):
        meta = None
    return (found, meta) if isinstance(meta, dict) else ("", {})


def checksum(meta: dict[str, Any], index: np.ndarray, images: np.ndarray) -> str:
    """Return a CRC-32 of all that a cache holds, as text: of FER2013 in 20 ms, with SHA-256 in 76."""
    found = 0
    for part in (json.dumps(meta).encode(), index.tobytes(), images):
        found = zlib.crc32(part, found)
    return f"{found:08x}"


def build_cache(source: Source, folder: Path) -> Cache | None:
    """Decode every image of `source` into `folder`, which appears whole or not at all; what was written, read back.

    One process does so at a time: what others began was left by a kill, and goes, as older caches of the source do.
    Memory does not grow with the pixels: they go to disk as they come.
    """
    root, half = folder.parent, folder.with_name(f"{folder.name}.half-")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root, ".cache.lock", wait=True):
            if cache := open_cache(folder):  # another process was quicker
                return cache
            for left in root.glob(f"{CACHES}.half-*"):
                shutil.rmtree(left, ignore_errors=True)
            try:
                half.mkdir()
                write_cache(source, half)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(half, folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
            for other in root.glob(CACHES):
                if other != folder and read_meta(other)[1].get("source") == os.path.abspath(source.path):
                    shutil.rmtree(other, ignore_errors=True)
            return open_cache(folder)
    except OSError as error:
        raise UserError(
            f"the decoded images could not be written to {root} ({error.strerror}); "
            f"free some space or name another folder with --cache"
        ) from error


def write_cache(source: Source, half: Path) -> None:
    """Write the files of a cache into `half`, to the disk. Raises UserError where not one image can be read."""
    index, found = decode_all(source, half / "images.bin")
    (half / "index.bin").write_bytes(index.tobytes())
    meta = {"source": os.path.abspath(source.path), **found}
    images = np.memmap(half / "images.bin", np.uint8, "r")
    (half / "meta.json").write_text(f"{checksum(meta, index, images)}\n{json.dumps(meta)}", encoding="utf-8")
    for path in (*half.iterdir(), half) if os.name != "nt" else ():  # Windows opens no folder
        written = os.open(path, os.O_RDONLY)
        with suppress(OSError) if path == half else nullcontext():  # some network disks sync no folder
            os.fsync(written)
        os.close(written)


def decode_all(source: Source, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Write the pixels of `source` to the file `path`; return their rows of INDEX, and facts for the meta."""
    from tqdm import tqdm  # late: only the first run over a dataset decodes

    parts, bad, number, names, reasons, lost = [], "", 0, {}, {}, set()
    bar = tqdm(total=source.total, desc="decoding", unit=" images", disable=None, leave=False)
    with open(path, "wb") as file, bar:
        for items, results in work_in_batches(load_known, cut(source.items(), BATCH)):
            pixels = [result for result in results if not isinstance(result, str)]
            file.writelines(pixels)
            good = []
            for item, result in zip(items, results, strict=True):
                if isinstance(result, str):
                    bad = bad or f"{item.name}: {result}"
                    reason = reasons.setdefault(re.sub(r"\d[\d,]*", "N", result), [result, 0, []])
                    reason[1] += 1
                    reason[2] += [item.name] if len(reason[2]) < NAMED else []
                    lost |= {item.label} if item.split == "train" else set()
                else:
                    origin = number if source.kind == "table" else file_key(item.label.split("/"), item.name)
                    label = names.setdefault(item.label, len(names))
                    good.append((SPLITS.index(item.split or "train"), label, origin))
                number += 1
            index = np.empty(len(good), INDEX)
            index[["splits", "labels", "origins"]] = good
            index["digests"] = np.frombuffer(b"".join(digest_of(image.tobytes()) for image in pixels), DIGEST)
            parts.append(index)
            bar.update(len(items))
    if not names:
        raise UserError(f"{source.path}: not one image could be read" + (f" (the first: {bad})" if bad else ""))
    index = np.concatenate(parts, dtype=INDEX)  # without the type it would be of native byte order
    index["labels"] = np.array([sorted(names).index(name) for name in names])[index["labels"]]
    return index, {"skipped": list(reasons.values()), "names": sorted(names), "lost": sorted(lost - {""})}


def load_known(item: Item) -> np.ndarray:
    """Return the pixels of an item whose class is known. Raises BadImage."""
    if not item.label:
        raise BadImage("no class is known of it")
    return load(item)


def file_key(folders: Sequence[str], name: str) -> int:
    """Return 64 bits for a file in class `folders`, the same wherever these are, however they are spelled.

    Made of the class and the file's name without suffix; the folders of `name`, with "/", do not count.
    """
    stem, known = os.path.splitext(name.rpartition("/")[2])[0], class_in(folders, SEVEN)
    text = f"{CLASSES.index(known) if known else -1}/{stem}".encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def digest_of(data: bytes) -> bytes:
    """Return 16 bytes: of an image's pixels, which order it and tell it from others."""
    return hashlib.blake2b(data, digest_size=16).digest()

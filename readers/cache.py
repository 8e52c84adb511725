"""Decoded images on disk: every image of a source once, in one canonical order: split, class, digest of the pixels.

A cache is a folder of three files: images.bin, (N, 48, 48) uint8, which is mapped, not read; index.bin, a row of INDEX
for each image; meta.json, whose first line is a digest of the others. A dataset has one cache.
"""

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from readers.decode import SIZE, cut, decode_batches
from readers.sources import Source
from readers.votes import file_key

SPLITS = ("train", "val", "test")
CACHE_VERSION = 8  # raised when decoding, the order or the files change
STRAY_SECONDS = 86_400.0  # a half-written cache this old belongs to no running process
BATCH = 4096  # images decoded or put in order at a time, 9 MB
NAMED = 10  # unreadable files whose names are kept
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])  # 16 bytes of BLAKE2b over an image's 48x48 pixels
MARKED = {"splits": np.dtype(np.int8), "labels": np.dtype(np.int64), "digests": DIGEST}  # what the fingerprint is of
# `origins`: of a table the number of an image's data row, from 0; of files their `votes.file_key`
INDEX = np.dtype([*MARKED.items(), ("origins", np.uint64)])


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
    cache = open_cache(folder)
    if not cache:
        build_cache(source, folder)
        cache = open_cache(folder)
    if not cache:
        raise UserError(f"{folder} was written and can't be read back: try again, or give another --cache")
    return cache


def open_cache(folder: Path) -> Cache | None:
    """Return the cache in `folder`; None where it is missing, damaged or foreign."""
    try:
        digest, _, text = (folder / "meta.json").read_text(encoding="utf-8").partition("\n")
        index = np.fromfile(folder / "index.bin", INDEX)
        if digest != digest_of(text.encode() + index.tobytes()).hex():
            return None
        images = np.memmap(folder / "images.bin", np.uint8, "r").reshape(len(index), SIZE, SIZE)
    except (OSError, ValueError):
        return None
    rows = np.linspace(0, len(index) - 1, 16).astype(int)  # a look at some tells a file of zeros
    whole = all(digest_of(images[row].tobytes()) == index["digests"][row].tobytes() for row in rows)
    return Cache(images, index, json.loads(text)) if whole else None


def build_cache(source: Source, folder: Path) -> None:
    """Decode every image of `source` into `folder`, which appears whole or not at all; older caches of it go.

    Memory does not grow with the pixels: they go to disk as they come and are then put in order.
    """
    half = folder.with_name(f"{folder.name}.half-{os.getpid()}")
    try:
        half.mkdir(parents=True, exist_ok=True)
        write_cache(source, half)
        if not open_cache(folder):  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)
        drop_others(folder, source)
    except OSError as error:
        raise UserError(
            f"the decoded images could not be written to {folder.parent} ({error.strerror}); "
            f"free some space or name another folder with --cache"
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def drop_others(folder: Path, source: Source) -> None:
    """Remove the caches beside `folder` of the same `source`, which has changed, and what killed processes left."""
    for other in folder.parent.glob("*-*"):
        with suppress(OSError, ValueError, KeyError):  # a folder of other people has no meta.json of this form
            if ".half-" in other.name:
                goes = time.time() - other.stat().st_mtime > STRAY_SECONDS
            else:
                meta = json.loads((other / "meta.json").read_text(encoding="utf-8").partition("\n")[2])
                goes = other != folder and meta["source"] == os.path.abspath(source.path)
            if goes:
                shutil.rmtree(other, ignore_errors=True)


def write_cache(source: Source, half: Path) -> None:
    """Write the files of a cache into `half`. Raises UserError where not one image can be read."""
    index, found = decode_all(source, half / "raw.bin")
    order = np.lexsort([index["digests"]["low"], index["digests"]["high"], index["labels"], index["splits"]])
    index = index[order]
    index.tofile(half / "index.bin")
    unsorted = np.memmap(half / "raw.bin", np.uint8, "r", shape=(len(order), SIZE, SIZE))
    with open(half / "images.bin", "wb") as file:
        for start in range(0, len(order), BATCH):
            unsorted[order[start : start + BATCH]].tofile(file)
    del unsorted
    (half / "raw.bin").unlink()
    about = {"source": os.path.abspath(source.path), "renamed": source.renamed}
    text = json.dumps({**about, "fingerprint": fingerprint(index), **found})
    (half / "meta.json").write_text(f"{digest_of(text.encode() + index.tobytes()).hex()}\n{text}", encoding="utf-8")


def decode_all(source: Source, raw: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Write the pixels of `source` to the file `raw` in its own order; their rows of INDEX, and facts for the meta."""
    from tqdm import tqdm  # late: only the first run over a dataset decodes

    parts, bad, number = [], [], 0
    bar = tqdm(total=source.total, desc="decoding", unit=" images", disable=None, leave=False)
    with open(raw, "wb") as file, bar:
        for items, pixels, problems in decode_batches(cut(source.items(), BATCH)):
            pixels.tofile(file)
            good = []
            for item, problem in zip(items, problems, strict=True):
                if problem:
                    bad.append(f"{item.name}: {problem}")
                else:
                    origin = number if source.kind == "table" else file_key(item.label, item.name)
                    good.append((SPLITS.index(item.split or "train"), item.label, origin))
                number += 1
            index = np.empty(len(good), INDEX)
            index[["splits", "labels", "origins"]] = good
            index["digests"] = np.frombuffer(b"".join(digest_of(image.tobytes()) for image in pixels), DIGEST)
            parts.append(index)
            bar.update(len(items))
    if len(bad) == number:
        raise UserError(f"{source.path}: not one image could be read" + (f" (the first: {bad[0]})" if bad else ""))
    facts = {"unreadable": bad[:NAMED], "skipped": len(bad)}
    return np.concatenate(parts, dtype=INDEX), facts  # without the type it would be of native byte order


def digest_of(data: bytes) -> bytes:
    """Return 16 bytes: of an image's pixels, which order it and tell it from others."""
    return hashlib.blake2b(data, digest_size=16).digest()


def fingerprint(index: np.ndarray) -> str:
    """Return 16 hex digits over pixels (their digests), labels and splits, the same for every form of the data.

    Test images have no part in it, which no run sees: FER2013 with and without PrivateTest is one dataset to a run and
    its weights. Where there is nothing else, it is over these.
    """
    seen = index["splits"] != SPLITS.index("test")
    rows = index[seen] if seen.any() else index
    digest = hashlib.blake2b(digest_size=8)
    for name in MARKED:
        digest.update(np.ascontiguousarray(rows[name]).view(np.uint8))
    return digest.hexdigest()

"""Decoded images on disk: every image of a source once, in one canonical order: split, class, digest of the pixels.

A cache is a folder of three files: images.bin, (N, 48, 48) uint8, which is mapped, not read; index.bin, a row of INDEX
for each image; meta.json, whose first line is a digest of the others. A dataset has one cache.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from readers.decode import SIZE, cut, decode_batches, looks_uncropped
from readers.sources import Source
from readers.votes import file_key

SPLITS = ("train", "val", "test")
CACHE_VERSION = 7  # raised when decoding, the order or the files change
STRAY_SECONDS = 86_400.0  # a half-written cache this old belongs to no running process
BATCH = 4096  # images decoded or put in order at a time, 9 MB
NAMED = 1000  # unreadable files whose names are kept
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
    return open_cache(folder) or build_cache(source, folder)


def open_cache(folder: Path) -> Cache | None:
    """Return the cache in `folder`; None where it is missing, half-written, damaged or foreign."""
    try:
        digest, _, text = (folder / "meta.json").read_text(encoding="utf-8").partition("\n")
        index = np.fromfile(folder / "index.bin", INDEX)
        if digest != digest_of(text.encode() + index.tobytes()).hex():
            return None
        images = np.memmap(folder / "images.bin", np.uint8, "r", shape=(len(index), SIZE, SIZE))
        rows = np.linspace(0, len(index) - 1, 16).astype(int)  # a look at some tells a file of zeros
        whole = all(digest_of(images[row].tobytes()) == index["digests"][row].tobytes() for row in rows)
        whole = whole and images.nbytes == os.path.getsize(folder / "images.bin")
        return Cache(images, index, json.loads(text)) if whole else None
    except (OSError, ValueError):
        return None


def build_cache(source: Source, folder: Path) -> Cache:
    """Decode every image of `source` into `folder`, which appears whole or not at all; older caches of it go.

    Memory does not grow with the pixels: they go to disk as they come and are then put in order.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stray in folder.parent.glob("half-*"):  # of a decoding that was killed
            ours = re.fullmatch("half-[0-9a-f]{16}", stray.name)  # the folder may have other people's files too
            if ours and time.time() - stray.stat().st_mtime > STRAY_SECONDS:
                shutil.rmtree(stray, ignore_errors=True)
        half = folder.parent / f"half-{secrets.token_hex(8)}"  # mkdtemp's would be closed to other users
        half.mkdir()
        try:
            write_cache(source, half)
            if there := open_cache(folder):  # another process was quicker
                return there
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        drop_others(folder, os.path.abspath(source.path))
    except OSError as error:
        raise UserError(
            f"the decoded images could not be written to {folder.parent} ({error.strerror}); "
            f"free some space or name another folder with --cache"
        ) from error
    if cache := open_cache(folder):
        return cache
    raise UserError(f"{folder} was changed by another process while it was written: try again, or give another --cache")


def drop_others(folder: Path, source: str) -> None:
    """Remove the caches beside `folder` that were made of the same `source`: it has changed, or the code has."""
    for other in folder.parent.iterdir():
        if other == folder or not re.fullmatch(r"[0-9a-f]{24}-\d+", other.name):
            continue
        with suppress(OSError):
            text = (other / "meta.json").read_text(encoding="utf-8", errors="replace")
            made_of = re.search(r'"source": ("(?:[^"\\]|\\.)*")', text)
            if made_of and os.path.abspath(json.loads(made_of[1])) == source:
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
    text = json.dumps(
        {
            "source": os.path.abspath(source.path),
            "fingerprint": fingerprint(index),
            "renamed": source.renamed,
            "notes": source.notes,
            **found,
        }
    )
    (half / "meta.json").write_text(f"{digest_of(text.encode() + index.tobytes()).hex()}\n{text}", encoding="utf-8")


def decode_all(source: Source, raw: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Write the pixels of `source` to the file `raw` in its own order; their rows of INDEX, and facts for the meta."""
    from tqdm import tqdm  # late: only the first run over a dataset decodes

    parts, bad, bad_count, uncropped, asked, number = [], [], 0, 0, set(), 0
    bar = tqdm(total=source.total, desc="decoding", unit=" images", disable=None, leave=False)
    with open(raw, "wb") as file, bar:
        for items, pixels, found in decode_batches(cut(source.items(), BATCH)):
            pixels.tofile(file)
            problems = [
                f"{item.name}: {size}" for item, size in zip(items, found, strict=True) if isinstance(size, str)
            ]
            bad, bad_count = [*bad, *problems][:NAMED], bad_count + len(problems)
            asked |= {item.split or "train" for item in items}
            uncropped += sum(looks_uncropped(*size) for size in found if not isinstance(size, str))
            good = [(at, item) for at, item in enumerate(items, number) if not isinstance(found[at - number], str)]
            number += len(items)
            index = np.empty(len(good), INDEX)
            index["splits"] = [SPLITS.index(item.split or "train") for _, item in good]
            index["labels"] = [item.label for _, item in good]
            index["digests"] = np.frombuffer(b"".join(digest_of(image.tobytes()) for image in pixels), DIGEST)
            index["origins"] = [at if source.kind == "table" else file_key(item.label, item.name) for at, item in good]
            parts.append(index)
            bar.update(len(items))
    if bad_count == number:
        raise UserError(f"{source.path}: not one image could be read" + (f" (the first: {bad[0]})" if bad else ""))
    return np.concatenate(parts, dtype=INDEX), {  # without the type it would be of native byte order
        "unreadable": bad,
        "unreadable_count": bad_count,
        "uncropped": uncropped,
        "asked": sorted(asked),
        "origins": "rows" if source.kind == "table" else "files",
    }


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

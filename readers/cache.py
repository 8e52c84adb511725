"""Decoded images on disk: every image of a source once, in one canonical order.

A cache is a folder of images.npy (N, 48, 48) uint8, splits.npy, labels.npy, digests.npy, origins.npy and meta.json.
The arrays are mapped, not read: of a dataset bigger than memory only what is looked at takes any.

`origins` (N,) uint64 says where each image came from: of a table the number of its data row, from 0 ("rows" in the
meta), of files their `ferplus.file_key` ("files"). It is no part of the fingerprint.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from config import CLASSES
from errors import UserError
from readers.decode import SIZE, looks_uncropped
from readers.sources import Source
from readers.votes import file_key

SPLITS = ("train", "val", "test")
CACHE_VERSION = 6  # raised when decoding, the order or the arrays change
STRAY_SECONDS = 86_400.0  # a half-written cache this old belongs to no running process
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])  # 16 bytes of BLAKE2b over an image's 48x48 pixels
MARKED = {"splits": np.dtype(np.int8), "labels": np.dtype(np.int64), "digests": DIGEST}  # what the fingerprint is of
INDEX = {**MARKED, "origins": np.dtype(np.uint64)}
NAMED = 1000  # unreadable files whose names are kept


def cached(source: Source, root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder below `root` with every image of `source`, decoded now if it is not there whole; and its meta.

    Raises UserError where nothing can be read or written.
    """
    folder = root / f"{source.key()[:24]}-{CACHE_VERSION}"
    return folder, read_meta(folder) or build_cache(source, folder)


def open_cache(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a cache by name, mapped: images (N, 48, 48) uint8, splits, labels, digests, origins (N,)."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", *INDEX)}


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What stands in a whole cache's meta.json; None where the cache is missing, half-written or foreign."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = open_cache(folder)
        images, count = arrays["images"], len(arrays["labels"])
        if images.shape != (count, SIZE, SIZE) or meta["version"] != CACHE_VERSION:
            return None
        if any(arrays[name].dtype != kind or arrays[name].shape != (count,) for name, kind in INDEX.items()):
            return None
        rows = np.linspace(0, count - 1, 16).astype(int)  # a look at some tells a file of zeros
        whole = all(digest_of(images[row].tobytes()) == arrays["digests"][row].tobytes() for row in rows)
        whole = whole and meta["index_digest"] == digest_of_arrays({name: arrays[name] for name in INDEX})
        return meta if whole and meta["fingerprint"] == fingerprint(arrays) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def build_cache(source: Source, folder: Path) -> dict[str, Any]:
    """Decode every image of `source` into `folder`, which appears whole or not at all; its meta.

    Memory does not grow with the pixels: they go to disk as they come and are then put in order.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stray in folder.parent.glob("half-*"):  # of a decoding that was killed
            ours = re.fullmatch("half-[0-9a-f]{16}", stray.name)  # the folder may hold other people's too
            if ours and time.time() - stray.stat().st_mtime > STRAY_SECONDS:
                shutil.rmtree(stray, ignore_errors=True)
        half = folder.parent / f"half-{secrets.token_hex(8)}"  # mkdtemp's would be closed to other users
        half.mkdir()
        try:
            meta = write_cache(source, half)
            if there := read_meta(folder):  # another process was quicker
                return there
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)
            drop_others(folder, meta["source"])
        finally:
            shutil.rmtree(half, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the decoded images could not be written to {folder.parent} ({error.strerror}); "
            f"free some space or name another folder with --cache"
        ) from error
    return meta


def drop_others(folder: Path, source: str) -> None:
    """Remove the caches beside `folder` that were made of the same `source`: it has changed, or the code has."""
    for other in folder.parent.iterdir():
        if other == folder or not re.fullmatch(r"[0-9a-f]{24}-\d+", other.name):
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):
            made_of = json.loads((other / "meta.json").read_text(encoding="utf-8"))["source"]
            if os.path.abspath(made_of) == source:
                shutil.rmtree(other, ignore_errors=True)


def write_cache(source: Source, half: Path) -> dict[str, Any]:
    """Write the files of a cache into `half` in canonical order: split, class, digest of the pixels."""
    raw = half / "raw.bin"
    index, found = decode_all(source, raw)
    order = canonical_order(index)
    unsorted = np.memmap(raw, np.uint8, "r", shape=(len(order), SIZE, SIZE))
    images = np.lib.format.open_memmap(half / "images.npy", "w+", np.uint8, unsorted.shape)
    for start in range(0, len(order), 4096):
        images[start : start + 4096] = unsorted[order[start : start + 4096]]
    images.flush()
    del images, unsorted
    raw.unlink()
    for name, kind in INDEX.items():
        np.save(half / f"{name}.npy", index[name][order].astype(kind, copy=False))
    arrays = open_cache(half)
    meta = {
        "version": CACHE_VERSION,
        "source": os.path.abspath(source.path),
        "fingerprint": fingerprint(arrays),
        "index_digest": digest_of_arrays({name: arrays[name] for name in INDEX}),
        **found,
        "renamed": source.renamed,
        "notes": source.notes,
    }
    (half / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return meta


def decode_all(source: Source, raw: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Write the pixels of `source` to the file `raw` in its own order; the arrays of INDEX, and facts for the meta.

    Raises UserError where not one image can be read.
    """
    from tqdm import tqdm  # late: only the first run over a dataset decodes

    files = source.kind in ("folder", "zip") and source.part is not None  # both may also hold a table
    labels, splits, origins, digests = array("b"), array("b"), array("Q"), bytearray()
    bad, bad_count, uncropped, asked = [], 0, 0, set()
    items = tqdm(source.items(), total=source.total, desc="decoding", unit=" images", disable=None, leave=False)
    with open(raw, "wb") as file:
        for number, item in enumerate(items):
            asked.add(item.split or "train")
            problem = item.problem or ("no class folder" if item.label < 0 else "")
            if problem:
                bad_count += 1
                if bad_count <= NAMED:
                    bad.append(f"{item.name}: {problem}")
                continue
            uncropped += looks_uncropped(item.width, item.height)
            pixels = item.pixels.tobytes()
            file.write(pixels)
            digests += digest_of(pixels)
            labels.append(item.label)
            splits.append(SPLITS.index(item.split or "train"))
            origins.append(file_key(item.label, item.name) if files else number)
    if not labels:
        raise UserError(f"{source.path}: not one image could be read" + (f" (the first: {bad[0]})" if bad else ""))
    index = {
        "splits": np.frombuffer(splits, np.int8),
        "labels": np.frombuffer(labels, np.int8),
        "digests": np.frombuffer(digests, DIGEST),
        "origins": np.frombuffer(origins, np.uint64),
    }
    return index, {
        "unreadable": bad,
        "unreadable_count": bad_count,
        "uncropped": uncropped,
        "asked": sorted(asked),
        "origins": "files" if files else "rows",
    }


def canonical_order(index: dict[str, np.ndarray]) -> np.ndarray:
    """The rows by split, class and digest, as (N,) int64. A class at a time, which takes less memory than all."""
    parts = []
    for split in range(len(SPLITS)):
        for label in range(len(CLASSES)):
            rows = np.flatnonzero((index["splits"] == split) & (index["labels"] == label))
            digests = index["digests"][rows]
            parts.append(rows[np.lexsort((digests["low"], digests["high"]))])
    return np.concatenate(parts)


def digest_of(pixels: bytes) -> bytes:
    """The 16 bytes by which an image is ordered, and told from others."""
    return hashlib.blake2b(pixels, digest_size=16).digest()


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """16 hex digits over pixels (their digests), labels and splits, the same for every form of the data.

    Test images have no part in it, which no run sees: FER2013 with and without PrivateTest is one dataset to a run and
    its weights. Where there is nothing else, it is over these.
    """
    seen = np.asarray(arrays["splits"]) != SPLITS.index("test")
    rows = seen if seen.any() else slice(None)
    return digest_of_arrays({name: arrays[name][rows] for name in MARKED})


def digest_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for values in arrays.values():
        digest.update(np.ascontiguousarray(values).view(np.uint8))
    return digest.hexdigest()

"""Decoded images on disk: every image of a source once, in one canonical order.

A cache is a folder of images.npy (N, 48, 48) uint8, index.npz (splits, labels, digests) and meta.json.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from images import SIZE
from sources import Source
from utils import UserError

SPLITS = ("train", "val", "test")
CACHE_VERSION = 2  # raised when decoding or the order changes
STRAY_SECONDS = 86_400.0  # a half-written cache this old belongs to no running process
NAMED = 1000  # unreadable files whose names are kept
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])  # 16 bytes of BLAKE2b over an image's 48x48 pixels


def cached(source: Source, root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder below `root` with every image of `source`, decoded now if it is not there whole; and its meta.

    Raises UserError where nothing can be read or written.
    """
    folder = root / f"{source.key()[:24]}-{CACHE_VERSION}"
    return folder, read_meta(folder) or build_cache(source, folder)


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What stands in a whole cache's meta.json; None where the cache is missing, half-written or foreign."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        with np.load(folder / "index.npz") as file:
            index = {name: file[name] for name in ("labels", "splits", "digests")}
        images = np.load(folder / "images.npy", mmap_mode="r")
        if images.shape != (len(index["labels"]), SIZE, SIZE) or meta["version"] != CACHE_VERSION:
            return None
        rows = np.linspace(0, len(images) - 1, 16).astype(int)  # a look at some tells a file of zeros
        whole = all(digest_of(images[row].tobytes()) == index["digests"][row].tobytes() for row in rows)
        return meta if whole and meta["fingerprint"] == fingerprint(index) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def build_cache(source: Source, folder: Path) -> dict[str, Any]:
    """Decode every image of `source` into `folder`, which appears whole or not at all; its meta.

    Memory does not grow with the pixels: they go to disk as they come and are then put in order.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stray in folder.parent.glob("half-*"):  # of a decoding that was killed
            if time.time() - stray.stat().st_mtime > STRAY_SECONDS:
                shutil.rmtree(stray, ignore_errors=True)
        half = Path(tempfile.mkdtemp(prefix="half-", dir=folder.parent))
        try:
            meta = write_cache(source, half)
            if there := read_meta(folder):  # another process was quicker
                return there
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the decoded images could not be written to {folder.parent} ({error.strerror}); "
            f"free some space or name another folder with --cache"
        ) from error
    return meta


def write_cache(source: Source, half: Path) -> dict[str, Any]:
    """Write the three files into `half` in canonical order: split, class, digest of the pixels."""
    from tqdm import tqdm  # late: only the first run over a dataset decodes

    labels, splits, digests, bad, bad_count, asked = [], [], bytearray(), [], 0, set()
    raw = half / "raw.bin"
    with open(raw, "wb") as file:
        for item in tqdm(
            source.items(), total=source.total, desc="decoding", unit=" images", disable=None, leave=False
        ):
            asked.add(item.split or "train")
            problem = item.problem or ("no class folder" if item.label < 0 else "")
            if problem:
                bad_count += 1
                if bad_count <= NAMED:
                    bad.append(f"{item.name}: {problem}")
                continue
            pixels = item.pixels.tobytes()
            file.write(pixels)
            digests += digest_of(pixels)
            labels.append(item.label)
            splits.append(SPLITS.index(item.split or "train"))
    if not labels:
        raise UserError(f"{source.path}: not one image could be read" + (f" (the first: {bad[0]})" if bad else ""))
    index = {
        "labels": np.array(labels, np.int64),
        "splits": np.array(splits, np.int8),
        "digests": np.frombuffer(bytes(digests), DIGEST),
    }
    order = np.lexsort((index["digests"]["low"], index["digests"]["high"], index["labels"], index["splits"]))
    unsorted = np.memmap(raw, np.uint8, "r", shape=(len(labels), SIZE, SIZE))
    images = np.lib.format.open_memmap(half / "images.npy", "w+", np.uint8, unsorted.shape)
    for start in range(0, len(order), 4096):
        images[start : start + 4096] = unsorted[order[start : start + 4096]]
    images.flush()
    del images, unsorted
    raw.unlink()
    index = {name: values[order] for name, values in index.items()}
    np.savez(half / "index.npz", **index)
    meta = {
        "version": CACHE_VERSION,
        "source": str(source.path),
        "fingerprint": fingerprint(index),
        "unreadable": bad,
        "unreadable_count": bad_count,
        "asked": sorted(asked),
        "renamed": source.renamed,
        "notes": source.notes,
    }
    (half / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return meta


def digest_of(pixels: bytes) -> bytes:
    """The 16 bytes by which an image is ordered, and told from others."""
    return hashlib.blake2b(pixels, digest_size=16).digest()


def fingerprint(index: Any) -> str:
    """16 hex digits over pixels (their digests), labels and splits, the same for every form of the data."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("splits", "labels", "digests"):
        digest.update(np.ascontiguousarray(index[name]).tobytes())
    return digest.hexdigest()

"""The faces as arrays: found, decoded once, cached in one canonical order, split, and batched.

`python dataset.py` prints what was found and draws a contact sheet.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import CLASSES, Config, Parser, add_flags
from images import SIZE
from sources import Item, Source, open_dataset
from utils import UserError, exit_status, plain

SPLITS = ("train", "val", "test")
DRAWN_MARK = ".drawn-faces"  # in a folder that demo_faces.py wrote
CACHE_VERSION = 1  # raised when decoding or the order changes
DEMO_IDENTITIES, DEMO_VAL_IDENTITIES = 400, 100  # 2,800 and 700 drawn faces: minutes on two cores
STRAY_SECONDS = 86_400.0  # a half-written cache this old belongs to no running process
NAMED = 1000  # unreadable files whose names are kept
VAL_SEED = 2013  # of the drawn validation part: the same for every run, so that runs compare on the same images
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])  # 16 bytes of BLAKE2b over an image's 48x48 pixels
PLACES = ("archive", "archive.zip", "fer2013.csv", "icml_face_data.csv", "fer2013.tar.gz")
GET_FER2013 = (
    "Get FER2013 as archive.zip from https://www.kaggle.com/datasets/msambare/fer2013 "
    "and put it, zipped or unpacked as archive/, into this folder."
)

DEMO_NOTE = (
    "note: these faces are DRAWN by this project, as a demonstration: accuracy on them says nothing about real "
    f"faces. {GET_FER2013}"
)


def preprocess(images: Tensor) -> Tensor:
    """Network input (B, 1, 48, 48) float32 in [-1, 1] from pixels (B, 48, 48) uint8. The only copy of it."""
    return images.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1.0)


PREPROCESSING = {"size": SIZE, "channels": 1, "scale": 1 / 127.5, "offset": -1.0}  # as kept in weight files


@dataclass(frozen=True)
class Split:
    """One part of the data: `images` (N, 48, 48) uint8, `labels` (N,) int64, `copies` (N,) bool.

    `copies` marks the images whose pixels also stand in train.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray
    copies: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """Images per class."""
        return np.bincount(self.labels, minlength=len(CLASSES)).tolist()

    def take(self, rows: np.ndarray) -> "Split":
        """The images at `rows` (a sorted index), as a split of the same name."""
        return Split(self.name, self.images[rows], self.labels[rows], self.digests[rows], self.copies[rows])

    def batches(self, size: int, order: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as ((B, 48, 48) uint8, (B,) int64) on the CPU; the last one may be smaller."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size) if order is None else order[start : start + size]
            yield torch.from_numpy(np.array(self.images[rows])), torch.from_numpy(np.array(self.labels[rows]))


@dataclass(frozen=True)
class FaceData:
    """A dataset ready to train on: its splits by name ("test" may be missing) and what is known of it."""

    splits: dict[str, Split]
    source: str
    fingerprint: str
    demo: bool = False
    drawn_val: bool = False
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    notes: list[str] = field(default_factory=list)

    def split(self, name: str) -> Split:
        """The split called `name`. Raises UserError, with what there is, where the dataset lacks it."""
        if name not in self.splits:
            raise UserError(
                f"{self.source} has no {name} split; use one of: "
                + ", ".join(f"--split {there}" for there in self.splits if there != "train")
            )
        return self.splits[name]

    def describe(self) -> list[str]:
        """Lines that say what was found: source, splits, counts per class, copies, unreadable files."""
        lines = [f"data: {self.source}, fingerprint {self.fingerprint}", *self.notes]
        width = max(map(len, CLASSES)) + 1
        lines.append(" " * 14 + "".join(f"{name:>{width}}" for name in (*CLASSES, "all")))
        for name, split in self.splits.items():
            label = f"{name} (drawn)" if name == "val" and self.drawn_val else name
            row = [*split.counts(), len(split)]
            lines.append(f"  {label:<12}" + "".join(f"{count:>{width}}" for count in row))
        for name in ("val", "test"):
            if name in self.splits and self.splits[name].copies.any():
                lines.append(f"  {int(self.splits[name].copies.sum())} of the {name} images also stand in train")
        if self.unreadable_count:
            lines.append(f"  skipped files: {self.unreadable_count}")
            lines += [f"    {plain(name)}" for name in self.unreadable[:10]]
            if self.unreadable_count > 10:
                lines.append(f"    and {self.unreadable_count - 10} more (in the cache's meta.json)")
        return lines


def load(config: Config) -> FaceData:
    """The dataset that `config.data` names, or the first one found in this folder, or the drawn faces.

    Decodes on the first call and reads the cache afterwards. Raises UserError for a dataset that
    cannot be read, lacks a class in train, or has an empty split.
    """
    where = config.data or next((place for place in PLACES if os.path.exists(place)), "demo")
    demo = where == "demo" and not os.path.exists(where)
    source: Any = DemoSource() if demo else open_dataset(Path(where))
    folder = Path(config.cache) / f"{source.key()[:24]}-{CACHE_VERSION}"
    meta = read_meta(folder) or build_cache(source, folder)
    drawn = demo or Path(where, DRAWN_MARK).is_file()
    return assemble(config, source, folder, meta, demo=drawn)


class DemoSource:
    """The drawn faces (demo_faces.py), in the shape of a `sources.Source`."""

    kind, renamed, notes = "demo", {}, []
    path = Path("the built-in drawn faces")
    total = 7 * (DEMO_IDENTITIES + DEMO_VAL_IDENTITIES)

    def key(self) -> str:
        folder = Path(__file__).parent
        code = (folder / "demo_faces.py").read_bytes() + (folder / "demo_strokes.py").read_bytes()
        return hashlib.blake2b(code + bytes(f"{DEMO_IDENTITIES} {DEMO_VAL_IDENTITIES}", "ascii")).hexdigest()

    def items(self, workers: int = 0) -> Iterator[Item]:
        from demo_faces import demo_faces  # late: only where there is no dataset

        images, labels, identities = demo_faces(DEMO_IDENTITIES + DEMO_VAL_IDENTITIES, seed=0)
        for image, label, identity in zip(images, labels, identities, strict=True):
            split = "train" if identity < DEMO_IDENTITIES else "val"
            yield Item(f"drawn face {identity}", split, int(label), image, "", SIZE, SIZE)


# --- The cache: images.npy (N, 48, 48) uint8, index.npz (splits, labels, digests), meta.json ---


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What stands in a whole cache's meta.json; None where the cache is missing, half-written or foreign."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        index = np.load(folder / "index.npz")
        images = np.load(folder / "images.npy", mmap_mode="r")
        shape = images.shape
        rows = np.linspace(0, len(index["labels"]) - 1, 16).astype(int)
        sample = [hashlib.blake2b(images[row].tobytes(), digest_size=16).digest() for row in rows]
        whole = (
            sample == [index["digests"][row].tobytes() for row in rows]
            and shape == (len(index["labels"]), SIZE, SIZE)
            and meta["version"] == CACHE_VERSION
        )
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
            digests += hashlib.blake2b(pixels, digest_size=16).digest()
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


def fingerprint(index: Any) -> str:
    """16 hex digits over pixels (their digests), labels and splits, the same for every form of the data."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("splits", "labels", "digests"):
        digest.update(np.ascontiguousarray(index[name]).tobytes())
    return digest.hexdigest()


# --- Splits ---


def assemble(config: Config, source: Source, folder: Path, meta: dict[str, Any], *, demo: bool) -> FaceData:
    """The FaceData over a whole cache: validation drawn where there is none, copies marked, limit applied."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    with np.load(folder / "index.npz") as index:
        labels, codes, digests = index["labels"], index["splits"], index["digests"]
    rows = {name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)}
    if not len(rows["train"]):
        raise UserError(f"{source.path}: the train split is empty")
    if lost := [name for name in meta["asked"] if not len(rows[name])]:
        raise UserError(f"{source.path}: not one image of {', '.join(lost)} could be read: mend or remove them")
    drawn = not len(rows["val"])
    if drawn:
        taken = draw_validation(labels[rows["train"]], digests[rows["train"]], config.val_fraction)
        rows["val"], rows["train"] = rows["train"][taken], rows["train"][~taken]
    missing = [name for name, n in zip(CLASSES, np.bincount(labels[rows["train"]], minlength=7), strict=True) if not n]
    if missing:
        raise UserError(
            f"{source.path}: train has no readable image of {', '.join(missing)}; "
            f"a class without images cannot be learned"
        )
    in_train = np.unique(digests[rows["train"]])
    splits = {}
    for name in SPLITS:
        if len(at := rows[name]):
            low, high = int(at[0]), int(at[-1]) + 1
            pixels = images[low:high] if high - low == len(at) else images[at]
            copies = np.isin(digests[at], in_train) if name != "train" else np.zeros(len(at), bool)
            splits[name] = Split(name, pixels, labels[at], digests[at], copies)
    if config.limit and config.limit < len(splits["train"]):
        splits["train"] = splits["train"].take(stratified_rows(splits["train"].labels, config.limit))
    if splits["val"].copies.all():
        raise UserError(
            f"{source.path}: every validation image also stands in train, so that nothing is left to "
            f"choose weights by; validate on other images"
        )
    notes = [*meta["notes"], *(f"folder {name!r} is read as {to}" for name, to in meta["renamed"].items())]
    return FaceData(
        splits, str(source.path), meta["fingerprint"], demo, drawn, meta["unreadable"], meta["unreadable_count"], notes
    )


def draw_validation(labels: np.ndarray, digests: np.ndarray, fraction: float) -> np.ndarray:
    """A mask (N,) of the images drawn for validation: `fraction` of each class that has two different images.

    Whole groups of pixel-identical images are drawn, so that copies stay on one side.
    """
    _, group = np.unique(digests, return_inverse=True)
    group_label = np.full(group.max() + 1, len(CLASSES))
    np.minimum.at(group_label, group, labels)
    group_size = np.bincount(group)
    rng = np.random.default_rng(VAL_SEED)
    chosen = np.zeros(len(group_label), bool)
    for label in range(len(CLASSES)):
        groups = rng.permutation(np.flatnonzero(group_label == label))
        if len(groups) < 2:  # the only one stays in train
            continue
        before = np.cumsum(group_size[groups]) - group_size[groups]
        chosen[groups[before < fraction * group_size[groups].sum()]] = True
    return chosen[group]


def stratified_rows(labels: np.ndarray, limit: int) -> np.ndarray:
    """Sorted rows of about `limit` images with every class in its share, at least one of each."""
    rng = np.random.default_rng(VAL_SEED)
    rows = []
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        rows.append(rng.permutation(at)[: max(1, round(limit * len(at) / len(labels)))])
    return np.sort(np.concatenate(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("dataset.py", "Say what dataset is found here, and draw a sheet of its faces.")
    parser.add_argument("--sheet", default="contact_sheet.png", metavar="FILE", help="where the sheet is drawn")
    add_flags(parser, ("data", "cache", "val_fraction", "limit"))
    args = parser.resolve(parser.parse_args(argv))
    return exit_status(show, args.config, Path(args.sheet))


def show(config: Config, sheet: Path) -> int:
    """Print what `load` finds and draw ten faces of each class from train."""
    import plots  # late: only here

    if sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet}: the sheet is a PNG; name a .png file")
    data = load(config)
    print("\n".join(data.describe()))
    if data.demo:
        print(DEMO_NOTE)
    train = data.split("train")
    rng = np.random.default_rng(config.seed)
    rows = np.concatenate([rng.permutation(np.flatnonzero(train.labels == c))[:10] for c in range(len(CLASSES))])
    plots.contact_sheet(train.images[rows], train.labels[rows], sheet, title=f"{data.source}: train")
    print(f"{len(rows)} of its faces are drawn in {sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

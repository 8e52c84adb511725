"""The faces as arrays: found, decoded once, cached in one canonical order, and split.

`python dataset.py` prints what was found and draws a contact sheet.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cli import Parser, add_flags
from config import CLASSES, Config
from errors import UserError, exit_status, plain, quoted
from readers.cache import SPLITS, cached, open_cache
from readers.decode import MAX_FACE_RATIO, MAX_FACE_SIDE, SIZE
from readers.sources import Item, Source, open_dataset
from readers.votes import Votes, agreement, match, read_votes

DEMO_IDENTITIES, DEMO_VAL_IDENTITIES = 400, 100  # 2,800 and 700 drawn faces: minutes on two cores
PASS = 65_536  # digests looked at together, 1 MB
# Official images per class of FER2013: a dataset with these counts is FER2013, in whatever form people have it
FER2013 = {"train": [3995, 436, 4097, 7215, 4830, 3171, 4965], "val": [467, 56, 496, 895, 653, 415, 607]}
VAL_SEED = 2013  # of the drawn validation part: the same for every run, so that runs compare on the same images
# Zips of FER2013 that are not called as expected: as other tools save it, or as a browser names the second copy
ALIKE = re.compile(r".*(archive|fer[-_ ]?2013).*\.zip", re.IGNORECASE)
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


class Picked:
    """The images at some rows of a mapped array (N, 48, 48), read when they are asked for, as from an array."""

    def __init__(self, images: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype
        self.nbytes = len(rows) * images[:1].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> np.ndarray:
        return self.images[self.rows[at]]

    def take(self, rows: np.ndarray) -> "Picked":
        return Picked(self.images, self.rows[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.images[self.rows], dtype)


@dataclass(frozen=True)
class Split:
    """One part of the data: `images` (N, 48, 48) uint8, `labels` (N,) int64, `copies` (N,) bool.

    `copies` marks the images whose pixels also stand in train. Images, labels and digests are mapped from
    the cache where they stand there in one piece. `votes` (N, 7) float32 are FER+'s, zeros where an image has none.
    """

    name: str
    images: np.ndarray | Picked
    labels: np.ndarray
    digests: np.ndarray
    copies: np.ndarray
    votes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """Images per class."""
        return np.bincount(self.labels, minlength=len(CLASSES)).tolist()

    def take(self, rows: np.ndarray) -> "Split":
        """The images at `rows` (a sorted index), as a split of the same name."""
        images = Picked(self.images, rows) if isinstance(self.images, np.ndarray) else self.images.take(rows)
        votes = None if self.votes is None else self.votes[rows]
        return Split(self.name, images, self.labels[rows], self.digests[rows], self.copies[rows], votes)

    def targets(self) -> np.ndarray | None:
        """The share (N, 7) float32 of each class in an image's votes, all for its label where it has none.

        None for a split without votes.
        """
        if self.votes is None:
            return None
        total = self.votes.sum(1, keepdims=True)
        shares = np.divide(self.votes, total, out=np.zeros_like(self.votes), where=total > 0)
        bare = np.flatnonzero(total[:, 0] == 0)
        shares[bare, self.labels[bare]] = 1
        return shares

    def most_voted(self) -> np.ndarray:
        """The emotion (N,) int64 that has the most votes of the seven; -1 for a tie, and where there are none.

        Raises UserError for a split without votes, or without any such image.
        """
        if self.votes is None:
            raise UserError(f"the {self.name} split has no votes; name a file of FER+ votes with --votes")
        most = self.votes.max(1, keepdims=True)
        clear = (most[:, 0] > 0) & ((self.votes == most).sum(1) == 1)
        if not clear.any():
            raise UserError(f"no image of the {self.name} split has a single most-voted emotion; leave out --votes")
        return np.where(clear, self.votes.argmax(1), -1)


@dataclass(frozen=True)
class FaceData:
    """A dataset ready to train on: its splits by name ("test" may be missing) and what is known of it.

    `name` is "fer2013" for FER2013 in any form, "demo" for the rendered faces, else the source's file name.
    `votes` is 16 hex digits over the votes on all images, whatever the limit; "" without votes.
    """

    splits: dict[str, Split]
    name: str
    source: str
    fingerprint: str
    demo: bool = False
    sampled_val: bool = False
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    notes: list[str] = field(default_factory=list)
    votes: str = ""

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
        form = f"fer2013 ({self.source})" if self.name == "fer2013" else self.source
        lines = [f"data: {form}, fingerprint {self.fingerprint}", *self.notes]
        width = max(map(len, CLASSES)) + 1
        lines.append(" " * 14 + "".join(f"{name:>{width}}" for name in (*CLASSES, "all")))
        for name, split in self.splits.items():
            label = f"{name} (drawn)" if name == "val" and self.sampled_val else name
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
    cannot be read, lacks a class in train, or has an empty split; and for votes that are not of this dataset.
    """
    where, notes = find(config)
    source: Any = DemoSource() if is_demo(where) else open_dataset(Path(where))
    if config.votes and source.drawn:
        raise UserError(f"--votes {config.votes}: drawn faces have no votes; name FER2013 with --data. {GET_FER2013}")
    votes = read_votes(Path(config.votes)) if config.votes else None
    folder, meta = cached(source, Path(config.cache))
    meta = meta | {"notes": [*notes, *meta["notes"]]}
    return assemble(config, source, folder, meta, votes=votes, demo=source.drawn)


def find(config: Config) -> tuple[str, list[str]]:
    """What `load` reads: a path, or "demo", and a line where one of several was taken.

    Raises UserError where nothing has a name that is looked for, but something in this folder looks like a dataset.
    """
    if config.data:
        return config.data, []
    there = [place for place in PLACES if os.path.exists(place)]
    if there:
        others = ", ".join(there[1:])
        return there[0], [f"{there[0]} is read, not {others}, which is here too: --data chooses"] if others else []
    alike = sorted(name for name in os.listdir() if ALIKE.fullmatch(name))
    if os.path.isdir("train"):
        alike.append(".")
    if alike:
        raise UserError(
            f"no dataset here has one of the names that are looked for ({', '.join(PLACES)}), but this looks like one: "
            f"give --data {quoted(alike[0])}, or --data demo for the drawn faces"
        )
    return "demo", []


def is_demo(where: str) -> bool:
    """Whether `where` means the rendered faces; a dataset in a folder called demo is `./demo`."""
    return where == "demo"


class DemoSource:
    """The rendered faces (demo/), in the shape of a `readers.sources.Source`."""

    kind, renamed, notes, drawn = "demo", {}, [], True
    path = Path("the built-in drawn faces")
    total = 7 * (DEMO_IDENTITIES + DEMO_VAL_IDENTITIES)

    def key(self) -> str:
        folder = Path(__file__).parent / "demo"
        code = (folder / "faces.py").read_bytes() + (folder / "strokes.py").read_bytes()
        return hashlib.blake2b(code + bytes(f"{DEMO_IDENTITIES} {DEMO_VAL_IDENTITIES}", "ascii")).hexdigest()

    def items(self, workers: int = 0) -> Iterator[Item]:
        from demo.faces import demo_faces

        images, labels, identities = demo_faces(DEMO_IDENTITIES + DEMO_VAL_IDENTITIES, seed=0)
        for image, label, identity in zip(images, labels, identities, strict=True):
            split = "train" if identity < DEMO_IDENTITIES else "val"
            yield Item(f"drawn face {identity}", split, int(label), image, "", SIZE, SIZE)


# --- Splits ---


def assemble(
    config: Config, source: Source, folder: Path, meta: dict[str, Any], *, votes: Votes | None = None, demo: bool
) -> FaceData:
    """The FaceData over a whole cache: validation drawn where there is none, copies marked, limit applied."""
    arrays = open_cache(folder)
    labels, digests = arrays["labels"], arrays["digests"]
    notes = [*meta["notes"], *(f"folder {name!r} is read as {to}" for name, to in meta["renamed"].items())]
    if uncropped := meta["uncropped"]:
        share = f"{uncropped / len(labels):.1%} of the images ({uncropped:,} of {len(labels):,})"
        notes.append(
            f"note: {share} look uncropped: a side above {MAX_FACE_SIDE} pixels, or above {MAX_FACE_RATIO} times the "
            f"other. Each is squashed to {SIZE}x{SIZE} as a whole: crop them to the faces"
        )
    rows, drawn = split_rows(config, source, arrays, meta)
    given, mark = None, ""
    if votes:
        given = match(votes, arrays, meta | {"source": str(source.path)})  # a cache outlives a dataset's renaming
        seen = arrays["splits"] != SPLITS.index("test")  # as the fingerprint is
        mark = hashlib.blake2b(given[seen].tobytes(), digest_size=8).hexdigest()
        count, agreed = agreement(given, labels)
        notes.append(
            f"votes: {votes.name}, {count:,} images have some of the seven; "
            f"the label is (one of) the most-voted for {agreed:.1%} of them"
        )
    train_digests = digests[rows["train"]]
    splits = {}
    for name, at in rows.items():
        pixels = arrays["images"][at] if isinstance(at, slice) else Picked(arrays["images"], at)
        none = np.broadcast_to(False, len(train_digests))
        copies = none if name == "train" else found_in(digests[at], train_digests)
        splits[name] = Split(name, pixels, labels[at], digests[at], copies, None if given is None else given[at])
    name = "demo" if demo else Path(os.path.abspath(source.path)).name
    if all(splits[part].counts() == counts for part, counts in FER2013.items()):
        name = "fer2013"
    if config.limit and config.limit < len(splits["train"]):
        splits["train"] = splits["train"].take(stratified_rows(splits["train"].labels, config.limit))
    if splits["val"].copies.all():
        raise UserError(
            f"{source.path}: every validation image also stands in train, so that nothing is left to "
            f"choose weights by; validate on other images"
        )
    unreadable = meta["unreadable"], meta["unreadable_count"]
    return FaceData(splits, name, str(source.path), meta["fingerprint"], demo, drawn, *unreadable, notes, mark)


def split_rows(
    config: Config, source: Source, arrays: dict[str, np.ndarray], meta: dict[str, Any]
) -> tuple[dict[str, slice | np.ndarray], bool]:
    """The rows of each split that is there, in a cache's `arrays`, and whether validation was drawn from train.

    Raises UserError where a split or a class has no image.
    """
    labels = arrays["labels"]
    ends = np.searchsorted(arrays["splits"], np.arange(len(SPLITS) + 1))
    rows: dict[str, slice | np.ndarray] = {name: slice(*ends[at : at + 2]) for at, name in enumerate(SPLITS)}
    sizes = dict(zip(SPLITS, np.diff(ends).tolist(), strict=True))
    if not sizes["train"]:
        raise UserError(f"{source.path}: the train split is empty")
    if lost := [name for name in meta["asked"] if not sizes[name]]:
        raise UserError(f"{source.path}: not one image of {', '.join(lost)} could be read: mend or remove them")
    drawn = not sizes["val"]
    if drawn:
        taken = draw_validation(labels[rows["train"]], arrays["digests"][rows["train"]], config.val_fraction)
        if not taken.any():
            raise UserError(
                f"{source.path}: there is no validation part, and no class has two different images to draw one from; "
                f"add images, or a val/ folder"
            )
        rows["val"], rows["train"] = np.flatnonzero(taken), np.flatnonzero(~taken)  # train stands first in the cache
    counts = np.bincount(labels[rows["train"]], minlength=len(CLASSES))
    missing = [name for name, count in zip(CLASSES, counts, strict=True) if not count]
    if missing:
        raise UserError(
            f"{source.path}: train has no readable image of {', '.join(missing)}; "
            f"a class without images cannot be learned"
        )
    return {name: at for name, at in rows.items() if sizes[name] or name == "val"}, drawn


def found_in(digests: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A mask (N,) of the `digests` that also stand among the `others`, which are only passed through."""
    found = np.zeros(len(digests), bool)
    high = np.unique(digests["high"])
    for start in range(0, len(others), PASS):
        part = others[start : start + PASS]
        alike = part[np.isin(part["high"], high)]  # by eight bytes first: whole numbers sort much quicker
        found |= np.isin(digests, alike)
    return found


def draw_validation(labels: np.ndarray, digests: np.ndarray, fraction: float) -> np.ndarray:
    """A mask (N,) of the images drawn for validation: `fraction` of each class that has two different images.

    Whole groups of pixel-identical images are drawn, so that copies stay on one side. One larger than what is to be
    drawn stays in train, unless all are: an image copied over and over would take the class with it.
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
        wanted = fraction * group_size[groups].sum()
        groups = groups[group_size[groups] <= max(wanted, group_size[groups].min())]
        before = np.cumsum(group_size[groups]) - group_size[groups]
        chosen[groups[before < wanted]] = True
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
    add_flags(parser, ("data", "cache", "val_fraction", "limit", "votes"))
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

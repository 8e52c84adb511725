"""The faces as arrays: found, decoded once, cached in one canonical order, and split.

`split_rows` says how the splits are made. `python dataset.py` prints what is found and writes a sheet of faces;
with `--crop NEW_FOLDER` it writes face crops of a folder of photos.
"""

from cli import Parser, add_flags, nonempty

# isort: split
import hashlib
import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audit import audit, uncropped_notes
from classes import SEVEN, Choice, choose, class_of, meanings, split_of
from config import CLASSES, Config
from errors import MARK, UserError, check_replaceable, exit_status, plain, quoted
from readers.cache import SPLITS, Cache, cached
from readers.decode import SIZE, BadImage, decode, read_file
from readers.layout import is_image_name, is_junk, is_table_name
from readers.sources import Source, open_dataset
from splits import Rows, Split, split_rows, stratified_rows
from votes import match, read_votes

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.datasets import ImageFolder

# Official images per class of FER2013: a dataset with these counts is FER2013, in whatever form people have it
FER2013 = {"train": [3995, 436, 4097, 7215, 4830, 3171, 4965], "val": [467, 56, 496, 895, 653, 415, 607]}
# Files that are called nearly as expected: as other tools save them, or as a browser names the second copy
ALIKE = re.compile(r".*(archive|fer[-_ ]?2013|facial-expression|icml_face|ckextended).*", re.I)
PLACES = ("archive", "archive.zip", "fer2013.csv", "icml_face_data.csv", "fer2013.tar.gz")
SHEET = Path("contact_sheet.png")
GET_FER2013 = (
    "Get FER2013 as archive.zip from https://www.kaggle.com/datasets/msambare/fer2013 "
    "and put it, zipped or unpacked as archive/, into this folder."
)
DEMO_NOTE = (
    "note: these faces are RENDERED by this project, as a demonstration: accuracy on them tells nothing about real "
    f"faces. {GET_FER2013}"
)


def preprocess(images: "Tensor") -> "Tensor":
    """Network input (B, 1, 48, 48) float32 in [-1, 1] from pixels (B, 48, 48) uint8. The only copy of it."""
    return images.unsqueeze(1).float().div_(127.5).sub_(1.0)


PREPROCESSING = {"size": SIZE, "channels": 1, "scale": 1 / 127.5, "offset": -1.0}  # as kept in weight files


def tta_views(pixels: np.ndarray, tta: str) -> list[np.ndarray]:
    """Pixels (N, H, W) in each way in which they are scored.

    "none": as they are; "flip": mirrored too; "crops": both, in place and moved by two pixels to each corner, where
    the edge is repeated.
    """
    views = [pixels]
    if tta == "crops":
        height, width = pixels.shape[1:]
        padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)), mode="edge")
        views += [padded[:, down : down + height, right : right + width] for down in (0, 4) for right in (0, 4)]
    if tta != "none":
        views += [view[:, :, ::-1] for view in views]
    return [np.ascontiguousarray(view) for view in views]


def EmotionFolder(root: str | Path, chosen: Sequence[str] = CLASSES, **transforms: Callable | None) -> "ImageFolder":
    """A torchvision ImageFolder of one folder per class: ((48, 48) uint8 tensor, label), for a DataLoader of your own.

    Labels are places in `chosen`, the classes, whatever order the folders have on disk; letter case and synonyms are
    mapped, hidden and junk files are left out, as in training. `transforms` are `transform` and `target_transform`.
    Raises UserError for a folder that is no class and for a class without images. Taking a bad file out of it raises
    BadImage with the file's name. `load` does not use it: without torchvision it starts a second earlier.
    """
    from torchvision.datasets import ImageFolder  # late: it takes a second

    def wanted(path: str) -> bool:
        return is_image_name(path) and not is_junk(Path(path).relative_to(root).as_posix())

    folder = ImageFolder(root, **transforms, loader=load_image, is_valid_file=wanted, allow_empty=True)
    places = {name: at for at, name in enumerate(chosen)}
    known = meanings(",".join(chosen))
    labels = {name: places.get(class_of(name, known), -1) for name in folder.classes if not is_junk(name)}
    folder.samples = [(path, labels[folder.classes[at]]) for path, at in folder.samples]
    folder.targets = [label for _, label in folder.samples]
    folder.classes, folder.class_to_idx = list(chosen), places
    if unknown := [repr(name) for name, label in labels.items() if label < 0]:
        raise UserError(f"{root} has folders that are no class: {', '.join(unknown)}")
    if lacking := [name for name, at in places.items() if at not in folder.targets]:
        raise UserError(f"{root} has no images of: {', '.join(lacking)}")
    return folder


def load_image(path: str | Path) -> "Tensor":
    """The image in a file as a (48, 48) uint8 tensor; raises BadImage with the file's name."""
    import torch  # late: the rest needs none

    try:
        return torch.from_numpy(decode(read_file(Path(path))))
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error


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
    sampled_val: bool = False
    notes: list[str] = field(default_factory=list)
    votes: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of labels and of a network's outputs."""
        return self.splits["train"].classes

    @property
    def demo(self) -> bool:
        return self.name == "demo"

    def split(self, name: str) -> Split:
        """The split called `name`. Raises UserError where the dataset lacks it; there is always train and val."""
        if name not in self.splits:
            known = " (FER2013's PublicTest is val)" if self.name == "fer2013" else ""
            raise UserError(f"{self.source} has no {name} split{known}: use --split val")
        return self.splits[name]

    def doubts(self) -> list[str]:
        """A note where the training images look like uncropped photos."""
        known = self.name in ("fer2013", "demo")
        return [] if known else uncropped_notes(self.split("train"), self.source)

    def describe(self) -> list[str]:
        """Lines about what was found: source, splits, counts per class, copies."""
        form = f"fer2013 ({self.source})" if self.name == "fer2013" else self.source
        lines = [f"data: {form}, fingerprint {self.fingerprint}", *self.notes]
        width = max(6, *map(len, self.classes)) + 1
        lines.append(" " * 16 + "".join(f"{name:>{width}}" for name in (*self.classes, "all")))
        for name, split in self.splits.items():
            label = f"{name} (sampled)" if name == "val" and self.sampled_val else name
            lines.append(f"  {label:<14}" + "".join(f"{count:>{width}}" for count in (*split.counts(), len(split))))
        copied = [split for split in self.splits.values() if split.copies.any()]
        return lines + [f"  {split.copies.sum()} of the {split.name} images are in train too" for split in copied]


# --- Finding ---


def load(config: Config, *, fixed: bool = False) -> FaceData:
    """The dataset that `config.data` names, or the first one found in this folder, or the rendered faces.

    Decodes on the first call and reads the cache afterwards. `fixed`: `config.classes` are those of trained weights,
    whatever is there. Raises UserError for a dataset that cannot be read or lacks a class in train, and for votes that
    are not of this dataset.
    """
    where, note = find(config)
    if where == "demo":
        from demo.faces import demo_source  # late: predicting imports this module, too

        source = demo_source()
    else:
        source = open_dataset(Path(where), follow_links=config.follow_links)
    cache = cached(source, Path(config.cache))
    return assemble(config, source, cache, notes=[note] if note else [], fixed=fixed)


def find(config: Config) -> tuple[str, str]:
    """What `load` reads, a path or "demo" (a folder of that name: ./demo), and a note where one of several was chosen.

    Raises UserError where nothing has a name that is looked for, but something in this folder looks like a dataset.
    """
    if config.data:
        return config.data, ""
    if there := [place for place in PLACES if os.path.exists(place)]:
        others = ", ".join(there[1:])
        return there[0], others and f"{there[0]} is read, not {others}, which is here too: --data chooses"
    here = [Path(name) for name in sorted(os.listdir()) if not is_junk(name)]
    alike = [Path()] if any(is_part(path) for path in here) else [path for path in here if looks_like_data(path)]
    if alike:
        likeliest = min(alike, key=os.path.isdir)
        raise UserError(
            f"no dataset here has one of the names that are looked for ({', '.join(PLACES)}), but this looks like one: "
            f"give --data {quoted(likeliest)}, or --data demo for the rendered faces"
        )
    return "demo", ""


def looks_like_data(path: Path, depth: int = 3) -> bool:
    """Whether a file is called as one of FER2013's, or there is such a file or a class folder in a zip or a folder."""
    with suppress(OSError, zipfile.BadZipFile):
        if path.suffix.lower() == ".zip" and not path.is_dir():
            with zipfile.ZipFile(path) as archive:
                folders = {part for name in archive.namelist() for part in name.split("/")[:-1]}
            return bool(ALIKE.fullmatch(path.name)) or any(class_of(part, SEVEN) for part in folders)
        if not path.is_dir():
            table = is_table_name(path.name) or path.suffix.lower() in ("", ".gz", ".tgz", ".tar")
            return table and bool(ALIKE.fullmatch(path.name))
        if depth and split_of(path.name) in ("", "train") and not is_junk(path.name):
            inside = list(path.iterdir())
            return any(is_part(each) for each in inside) or any(looks_like_data(each, depth - 1) for each in inside)
    return False


def is_part(path: Path) -> bool:
    """Whether a folder is that of a class, with an image in it, or a train/ of such; or a file is train.csv."""
    if is_table_name(path.name):
        return split_of(path.name.partition(".")[0]) == "train"
    with suppress(OSError):
        train, inside = split_of(path.name) == "train", [path]
        if train and path.is_dir():
            inside = [each for each in path.iterdir() if each.is_dir()]
        if train or class_of(path.name, SEVEN):
            return any(is_image_name(each.name) for folder in inside if folder.is_dir() for each in folder.iterdir())
    return False


# --- Splitting ---


def assemble(
    config: Config, source: Source, cache: Cache, *, notes: Sequence[str] = (), fixed: bool = False
) -> FaceData:
    """The FaceData over a whole cache: validation sampled where there is none, copies marked, limit applied."""
    meta = cache.meta
    index, order, choice = arrange(config, source, cache, fixed)
    labels, digests = np.ascontiguousarray(index["labels"]), np.ascontiguousarray(index["digests"])
    notes = [*notes, *map(plain, choice.notes)]
    if skipped := sum(number for _, number, _ in meta["skipped"]):
        notes.append(f"skipped files: {skipped}")
    for problem, number, names in meta["skipped"]:
        more = f" and {number - len(names):,} more" if number > len(names) else ""
        notes.append(plain(f"  {', '.join(names)}{more}: {problem}"))
    given, mark = None, ""
    if config.votes and choice.names != CLASSES:
        raise UserError(f"--votes: they are for the classes {', '.join(CLASSES)}; here are {', '.join(choice.names)}")
    if config.votes:
        given, note = match(read_votes(Path(config.votes)), index, source=str(source.path))
        notes.append(note)
        seen = index["splits"] != SPLITS.index("test")  # as for the fingerprint
        mark = hashlib.blake2b(given[seen].tobytes(), digest_size=8).hexdigest()
    try:
        rows, sampled = split_rows(index, config.val_fraction)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from error
    splits = {}
    for name, at in rows.items():
        copies = np.isin(digests[at], digests[rows["train"]]) & (name != "train")
        own = None if given is None else given[at]
        splits[name] = Split(name, Rows(cache.images, order[at]), labels[at], digests[at], copies, own, choice.names)
    if splits["val"].copies.all():
        raise UserError(f"{source.path}: every validation image is in train too; validate on other images")
    name = name_of(source, splits)
    if config.limit and config.limit < len(splits["train"]):
        splits["train"] = splits["train"].take(stratified_rows(splits["train"].labels, config.limit))
    return FaceData(splits, name, str(source.path), fingerprint(index, choice.names), sampled, notes, mark)


def arrange(config: Config, source: Source, cache: Cache, fixed: bool) -> tuple[np.ndarray, np.ndarray, Choice]:
    """The index (N,) of INDEX of the images of the classes that `config` chooses, and their rows in the cache.

    In one order for all forms of a dataset: split, class, digest. Labels are places in the Choice's names. Raises
    UserError as `choose` does.
    """
    index, names = cache.index, cache.meta["names"]
    trained = index["labels"][index["splits"] == SPLITS.index("train")]
    counts = (np.bincount(labels, minlength=len(names)).tolist() for labels in (trained, index["labels"]))
    found = dict(zip(names, zip(*counts, strict=True), strict=True))
    try:
        table = source.kind == "table"
        lost = cache.meta["lost"]
        choice = choose(config.classes, found, skip=config.skip_unknown, table=table, fixed=fixed, lost=lost)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from error
    labels = np.array(choice.labels, np.int64)[index["labels"]]
    order = np.lexsort([index["digests"]["low"], index["digests"]["high"], labels, index["splits"]])
    order = order[labels[order] >= 0]
    index = index[order]
    index["labels"] = labels[order]
    return index, order, choice


def fingerprint(index: np.ndarray, names: tuple[str, ...]) -> str:
    """16 hex digits over splits, labels and pixels (their digests), and over the names of other classes than FER2013's.

    The same for every form of the data. Test images have no part in it, which no run sees: FER2013 with and without
    PrivateTest is one dataset to a run and its weights. Where there is nothing else, it is over these.
    """
    seen = index["splits"] != SPLITS.index("test")
    rows = index[seen] if seen.any() else index
    digest = hashlib.blake2b(digest_size=8)
    for name in ("splits", "labels", "digests"):
        digest.update(np.ascontiguousarray(rows[name]).view(np.uint8))
    digest.update("\n".join(names).encode() if names != CLASSES else b"")
    return digest.hexdigest()


def name_of(source: Source, splits: dict[str, Split]) -> str:
    """The name of a dataset, as in `FaceData`."""
    if splits["train"].classes == CLASSES and all(splits[part].counts() == counts for part, counts in FER2013.items()):
        return "fer2013"
    if source.rendered:
        return "demo"
    name = Path(os.path.abspath(source.path)).name
    return f"{name}/" if name in ("demo", "fer2013") else name  # a folder of other faces that is called so


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("dataset.py", f"Print what dataset is found here, and write a sheet of its faces, {SHEET}.")
    help_ = "write face crops of the photos in the folder --data there, in the same class folders, and do nothing else"
    parser.add_argument("--crop", type=nonempty, metavar="NEW_FOLDER", help=help_)
    add_flags(parser, ("data", "follow_links", "classes", "skip_unknown", "cache", "val_fraction", "limit", "votes"))
    args = parser.resolve(parser.parse_args(argv))
    return exit_status(crop, args.config, Path(args.crop)) if args.crop else exit_status(show, args.config)


def crop(config: Config, out: Path) -> int:
    """Write face crops of a folder of photos, and print what was skipped."""
    from faces.folder import crop_folder  # late: OpenCV

    if not config.data:
        raise UserError("--crop: name the folder of photos with --data")
    for line in crop_folder(Path(config.data), out, follow_links=config.follow_links):
        print(plain(line))
    if (out / "train").is_dir():
        print(f"train on them: python interface.py --recipe few --data {quoted(out)}")
    return 0


def show(config: Config) -> int:
    """Print what `load` finds and write a sheet with ten faces of each class from train."""
    import plots  # late: only here

    data = load(config)
    print("\n".join([*data.describe(), *audit(data.splits), *data.doubts(), *([DEMO_NOTE] if data.demo else [])]))
    check_replaceable("dataset.py", SHEET, MARK)
    train = data.split("train")
    plots.contact_sheet(train.images, train.labels, SHEET, classes=train.classes, title=f"{data.source}: train")
    print(f"{SHEET} shows some of its faces")
    return 0


if __name__ == "__main__":
    sys.exit(main())

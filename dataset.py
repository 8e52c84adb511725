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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import CLASSES, Config
from errors import MARK, UserError, check_replaceable, exit_status, plain, quoted
from readers.cache import SPLITS, Cache, cached
from readers.decode import SIZE, BadImage, decode, read_file
from readers.layout import check_all_classes, class_folders, is_image_name, is_junk
from readers.sources import Source, open_dataset
from readers.votes import match, read_votes

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.datasets import ImageFolder

# Official images per class of FER2013: a dataset with these counts is FER2013, in whatever form people have it
FER2013 = {"train": [3995, 436, 4097, 7215, 4830, 3171, 4965], "val": [467, 56, 496, 895, 653, 415, 607]}
VAL_SEED = 2013  # of the sampled validation part: the same for every run, so that runs compare on the same images
# Zips of FER2013 that are not called as expected: as other tools save it, or as a browser names the second copy
ALIKE = re.compile(r".*(archive|fer[-_ ]?2013).*\.zip", re.IGNORECASE)
PLACES = ("archive", "archive.zip", "fer2013.csv", "icml_face_data.csv", "fer2013.tar.gz")
SHEET = Path("contact_sheet.png")
# Training images in which faces are looked for, and the share of the side that a cropped face fills at least. Of 120
# images of FER2013, 6 show none to the detector and in 1 it fills less; in portraits it fills about a quarter.
LOOKED_AT, FILLED = 20, 0.6
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


def EmotionFolder(root: str | Path, **transforms: Callable | None) -> "ImageFolder":
    """A torchvision ImageFolder of one folder per class: ((48, 48) uint8 tensor, label), for a DataLoader of your own.

    Labels are indices into CLASSES, whatever order the folders have on disk; letter case and synonyms are mapped,
    hidden and junk files are left out, as in training. `transforms` are `transform` and `target_transform`.
    Raises UserError for a folder that is no class and for a class without images. Taking a bad file out of it raises
    BadImage with the file's name. `load` does not use it: without torchvision it starts a second earlier.
    """
    from torchvision.datasets import ImageFolder  # late: it takes a second

    def wanted(path: str) -> bool:
        return is_image_name(path) and not is_junk(Path(path).relative_to(root).as_posix())

    folder = ImageFolder(root, **transforms, loader=load_image, is_valid_file=wanted, allow_empty=True)
    labels = class_folders(str(root), (name for name in folder.classes if not is_junk(name)))
    folder.samples = [(path, labels[folder.classes[at]]) for path, at in folder.samples]
    folder.targets = [label for _, label in folder.samples]
    folder.classes, folder.class_to_idx = list(CLASSES), {name: index for index, name in enumerate(CLASSES)}
    check_all_classes(str(root), folder.targets)
    return folder


def load_image(path: str | Path) -> "Tensor":
    """The image in a file as a (48, 48) uint8 tensor; raises BadImage with the file's name."""
    import torch  # late: the rest needs none

    try:
        return torch.from_numpy(decode(read_file(Path(path))))
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error


class Rows:
    """The images at some rows of a mapped array (N, 48, 48), or of Rows; read when they are asked for."""

    def __init__(self, images: "np.ndarray | Rows", rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.nbytes = len(rows) * images[:1].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> np.ndarray:
        return self.images[self.rows[at]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.images[self.rows], dtype)


@dataclass(frozen=True)
class Split:
    """One part of the data: `images` (N, 48, 48) uint8, mapped from the cache, `labels` (N,) int64, `copies` (N,) bool.

    `copies` marks the images whose pixels are in train too. `votes` (N, 7) float32 are FER+'s, zeros where an image
    has none.
    """

    name: str
    images: Rows | np.ndarray
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
        votes = None if self.votes is None else self.votes[rows]
        images = Rows(self.images, rows)
        return Split(self.name, images, self.labels[rows], self.digests[rows], self.copies[rows], votes)


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
    def demo(self) -> bool:
        return self.name == "demo"

    def split(self, name: str) -> Split:
        """The split called `name`. Raises UserError where the dataset lacks it; there is always train and val."""
        if name not in self.splits:
            raise UserError(f"{self.source} has no {name} split; use --split val")
        return self.splits[name]

    def describe(self) -> list[str]:
        """Lines about what was found: source, splits, counts per class, copies."""
        form = f"fer2013 ({self.source})" if self.name == "fer2013" else self.source
        lines = [f"data: {form}, fingerprint {self.fingerprint}", *self.notes]
        width = max(map(len, CLASSES)) + 1
        lines.append(" " * 16 + "".join(f"{name:>{width}}" for name in (*CLASSES, "all")))
        for name, split in self.splits.items():
            label = f"{name} (sampled)" if name == "val" and self.sampled_val else name
            lines.append(f"  {label:<14}" + "".join(f"{count:>{width}}" for count in (*split.counts(), len(split))))
        copied = [split for split in self.splits.values() if split.copies.any()]
        return lines + [f"  {split.copies.sum()} of the {split.name} images are in train too" for split in copied]


# --- Finding ---


def load(config: Config) -> FaceData:
    """The dataset that `config.data` names, or the first one found in this folder, or the rendered faces.

    Decodes on the first call and reads the cache afterwards. Raises UserError for a dataset that cannot be read or
    lacks a class in train, and for votes that are not of this dataset.
    """
    where, note = find(config)
    if where == "demo":
        from demo.faces import demo_source  # late: predicting imports this module, too

        source = demo_source()
    else:
        source = open_dataset(Path(where), follow_links=config.follow_links)
    return assemble(config, source, cached(source, Path(config.cache)), notes=[note] if note else [])


def find(config: Config) -> tuple[str, str]:
    """What `load` reads, a path or "demo" (a folder of that name: ./demo), and a note where one of several was chosen.

    Raises UserError where nothing has a name that is looked for, but something in this folder looks like a dataset.
    """
    if config.data:
        return config.data, ""
    if there := [place for place in PLACES if os.path.exists(place)]:
        others = ", ".join(there[1:])
        return there[0], others and f"{there[0]} is read, not {others}, which is here too: --data chooses"
    alike = sorted(name for name in os.listdir() if ALIKE.fullmatch(name))
    if os.path.isdir("train"):
        alike.append(".")
    if alike:
        raise UserError(
            f"no dataset here has one of the names that are looked for ({', '.join(PLACES)}), but this looks like one: "
            f"give --data {quoted(alike[0])}, or --data demo for the rendered faces"
        )
    return "demo", ""


# --- Splitting ---


def assemble(config: Config, source: Source, cache: Cache, *, notes: Sequence[str] = ()) -> FaceData:
    """The FaceData over a whole cache: validation sampled where there is none, copies marked, limit applied."""
    index, meta = cache.index, cache.meta
    labels, digests = np.ascontiguousarray(index["labels"]), np.ascontiguousarray(index["digests"])
    notes = [*notes, *(f"folder {name!r} is read as {to}" for name, to in meta["renamed"].items())]
    if meta["skipped"]:
        notes.append(f"skipped files: {meta['skipped']}, the first of them:")
        notes += [f"  {plain(name)}" for name in meta["unreadable"]]
    given, mark = None, ""
    if config.votes:
        given, note = match(read_votes(Path(config.votes)), index, source=str(source.path))
        notes.append(note)
        seen = index["splits"] != SPLITS.index("test")  # as for the fingerprint
        mark = hashlib.blake2b(given[seen].tobytes(), digest_size=8).hexdigest()
    rows, sampled = split_rows(config, source, cache)
    splits = {}
    for name, at in rows.items():
        copies = np.isin(digests[at], digests[rows["train"]]) & (name != "train")
        own = None if given is None else given[at]
        splits[name] = Split(name, Rows(cache.images, at), labels[at], digests[at], copies, own)
    if splits["val"].copies.all():
        raise UserError(f"{source.path}: every validation image is in train too; validate on other images")
    name = name_of(source, splits)
    if config.limit and config.limit < len(splits["train"]):
        splits["train"] = splits["train"].take(stratified_rows(splits["train"].labels, config.limit))
    return FaceData(splits, name, str(source.path), meta["fingerprint"], sampled, notes, mark)


def uncropped_notes(data: FaceData) -> list[str]:
    """A note if most of some training images show no face, or one that fills less than `FILLED` of their side."""
    from faces.crop import frame  # late: only here
    from faces.detect import Detector

    if data.name in ("fer2013", "demo"):
        return []
    train, small = data.split("train"), 0
    some = train.images[np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).astype(int)]
    with suppress(UserError):  # without OpenCV there is no note
        detector = Detector()
        for pixels in some:
            sides = [frame(box)[2] / SIZE for box in detector.find(np.repeat(pixels[:, :, None], 3, axis=2))]
            small += max(sides, default=0) < FILLED
    if small <= len(some) / 2:
        return []
    return [
        f"note: these look like uncropped photos: in {small} of {len(some)} training images no face is found, or it "
        f"fills less than {FILLED:.0%} of the side. Crop them first: "
        f"python dataset.py --data {quoted(data.source)} --crop NEW_FOLDER"
    ]


def name_of(source: Source, splits: dict[str, Split]) -> str:
    """The name of a dataset, as in `FaceData`."""
    if all(splits[part].counts() == counts for part, counts in FER2013.items()):
        return "fer2013"
    if source.rendered:
        return "demo"
    name = Path(os.path.abspath(source.path)).name
    return f"{name}/" if name in ("demo", "fer2013") else name  # a folder of other faces that is called so


def split_rows(config: Config, source: Source, cache: Cache) -> tuple[dict[str, np.ndarray], bool]:
    """The rows of each split that is there, and whether validation was sampled.

    The whole rule: validation is a folder val/ if there is one; else the PublicTest_* files of test/ or the rows of
    Usage PublicTest, as FER2013 has them; else a tenth of each class of train, always the same. Test is what else is in
    test/. The first two are settled by names, in readers/layout.py and readers/tables.py; the third is sampled here.
    Raises UserError where train lacks a class, or has no two different images of any to sample from.
    """
    index = cache.index
    rows = {name: np.flatnonzero(index["splits"] == number) for number, name in enumerate(SPLITS)}
    train = index[rows["train"]]
    check_all_classes(f"{source.path}: train", train["labels"])
    sampled = not len(rows["val"])
    if sampled:
        chosen = sample_validation(train["labels"], train["digests"], config.val_fraction)
        rows["val"], rows["train"] = rows["train"][chosen], rows["train"][~chosen]
        if not chosen.any():
            raise UserError(
                f"{source.path}: there is no validation part, and no class has two different images to sample one "
                f"from; add images, or a val/ folder"
            )
    return {name: at for name, at in rows.items() if len(at)}, sampled


def sample_validation(labels: np.ndarray, digests: np.ndarray, fraction: float) -> np.ndarray:
    """A mask (N,) of the images sampled for validation: `fraction` of each class that has two different images.

    Whole groups of pixel-identical images are sampled, so that copies stay on one side. A group larger than the wanted
    part stays in train, unless all are: an image copied over and over would take the class with it.
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
    parser = Parser("dataset.py", f"Print what dataset is found here, and write a sheet of its faces, {SHEET}.")
    help_ = "write face crops of the photos in the folder --data there, in the same class folders, and do nothing else"
    parser.add_argument("--crop", type=nonempty, metavar="NEW_FOLDER", help=help_)
    add_flags(parser, ("data", "follow_links", "cache", "val_fraction", "limit", "votes"))
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
        flags = "--recipe small --pretrained final_weights_new.pth --epochs 10 --lr 0.01"
        print(f"train on them: python interface.py {flags} --data {quoted(out)}")
    return 0


def show(config: Config) -> int:
    """Print what `load` finds and write a sheet with ten faces of each class from train."""
    import plots  # late: only here

    data = load(config)
    print("\n".join([*data.describe(), *uncropped_notes(data), *([DEMO_NOTE] if data.demo else [])]))
    check_replaceable("dataset.py", SHEET, MARK)
    train = data.split("train")
    plots.contact_sheet(train.images, train.labels, SHEET, title=f"{data.source}: train")
    print(f"{SHEET} shows some of its faces")
    return 0


if __name__ == "__main__":
    sys.exit(main())

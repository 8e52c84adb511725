"""What the names of files tell: their split and their class.

Folders and zips are read by the same rules, from their lists of names alone; no file is opened here.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from typing import TYPE_CHECKING

from config import CLASSES
from errors import UserError
from readers.decode import EXTENSIONS, HEIC

if TYPE_CHECKING:
    import numpy as np

SYNONYMS = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
}
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", *(f".z{part:02}" for part in range(1, 100)))
REMEDY = dict.fromkeys(ARCHIVES, "an archive: unpack it, and give the folder") | {".heic": HEIC, ".heif": HEIC}
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
RENDERED_MARK = ".drawn-faces"  # a file in a folder of rendered faces: weights trained on these are never shipped


@dataclass(slots=True)
class Item:
    """One image as found, not read yet. `load` returns its pixels or raises BadImage; not called with a `problem`."""

    name: str  # "train/angry/Training_00008.png", "fer2013.csv row 17"
    split: str = ""  # "train", "val", "test" or "" (not known)
    label: int = -1  # index into CLASSES, -1 unknown
    problem: str = ""  # why it can't be used; "" if fine
    load: "Callable[[], np.ndarray] | None" = None
    read: Callable[[], bytes] | None = None  # the bytes of its file, where it has one; raises BadImage too


@dataclass(slots=True)
class Layout:
    """The `items` of a list of names, sorted by name and still without `load`, or else the name of a `csv`.

    `renamed`: folder -> class, where they differ. `training`: how many inputs are in a class folder of train/.
    """

    items: list[Item]
    renamed: dict[str, str] = field(default_factory=dict)
    csv: str = ""
    training: int = 0


def class_index(folder_name: str) -> int:
    """Return the index in CLASSES of the class that a folder's name means, -1 if it is no class.

    Letter case does not count, and the usual synonyms are known (`SYNONYMS`).
    """
    name = folder_name.strip().casefold()
    name = SYNONYMS.get(name, name)
    return CLASSES.index(name) if name in CLASSES else -1


def is_junk(name: str) -> bool:
    """Return whether a relative path is one that systems leave behind: dot-files, __MACOSX, Thumbs.db."""
    return any(part.startswith(".") or part.casefold() in JUNK for part in name.split("/"))


def is_image_name(name: str) -> bool:
    """Return whether a file's suffix is one of an image, in any letter case."""
    return splitext(name)[1].lower() in EXTENSIONS


def class_folders(where: str, folders: Iterable[str]) -> dict[str, int]:
    """Return folder name -> class index; raises UserError naming the folders that are no class."""
    indices = {name: class_index(name) for name in sorted(folders)}
    if unknown := [name for name, index in indices.items() if index < 0]:
        raise UserError(
            f"{where} has folders that are no class: {first_of(unknown)}. Allowed are {', '.join(CLASSES)} "
            f"(also {', '.join(SYNONYMS)}; letter case does not count). Rename or remove the others."
        )
    return indices


def check_all_classes(where: str, labels: Collection[int]) -> None:
    """Raise UserError if a class is not among `labels`."""
    if lacking := [name for index, name in enumerate(CLASSES) if index not in labels]:
        raise UserError(f"{where} has no readable images of: {', '.join(lacking)}. Every class needs some.")


def first_of(names: Collection[str], limit: int = 5) -> str:
    """Return the first few of `names` in one line, for messages."""
    few = ", ".join(repr(name) for name in sorted(names)[:limit])
    return few + (f" and {len(names) - limit} more" if len(names) > limit else "")


# --- Datasets ---


def training_layout(where: str, files: Iterable[str]) -> Layout:
    """Return split and class of every file of a training set, given relative names with "/".

    Raises UserError if there are no class folders, if a folder in a split is no class, or if train lacks one.
    """
    files = sorted(name for name in files if not is_junk(name))
    folders = set()
    for name in files:
        while (name := name.rpartition("/")[0]) and name not in folders:
            folders.add(name)
    root, table = _find_root(where, files, folders)
    if table:
        return Layout([], csv=table)
    splits = {name: SPLITS[name.casefold()] for name in _inside(root, folders) if name.casefold() in SPLITS}
    if "train" not in splits.values():
        splits = {"": "train"}
    items = [_training_item(name, root, splits) for name in files]
    renamed = {}
    for folder in splits:
        top = f"{root}{folder}/" if folder else root
        labels = class_folders(f"{where}: {top}" if top else where, _inside(top, folders))
        renamed |= {name: CLASSES[label] for name, label in labels.items() if CLASSES[label] != name}
    check_all_classes(f"{where}: train", {item.label for item in items if item.split == "train" and not item.problem})
    for item in items:
        if item.split == "test" and item.name.rpartition("/")[2].startswith("PublicTest_"):
            if "val" in splits.values():
                item.problem = "left out: val/ is the validation split, and PublicTest is never used as test"
            item.split = "val"
    return Layout(items, renamed)


def _inside(folder: str, names: Iterable[str]) -> set[str]:
    """Return the last parts of those `names` that are directly in `folder` ("" or ending in "/")."""
    rests = (name[len(folder) :] for name in names if name.startswith(folder))
    return {rest for rest in rests if "/" not in rest}


def _find_root(where: str, files: Collection[str], folders: Collection[str]) -> tuple[str, str]:
    """Return the folder around train/ or the class folders, and the table's name if there is one instead."""
    root = ""
    while True:
        inside = _inside(root, folders)
        known = {name.casefold() for name in inside} & SPLITS.keys()
        if "train" in known or any(class_index(name) >= 0 for name in inside):
            return root, ""
        tables = [name for name in _inside(root, files) if name.casefold() in CSV_NAMES]
        if len(tables) == 1:
            return root, root + tables[0]
        # Never down into test/ or val/ alone: their class folders would pass for training data.
        if len(inside) != 1 or known:
            break
        root += f"{inside.pop()}/"
    found = first_of(inside | _inside(root, files)) or "nothing"
    raise UserError(
        f"{where}: expected train/ with a folder for each class ({', '.join(CLASSES)}), these folders themselves, "
        f"or {' or '.join(CSV_NAMES)}; found {found}{f' in {root}' if root else ''}."
    )


def _training_item(name: str, root: str, splits: dict[str, str]) -> Item:
    if not is_image_name(name):
        return Item(name, problem=REMEDY.get(splitext(name)[1].lower(), "not an image file"))
    parts = name[len(root) :].split("/") if name.startswith(root) else [""]
    if "" in splits:
        parts.insert(0, "")
    if len(parts) < 3 or parts[0] not in splits:
        return Item(name, problem="not in a class folder of train/, val/ or test/")
    return Item(name, splits[parts[0]], class_index(parts[1]))


# --- Inputs to predict ---


def input_layout(files: Iterable[str], *, around: Sequence[str] = ("",), typed: bool = False) -> Layout:
    """Return every file with the class that the folder directly around it names, -1 if it names none.

    `around` are the names of the folders around the files at the top, outermost first; what was `typed` is an image by
    any name. Training images are those in a class folder of train/; of several splits around the innermost decides.
    """
    items, training, renamed = [], 0, {}
    for name in sorted(name for name in files if typed or not is_junk(name)):
        if not (typed or is_image_name(name)):
            items.append(Item(name, problem=REMEDY.get(splitext(name)[1].lower(), "not an image file")))
            continue
        *above, folder = (*around, *name.split("/")[:-1])
        label = class_index(folder)
        items.append(Item(name, label=label))
        if label >= 0 and folder != CLASSES[label]:
            renamed[folder] = CLASSES[label]
        splits = [SPLITS[name.casefold()] for name in above if name.casefold() in SPLITS]
        training += label >= 0 and splits[-1:] == ["train"]
    return Layout(items, renamed, training=training)

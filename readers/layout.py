"""What the names of files tell: their split and the name of their class.

Folders and zips are read by the same rules, from their lists of names alone; no file is opened here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from typing import TYPE_CHECKING

from classes import SEVEN, class_of, split_beside, split_of, telling
from errors import UserError
from readers.decode import EXTENSIONS, HEIC

if TYPE_CHECKING:
    import numpy as np

WHOLE_TABLES = ("icml_face_data", "fer2013", "ckextended")  # they have all splits
TABLES = (".csv", ".csv.gz", ".tsv", ".parquet")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", *(f".z{part:02}" for part in range(1, 100)))
REMEDY = dict.fromkeys(ARCHIVES, "an archive: unpack it, and give the folder") | {".heic": HEIC, ".heif": HEIC}
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
RENDERED_MARK = ".drawn-faces"  # a file in a folder of rendered faces: weights trained on these are never shipped


@dataclass(slots=True)
class Item:
    """One image as found, not read yet. `load` returns its pixels or raises BadImage; not called with a `problem`."""

    name: str  # "train/angry/Training_00008.png", "fer2013.csv row 17"
    split: str = ""  # "train", "val", "test" or "" (not known)
    label: str = ""  # the name of its class as found, to predict the class that it means; "" unknown
    problem: str = ""  # why it can't be used; "" if fine
    load: "Callable[[], np.ndarray] | None" = None
    read: Callable[[], bytes] | None = None  # the bytes of its file, where it has one; raises BadImage too


@dataclass(slots=True)
class Layout:
    """The `items` of a list of names, sorted by name and still without `load`, or else `tables`, each with its split.

    `training`: how many inputs are in a class folder of train/.
    """

    items: list[Item]
    tables: dict[str, str] = field(default_factory=dict)
    training: int = 0


def is_junk(name: str) -> bool:
    """Return whether a relative path is one that systems leave behind: dot-files, __MACOSX, Thumbs.db."""
    return any(part.startswith(".") or part.casefold() in JUNK for part in name.split("/"))


def is_image_name(name: str) -> bool:
    """Return whether a file's suffix is one of an image, in any letter case."""
    return splitext(name)[1].lower() in EXTENSIONS


def is_table_name(name: str) -> bool:
    """Return whether a file's suffix is one of a table, in any letter case."""
    return name.lower().endswith(TABLES)


def first_of(names: Collection[str], limit: int = 5) -> str:
    """Return the first few of `names` in one line, for messages."""
    few = ", ".join(repr(name) for name in sorted(names)[:limit])
    return few + (f" and {len(names) - limit} more" if len(names) > limit else "")


# --- Datasets ---


def training_layout(where: str, files: Iterable[str]) -> Layout:
    """Return split and class folder of every file of a training set, given relative names with "/".

    Raises UserError if there are no class folders and no table.
    """
    files = sorted(name for name in files if not is_junk(name))
    folders = set()  # with images or tables in or below them
    for name in filter(lambda name: is_image_name(name) or is_table_name(name), files):
        while (name := name.rpartition("/")[0]) and name not in folders:
            folders.add(name)
    root, tables = _find_root(where, files, folders)
    if tables:
        return Layout([], tables)
    split = "train" in map(split_of, _inside(root, folders))
    items = [_training_item(name, root, split) for name in files]
    if not split and {item.split for item in items} <= {"train", ""}:
        by_name = [split_beside(splitext(item.name.rpartition("/")[2])[0]) for item in items]  # angry/train_1.png
        if "train" in by_name:
            for item, found in zip(items, by_name, strict=True):
                item.split = item.split and (found or "train")
    has_val = any(item.split == "val" for item in items)
    for item in items:
        if item.split == "test" and item.name.rpartition("/")[2].startswith("PublicTest_"):
            if has_val:
                item.problem = "left out: val/ is the validation split, and PublicTest is never used as test"
            item.split = "val"
    return Layout(items)


def _inside(folder: str, names: Iterable[str]) -> set[str]:
    """Return the last parts of those `names` that are directly in `folder` ("" or ending in "/")."""
    rests = (name[len(folder) :] for name in names if name.startswith(folder))
    return {rest for rest in rests if "/" not in rest}


def _find_root(where: str, files: Collection[str], folders: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the folder around train/ or the class folders, and the tables if there are some instead."""
    root = ""
    while True:
        inside, here = _inside(root, folders), _inside(root, files)
        splits = {split_of(name) for name in inside} - {""}
        if "train" in splits:
            return root, {}
        if any(class_of(name, SEVEN) for name in inside):
            return root, {}
        if tables := _find_tables(here, alone=not inside):
            return root, {root + name: split for name, split in tables.items()}
        with_images = {name.split("/")[-2] for name in files if is_image_name(name) and "/" in name}
        # Never down into test/ or val/ alone: their class folders would pass for training data.
        if splits or not inside:
            break
        if len(inside) > 1 or inside & with_images:
            return root, {}
        root += f"{inside.pop()}/"
    raise UserError(
        f"{where}: expected train/ with a folder for each class, which has its name and its images, these folders "
        f"themselves, or a table such as fer2013.csv; found {first_of(inside | here) or 'nothing'}"
        f"{f' in {root}' if root else ''}." + " A test part alone is scored by predict.py." * bool(splits)
    )


def _find_tables(names: Collection[str], *, alone: bool) -> dict[str, str]:
    """Return the tables of a dataset among the files of a folder, with their splits; `alone`: it has no folders."""
    tables = {name: name.lower().partition(".")[0] for name in sorted(names) if is_table_name(name)}
    for whole in WHOLE_TABLES:
        if found := [name for name, stem in tables.items() if stem == whole]:
            return {found[0]: ""}
    # train-00000-of-00001.parquet
    found = {name: split for name, stem in tables.items() if (split := split_of(stem.partition("-0")[0]))}
    return found if "train" in found.values() else dict.fromkeys(tables, "") if alone and len(tables) == 1 else {}


def _training_item(name: str, root: str, split: bool) -> Item:
    """Return a file with its split and class folder: train/angry/1.png, angry/train/1.png and train_angry/1.png.

    `split`: the folders in `root` are the splits.
    """
    if not is_image_name(name):
        return Item(name, problem=REMEDY.get(splitext(name)[1].lower(), "not an image file"))
    folders = name[len(root) :].split("/")[:-1] if name.startswith(root) else []
    splits = [split_of(folder) for folder in folders]
    label = "/".join(folder for folder, split_ in zip(folders, splits, strict=True) if not split_)
    if not label or (split and not splits[0]):
        return Item(name, problem="not in a class folder of train/, val/ or test/")
    return Item(name, next(filter(None, splits), split_beside(label.partition("/")[0]) or "train"), label)


# --- Inputs to predict ---


def input_layout(
    files: Iterable[str], meaning: Mapping[str, str], *, around: Sequence[str] = ("",), typed: bool = False
) -> Layout:
    """Return every file with the class that the nearest folder upwards names, by `meaning`; "" if none does.

    `around` are the names of the folders around the files at the top, outermost first; what was `typed` is an image by
    any name. Training images are those in a class folder of train/; of several splits around the innermost decides.
    """
    layout, known = Layout([]), {}
    for name in sorted(name for name in files if typed or not is_junk(name)):
        if not (typed or is_image_name(name)):
            layout.items.append(Item(name, problem=REMEDY.get(splitext(name)[1].lower(), "not an image file")))
            continue
        folders = (*around, *name.split("/")[:-1])
        if folders not in known:
            at = max(0, telling(folders, meaning))
            known[folders] = class_of(folders[at], meaning), [split_of(each) for each in folders[:at]]
        label, splits = known[folders]
        layout.items.append(Item(name, label=label))
        layout.training += bool(label) and [split for split in splits if split][-1:] == ["train"]
    return layout

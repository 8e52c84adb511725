"""What names mean: the split and the class of a folder, a table's value or a file; and which classes a dataset has."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from config import CLASSES, fold, parse_classes
from errors import UserError, counted, quoted

SYNONYMS = {
    "angry": ("anger",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "scared", "afraid"),
    "happy": ("happiness", "joy"),
    "sad": ("sadness",),
    "surprise": ("surprised",),
    "neutral": ("neutrality", "normal"),
}
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation", "publictest"),
    "test": ("test", "testing", "privatetest"),
}
_CLASSES = {word: name for name, words in SYNONYMS.items() for word in (name, *words)}
_SPLITS = {word: name for name, words in SPLIT_WORDS.items() for word in words}
_BESIDE = re.compile(
    rf"^((\d+|{'|'.join(_SPLITS)})[\s._-]+)+|[\s._-]+({'|'.join(_SPLITS)})$"
)  # "0 angry", "angry_train"
_NUMBERS = tuple(map(str, range(len(CLASSES))))
RAFDB = "1=surprise,2=fear,3=disgust,4=happy,5=sad,6=angry,7=neutral"


def split_of(name: str) -> str:
    """The split that a folder, a Usage or a file without suffix is called by: "train", "val", "test", or "" if none.

    "Training", "val_set" and "PublicTest" are some; letter case does not count.
    """
    return _SPLITS.get(re.sub(r"[\s_-]+|(?<=.)set$", "", fold(name)), "")


def split_beside(name: str) -> str:
    """The split in front of a name or behind it: "train" of "train_angry" and of "angry_train"; "" if there is none."""
    first, *others = re.split(r"[\s._-]+", fold(name))
    return (split_of(first) or split_of(others[-1])) if others else ""


def are_names(value: Any) -> bool:
    """Whether a file's `value` are names of classes: two or more strings, printable and not the same."""
    strings = isinstance(value, list) and all(isinstance(name, str) and name.isprintable() for name in value)
    return strings and len(set(value)) == len(value) > 1


def meanings(text: str = "", *, table: bool = False) -> dict[str, str]:
    """What names mean, folded, by a `--classes` text; "" has FER2013's seven classes.

    In a table numbers count as FER2013's, unless `text` says what these mean.
    """
    names, typed = parse_classes(text) if text else (CLASSES, {})
    known = {_CLASSES.get(fold(each), fold(each)): each for each in names}
    if table and not set(_NUMBERS) & set(typed):
        known |= {number: name for number, name in zip(_NUMBERS, CLASSES, strict=True) if name in names}
    return known | {fold(each): each for each in names} | typed


SEVEN = meanings()  # FER2013's


def class_of(name: str, known: Mapping[str, str]) -> str:
    """The class that a folder's name, or a table's value, means by `known`, see `meanings`; "" if none.

    Letter case, a number or split beside it, and the usual synonyms do not count.
    """
    plain = _BESIDE.sub("", text := fold(name))
    number = last if (last := text.rpartition(" ")[2]).isdigit() else None  # of "label 3"
    return next((known[each] for each in (text, plain, _CLASSES.get(plain), number) if each in known), "")


def text_for(content: Mapping[str, Any], typed: str = "") -> str:
    """The `--classes` text by which weights with this `content` see data: their classes, and what else means them."""
    chosen = typed or content["config"].get("classes", "")
    names, meaning = content["classes"], parse_classes(chosen)[1] if "=" in chosen else {}
    return ",".join([*names, *(f"{found}={name}" for found, name in meaning.items() if name in names)])


class Choice(NamedTuple):
    """Which classes a dataset is read with."""

    names: tuple[str, ...]  # in the order of the network's outputs
    labels: list[int]  # of each name that was found: its place in `names`, or -1
    notes: list[str]


def choose(
    text: str,
    found: Mapping[str, tuple[int, int]],
    *,
    skip: bool = False,
    table: bool = False,
    fixed: bool = False,
    lost: Sequence[str] = (),
) -> Choice:
    """The classes that `--classes` (`text`) chooses from the names found in a dataset: their images in train, and all.

    Names are of values in a `table`, or of folders: "angry/person 1", of which one tells the class, see `telling`.
    `fixed`: the classes are those of trained weights, all of them, whatever is there. Else UserError is raised where
    train has no image of a class that was asked for, or only unreadable ones (names of `lost`), for fewer than two
    classes, and for names that mean none: not with `skip`, nor where `text` lists the classes, nor of single rows.
    """
    auto = text == "auto"
    named, known = _named(text, found, table)

    def folders(name: str) -> list[str]:
        return [name] if table else name.split("/")[: 1 if auto else None]

    means = {name: class_in(folders(name), known) for name in found}
    trained = {means[name] for name, (images, _) in found.items() if images} - {""}
    unknown = Counter()
    for name, (_, images) in found.items():
        unknown[folders(name)[0]] += 0 if means[name] else images
    unknown = +unknown  # without zeros
    few = max(2, sum(images for _, images in found.values()) / 100) if table else 1
    refused = [name for name, images in unknown.items() if images >= few]
    if refused and not (text or skip):
        listed = _listed({name: unknown[name] for name in refused})
        raise UserError(f"{listed} {'is' if len(refused) == 1 else 'are'} no class. {_ways(refused, trained)}")
    if fixed and not any(means.values()):
        raise UserError(f"it has none of these weights' classes: {', '.join(named)}")
    notes = [f"left out: {_listed(unknown)}"] if unknown else []
    lacking = [] if fixed else [name for name in named if name not in trained]
    unread = {class_in(folders(name), known) or (folders(name)[0] if auto else "") for name in lost} - trained - {""}
    if unread := sorted(lacking if text and not auto else unread):
        raise UserError("; ".join([f"train has no readable image of: {', '.join(unread)}", *notes]))
    names = tuple(name for name in named if name not in lacking)
    if len(names) < 2:
        only = f"train has images of {' and '.join(names) or 'no class'} only; two classes are needed"
        raise UserError("; ".join([only, *notes]))
    if lacking:
        notes.append(
            f"train has no {' and no '.join(lacking)}: the classes are {', '.join(names)}; --classes names others"
        )
    if auto:
        notes.append(f"classes are the names that were found, in alphabetical order: {', '.join(names)}")
    if table and means.get("0") == CLASSES[0] and "0=" not in text:
        notes.append("numbers are those of FER2013: 0 is angry, 6 neutral (--classes says what others mean)")
    notes += _read_as({tuple(folders(name)): mean for name, mean in means.items() if mean in names}, known)
    return Choice(names, [names.index(each) if each in names else -1 for each in means.values()], notes)


def _named(text: str, found: Mapping[str, tuple[int, int]], table: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes that a `--classes` text names, and what names mean by it."""
    if text != "auto":
        known = meanings(text, table=table and "0" in found)  # from 0, as FER2013 counts
        return parse_classes(text)[0] if text else CLASSES, known
    tops = [name if table else name.partition("/")[0] for name in found if found[name][0]]
    spelled = {fold(name): name.strip() for name in tops}
    names = tuple(sorted(spelled.values()))
    if odd := [repr(name) for name in names if set(name) & {",", "="} or not name.isprintable()]:
        raise UserError(f"{', '.join(odd)}: such characters are in no name of a class; rename it")
    return names, spelled


def _read_as(means: Mapping[tuple[str, ...], str], known: Mapping[str, str]) -> list[str]:
    """What a user is told about folders, or values of a table, that were taken for a class, and folders around them."""
    read, around = {}, {}
    for folders, mean in means.items():
        at = telling(folders, known)
        read[folders[at]] = mean
        if at:
            around.setdefault(folders[0], set()).add(mean)
    odd = [f"{name!r} as {mean}" for name, mean in read.items() if fold(name) != fold(mean) and not name.isdigit()]
    pooled = [repr(name) for name, classes in around.items() if len(classes) > 1]
    notes = [f"read: {', '.join(odd)}"] if odd else []
    if len(pooled) > 1:
        more = f" and {len(pooled) - 3} more" if len(pooled) > 3 else ""
        notes.append(f"read together: {', '.join(pooled[:3])}{more}; if they are splits, call them train, val and test")
    return notes


def telling(folders: Sequence[str], known: Mapping[str, str]) -> int:
    """The place of the one of `folders`, from the outermost on, that tells the class by `known`; -1 if none does.

    It is the innermost with the very name of a class (Joy in angry/ is a person), else the innermost that means one.
    """
    for means in (lambda folder: fold(folder) in known, lambda folder: class_of(folder, known)):
        if places := [at for at, folder in enumerate(folders) if means(folder)]:
            return places[-1]
    return -1


def class_in(folders: Sequence[str], known: Mapping[str, str]) -> str:
    """The class that `folders` mean by `known`, see `telling`; "" if none does."""
    return class_of(folders[at], known) if (at := telling(folders, known)) >= 0 else ""


def _listed(counts: Mapping[str, int], most: int = 10) -> str:
    words = [f"{name!r} ({counted(count, 'image')})" for name, count in list(counts.items())[:most]]
    return ", ".join(words) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _ways(unknown: Sequence[str], trained: Collection[str]) -> str:
    """What a user may do about names that mean no class, where those of `trained` do."""
    if len(unknown) > 1 and all(name.rpartition(" ")[2].isdigit() for name in unknown):
        fer2013 = ",".join(f"{number}={name}" for number, name in zip(_NUMBERS, CLASSES, strict=True))
        return (
            f"Numbers count differently from dataset to dataset: say what they mean, as FER2013 does "
            f"(--classes {fer2013}), RAF-DB ({RAFDB}), or this one"
        )
    said = (
        f"--classes {quoted(f'NAME,{unknown[0]}=NAME')} says what they mean, --classes auto takes all names as they are"
    )
    if not trained:
        return f"Put the images of each class into a folder of its name; else {said}"
    both = ",".join([*(name for name in CLASSES if name in trained), *unknown])
    skip = "--skip-unknown leaves them out, " if len(trained) > 1 else ""
    return f"{skip}--classes {quoted(both)} trains on them too, {said}"

"""FER+: the votes of ten people on each image of FER2013 (arXiv 1608.01041), and the images they belong to.

Two files are read. Microsoft's fer2013new.csv has a row for each row of fer2013.csv, in the same order;
ferplus_votes.csv names the files of the folder form. Of FER+'s ten columns only the seven emotions of CLASSES are kept.
"""

import csv
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from config import CLASSES
from errors import UserError, plain
from readers.layout import class_index, shown

EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # in the order of CLASSES
USAGES = ("training", "publictest", "privatetest")  # in the order of the numbers in a cache's `splits`
MAX_LINE = 10_000  # characters; a row of votes has about 60
MAX_ROWS = 1_000_000
MAX_VOTES = 1_000_000.0  # for one emotion
# Of a dataset's images, the share that must have a row: FER2013's own have one in 99%, those of other data in none.
LEAST_FOUND = 0.5
# Of the images with votes, the share whose label must be among the most-voted: in FER2013 65%, by chance about 20%.
LEAST_AGREED = 0.5
TAKES = "--votes takes Microsoft's fer2013new.csv, or ferplus_votes.csv"


@dataclass(frozen=True)
class Votes:
    """A file of votes: `counts` (M, 7) float32 in the order of CLASSES, and what they belong to, by `kind`.

    "rows": row `keys[i]`, which is i, of the dataset's table; `splits` (M,) int8 is its Usage, 0 train, 1 val, 2 test.
    "files": the file whose `file_key` is `keys[i]` (uint64); `splits` is empty.
    """

    name: str
    kind: str
    counts: np.ndarray
    keys: np.ndarray
    splits: np.ndarray


def file_key(label: int, name: str) -> int:
    """64 bits that stand for a file of class `label`, the same wherever its class folder stands, however it is spelled.

    Made of the class and the file's name without suffix; the folders of `name`, with "/", do not count.
    """
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    text = f"{label}/{stem}".encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# --- Reading ---


def read_votes(path: Path) -> Votes:
    """The votes in a file of one of the two forms, told apart by their columns.

    Raises UserError, with the line, where the file is missing, of no such form or damaged, names a file twice, or has
    no vote for any of the seven emotions.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; {TAKES}")
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(lines(file, path))
            try:
                votes = parse(rows, path)
            except csv.Error as error:
                raise UserError(f"{path}, line {rows.line_num}: {error}; {TAKES}") from error
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); {TAKES}") from error
    if not votes.counts.any():
        raise UserError(f"{path} holds no vote for any of {', '.join(EMOTIONS)}; {TAKES}")
    return votes


def lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of `file`. Raises UserError at one that no row of votes can be, without reading it to its end."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise UserError(f"{path}, line {number}: above {MAX_LINE} characters, so this is no file of votes; {TAKES}")
        yield line


def parse(rows: Any, path: Path) -> Votes:
    """The Votes in `rows`, a csv.reader, of which the first names the columns. Raises UserError."""
    header = [column.strip().casefold() for column in next(rows, [])]
    kind = "files" if "file" in header else "rows"
    needed = (*(("file",) if kind == "files" else ("usage", "image name")), *EMOTIONS)
    if lacking := [column for column in needed if header.count(column) != 1]:
        raise UserError(
            f"{path} is no file of votes: it has no column, or more than one, called {', '.join(lacking)}; "
            f"its columns are {shown([column[:30] for column in header], 12) or 'none'}. {TAKES}"
        )
    places = [header.index(column) for column in needed]
    counts, keys, splits, seen = array("f"), array("Q"), array("b"), set()
    for row in rows:
        if not row:
            continue
        where = f"{path}, line {rows.line_num}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields where {len(header)} are expected; get the file again")
        if len(keys) == MAX_ROWS:
            raise UserError(f"{where}: more than {MAX_ROWS:,} rows; {TAKES}")
        told = [row[place].strip() for place in places[: -len(EMOTIONS)]]
        numbers = [count_of(row[place], where) for place in places[-len(EMOTIONS) :]]
        if kind == "files":
            key = key_of(told[0], where)
            if key in seen:
                raise UserError(f"{where}: {told[0]!r} is there twice, for its class and name; keep one of its rows")
            seen.add(key)
            keys.append(key)
        else:
            keys.append(len(keys))
            splits.append(usage_of(told[0], where))
            numbers = numbers if told[1] else [0.0] * len(EMOTIONS)  # FER+ removed the image
        counts.extend(numbers)
    table = np.frombuffer(counts, np.float32).reshape(-1, len(CLASSES))
    return Votes(plain(path.name), kind, table, np.frombuffer(keys, np.uint64), np.frombuffer(splits, np.int8))


def count_of(text: str, where: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = -1.0
    if not 0 <= count <= MAX_VOTES:
        raise UserError(f"{where}: {text[:20]!r} is no number of votes (0 to {MAX_VOTES:,.0f}); get the file again")
    return count


def key_of(name: str, where: str) -> int:
    label = class_index(name.rpartition("/")[0].rpartition("/")[2])
    if label is None:
        raise UserError(
            f"{where}: {name[:200]!r} stands in no folder of a class ({', '.join(CLASSES)}); "
            f"expected is a name such as train/angry/Training_00008.png"
        )
    return file_key(label, name)


def usage_of(usage: str, where: str) -> int:
    if usage.casefold() not in USAGES:
        raise UserError(f"{where}: unknown Usage {usage[:20]!r} (Training, PublicTest or PrivateTest)")
    return USAGES.index(usage.casefold())


# --- Matching ---


def match(votes: Votes, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> np.ndarray:
    """The votes (N, 7) float32 on each image of a dataset, in its order; zeros where an image has none.

    `arrays` are a cache's labels, splits, digests and origins, (N,) each; of its `meta` "source" (named in messages),
    "origins" and "unreadable_count" are looked at.
    Raises UserError where these votes are not of this dataset.
    """
    if votes.kind != meta["origins"]:
        fault, cure = {
            "rows": ("are for the rows of a table, and this dataset is files", "name fer2013.csv with --data"),
            "files": ("are for files, and this dataset is a table", "name the archive of files with --data"),
        }[votes.kind]
        other = {"rows": "ferplus_votes.csv", "files": "fer2013new.csv"}[votes.kind]
        raise UserError(f"{meta['source']}: the votes in {votes.name} {fault}: {cure}, or {other} with --votes")
    rows = (match_rows if votes.kind == "rows" else match_files)(votes, arrays, meta)
    given = np.zeros((len(rows), len(CLASSES)), np.float32)
    given[rows >= 0] = votes.counts[rows[rows >= 0]]
    count, agreed = agreement(given, arrays["labels"])
    if agreed < LEAST_AGREED:
        found = f"is among the most-voted emotions for {agreed:.1%} of the {count:,} images with votes"
        raise UserError(
            f"{meta['source']}: the label {found if count else 'is never voted on: no image has a vote'}, so that the "
            f"votes in {votes.name} are not of these images (of FER2013's own it is 65%): name the dataset they belong "
            f"to with --data, or leave out --votes"
        )
    return given


def match_rows(votes: Votes, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> np.ndarray:
    """For each image the row (N,) int64 of its votes, in a table of as many rows. Raises UserError."""
    cure = "name the whole fer2013.csv, in its own order, with --data"
    rows, total = arrays["origins"].astype(np.int64), len(arrays["labels"]) + meta["unreadable_count"]
    if len(votes.keys) != total:
        raise UserError(
            f"{meta['source']} has {total:,} rows and {votes.name} {len(votes.keys):,}, but row belongs to row: {cure}"
        )
    other = rows[votes.splits[rows] != arrays["splits"]]
    if len(other):
        raise UserError(
            f"{meta['source']}: {len(other):,} of its rows have another Usage in {votes.name} (the first is data row "
            f"{other.min() + 1:,}): {cure}"
        )
    return rows


def match_files(votes: Votes, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> np.ndarray:
    """For each image the row (N,) int64 of its votes, -1 where none names its file. Raises UserError."""
    origins, digests = arrays["origins"], arrays["digests"]
    order = np.argsort(votes.keys)
    at = np.searchsorted(votes.keys, origins, sorter=order).clip(max=len(order) - 1)
    rows = np.where(votes.keys[order[at]] == origins, order[at], -1)
    found = np.flatnonzero(rows >= 0)
    if len(found) < LEAST_FOUND * len(rows):
        raise UserError(
            f"{meta['source']}: {votes.name} names {len(found) or 'none'} of its {len(rows):,} images by class and "
            f"file name, which is under {LEAST_FOUND:.0%}: name the dataset that the votes belong to with --data, or "
            f"leave out --votes"
        )
    by_key = found[np.argsort(rows[found], kind="stable")]
    alike = rows[by_key[1:]] == rows[by_key[:-1]]
    clash = np.count_nonzero(alike & (digests[by_key[1:]] != digests[by_key[:-1]]))
    if clash:
        raise UserError(
            f"{meta['source']}: {clash:,} images have class and file name of another, different image, so that "
            f"{votes.name} names both: give each a name of its own, or leave out --votes"
        )
    return rows


def agreement(given: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """How many images have votes, of `given` (N, 7), and the share of them with the label among the most-voted."""
    some = np.flatnonzero(given.any(1))
    given = given[some]
    agreed = given[np.arange(len(some)), labels[some]] == given.max(1)
    return len(some), float(agreed.mean()) if len(some) else 0.0

"""FER+: the votes of ten people on each image of FER2013 (arXiv 1608.01041), and the images they belong to.

Two files are read. Microsoft's fer2013new.csv has a row for each row of fer2013.csv, in the same order;
ferplus_votes.csv names the files of the folder form. Of FER+'s ten columns only the seven emotions of CLASSES are kept.
"""

import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import CLASSES
from errors import UserError, plain
from readers.layout import class_index

EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # in the order of CLASSES
MAX_ROWS = 1_000_000
# Of a dataset's images, the share that must have a row: of FER2013's own 99 % have one, of other data none.
LEAST_FOUND = 0.5
# Of the images with votes, the share whose label must be among the most-voted: in FER2013 65 %, by chance about 20 %.
LEAST_AGREED = 0.5
TAKES = "--votes takes Microsoft's fer2013new.csv, or ferplus_votes.csv"


@dataclass(frozen=True)
class Votes:
    """A file of votes: `counts` (M, 7) float32 in the order of CLASSES, for the images whose origin is `keys` (M,).

    `kind` "rows": of a table, the number of the row, from 0. "files": the file's `file_key`.
    """

    name: str
    kind: str
    counts: np.ndarray
    keys: np.ndarray


def file_key(label: int, name: str) -> int:
    """Return 64 bits for a file of class `label`, the same wherever its class folder is, however it is spelled.

    Made of the class and the file's name without suffix; the folders of `name`, with "/", do not count.
    """
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    text = f"{label}/{stem}".encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def read_votes(path: Path) -> Votes:
    """Return the votes in a file of one of the two forms, known by its columns.

    Raises UserError, with the line, where the file is missing, of no such form or damaged, or has no votes.
    """
    keys, counts = [], []
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            try:
                header = [column.strip().casefold() for column in next(rows, [])]
                read = _file_row if "file" in header else _table_row
                for row in rows:
                    if not row:
                        continue
                    if len(row) != len(header) or len(keys) == MAX_ROWS:
                        raise ValueError(f"{len(row)} fields of {len(header)}, or more than {MAX_ROWS:,} rows")
                    keys.append(read(dict(zip(header, row, strict=True)), len(keys), counts))
            except (KeyError, ValueError, csv.Error) as error:
                what = f"no column {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{path}, line {rows.line_num}: {what}; {TAKES}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}); {TAKES}") from error
    table = np.array(counts, np.float32).reshape(-1, len(CLASSES))
    if not table.any():
        raise UserError(f"{path} has no vote for any of {', '.join(EMOTIONS)}; {TAKES}")
    return Votes(plain(path.name), "files" if "file" in header else "rows", table, np.array(keys, np.uint64))


def _numbers(row: dict[str, str]) -> Iterator[float]:
    for emotion in EMOTIONS:
        if not 0 <= (count := float(row[emotion])) < 1e6:
            raise ValueError(f"{row[emotion][:20]!r} is no number of votes")
        yield count


def _table_row(row: dict[str, str], number: int, counts: list[list[float]]) -> int:
    numbers = list(_numbers(row))
    counts.append(numbers if row["image name"].strip() else [0.0] * len(EMOTIONS))  # FER+ removed the image
    return number


def _file_row(row: dict[str, str], number: int, counts: list[list[float]]) -> int:
    counts.append(list(_numbers(row)))
    *_, folder, file = ("", *row["file"].strip().split("/"))
    label = class_index(folder)
    if label is None:
        raise ValueError(
            f"{row['file'][:200]!r} is in no folder of a class; expected is train/angry/Training_00008.png"
        )
    return file_key(label, file)


def match(votes: Votes, index: np.ndarray, *, kind: str, source: str) -> np.ndarray:
    """Return the votes (N, 7) float32 on each image of a dataset, in its order; zeros where an image has none.

    `index` (N,) is a cache's, `kind` its meta's "origins"; `source` is named in messages.
    Raises UserError where these votes are not of this dataset.
    """
    if votes.kind != kind:
        fault, cure, other = {
            "rows": ("for the rows of a table, and this dataset is files", "fer2013.csv", "ferplus_votes.csv"),
            "files": ("for files, and this dataset is a table", "the archive of files", "fer2013new.csv"),
        }[votes.kind]
        raise UserError(
            f"{source}: the votes in {votes.name} are {fault}: name {cure} with --data, or {other} with --votes"
        )
    order = np.argsort(votes.keys)
    at = order[np.searchsorted(votes.keys, index["origins"], sorter=order).clip(max=len(order) - 1)]
    found = votes.keys[at] == index["origins"]
    given = np.where(found[:, None], votes.counts[at], np.float32(0))
    count, agreed = agreement(given, index["labels"])
    if found.mean() < LEAST_FOUND or agreed < LEAST_AGREED:
        raise UserError(
            f"{source}: {votes.name} has a row for {found.mean():.1%} of its images, and of the {count:,} with votes "
            f"{agreed:.1%} have a label that is among the most-voted (in FER2013 99% and 65%): these votes are not of "
            f"these images, or in another order. Name the dataset they belong to with --data, or leave out --votes"
        )
    return given


def agreement(given: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Return how many images have votes, of `given` (N, 7), and for which share the label is among the most-voted."""
    some = np.flatnonzero(given.any(1))
    agreed = given[some, labels[some]] == given[some].max(1)
    return len(some), float(agreed.mean()) if len(some) else 0.0


def shares(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share (N, 7) float32 of each class in an image's votes, all for its label where it has none."""
    total = votes.sum(1, keepdims=True)
    return np.where(total > 0, votes / np.maximum(total, 1e-9), np.eye(len(CLASSES), dtype=np.float32)[labels])


def most_voted(votes: np.ndarray) -> np.ndarray:
    """Return the emotion (N,) int64 with the most votes of the seven; -1 for a tie, and where there are none."""
    most = votes.max(1, keepdims=True)
    clear = (most[:, 0] > 0) & ((votes == most).sum(1) == 1)
    return np.where(clear, votes.argmax(1), -1)

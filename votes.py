"""FER+: the votes of ten people on each image of FER2013 (arXiv 1608.01041), and the images they belong to.

Two files are read. Microsoft's fer2013new.csv has a row for each row of fer2013.csv, in the same order;
ferplus_votes.csv names the files of the folder form. Of FER+'s ten columns only the seven emotions of CLASSES are kept.
"""

import csv
import os
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import numpy as np

from classes import SEVEN, class_in
from config import CLASSES
from errors import UserError, open_file, plain
from readers.cache import file_key
from readers.tables import read_lines

EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # in the order of CLASSES
MAX_VOTES = 1e6  # on an image, for one emotion
# Of a dataset's images, the share that must have a row: of FER2013's own 99 % have one, of other data none.
LEAST_FOUND = 0.5
# Of the images with votes, the share whose label must be among the most-voted: in FER2013 65 %, by chance about 20 %.
LEAST_AGREED = 0.5
TAKES = "--votes takes Microsoft's fer2013new.csv, or ferplus_votes.csv"


@dataclass(frozen=True)
class Votes:
    """A file of votes: `counts` (M, 7) float32 in the order of CLASSES, for the images whose origin is `keys` (M,).

    An origin is a file's `file_key`, or the number of its row in a table, from 0.
    """

    name: str
    counts: np.ndarray
    keys: np.ndarray


def read_votes(path: Path) -> Votes:
    """Return the votes in a file of one of the two forms, known by its columns.

    Raises UserError, with the line, where the file is missing, of no such form or damaged, or has no votes.
    """
    keys, counts = [], []
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="replace", newline="") as text:
            rows = csv.DictReader(read_lines(text, str(path)), restval="")
            by_name = "file" in (rows.fieldnames or [])
            for row in rows:
                votes = [float(row[emotion]) for emotion in EMOTIONS]
                if not all(0 <= count < MAX_VOTES for count in votes):
                    raise ValueError(f"{votes} are not numbers of votes")
                if by_name:
                    folders = [os.path.basename(os.path.dirname(row["file"]))]
                    if not class_in(folders, SEVEN):
                        raise ValueError(
                            f"{row['file']!r} is in no folder of a class, as train/angry/Training_8.png is"
                        )
                    keys.append(file_key(folders, row["file"]))
                else:
                    keys.append(len(keys))
                    if not row["Image name"]:  # FER+ removed the image
                        votes = [0.0] * len(EMOTIONS)
                counts.append(votes)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); {TAKES}") from error
    except (KeyError, ValueError, csv.Error) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}, line {rows.line_num}: {what}; {TAKES}") from error
    table = np.array(counts, np.float32).reshape(-1, len(CLASSES))
    if not table.any():
        raise UserError(f"{path} has no vote for any of {', '.join(EMOTIONS)}; {TAKES}")
    return Votes(plain(path.name), table, np.array(keys, np.uint64))


def match(votes: Votes, index: np.ndarray, *, source: str) -> tuple[np.ndarray, str]:
    """Return the votes (N, 7) float32 on each image of a dataset, in its order, zeros where it has none; and a note.

    `index` (N,) is a cache's, `source` is named in messages. Raises UserError where the votes are of another dataset.
    """
    order = np.argsort(votes.keys)
    at = order[np.searchsorted(votes.keys, index["origins"], sorter=order).clip(max=len(order) - 1)]
    found = votes.keys[at] == index["origins"]
    given = np.where(found[:, None], votes.counts[at], np.float32(0))
    some = np.flatnonzero(given.any(1))
    agreed = (given[some, index["labels"][some]] == given[some].max(1)).sum() / max(len(some), 1)
    about = (
        f"{len(some):,} images have some of the seven; the label is (one of) the most-voted for {agreed:.1%} of them"
    )
    if found.mean() < LEAST_FOUND or agreed < LEAST_AGREED:
        raise UserError(
            f"{source}: {votes.name} has a row for {found.mean():.1%} of its images, {about} (in FER2013 99% and 65%). "
            f"These votes are not of these images, or in another order: fer2013new.csv belongs to fer2013.csv, "
            f"ferplus_votes.csv to the archive of files. Name that with --data, or leave out --votes"
        )
    return given, f"votes: {votes.name}, {about}"

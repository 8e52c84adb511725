"""Rows about faces, and the tables that hold them: CSV and JSON."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TextIO

from errors import UserError, plain
from faces.face import Face

NO_FACE = "no face"  # the answer where none was found
PLACE = ("x", "y", "width", "height", "score")  # of a face in its photo: pixels, and the detector's score
BEFORE = ("file", "face", *PLACE, "answer", "prediction", "probability")
AFTER = ("true", "note", "problem")
BEGIN = {"csv": ",".join(BEFORE), "json": '[\n{"file": '}  # of each form of table, by which it is known


@dataclass(frozen=True)
class Row:
    """A face, or a file without one."""

    file: str  # printable
    number: int = 0  # of the face in a photo, from 1, left to right; 0 for an image that was taken whole, or no face
    face: Face | None = None
    true: str = ""  # the class that the folder names
    note: str = ""
    problem: str = ""  # why the file could not be read

    @property
    def answer(self) -> str:
        """The emotion, "not sure" or "no face"; nothing of a file that could not be read."""
        return self.face.answer if self.face else "" if self.problem else NO_FACE

    def entry(self) -> dict[str, Any]:
        """What is known, by name, and None for the rest; `probabilities` are a dict of their own."""
        entry = dict.fromkeys((*BEFORE, "probabilities", *AFTER)) | {"file": self.file, "face": self.number or None}
        texts = {"answer": self.answer, "true": self.true, "note": self.note, "problem": self.problem}
        entry |= {name: text for name, text in texts.items() if text}
        if self.face:
            values = [round(value, 6) for value in self.face.probabilities.tolist()]
            entry |= {"prediction": self.face.emotion, "probability": max(values)}
            entry["probabilities"] = dict(zip(self.face.classes, values, strict=True))
            for name, value in zip(PLACE, self.face.box or (), strict=False):
                entry[name] = round(float(value), 2)
        return entry


def rows_of(name: str, found: list[Face] | str, true: str) -> list[Row]:
    """The rows of the file `name`: `found` are its faces, or why it could not be read.

    `true` is the image's class: of several faces the largest is meant.
    """
    file = plain(name)
    if file[0] in "=+-@":  # a spreadsheet would take the cell for a formula
        file = f"./{file}"
    if isinstance(found, str):
        return [Row(file, true=true, problem=plain(found))]
    if not found:
        return [Row(file, true=true)]
    largest = max(found, key=lambda face: face.box.area if face.box else 0)
    return [
        Row(file, number if face.box else 0, face, true if face is largest else "", ", ".join(face.notes))
        for number, face in enumerate(found, 1)
    ]


@contextmanager
def open_table(form: str, target: str, classes: Sequence[str]) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `target`: the file appears whole when the block ends well, or not at all.

    After Ctrl-C the rows so far are left in `target`.part. "-" is standard output. Raises UserError.
    """
    rows = {"csv": partial(csv_rows, classes=classes), "json": json_rows}[form]
    if target == "-":
        with rows(sys.stdout) as write:
            yield write
        return
    path = Path(os.path.realpath(target))  # a link stays one: its file is replaced
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # it may be a link
        file = open(part, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"--{form} {target} cannot be written: {error.strerror}; choose another place") from error
    try:
        with file, rows(file) as write:
            yield write
        os.replace(part, path)
    except Exception:
        part.unlink()
        raise


@contextmanager
def csv_rows(file: TextIO, classes: Sequence[str]) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `file` as csv, with a column for each class."""
    writer = csv.DictWriter(file, (*BEFORE, *classes, *AFTER), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()

    def write(rows: list[Row]) -> None:
        for entry in (row.entry() for row in rows):
            writer.writerow(entry | (entry["probabilities"] or {}))

    yield write


@contextmanager
def json_rows(file: TextIO) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `file` as one array, an object on each line."""
    file.write("[")
    before = chain(["\n"], repeat(",\n"))
    try:
        yield lambda rows: file.writelines(next(before) + json.dumps(row.entry()) for row in rows)
    finally:
        file.write("\n]\n")

"""The tables that `predict.py` writes: a row per image, as CSV or JSON, streamed, and whole or not there at all."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, TextIO

from config import CLASSES

# What a table must not take the place of, by the name: besides images, zips and weights, sources and datasets
SOURCES = (".py", ".md", ".ipynb", ".toml", ".tar", ".gz", ".tgz")
DATASETS = ("fer2013*.csv", "icml_face_data*.csv", "ferplus*.csv")
COLUMNS = ("file", "prediction", "probability", *CLASSES, "true", "note", "problem")


class Row(NamedTuple):
    """What is said of one image: a probability for every class, or the problem with it and none."""

    file: str
    true: int  # index into CLASSES, -1 unknown
    probabilities: list[float]
    note: str = ""
    problem: str = ""

    def ranked(self) -> list[tuple[str, float]]:
        """Classes and their probabilities, the likeliest first."""
        return sorted(zip(CLASSES, self.probabilities, strict=True), key=lambda pair: -pair[1])


@contextmanager
def refusing(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Turn what the system refuses to write into a UserError; a reader that has gone (`| head`) passes through.

    `stream` is what was written to, if it is one of Python's own: what it still holds is given up.
    """
    from errors import UserError, discard

    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream:
            discard(stream)
        raise UserError(
            f"{what} could not be written ({error.strerror}): free some space, or choose another place"
        ) from error


def csv_line(row: Row) -> str:
    """The row of a table, in the order of COLUMNS, ended by a bare newline."""
    numbers = [""] * (2 + len(CLASSES))
    if row.probabilities:
        best, highest = row.ranked()[0]
        numbers = [best, *(f"{value:.6f}" for value in (highest, *row.probabilities))]
    true = CLASSES[row.true] if row.true >= 0 else ""
    buffer = io.StringIO()
    # The module quotes only the line ends that it writes: with both of them, a file name may hold either.
    csv.writer(buffer, lineterminator="\r\n").writerow([row.file, *numbers, true, row.note, row.problem])
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def json_line(row: Row) -> str:
    """The row as an object on its own line; what is not known is null."""
    values = {name: round(value, 6) for name, value in zip(CLASSES, row.probabilities, strict=False)}
    prediction = row.ranked()[0][0] if values else None
    return "\n" + json.dumps(
        {
            "file": row.file,
            "prediction": prediction,
            "probability": values.get(prediction),
            "probabilities": values or None,
            "true": CLASSES[row.true] if row.true >= 0 else None,
            "note": row.note or None,
            "problem": row.problem or None,
        }
    )


# How a table is written: a row's line, and what stands before, between and after the lines.
FORMS = {"csv": (csv_line, ",".join(COLUMNS) + "\n", "", ""), "json": (json_line, "[", ",", "\n]\n")}


def check_target(target: str, form: str) -> None:
    """Raise UserError where `target` is an image, a dataset, weights or code by its name: no typo overwrites these."""
    from errors import UserError
    from readers.decode import EXTENSIONS

    name = Path(target).name.lower()
    if Path(name).suffix in (*EXTENSIONS, *SOURCES, ".zip", ".pth") or any(fnmatch(name, each) for each in DATASETS):
        raise UserError(f"--{form} {target}: the table would take the place of that file; name a .{form} file")


@contextmanager
def open_table(target: str, form: str) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `target` at once; the file appears whole when the block ends well, or not at all.

    After Ctrl-C the rows so far are kept beside it, as `target`.part.
    "-" is standard output; that, and what is no regular file (/dev/null, a pipe), is written directly.
    Raises UserError where the target cannot be written, or `check_target` refuses it.
    """
    check_target(target, form)
    path, stdout = Path(os.path.realpath(target)), target == "-"  # a link stays one: its file is replaced
    direct = stdout or (os.path.exists(path) and not os.path.isfile(path))  # Path.exists raises for some names
    place = path if direct else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writing = partial(refusing, f"--{form} {target}", sys.stdout if stdout else None)
    line, head, between, tail = FORMS[form]
    before = chain([""], repeat(between))

    def write(rows: list[Row]) -> None:
        put("".join(next(before) + line(row) for row in rows))

    def put(text: str) -> None:
        with writing():
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()

    with writing():
        file = sys.stdout.buffer if stdout else open(place, "wb")  # noqa: SIM115 (closed below)
    try:
        put(head)
        yield write
        put(tail)
        if not direct:
            with writing():
                os.fsync(file.fileno())
                file.close()
                os.replace(place, path)
    except KeyboardInterrupt:
        if not direct:
            part = path.with_name(f"{path.name}.part")
            put(tail)
            with writing():
                file.close()
                os.replace(place, part)
            print(f"the rows so far stand in {part}", file=sys.stderr)
        raise
    finally:
        if not stdout:
            with suppress(OSError):  # a full disk was reported when it was met
                file.close()
        if not direct:
            place.unlink(missing_ok=True)

"""Predict: name the emotion in every image of files, folders and zips, and score them where folders name the class.

`python predict.py` reads test/, or else test.zip, in the current folder; `python predict.py photo.jpg faces/ faces.zip`
reads these. `--csv` and `--json` write a row per image, bad files included: its file, the prediction and its
probability, the seven probabilities, the true class if the folder around the file names one, a note, the problem.
The JSON is one array, with an object per line.

Several processes share the work (`torchrun --nproc_per_node=N -- predict.py ...`): each decodes and predicts every N-th
batch, and the first one prints and writes what one process alone would.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from cli import Parser, add_flags, nonempty
from config import CLASSES, TTA, TTA_HELP
from errors import UserError, counted, cpu_quota, exit_status, plain
from metrics import measure, summary, table
from ranks import joined
from readers.decode import EXTENSIONS, Batch, cut, decode_batches, looks_uncropped
from readers.layout import Item
from readers.sources import open_inputs

if TYPE_CHECKING:
    from utils import Machine

BATCH = 256  # images at a time: one of val.SIZES
COLUMNS = ("file", "prediction", "probability", *CLASSES, "true", "note", "problem")
READ = (*EXTENSIONS, ".zip", ".pth")  # suffixes of what is read: no table is written over such a file


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("predict.py", "Name the emotion in images of faces.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="images, folders, zips (default: test/ or test.zip)")
    parser.add_argument("--weights", type=nonempty, metavar="FILE", help="weights to use (default: the shipped ones)")
    help = "print the K likeliest emotions (default: 1)"
    parser.add_argument("--top-k", type=int, choices=range(1, len(CLASSES) + 1), default=1, metavar="K", help=help)
    parser.add_argument("--csv", type=nonempty, metavar="FILE", help="write a table; - is standard output")
    parser.add_argument("--json", type=nonempty, metavar="FILE", help="write a JSON array; - is standard output")
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    parser.add_argument("--strict", action="store_true", help="exit with status 2 if any file had to be skipped")
    parser.add_argument("--tta", choices=TTA, default="none", help=TTA_HELP)
    add_flags(parser, names=("device", "precision", "threads"))
    args = parser.resolve(parser.parse_intermixed_args(argv))
    args.tables = {form: target for form, target in (("csv", args.csv), ("json", args.json)) if target}
    for form, target in args.tables.items():
        if target.lower().endswith(READ):
            parser.error(f"argument --{form}: {target} is named like an image, a zip or weights; name another file")
    if args.csv and args.csv == args.json:
        parser.error(f"argument --json: {args.json} is where --csv writes; name another file")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(predict, parse(argv))


def predict(args: argparse.Namespace) -> int:
    """Load the weights, predict every image as it comes, print the summary.

    Raises UserError where nothing can be read, where --strict forbids what was skipped, or where a table fails.
    """
    with joined() as ranks, ExitStack() as tables:
        machine, probabilities, items, lines = ranks.in_turn(prepare, args)
        ranks.check(machine.device.type)
        output = Output(args, machine)
        if ranks.first:
            output.writers = [tables.enter_context(open_table(*each)) for each in args.tables.items()]
            output.say(lines)
        mine = islice(cut(items, BATCH), ranks.rank, None, ranks.size)
        decoded = decode_batches(mine, max(1, cpu_quota() // ranks.size))
        predicted = (make_rows(batch, probabilities(batch.pixels)) for batch in decoded)
        for _ in range(0, len(items), BATCH * ranks.size):
            for rows in ranks.gather(next(predicted, [])) or []:  # the first process has those of all
                output.write(rows)
        if ranks.first:
            output.summarize()
    skipped = counted(output.skipped, "file") + " skipped"
    if ranks.first and not output.images:
        raise UserError(f"nothing could be read: {skipped}")
    if args.strict and output.skipped:
        raise UserError(f"--strict: {skipped}")
    return 0


def prepare(args: argparse.Namespace) -> tuple["Machine", Callable, list[Item], list[str]]:
    """The machine, the network, the list of all images, not decoded yet, and lines about weights and inputs.

    The network is a function: pixels (B, 48, 48) uint8 to probabilities (B, 7). Raises UserError.
    """
    import torch

    from utils import pick_machine
    from val import forward
    from weights import SHIPPED, describe, find_weights, load_weights

    paths = find_inputs(args.paths)
    machine = pick_machine(args.config.device, args.config.precision, args.config.threads)
    weights = find_weights(args.weights or SHIPPED)
    model, content = load_weights(weights, machine=machine)
    items, notes, training = list_inputs(paths)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        return forward(model, torch.from_numpy(pixels), machine=machine, tta=args.tta).softmax(1).numpy()

    lines = [describe(weights, content, tta=args.tta), *(() if args.quiet else notes)]
    if training:
        lines.append(
            f"note: {counted(training, 'image')} in train/: networks learn from such, so an accuracy on them is no test"
        )
    return machine, probabilities, items, lines


# --- In: paths to images ---


def find_inputs(typed: list[str]) -> list[Path]:
    """The paths to read; with none typed, test/ or else test.zip. Raises UserError."""
    if missing := [repr(name) for name in typed if not os.path.lexists(name)]:
        raise UserError(f"{', '.join(missing)}: no such file or folder")
    names = typed or [name for name in ("test", "test.zip") if os.path.exists(name)][:1]
    if not names:
        raise UserError(
            "there is no test/ and no test.zip in this folder: put images there, or name images, folders "
            "or zips: python predict.py photo.jpg faces/ faces.zip"
        )
    return [Path(name) for name in names]


def list_inputs(paths: Iterable[Path]) -> tuple[list[Item], list[str], int]:
    """Every image below `paths`, notes on the paths, and the number of training images among them; nothing raises.

    A path that cannot be opened is an item with that problem.
    """
    items, notes, training = [], [], 0
    for path in paths:
        try:
            source = open_inputs(path)
        except UserError as error:
            items.append(Item(str(path), problem=str(error).removeprefix(f"{path}: ")))
            continue
        renamed = (f"folder {old!r} is read as {new}" for old, new in source.renamed.items())
        notes += [plain(f"{path}: {line}") for line in renamed]
        training += source.training
        single = source.kind == "image"
        items += [replace(item, name=str(path) if single else f"{path}/{item.name}") for item in source.items()]
    return items, notes, training


# --- Out: rows to lines and tables ---


class Row(NamedTuple):
    """What is known of one image; "" and [] are not known."""

    file: str  # printable
    true: str  # its class
    probabilities: list[float]  # of every class
    note: str
    problem: str  # why there is no prediction

    def entry(self) -> dict[str, Any]:
        """The row of a table, by name of column; in place of the classes' columns there are `probabilities`."""
        values = dict(zip(CLASSES, self.probabilities, strict=False))
        best = max(values, key=values.get, default=None)
        values = {name: round(value, 6) for name, value in values.items()}
        known = {"file": self.file, "prediction": best, "probability": values.get(best), "probabilities": values}
        entry = known | {"true": self.true, "note": self.note, "problem": self.problem}
        return {name: value or None for name, value in entry.items()}


def make_rows(batch: Batch, probabilities: np.ndarray) -> list[Row]:
    """A row for each item of `batch`; `probabilities` (G, 7) are those of the G good ones."""
    values, rows = iter(probabilities.tolist()), []
    for item, size in zip(batch.items, batch.found, strict=True):
        file, true = plain(item.name), CLASSES[item.label] if item.label >= 0 else ""
        if isinstance(size, str):
            rows.append(Row(file, true, [], "", plain(size)))
        else:
            note = "{}x{}: a cropped face is expected".format(*size) if looks_uncropped(*size) else ""
            rows.append(Row(file, true, next(values), note, ""))
    return rows


class Output:
    """What is printed and written about all images, in their order. Only the first process uses it."""

    def __init__(self, args: argparse.Namespace, machine: "Machine") -> None:
        self.top_k, self.machine = 0 if args.quiet else args.top_k, machine
        self.stream = sys.stderr if "-" in args.tables.values() else sys.stdout  # a table on stdout is alone there
        self.writers: list[Callable[[list[Row]], None]] = []  # of the tables
        self.scored: list[tuple[np.ndarray, np.ndarray]] = []  # probabilities and labels of images of known class
        self.images = self.skipped = self.notes = 0
        self.started = time.perf_counter()

    def say(self, lines: list[str]) -> None:
        print("".join(f"{line}\n" for line in lines), end="", file=self.stream, flush=True)

    def write(self, rows: list[Row]) -> None:
        """Count the rows of one batch, write them to the tables, print them."""
        good = [row for row in rows if not row.problem]
        known = [row for row in good if row.true]
        values = np.array([row.probabilities for row in known], np.float32).reshape(-1, len(CLASSES))
        self.scored.append((values, np.array([CLASSES.index(row.true) for row in known], np.int64)))
        self.images += len(good)
        self.skipped += len(rows) - len(good)
        self.notes += sum(bool(row.note) for row in rows)
        for write in self.writers:
            write(rows)
        for row in rows:
            if row.problem:
                print(f"skipped {row.file}: {row.problem}", file=sys.stderr)
        if self.top_k:
            self.say([sentence(row, self.top_k) for row in good])

    def summarize(self) -> None:
        """Print the figures over the images of known class, if there are any, and the counts."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        metrics, lines = measure(*map(np.concatenate, zip(*self.scored, strict=True))), []
        if metrics.count:
            lines = [summary(metrics), *table(metrics)]
            if metrics.count < self.images:
                lines.append(f"not scored, no folder around them names a class: {self.images - metrics.count}")
        counts = f"{counted(self.images, 'image')}, {self.skipped} skipped, {counted(self.notes, 'note')}"
        self.say([*lines, f"{counts}; {self.images / seconds:.0f} images/s on {self.machine}"])


def sentence(row: Row, top_k: int) -> str:
    """One line: file, likeliest classes with probabilities, the true class if known, the note."""
    ranked = sorted(zip(CLASSES, row.probabilities, strict=True), key=lambda pair: -pair[1])
    likely = ", ".join(f"{name} {value:.4f}" for name, value in ranked[:top_k])
    true, note = row.true and f"(true {row.true})", row.note and f"note: {row.note}"
    return "  ".join(part for part in (row.file, likely, true, note) if part)


@contextmanager
def open_table(form: str, target: str) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `target`: the file appears whole when the block ends well, or not at all.

    After Ctrl-C the rows so far are left in `target`.part. "-" is standard output. Raises UserError.
    """
    rows = {"csv": csv_rows, "json": json_rows}[form]
    if target == "-":
        with rows(sys.stdout) as write:
            yield write
        return
    path = Path(os.path.realpath(target))  # a link stays one: its file is replaced
    part = path.with_name(f"{path.name}.part")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"--{form} {target}: this is no file; name one, or - for standard output")
    try:
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
def csv_rows(file: TextIO) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `file` as csv, with COLUMNS."""
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()

    def write(rows: list[Row]) -> None:
        for entry in (row.entry() for row in rows):
            cells = entry | (entry["probabilities"] or {})
            writer.writerow({k: f"{value:.6f}" if isinstance(value, float) else value for k, value in cells.items()})

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


if __name__ == "__main__":
    sys.exit(main())

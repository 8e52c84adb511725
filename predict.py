"""Predict: name the emotion in every image of files, folders and zips, and score them where folders name the class.

`python predict.py` reads test/ or test.zip in the current folder; `python predict.py photo.jpg faces/ faces.zip`
reads these. `--csv` and `--json` write a row per image, bad files included: its file, the prediction and its
probability, the seven probabilities, the true class if the folder around the file names one, a note, the problem.
The JSON is one array, with an object per line.

Several processes share the work (`torchrun --nproc_per_node=N -- predict.py ...`): each decodes and predicts every N-th
batch, and the first one prints and writes what one process alone would.
"""

import argparse
import csv
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from cli import Parser, add_flags, nonempty
from config import CLASSES, TTA, TTA_HELP
from errors import UserError, counted, cpu_quota, discard, exit_status, plain
from metrics import measure, summary, table
from ranks import joined
from readers.decode import cut, decode_batches, looks_uncropped
from readers.layout import Item
from readers.sources import open_inputs

if TYPE_CHECKING:
    from utils import Machine

BATCH = 256  # images at a time: one of val.SIZES
COLUMNS = ("file", "prediction", "probability", *CLASSES, "true", "note", "problem")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("predict.py", "Name the emotion in images of faces.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="images, folders, zips (default: test/ or test.zip)")
    parser.add_argument("--weights", type=nonempty, metavar="FILE", help="weights to use (default: the shipped ones)")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="print the K likeliest emotions (default: 1)")
    parser.add_argument("--csv", type=nonempty, metavar="FILE", help="write a table; - is standard output")
    parser.add_argument("--json", type=nonempty, metavar="FILE", help="write a JSON array; - is standard output")
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    parser.add_argument("--strict", action="store_true", help="exit with status 2 if any file had to be skipped")
    parser.add_argument("--tta", choices=TTA, default="none", help=TTA_HELP)
    add_flags(parser, names=("device", "precision", "threads"))
    typed = list(sys.argv[1:] if argv is None else argv)
    end = typed.index("--") if "--" in typed else len(typed)
    args = parser.resolve(parser.parse_intermixed_args(typed[:end]))
    args.paths = [*args.paths, *typed[end + 1 :]]  # argparse takes names after -- that begin with a dash for flags
    if not 1 <= args.top_k <= len(CLASSES):
        parser.error(f"argument --top-k: {args.top_k} is not between 1 and {len(CLASSES)}")
    if args.csv and args.json and os.path.realpath(args.csv) == os.path.realpath(args.json):
        parser.error(f"argument --json: {args.json} is where --csv writes; name another file")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(predict, parse(argv))


class Task(NamedTuple):
    """What there is to do. Only `probabilities` knows the network: it maps pixels (B, 48, 48) uint8 to (B, 7)."""

    machine: "Machine"
    probabilities: Callable[[np.ndarray], np.ndarray]
    items: list[Item]  # the images, not decoded yet
    inputs: list[Path]  # what is read
    lines: list[str]  # about all of it


def predict(args: argparse.Namespace) -> int:
    """Load the weights, predict every image as it comes, print the summary.

    Raises UserError where nothing can be read, where --strict forbids what was skipped, or where an output fails.
    """
    with joined() as ranks:
        task = ranks.in_turn(prepare, args)
        ranks.check(task.machine.device.type)
        listed = ranks.gather([item.name for item in task.items]) or []  # the first process has those of all
        if any(names != listed[0] for names in listed):
            raise UserError("the processes do not find the same images: give all of them the same, unchanging files")
        mine = islice(cut(task.items, BATCH), ranks.rank, None, ranks.size)
        decoded = decode_batches(mine, max(1, cpu_quota() // ranks.size))
        results = ((task.probabilities(pixels), found) for _, pixels, found in decoded)
        output, batches = Output(args, task), cut(task.items, BATCH)
        with output.tables(task) if ranks.first else nullcontext():
            for _ in range(0, len(task.items), BATCH * ranks.size):
                for result in ranks.gather(next(results, None)) or ():
                    if result:
                        output.write(next(batches), *result)
            if ranks.first:
                output.summarize()
        skipped = counted(output.counts["skipped"], "file") + " skipped"
        if ranks.first and not output.counts["images"]:
            raise UserError(f"nothing could be read: {skipped}")
        if args.strict and output.counts["skipped"]:
            raise UserError(f"--strict: {skipped}")
    return 0


def prepare(args: argparse.Namespace) -> Task:
    """The network and the list of all images; none is decoded yet. Raises UserError."""
    import torch

    from utils import pick_machine
    from val import forward
    from weights import SHIPPED, describe, find_weights, load_weights

    paths, lines = find_inputs(args.paths)
    machine = pick_machine(args.config.device, args.config.precision, args.config.threads)
    weights = find_weights(args.weights or SHIPPED)
    model, content = load_weights(weights, machine=machine)
    items, notes, training = list_inputs(paths)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        return forward(model, torch.from_numpy(pixels), machine=machine, tta=args.tta).softmax(1).numpy()

    lines = [describe(weights, content, tta=args.tta), *lines, *(() if args.quiet else notes)]
    if training:
        lines.append(
            f"note: {counted(training, 'image')} in train/: networks learn from such, so an accuracy on them is no test"
        )
    return Task(machine, probabilities, items, [weights, *paths], lines)


# --- In: paths to images to probabilities ---


def find_inputs(typed: list[str]) -> tuple[list[Path], list[str]]:
    """The paths to read; with none typed, test/ or test.zip, and a line where both are there. Raises UserError."""
    if missing := [repr(name) for name in typed if not os.path.lexists(name)]:
        raise UserError(f"{', '.join(missing)}: no such file or folder")
    if typed:
        return [Path(name) for name in typed], []
    folder, archive = Path("test"), Path("test.zip")
    if folder.is_dir():
        both = ["test/ and test.zip are both here: test/ is read; for the other: python predict.py test.zip"]
        return [folder], both if archive.is_file() else []
    if archive.is_file():
        return [archive], []
    raise UserError(
        "there is no test/ and no test.zip in this folder: put images there, or name images, folders "
        "or zips: python predict.py photo.jpg faces/ faces.zip"
    )


def list_inputs(paths: Iterable[Path]) -> tuple[list[Item], list[str], int]:
    """Every image below `paths`, notes on the paths, and the number of training images among them; nothing raises.

    A path that cannot be opened is an item with that problem.
    """
    items, notes, training = [], [], 0
    for path in paths:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # as `sources` writes names that are no UTF-8
        try:
            source = open_inputs(path)
        except UserError as error:
            items.append(Item(name, problem=str(error).removeprefix(f"{path}: ")))
            continue
        renamed = (f"folder {old!r} is read as {new}" for old, new in source.renamed.items())
        notes += [f"{plain(name)}: {line}" for line in (*source.notes, *renamed)]
        training += source.training
        single = source.kind == "image"
        items += [replace(item, name=name if single else f"{name}/{item.name}") for item in source.items()]
    return items, notes, training


# --- Out: lines and tables ---


class Row(NamedTuple):
    """What is known of one image: a probability for every class, or none and the problem."""

    file: str
    true: str  # its class, "" unknown
    probabilities: list[float]
    note: str = ""
    problem: str = ""

    def ranked(self) -> list[tuple[str, float]]:
        """Classes and their probabilities, the likeliest first."""
        return sorted(zip(CLASSES, self.probabilities, strict=True), key=lambda pair: -pair[1])


class Output:
    """What is printed and written about all images, in their order. Only the first process writes."""

    def __init__(self, args: argparse.Namespace, task: Task) -> None:
        self.top_k, self.machine = 0 if args.quiet else args.top_k, task.machine
        self.targets = {form: target for form, target in (("csv", args.csv), ("json", args.json)) if target}
        self.stream = sys.stderr if "-" in self.targets.values() else sys.stdout  # a table on stdout is alone there
        self.writers: list[Callable[[list[Row]], None]] = []
        self.scored: list[tuple[np.ndarray, np.ndarray]] = []  # probabilities and labels of images of known class
        self.counts = Counter()
        self.started = time.perf_counter()

    @contextmanager
    def tables(self, task: Task) -> Iterator[None]:
        """Open the tables, and print what is known before. Left with an exception, the tables do not appear."""
        with ExitStack() as stack:
            for form, target in self.targets.items():
                check_target(target, form, task)
                self.writers.append(stack.enter_context(open_table(target, form)))
            say(self.stream, task.lines)
            yield

    def write(self, items: list[Item], probabilities: np.ndarray, found: list[tuple[int, int] | str]) -> None:
        """Count one batch, and write its rows. `found` has width and height of each item, or its problem."""
        good = [item for item, size in zip(items, found, strict=True) if not isinstance(size, str)]
        labels = np.array([item.label for item in good], np.int64)
        self.scored.append((probabilities[labels >= 0], labels[labels >= 0]))
        values, rows = iter(probabilities.tolist()), []
        for item, size in zip(items, found, strict=True):
            true = CLASSES[item.label] if item.label >= 0 else ""
            bad = isinstance(size, str)
            rows.append(
                Row(item.name, true, [], "", size) if bad else Row(item.name, true, next(values), remark(*size))
            )
        notes = sum(bool(row.note) for row in rows)
        self.counts.update(images=len(good), skipped=len(rows) - len(good), notes=notes)
        for write in self.writers:
            write(rows)
        say(sys.stderr, [f"skipped {plain(row.file)}: {plain(row.problem)}" for row in rows if row.problem])
        if self.top_k:
            say(self.stream, [sentence(row, self.top_k) for row in rows if not row.problem])

    def summarize(self) -> None:
        """Print the figures over the images of known class, if there are any, and the counts."""
        images, skipped, notes = (self.counts[name] for name in ("images", "skipped", "notes"))
        seconds = max(time.perf_counter() - self.started, 1e-9)
        metrics, lines = measure(*map(np.concatenate, zip(*self.scored, strict=True))), []
        if metrics.count:
            lines = [summary(metrics), *table(metrics)]
            if metrics.count < images:
                lines.append(f"not scored, no folder around them names a class: {images - metrics.count}")
        counts = f"{counted(images, 'image')}, {skipped} skipped, {counted(notes, 'note')}"
        say(self.stream, [*lines, f"{counts}; {images / seconds:.0f} images/s on {self.machine}"])


def say(stream: TextIO, lines: list[str]) -> None:
    """Print `lines` now. Raises UserError."""
    if lines:
        with refusing("the output", stream):
            print("\n".join(lines), file=stream, flush=True)


def sentence(row: Row, top_k: int) -> str:
    """One line: file, likeliest classes with probabilities, the true class if known, the note."""
    likely = ", ".join(f"{name} {value:.4f}" for name, value in row.ranked()[:top_k])
    true, note = row.true and f"(true {row.true})", row.note and f"note: {row.note}"
    return "  ".join(part for part in (plain(row.file), likely, true, note) if part)


def remark(width: int, height: int) -> str:
    """A note on an image of this size; "" where it may be a cropped face."""
    return f"{width}x{height}: a cropped face is expected" if looks_uncropped(width, height) else ""


def csv_line(row: Row) -> str:
    """The row of a table, in the order of COLUMNS, ended by a bare newline."""
    numbers = [""] * (2 + len(CLASSES))
    if row.probabilities:
        best, highest = row.ranked()[0]
        numbers = [best, *(f"{value:.6f}" for value in (highest, *row.probabilities))]
    buffer = io.StringIO()
    # The module quotes only the line ends that it writes: with both of them, a file name may hold either.
    csv.writer(buffer, lineterminator="\r\n").writerow([row.file, *numbers, row.true, row.note, row.problem])
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def json_line(row: Row) -> str:
    """The row as an object on its own line; what is not known is null."""
    values = {name: round(value, 6) for name, value in zip(CLASSES, row.probabilities, strict=False)}
    prediction = row.ranked()[0][0] if values else None
    entry = {"file": row.file, "prediction": prediction, "probability": values.get(prediction)}
    rest = {"probabilities": values, "true": row.true, "note": row.note, "problem": row.problem}
    return "\n" + json.dumps(entry | {name: value or None for name, value in rest.items()})


# How a table is written: a row's line, and what comes before, between and after the lines
FORMS = {"csv": (csv_line, ",".join(COLUMNS) + "\n", "", ""), "json": (json_line, "[", ",", "\n]\n")}


def check_target(target: str, form: str, task: Task) -> None:
    """Raise UserError where a table would replace a file that is read here, or something that is no file."""
    place, name = os.path.realpath(target), os.path.basename(target)
    inputs = (*task.inputs, *(item.name for item in task.items if item.name.endswith(name)))
    if any(os.path.realpath(each) == place for each in inputs):
        raise UserError(f"--{form} {target}: that file is read here, and would be replaced; name another file")
    if os.path.exists(place) and not os.path.isfile(place):
        raise UserError(f"--{form} {target}: this is no file; name one, or - for standard output")


@contextmanager
def open_table(target: str, form: str) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `target` at once; the file appears whole when the block ends well, or not at all.

    After Ctrl-C the rows so far are kept beside it, as `target`.part. "-" is standard output.
    Raises UserError where the target cannot be written.
    """
    line, head, between, tail = FORMS[form]
    path, stdout = Path(os.path.realpath(target)), target == "-"  # a link stays one: its file is replaced
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writing = partial(refusing, f"--{form} {target}", sys.stdout if stdout else None)
    before = chain([""], repeat(between))

    def put(text: str) -> None:
        with writing():
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()

    def finish(place: Path) -> None:
        put(tail)
        if not stdout:
            with writing():
                os.fsync(file.fileno())
                file.close()
                os.replace(temporary, place)

    with writing():
        file = sys.stdout.buffer if stdout else open(temporary, "wb")  # noqa: SIM115 (closed below)
    try:
        put(head)
        yield lambda rows: put("".join(next(before) + line(row) for row in rows))
        finish(path)
    except KeyboardInterrupt:
        if not stdout:
            finish(part := path.with_name(f"{path.name}.part"))
            print(f"the rows so far are in {part}", file=sys.stderr)
        raise
    finally:
        if not stdout:
            with suppress(OSError):  # a full disk was reported when it was met
                file.close()
            temporary.unlink(missing_ok=True)


@contextmanager
def refusing(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Turn what the system refuses to write into a UserError; a reader that has gone (`| head`) passes through.

    `stream` is what was written to, if it is one of Python's own: what it still holds is given up.
    """
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


if __name__ == "__main__":
    sys.exit(main())

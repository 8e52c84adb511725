"""Predict: name the emotion in every image of files, folders and zips, and score them where folders tell the truth.

`python predict.py` reads test/ or test.zip in the current folder; `python predict.py photo.jpg faces/ faces.zip`
reads these. `--csv` and `--json` write a row per image, bad files included: its file, the prediction and its
probability, the seven probabilities, the true class if the folder around the file names one, a note, the problem.
The JSON is one array, with an object per line.

Several processes share the work (`torchrun --nproc_per_node=N -- predict.py ...`): each decodes and predicts every N-th
batch, and the first one says and writes what one process alone would.
"""

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from cli import Parser, add_flags, nonempty
from config import CLASSES, TTA, TTA_HELP, Config
from tables import Row, open_table, refusing


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("predict.py", "Name the emotion in images of faces.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="images, folders, zips (default: test/ or test.zip)")
    parser.add_argument("--weights", type=nonempty, metavar="FILE", help="weights to use (default: the shipped ones)")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="name the K likeliest emotions (default: 1)")
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
    args = parse(argv)
    from errors import exit_status

    return exit_status(predict, args)


class Task(NamedTuple):
    """What there is to do: a network on its machine, the images (`layout.Item`) to read, and what to say of both."""

    machine: Any
    model: Any
    items: list[Any]
    lines: list[str]


def predict(args: argparse.Namespace) -> int:
    """Load the weights, predict every image as it comes, print the summary.

    Raises UserError where nothing can be read, where --strict forbids what was skipped, or where an output fails.
    """
    from errors import cpu_quota
    from ranks import joined
    from readers.decode import CHUNK, cut, decode_batches
    from val import BATCH

    with joined() as ranks:
        task = ranks.in_turn(lambda: prepare(args))
        ranks.check(task.machine.device.type)
        agree(ranks, task.items)
        count = len(task.items)
        # A few images are decoded sooner than threads are started.
        workers = 1 if count <= CHUNK else max(1, cpu_quota() // ranks.size)
        output = Output(args, task.machine)
        with output.stack:
            ranks.first_does(partial(output.begin, task.lines))
            batches = cut(task.items, BATCH)
            mine = decode_batches(islice(cut(task.items, BATCH), ranks.rank, None, ranks.size), workers)
            results = scored(mine, task.model, machine=task.machine, tta=args.tta)
            for _ in range(0, count, BATCH * ranks.size):
                gathered = ranks.gather(next_or_fault(results))
                ranks.first_does(partial(output.put, batches, gathered))
            ranks.first_does(output.end)
        ranks.first_does(output.judge)
    return 0


def prepare(args: argparse.Namespace) -> Task:
    """The network and the list of all images; none is decoded yet. Raises UserError."""
    from errors import counted
    from utils import pick_machine
    from weights import SHIPPED, describe, find_weights, load_weights

    config: Config = args.config
    paths, lines = find_inputs(args.paths)
    machine = pick_machine(config.device, config.precision, config.threads)
    weights = find_weights(args.weights or SHIPPED)
    model, content = load_weights(weights, machine=machine)
    items, notes, training = list_inputs(paths)
    lines = [describe(weights, content, tta=args.tta), *lines, *(() if args.quiet else notes)]
    if training:
        lines.append(
            f"note: {counted(training, 'image')} in train/: networks learn from such, so an accuracy on them is no test"
        )
    return Task(machine, model, items, lines)


def agree(ranks: Any, items: list[Any]) -> None:
    """Raise UserError where the processes list other images: what they have in hand would not fit together."""
    from errors import UserError

    names = "\n".join(item.name for item in items)
    digests = ranks.gather(hashlib.sha256(names.encode("utf-8", "surrogatepass")).digest())

    def compare() -> None:
        if len(set(digests)) > 1:
            raise UserError("the processes do not find the same images: give all of them the same, unchanging files")

    ranks.first_does(compare)


# --- In: paths to batches to rows ---


def find_inputs(typed: list[str]) -> tuple[list[Path], list[str]]:
    """The paths to read, and a line that says which was chosen where nobody did. Raises UserError."""
    from errors import UserError

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


def list_inputs(paths: Iterable[Path]) -> tuple[list[Any], list[str], int]:
    """Every image below `paths` as `layout.Item`s, notes on the paths, the number of training images; nothing raises.

    A path that is no source at all is an item with that problem.
    """
    from errors import UserError, plain
    from readers.layout import Item
    from readers.sources import open_inputs

    items, notes, training = [], [], 0
    for path in paths:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # as `sources` writes names that are no UTF-8
        try:
            source = open_inputs(path)
        except UserError as error:
            items.append(Item(name, problem=str(error).removeprefix(f"{path}: ")))
            continue
        notes += [f"{plain(name)}: folder {old!r} is read as {new}" for old, new in source.renamed.items()]
        training += source.training
        for item in source.items():
            item.name = name if source.kind == "image" else f"{name}/{item.name}"
            items.append(item)
    return items, notes, training


class Scored(NamedTuple):
    """A batch predicted: logits (G, 7) float32 of the good images, and of each item its size or problem."""

    logits: Any
    found: list[tuple[int, int] | str]


def scored(batches: Iterable[Any], model: Any, *, machine: Any, tta: str) -> Iterator[Scored]:
    """The logits of every `decode.Batch`, in order."""
    import torch

    from val import forward

    for _, pixels, found in batches:
        logits = torch.zeros(0, len(CLASSES))
        if len(pixels):
            logits = forward(model, torch.from_numpy(pixels), machine=machine, tta=tta)
        yield Scored(logits.numpy(), found)


def next_or_fault(results: Iterator[Scored]) -> Any:
    """The next of `results`, None after the last; the UserError where there is one, so that the first can say it."""
    from errors import UserError

    try:
        return next(results, None)
    except UserError as error:
        return error


def remark(width: int, height: int) -> str:
    """What to know of an image of this size; "" where it may be a cropped face."""
    from readers.decode import looks_uncropped

    return f"{width}x{height}: a cropped face is expected" if looks_uncropped(width, height) else ""


# --- Out: lines and tables ---


class Output:
    """What is said and written of all images, in their order; only the first process uses it."""

    def __init__(self, args: argparse.Namespace, machine: Any) -> None:
        self.args, self.machine = args, machine
        # Tables on standard output have it for themselves.
        self.stream = sys.stderr if "-" in (args.csv, args.json) else sys.stdout
        self.stack = ExitStack()  # of the tables: left with an exception, they are not there at all
        self.tables: list[Callable[[list[Row]], None]] = []
        self.scored: list[tuple[Any, Any]] = []  # probabilities and labels of the images of known class
        self.counts = Counter()
        self.started = 0.0

    def begin(self, lines: list[str]) -> None:
        """Open the tables and say `lines`."""
        targets = {"csv": self.args.csv, "json": self.args.json}
        self.tables = [self.stack.enter_context(open_table(to, form)) for form, to in targets.items() if to]
        say(self.stream, lines)
        self.started = time.perf_counter()

    def put(self, batches: Iterator[list[Any]], results: list[Any]) -> None:
        """Write what the processes found of the next of `batches`. Raises the UserError that one of them met."""
        for result in results:
            if isinstance(result, Exception):
                raise result
            if result:
                self.write(next(batches), result)

    def write(self, batch: list[Any], result: Scored) -> None:
        """Count one batch, a list of `layout.Item`, and write its rows."""
        import numpy as np
        import torch

        from errors import plain

        named = [(item.name, item.label) for item in batch]
        labels = [label for (_, label), found in zip(named, result.found, strict=True) if not isinstance(found, str)]
        labels, values = np.array(labels, np.int64), torch.from_numpy(result.logits).softmax(1).numpy()
        self.scored.append((values[labels >= 0], labels[labels >= 0]))
        probabilities = iter(values.tolist())
        rows = [
            Row(name, label, [], problem=found)
            if isinstance(found, str)
            else Row(name, label, next(probabilities), note=remark(*found))
            for (name, label), found in zip(named, result.found, strict=True)
        ]
        bad = [row for row in rows if row.problem]
        notes = sum(bool(row.note) for row in rows)
        self.counts.update(images=len(rows) - len(bad), skipped=len(bad), notes=notes)
        for write in self.tables:
            write(rows)
        say(sys.stderr, [f"skipped {plain(row.file)}: {plain(row.problem)}" for row in bad])
        if not self.args.quiet:
            say(self.stream, [sentence(row, self.args.top_k) for row in rows if not row.problem])

    def end(self) -> None:
        """Say the summary, and let the tables appear."""
        say(self.stream, summarize(self.scored, self.counts, time.perf_counter() - self.started, self.machine))
        self.stack.close()

    def judge(self) -> None:
        """Raise UserError where nothing could be read, or where --strict forbids what was skipped."""
        from errors import UserError

        if not self.counts["images"]:
            raise UserError(f"nothing could be read: {self.counts['skipped']} skipped")
        if self.args.strict and self.counts["skipped"]:
            raise UserError(f"--strict: {self.counts['skipped']} skipped")


def say(stream: TextIO, lines: Iterable[str]) -> None:
    """Print `lines` now; what the stream's encoding lacks is escaped. Raises UserError."""
    text = "".join(f"{line}\n" for line in lines)
    encoding = stream.encoding or "utf-8"
    with refusing("the output", stream):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def sentence(row: Row, top_k: int) -> str:
    """One line: file, likeliest classes with probabilities, the true class if known, the note."""
    from errors import plain

    parts = [plain(row.file), ", ".join(f"{name} {value:.4f}" for name, value in row.ranked()[:top_k])]
    if row.true >= 0:
        parts.append(f"(true {CLASSES[row.true]})")
    if row.note:
        parts.append(f"note: {row.note}")
    return "  ".join(parts)


def summarize(scored: list[tuple[Any, Any]], counts: Counter, seconds: float, machine: Any) -> list[str]:
    """The closing lines: the figures over images of known class, if there are any, and the counts."""
    import numpy as np

    from errors import counted
    from metrics import measure, summary, table

    metrics, lines = measure(*map(np.concatenate, zip(*scored, strict=True))), []
    if metrics.count:
        lines = [summary(metrics), *table(metrics)]
        if metrics.count < counts["images"]:
            lines.append(f"not scored, without a class folder around them: {counts['images'] - metrics.count}")
    rate = counts["images"] / max(seconds, 1e-9)
    return [
        *lines,
        f"{counted(counts['images'], 'image')}, {counts['skipped']} skipped, {counted(counts['notes'], 'note')}; "
        f"{rate:.0f} images/s on {machine}",
    ]


if __name__ == "__main__":
    sys.exit(main())

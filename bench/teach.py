"""Teachers, then students of them all: the whole way to a network that is better than its recipe alone makes it.

    python bench/teach.py --data archive.zip --recipe base --teachers 4 --students 3 --epochs 90 [--also WEIGHTS ...]

The teachers are the recipe with the seeds 0, 1, ...; the students have the next seeds, another number of epochs with
--epochs, and the mean probabilities of all teachers, and of the weight files of --also, in their targets. What stands
after `--` goes to interface.py for every run. One network is trained after the other. The runs stay in --runs: one that
is there is not run again, one that was stopped goes on. Copies of the files of --also stay there too and teach in their
place, even when the files have changed. In the end the student with the highest accuracy deduplicated is held to the
shipped weights, as a run is at its end: it is chosen on the images that it is scored on, so read the mean over the
students, and their last epochs.
"""

import argparse
import hashlib
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import MAX_SEEDS, check_data, header, in_percent, machines, notes_on, train_once, typed_knobs
from cli import Parser, nonempty
from config import RECIPES, Config


def trained(run: Path, knobs: dict[str, Any], recipe: str, data: Any) -> tuple[float, float]:
    """The accuracies of `run`'s best epoch in %, official and deduplicated, with a line on it; trained if need be."""
    from errors import counted

    rows = train_once(run, knobs, recipe=recipe)
    check_data(run, data)
    best, last = [row for row in rows if row["best"]][-1], rows[-1]
    pairs = [(100 * row["val_accuracy"], 100 * row["val_accuracy_deduplicated"]) for row in (best, last)]
    minutes = sum(row["seconds"] for row in rows) / 60
    print(
        "{:<12}best epoch {:.2f} / {:.2f}  last {:.2f} / {:.2f}  ".format(run.name, *pairs[0], *pairs[1])
        + f"{counted(len(rows), 'epoch')} in {minutes:.1f} minutes",
        flush=True,
    )
    return pairs[0]


def copies(files: Sequence[Path], top: Path) -> list[Path]:
    """The copies in `top` of weight `files`, made now unless they are there; a line where a file has changed since.

    A copy is known by where its file lies. One of `files` may be the shipped weights, which a run replaces at its end.
    Raises UserError for an unreadable one.
    """
    from errors import UserError, write_file

    kept = [top / f"also-{hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:8]}.pth" for file in files]
    for file, copy in zip(files, kept, strict=True):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"--also {file}: can't be read ({error.strerror})") from error
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_file(copy, content)
        elif copy.read_bytes() != content:
            print(f"note: {file} is not what it was when these runs were begun: its copy {copy} teaches")
    return kept


def taught_by(files: Sequence[Path], config: Config) -> Config:
    return replace(config, teachers=",".join(map(str, files)))


def mean_of(files: Sequence[Path], data: Any, machine: Any) -> str:
    """A line with the accuracies of the mean of the networks' logits."""
    from val import Ensemble, evaluate
    from weights import load_weights

    teachers = Ensemble([load_weights(file, machine=machine)[0] for file in files])
    return f"mean of the logits of all teachers: {in_percent(evaluate(teachers, data.split('val'), machine=machine))}"


def run(args: argparse.Namespace) -> int:
    from dataset import DEMO_NOTE, load
    from errors import counted
    from training.distill import Teachers
    from utils import pick_machine
    from weights import find_weights, promote

    print("\n".join(header()))
    top, knobs = Path(args.runs), {"data": args.data, **args.knobs}
    machine = pick_machine(args.config.device, args.config.precision, args.config.threads)
    files = [find_weights(name, flag="--also") for name in args.also]
    Teachers(taught_by(files, args.config), machine)  # refuses what cannot teach, before anything is trained
    also = copies(files, top)
    data = load(args.config)
    for note in [*([DEMO_NOTE] if data.demo else []), *notes_on(taught_by(also, args.config), data)]:
        print(note)
    print(
        f"recipe {args.recipe} {' '.join(args.rest)}: {counted(args.teachers, 'teacher')} and {len(also)} more, then "
        f"{counted(args.students, 'student')}; accuracy in % on validation images, official / deduplicated",
        flush=True,
    )
    teachers = [top / f"teacher-{seed}" for seed in range(args.teachers)]
    for seed, folder in enumerate(teachers):
        trained(folder, {**knobs, "seed": seed}, args.recipe, data)
    files = [folder / "best.pth" for folder in teachers] + also
    print(mean_of(files, data, machine), flush=True)
    knobs |= {"teachers": taught_by(files, args.config).teachers, **args.longer}
    students = [top / f"student-{args.teachers + number}" for number in range(args.students)]
    scores = [
        trained(folder, {**knobs, "seed": args.teachers + number}, args.recipe, data)
        for number, folder in enumerate(students)
    ]
    print(f"students, best epochs: {' / '.join(map(spread, zip(*scores, strict=True)))}")
    print("\n".join(machines([*teachers, *students])))
    best = max(range(len(students)), key=lambda number: scores[number][1])
    print(promote(students[best], data, machine=machine))
    return 0


def spread(values: Sequence[float]) -> str:
    """The mean, with the standard deviation where there are several."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> int:
    parser = Parser("bench/teach.py", __doc__.splitlines()[0])
    several = {"type": int, "choices": range(1, MAX_SEEDS + 1), "metavar": "N"}
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--recipe", default="base", choices=tuple(RECIPES), help="of all networks (base)")
    parser.add_argument("--teachers", default=4, **several, help="networks that teach (4)")
    parser.add_argument("--students", default=3, **several, help="networks that are taught (3)")
    parser.add_argument("--epochs", type=int, help="of a student (the recipe's)")
    parser.add_argument("--also", nargs="+", type=nonempty, default=[], metavar="WEIGHTS", help="files that teach too")
    parser.add_argument("--runs", default="runs/teach", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py for every run, after --")
    args = parser.parse_args()
    for name in (args.runs, *args.also):
        if "," in name:
            parser.error(f"{name}: a comma in a path would stand between two teachers; give another path")
    args.knobs = typed_knobs(args.rest, taken=("seed", "data", "runs", "run", "teachers"))
    args.longer = {} if args.epochs is None else {"epochs": args.epochs}
    knobs = {"recipe": args.recipe, "data": args.data, **args.knobs}
    # A value that is not allowed ends the script here
    args.config, _ = (parser.resolve(argparse.Namespace(**knobs | more)).config for more in ({}, args.longer))
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""Teachers, then students of them all: the whole way to a network that is better than its recipe alone makes it.

    python bench/teach.py --data archive.zip --recipe base --teachers 4 --students 3 --epochs 90 [--also WEIGHTS ...]

The teachers are the recipe with the seeds 0, 1, ...; the students have the next seeds, another number of epochs with
--epochs, and the mean probabilities of all teachers, and of the weight files of --also, in their targets. What stands
after `--` goes to interface.py for every run. One network is trained after the other. The runs stay in --runs: one that
is there is not run again, one that was stopped goes on. In the end the student with the highest accuracy without copies
is held to the shipped weights, as a run is at its end: it is chosen on the images that it is scored on, so read the
mean over the students, and their last epochs.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import MAX_SEEDS, header, machines, train_once, typed_knobs
from bench.recalibrate import in_percent
from config import RECIPES, Parser, filled


def trained(run: Path, knobs: dict[str, Any], recipe: str) -> tuple[float, float]:
    """The accuracies of `run`'s best epoch in %, official and without copies, with a line on it; trained if need be."""
    from utils import counted

    rows = train_once(run, knobs, recipe=recipe)
    best, last = [row for row in rows if row["best"]][-1], rows[-1]
    pairs = [(100 * row["val_accuracy"], 100 * row["val_accuracy_unseen"]) for row in (best, last)]
    minutes = sum(row["seconds"] for row in rows) / 60
    print("{:<12}best epoch {:.2f} / {:.2f}  last {:.2f} / {:.2f}  ".format(run.name, *pairs[0], *pairs[1])
          + f"{counted(len(rows), 'epoch')} in {minutes:.1f} minutes", flush=True)  # fmt: skip
    return pairs[0]


def mean_of(files: Sequence[Path], data: Any, machine: Any) -> str:
    """A line with the accuracies of the mean of the networks' probabilities."""
    from ranks import Ranks
    from val import in_the_mean, predict_logits, score
    from weights import load_weights

    val = data.split("val")
    models = (load_weights(file, machine=machine)[0] for file in files)
    mean = in_the_mean([predict_logits(model, val, machine=machine, ranks=Ranks()) for model in models])
    return f"mean of the probabilities of all that teach: {in_percent(score(mean, val.labels, val.copies))}"


def run(args: argparse.Namespace) -> int:
    from dataset import DEMO_NOTE, load
    from utils import counted, pick_machine
    from weights import find_weights, promote

    print("\n".join(header()))
    also = [find_weights(name, flag="--also") for name in args.also]
    data = load(args.config)
    if data.demo:
        print(DEMO_NOTE)
    top, knobs = Path(args.runs), {"data": args.data, **args.knobs}
    print(f"recipe {args.recipe} {' '.join(args.rest)}: {counted(args.teachers, 'teacher')} and {len(also)} more, then "
          f"{counted(args.students, 'student')}; accuracy in % on validation images, official / without copies",
          flush=True)  # fmt: skip
    teachers = [top / f"teacher-{seed}" for seed in range(args.teachers)]
    for seed, folder in enumerate(teachers):
        trained(folder, {**knobs, "seed": seed}, args.recipe)
    files = [folder / "best.pth" for folder in teachers] + also
    machine = pick_machine(args.config.device, args.config.precision, args.config.threads)
    print(mean_of(files, data, machine), flush=True)
    knobs["teachers"] = ",".join(map(str, files))
    if args.epochs:
        knobs["epochs"] = args.epochs
    students = [top / f"student-{args.teachers + number}" for number in range(args.students)]
    scores = [trained(folder, {**knobs, "seed": args.teachers + number}, args.recipe)
              for number, folder in enumerate(students)]  # fmt: skip
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
    parser.add_argument("--data", required=True, help="the dataset, as for interface.py")
    parser.add_argument("--recipe", default="base", choices=tuple(RECIPES), help="of all networks (base)")
    parser.add_argument("--teachers", default=4, **several, help="networks that teach (4)")
    parser.add_argument("--students", default=3, **several, help="networks that are taught (3)")
    parser.add_argument("--epochs", type=int, default=0, help="of a student (the recipe's)")
    parser.add_argument("--also", nargs="+", type=filled, default=[], metavar="WEIGHTS", help="files that teach too")
    parser.add_argument("--runs", default="runs/teach", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py for every run, after --")
    args = parser.parse_args()
    if args.epochs < 0:
        parser.error("--epochs: 1 or more")
    args.knobs = typed_knobs(args.rest, taken=("seed", "data", "runs", "run", "teachers"))
    args.config = parser.resolve(argparse.Namespace(recipe=args.recipe, **{"data": args.data, **args.knobs})).config
    from utils import exit_status  # late: --help need not wait for torch

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

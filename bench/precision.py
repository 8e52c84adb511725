"""What bfloat16 costs in accuracy: paired runs, the same seed in both formats, and the interval of their difference.

    python bench/precision.py --data archive.zip --model TheModel -- --epochs 6 --schedule onecycle

What stands after `--` goes to interface.py. Every run is a process of its own; the figure is the validation
accuracy after the last epoch, so nothing is selected. The runs stay in --runs, and one that is there is not run again;
one that was stopped goes on. Weights that are shipped stay as they are.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import MAX_SEEDS, check_data, header, machines, notes_on, train_once, typed_knobs
from cli import Parser, nonempty
from config import MODELS, RECIPES, Config
from study.stats import interval


def run(args: argparse.Namespace) -> int:
    from dataset import DEMO_NOTE, load

    print("\n".join(header()))
    data = load(args.config)
    for note in [*([DEMO_NOTE] if data.demo else []), *notes_on(args.config, data)]:
        print(note)
    name = "-".join(filter(None, (args.recipe, args.model))) or Config().model
    model = {"model": args.model} if args.model else {}
    print(f"{name} {' '.join(args.rest)}: validation accuracy in %, official / deduplicated")
    gaps: list[tuple[float, float]] = []
    folders: list[Path] = []
    for seed in range(args.seeds):
        row = []
        for precision in ("fp32", "bf16"):
            knobs = {"data": args.data, **model, "seed": seed, "precision": precision, **args.knobs}
            folders.append(Path(args.runs, f"{name}-{precision}-{seed}"))
            last = train_once(folders[-1], knobs, recipe=args.recipe)[-1]
            check_data(folders[-1], data)
            row.append((100 * last["val_accuracy"], 100 * last["val_accuracy_deduplicated"]))
        (official32, deduplicated32), (official16, deduplicated16) = row
        gaps.append((official16 - official32, deduplicated16 - deduplicated32))
        print(
            f"seed {seed}  fp32 {official32:.2f} / {deduplicated32:.2f}  bf16 {official16:.2f} / {deduplicated16:.2f}  "
            f"difference {gaps[-1][0]:+.2f} / {gaps[-1][1]:+.2f}",
            flush=True,
        )
    for figure, values in zip(("official", "deduplicated"), zip(*gaps, strict=True), strict=True):
        mean, half = interval(values)
        print(f"bf16 - fp32, {figure}: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}")
    for line in machines(folders):  # those that were there may be of others than this one
        print(line)
    return 0


def main() -> int:
    parser = Parser("bench/precision.py", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="", help="a named set of knobs")
    parser.add_argument("--model", choices=MODELS, default="", help="network (default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, MAX_SEEDS + 1), metavar="N")
    parser.add_argument("--runs", default="runs/precision", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py, after --")
    args = parser.parse_args()
    args.knobs = typed_knobs(args.rest, taken=("seed", "precision", "data", "model", "runs", "run"))
    model = {"model": args.model} if args.model else {}
    # A value that is not allowed ends the script here
    knobs = {"data": args.data, **model, **args.knobs}
    args.config = parser.resolve(argparse.Namespace(recipe=args.recipe, **knobs)).config
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

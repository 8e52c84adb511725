"""The speed record: how long training to a target takes, as a mean over runs of one fixed schedule.

    python -m bench.speedrun --data archive.zip [--runs 5] [--keep runs/record]

After KellerJordan's cifar10-airbench: the schedule is fixed beforehand, CPU or GPU below, every run has another seed,
none ends when the target is reached, and the target counts for the mean. A run's time goes from the decoded images in
memory to the last weights scored: building the network, training, all scoring and saving of `train.fit`. It counts
neither imports nor decoding, nor a warm-up of two epochs on a few images. The figure is the accuracy on PublicTest
after the last epoch, so nothing is selected. What follows `--` changes the schedule: then it is no record.

The plain loop would take as long as its images/s say, which `python -m bench.train --models EmotionResNet-nano` prints.
Run it on an idle machine. --keep names a folder for the runs, which bench/results.py reads.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import common
from cli import Parser, nonempty
from config import PLACE_FIELDS, RECIPES, Config
from errors import UserError, exit_status

if TYPE_CHECKING:
    from dataset import FaceData
    from utils import Machine

CPU: dict[str, Any] = RECIPES["nano"]  # two cores: 65 %
GPU: dict[str, Any] = RECIPES["base"] | {"epochs": 120}  # one GPU: 71 %, not run yet; 60 epochs end at 70.1
TARGETS = {"cpu": 65.0, "cuda": 71.0}  # accuracy on PublicTest in %, official
RECORD_RUNS = 5  # fewer make no record


class Timed(NamedTuple):
    """One run: its seconds, and the accuracy in % after its last epoch."""

    seconds: float
    official: float
    deduplicated: float


def timed_run(config: Config, data: "FaceData", machine: "Machine", run: Path) -> Timed:
    """Train from the arrays of `data` to the end of the schedule, in the new folder `run`."""
    start = time.perf_counter()
    last = common.fit_in(run, config, data, machine).history[-1]  # scored and saved: a GPU has nothing left to do
    return Timed(time.perf_counter() - start, *common.accuracies(last))


def few(data: "FaceData", batch_size: int) -> "FaceData":
    """`data` with training images enough for a step of each of the sizes that an epoch has."""
    import numpy as np

    train = data.split("train")
    steps = math.ceil(len(train) / batch_size)
    count = min(len(train) // steps + math.ceil(len(train) / steps), len(train))
    rows = np.linspace(0, len(train) - 1, count).astype(int)  # of every class
    return replace(data, splits={**data.splits, "train": train.take(rows)})


def summary(runs: list[Timed], target: float) -> list[str]:
    """Lines with the mean and spread of each figure, and whether the mean accuracy reaches `target`, in %."""
    lines = [f"{'':<16}{'mean ± deviation':>18}{'min':>10}{'max':>10}"]
    for name, values in zip(Timed._fields, zip(*runs, strict=True), strict=True):
        lines.append(f"{name:<16}{common.mean_sd(values):>18}{min(values):>10.2f}{max(values):>10.2f}")
    verdict = "reached" if statistics.mean(run.official for run in runs) >= target else "missed"
    return [*lines, f"target {target:.1f} % official {verdict} by the mean of {len(runs)} runs"]


def run(args: argparse.Namespace) -> int:
    from dataset import load
    from utils import pick_machine

    kind = pick_machine(args.settings.get("device", "auto"), "auto").device.type
    config = common.config_for({**(GPU if kind == "cuda" else CPU), "data": args.data, **args.settings})
    if args.keep and Path(args.keep).exists():
        raise UserError(f"--keep {args.keep}: it exists; name a new folder")
    machine = pick_machine(config.device, config.precision, config.threads)
    print("\n".join([*common.header(), f"machine: {machine}"]))
    data = load(config)
    changed = [name for name in args.settings if name not in PLACE_FIELDS]
    if changed or args.runs < RECORD_RUNS or data.demo:
        print(f"no record: that takes {RECORD_RUNS} runs of the fixed schedule on FER2013 ({', '.join(changed)})")
    size = f"{len(data.split('train')):,} images in steps of {config.batch_size}"
    print(f"{config.model}, {config.epochs} epochs of {size}", flush=True)
    runs = []
    with common.scratch() as top:
        warm_up = replace(config, epochs=2, full_size_share=0.5, votes="", teachers="")
        timed_run(warm_up, few(data, config.batch_size), machine, Path(top, "warm-up"))
        for seed in range(args.runs):
            runs.append(timed_run(replace(config, seed=seed), data, machine, Path(args.keep or top, str(seed))))
            print("seed {}  {:.2f} s  {:.2f} / {:.2f} %".format(seed, *runs[-1]), flush=True)
    print("\n".join(summary(runs, TARGETS[kind])))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.speedrun", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--runs", type=int, default=RECORD_RUNS, help=f"each with its own seed ({RECORD_RUNS})")
    parser.add_argument("--keep", type=nonempty, metavar="FOLDER", help="leave the runs in this new folder, by seed")
    parser.add_argument("rest", nargs="*", help="settings as flags of interface.py, after --; then it is no record")
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error("--runs: 1 or more")
    args.settings = common.settings_after(args.rest, taken=("seed", "data", "runs", "run"))
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

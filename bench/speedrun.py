"""The speed record: how long training to a target takes, as a mean over runs of one fixed schedule.

    python -m bench.speedrun --data archive.zip [--runs 5] [--keep runs/record]

After KellerJordan's cifar10-airbench: the schedule is fixed beforehand, CPU or GPU below, every run has another seed,
none ends when the target is reached, and the target counts for the mean. A run's time goes from the decoded images in
memory to the last weights scored: building the network, training, all scoring and saving of `train.fit`, but neither
imports nor decoding, nor a warm-up. The figure is the accuracy on PublicTest after the last epoch, so nothing is
selected. What follows `--` changes the schedule: then it is no record. Run it on an idle machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import common
from cli import Parser, nonempty
from config import RECIPES, Config
from dataset import FaceData, load
from errors import UserError, exit_status
from study.stats import mean_sd
from utils import Machine, pick_machine

CPU: dict[str, Any] = RECIPES["nano"]  # two cores: 65 %
GPU: dict[str, Any] = RECIPES["base"] | {"epochs": 120}  # one GPU: 71 %, not run yet; 60 epochs end at 70.1
TARGETS = {"cpu": 65.0, "cuda": 71.0}  # accuracy on PublicTest in %, official


class Timed(NamedTuple):
    """One run: its seconds, and the accuracy in % after its last epoch."""

    seconds: float
    official: float
    deduplicated: float


def timed_run(config: Config, data: FaceData, machine: Machine, run: Path) -> Timed:
    """Train from the arrays of `data` to the end of the schedule, in the new folder `run`."""
    start = time.perf_counter()
    last = common.train_run(run, config, data, machine).history[-1]  # scored and saved: a GPU has nothing left to do
    return Timed(time.perf_counter() - start, *common.accuracies(last))


def warm_up(config: Config, data: FaceData, machine: Machine, run: Path) -> None:
    """Train two epochs, with windows and with full faces, on about two batches with images of every class."""
    train = data.split("train")
    few = train.take(np.arange(0, len(train), max(1, len(train) // (2 * config.batch_size))))
    brief = replace(config, epochs=2, full_size_share=0.5, votes="", teachers="")
    timed_run(brief, replace(data, splits={**data.splits, "train": few}), machine, run)


def summary(runs: list[Timed], target: float) -> list[str]:
    """Lines with the mean and spread of each figure, and whether the mean accuracy reaches `target`, in %."""
    lines = [f"{'':<16}{'mean ± deviation':>18}{'min':>10}{'max':>10}"]
    for name, values in zip(Timed._fields, zip(*runs, strict=True), strict=True):
        lines.append(f"{name:<16}{mean_sd(values):>18}{min(values):>10.2f}{max(values):>10.2f}")
    verdict = "reached" if statistics.mean(run.official for run in runs) >= target else "missed"
    return [*lines, f"target {target:.1f} % official {verdict} by the mean of {len(runs)} runs"]


def run(args: argparse.Namespace) -> int:
    kind = pick_machine(args.settings.get("device", "auto"), "auto").device.type
    config = common.config_for({**(GPU if kind == "cuda" else CPU), "data": args.data, **args.settings})
    if args.keep and Path(args.keep).exists():
        raise UserError(f"--keep {args.keep}: it exists; name a new folder")
    machine = pick_machine(config.device, config.precision, config.threads)
    data = load(config)
    print("\n".join([common.header(), f"machine: {machine}", *data.describe()]))
    print(f"{config.model}, {config.epochs} epochs in steps of {config.batch_size} images", flush=True)
    runs = []
    with tempfile.TemporaryDirectory() as top:
        warm_up(config, data, machine, Path(top, "warm-up"))
        for seed in range(args.runs):
            runs.append(timed_run(replace(config, seed=seed), data, machine, Path(args.keep or top, str(seed))))
            print("seed {}  {:.2f} s  {:.2f} / {:.2f} %".format(seed, *runs[-1]), flush=True)
    print("\n".join(summary(runs, TARGETS[kind])))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.speedrun", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--runs", type=int, default=5, help="each with its own seed (5; fewer make no record)")
    parser.add_argument("--keep", type=nonempty, metavar="FOLDER", help="leave the runs in this new folder, by seed")
    parser.add_argument("rest", nargs="*", help="settings as flags of interface.py, after --; then it is no record")
    args = parser.parse_args(argv)
    args.settings = common.settings_after(args.rest)
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

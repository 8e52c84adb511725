"""The speed record: how long training to a target takes, as a mean over runs of one fixed schedule.

    python -m bench.speedrun --data archive.zip [--runs 5] [--no-plain] [--keep runs/record]

After KellerJordan's cifar10-airbench: the schedule is fixed beforehand, CPU or GPU below, every run has another seed,
none ends when the target is reached, and the target counts for the mean. A run's time goes from the decoded images in
memory to the last weights scored: building the network, training, all scoring and saving of `train.fit`. It
counts neither imports nor decoding, nor a warm-up of two epochs on a few images, which leaves the kernels chosen. The
figure is the accuracy on PublicTest after the last epoch, so nothing is selected.

The plain loop is that of bench/train.py on the same network, with the best number of workers; its time for as many
epochs is computed from its images/s, without scoring. What follows `--` changes the schedule, and the result is
then no record. --keep names a folder for the runs, which bench/results.py reads. Run it on an idle machine.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import common
from cli import Parser, nonempty
from config import RECIPES, SETTING, Config
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


def warm_up(config: Config, data: "FaceData", machine: "Machine", folder: Path) -> None:
    """Train two epochs, the second on whole faces, on images enough for a step of each size."""
    import numpy as np

    train = data.split("train")
    steps = math.ceil(len(train) / config.batch_size)
    count = min(len(train) // steps + math.ceil(len(train) / steps), len(train))
    few = train.take(np.linspace(0, len(train) - 1, count).astype(int))
    quick = replace(config, epochs=2, full_size_share=0.5, votes="", teachers="")
    timed_run(quick, replace(data, splits={**data.splits, "train": few}), machine, folder)


def plain_rate(args: argparse.Namespace, config: Config, device: str) -> tuple[float, int]:
    """Images/s of the plain loop after its first epoch with the best number of workers, and that number."""
    from dataset import load

    with common.scratch() as folder:
        common.write_dataset(load(replace(config, limit=args.images)), Path(folder, "faces"))
        flags = common.flags_of({name: getattr(config, name) for name in ("model", "width", "batch_size")})
        cell = {"flags": flags, "variant": "plain, float32", "device": device, "folder": f"{folder}/faces/train"}
        cells = {n: partial(common.run_cell, "train.py", {**cell, "workers": n}) for n in args.workers}
        rates = {found[0]["later"]: n for n, found in common.take_turns(cells, 1, label="plain loop").items()}
    return max(rates), rates[max(rates)]


def summary(runs: list[Timed], target: float) -> list[str]:
    """Lines with the mean and spread of each figure, and whether the mean accuracy reaches `target`, in %."""
    lines = [f"{'':<16}{'mean ± deviation':>18}{'min':>10}{'max':>10}"]
    for name, values in zip(Timed._fields, zip(*runs, strict=True), strict=True):
        lines.append(f"{name:<16}{common.mean_sd(values):>18}{min(values):>10.2f}{max(values):>10.2f}")
    verdict = "reached" if statistics.mean(run.official for run in runs) >= target else "missed"
    return [*lines, f"target {target:.1f} % official {verdict} by the mean of {len(runs)} runs"]


def run(args: argparse.Namespace) -> int:
    import torch

    from dataset import load
    from utils import pick_machine

    asked = args.settings.get("device", "auto")
    kind = "cuda" if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"
    config = common.config_for({**(GPU if kind == "cuda" else CPU), "data": args.data, **args.settings})
    if args.keep and Path(args.keep).exists():
        raise UserError(f"--keep {args.keep}: it exists; name a new folder")
    machine = pick_machine(config.device, config.precision, config.threads)
    print("\n".join([*common.header(), f"machine: {machine}"]))
    data = load(config)
    changed = [name for name in args.settings if name not in SETTING]
    if changed or args.runs < RECORD_RUNS or data.demo:
        print(f"no record: that takes {RECORD_RUNS} runs of the fixed schedule on FER2013 ({', '.join(changed)})")
    images = len(data.split("train"))
    print(f"{config.model}, {config.epochs} epochs of {images:,} images in steps of {config.batch_size}", flush=True)
    plain = None if args.no_plain else plain_rate(args, config, machine.device.type)
    runs = []
    with common.scratch() as top:
        warm_up(config, data, machine, Path(top, "warm-up"))
        for seed in range(args.runs):
            runs.append(timed_run(replace(config, seed=seed), data, machine, Path(args.keep or top, str(seed))))
            print("seed {}  {:.2f} s  {:.2f} / {:.2f} %".format(seed, *runs[-1]), flush=True)
    print("\n".join(summary(runs, TARGETS[kind])))
    if plain:
        seconds = config.epochs * images / plain[0]
        times = seconds / statistics.mean(each.seconds for each in runs)
        print("plain loop, float32: {:.0f} images/s with {} workers; ".format(*plain), end="")
        print(f"as many epochs would take it {seconds:.0f} s, {times:.1f} times the mean (computed, without scoring)")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.speedrun", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--runs", type=int, default=RECORD_RUNS, help=f"each with its own seed ({RECORD_RUNS})")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain loop")
    parser.add_argument("--keep", type=nonempty, metavar="FOLDER", help="leave the runs in this new folder, by seed")
    parser.add_argument("--images", type=int, default=3840, help="an epoch of the plain loop, about (3840)")
    cores = sorted({0, 1, 2, (os.cpu_count() or 1) // 2, os.cpu_count() or 1})
    parser.add_argument("--workers", type=int, nargs="+", default=cores, help=f"to try in the plain loop ({cores})")
    parser.add_argument("rest", nargs="*", help="settings as flags of interface.py, after --; then it is no record")
    args = parser.parse_args(argv)
    if min(args.runs, args.images) < 1 or min(args.workers) < 0:
        parser.error("--runs and --images: 1 or more; --workers: 0 or more")
    args.settings = common.settings_after(args.rest, taken=("seed", "data", "runs", "run"))
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

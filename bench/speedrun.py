"""The speed record: how long training to a target takes, as a mean over runs of one fixed schedule.

    python bench/speedrun.py --data archive.zip [--runs 5] [--no-plain] [--keep runs/record]

After KellerJordan's cifar10-airbench: the schedule is fixed beforehand, CPU or GPU below, every run has another seed,
none ends when the target is reached, and the target counts for the mean. A run's time goes from the cached arrays in
hand to the last weights scored: building the network, training, and all scoring and saving that `train.fit` does. It
counts neither imports nor decoding, nor a warm-up on random faces, which leaves the kernels chosen and compiled: two
epochs of a step of each size, the second on whole faces. The figure is the accuracy on PublicTest after the
last epoch, so nothing is selected.

The plain loop is that of bench/train.py on the same network, with the best number of workers; its time for as many
epochs is computed from its images/s, without scoring. What stands after `--` changes the schedule, and the result is
then no record. The runs' folders are removed, unless --keep names a folder for them, which bench/results.py reads; no
weights are promoted. Run it on an idle machine.
"""

import argparse
import contextlib
import io
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, where `train` is another file

from bench.common import CellError, header, load_random, notes_on, run_cell, typed_knobs, wait
from bench.train import write_images
from cli import Parser, nonempty
from config import RECIPES, SETTING, Config

PLAIN = Path(__file__).with_name("train.py")
CPU: dict[str, Any] = RECIPES["nano"]  # two cores: 65 %
GPU: dict[str, Any] = RECIPES["base"] | {"epochs": 120}  # one GPU: 71 %, untried; 60 epochs end at 70.1
TARGETS = {"cpu": 65.0, "cuda": 71.0}  # accuracy on PublicTest in %, official
ENOUGH = 5  # runs


class Timed(NamedTuple):
    """One run: its seconds, and the accuracy in % after its last epoch."""

    seconds: float
    official: float
    deduplicated: float


def timed_run(config: Config, data: Any, machine: Any, run: Path, *, kept: bool = False) -> Timed:
    """Train from the arrays of `data` to the end of the schedule, in the new folder `run`.

    What interface.py leaves there, a run that is `kept` has too; its figures are drawn after the clock has stopped.
    """
    from errors import write_json
    from interface import draw, new_model
    from train import fit

    run.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        wait(machine.device)
        start = time.perf_counter()
        trainer = fit(new_model(config, machine), data, config, run=run, machine=machine)
        wait(machine.device)
        seconds = time.perf_counter() - start
    if not trainer.done:
        raise KeyboardInterrupt
    if kept:
        write_json(run / "config.json", asdict(config))
        draw(trainer)
    if trainer.stopped:  # in its last epoch
        raise KeyboardInterrupt
    last = trainer.history[-1]
    return Timed(seconds, 100 * last["val_accuracy"], 100 * last["val_accuracy_deduplicated"])


def warm_up(config: Config, images: int, machine: Any, folder: Path) -> int:
    """Train on random faces in steps of the sizes that an epoch of `images` has, in both windows; the faces."""
    steps = math.ceil(images / config.batch_size)
    count = max(images // steps + math.ceil(images / steps), 7)  # one step of each size; a face of every class
    quick = replace(config, epochs=2, full_size_share=0.5, votes="", teachers="", limit=0, cache=str(folder / "cache"))
    timed_run(quick, load_random(quick, count), machine, folder / "warm-up")
    return count


# --- The plain loop ---


def plain_rate(args: argparse.Namespace, config: Config, device: str) -> tuple[float, str]:
    """Images/s of the plain loop after its first epoch with the best number of workers, and which one that is.

    Raises UserError where the data are no folder or zip of images, and where the loop fails.
    """
    from errors import UserError

    cores = os.cpu_count() or 1
    tried = args.workers or sorted({0, 1, 2, cores // 2, cores})
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "faces")
        count = write_images(args.data, args.images, folder)
        cell = {
            "model": config.model,
            "width": config.width,
            "batch_size": config.batch_size,
            "variant": "float32",
            "device": device,
            "folder": f"{folder}/train",
            "zip": f"{folder}.zip",
            "images": count,
        }
        try:
            rates = {workers: run_cell(str(PLAIN), {**cell, "workers": workers})["steady"] for workers in tried}
        except CellError as error:
            raise UserError(f"the plain loop failed, --no-plain leaves it out:\n{error}") from error
    best = max(rates, key=rates.get)
    return rates[best], f"{best} workers (the best of {', '.join(map(str, tried))})"


# --- What it says ---


def summary(runs: list[Timed], target: float) -> list[str]:
    """Lines with the mean and spread of each figure, and whether the mean accuracy reaches `target`, in %."""
    lines = [f"{'':<16}{'mean':>10}{'deviation':>12}{'min':>10}{'max':>10}"]
    for name, values in zip(("seconds", "official", "deduplicated"), zip(*runs, strict=True), strict=True):
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        lines.append(f"{name:<16}{statistics.mean(values):>10.2f}{spread:>12}{min(values):>10.2f}{max(values):>10.2f}")
    official, seconds = (statistics.mean(getattr(run, name) for run in runs) for name in ("official", "seconds"))
    verdict = "reached" if official >= target else "missed"
    lines.append(
        f"target {target:.1f} % {verdict}: {official:.2f} % official in {seconds:.2f} s, mean of {len(runs)} runs"
    )
    return lines


def plain_line(rate: float, how: str, images: int, seconds: float) -> str:
    """What the plain loop at `rate` images/s would take for `images`, against our mean of `seconds`."""
    plain = images / rate
    return (
        f"plain loop, float32, {how}: {rate:.0f} images/s; {images:,} images would take it {plain:.0f} s (computed, "
        f"without scoring), {plain / seconds:.1f} times the mean"
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from dataset import DEMO_NOTE, load
    from errors import UserError
    from utils import pick_machine

    asked = args.knobs.get("device", "auto")
    kind = "cuda" if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"
    try:
        config = Config(**{"data": args.data, **(GPU if kind == "cuda" else CPU), **args.knobs})
    except ValueError as error:
        raise UserError(f"{error}; the schedule for {kind} sets the others") from error
    machine = pick_machine(config.device, config.precision, config.threads)
    print("\n".join(header()))
    print(f"machine: {machine}")
    data = load(config)
    if args.keep:
        try:
            Path(args.keep).mkdir(parents=True, exist_ok=True)
            taken = any(Path(args.keep).iterdir())
        except OSError as error:
            raise UserError(f"--keep {args.keep}: {error.strerror}; name another folder") from error
        if taken:
            raise UserError(f"--keep {args.keep}: it is not empty; name a folder that is not there yet")
    images = len(data.split("train"))
    for note in [*([DEMO_NOTE] if data.demo else []), *notes_on(config, data)]:
        print(note)
    changed = [name for name in args.knobs if name not in SETTING]
    why = [f"{args.runs} runs, {ENOUGH} are needed"] if args.runs < ENOUGH else []
    why += [f"the schedule is changed: {', '.join(changed)}"] if changed else []
    if why:
        print(f"no record: {'; '.join(why)}")
    print(f"{config.model}, {config.epochs} epochs of {images:,} images in steps of {config.batch_size}", flush=True)
    plain = None if args.no_plain else plain_rate(args, config, machine.device.type)
    runs = []
    with tempfile.TemporaryDirectory() as top:
        faces = warm_up(config, images, machine, Path(top))
        print(f"warmed up, which is not counted: two epochs of {faces} random faces, the second of whole ones")
        for seed in range(args.runs):
            own, folder = replace(config, seed=seed), Path(args.keep or top, str(seed))
            runs.append(timed_run(own, data, machine, folder, kept=bool(args.keep)))
            print("seed {}  {:.2f} s  {:.2f} / {:.2f} %".format(seed, *runs[-1]), flush=True)
    print("\n".join(summary(runs, TARGETS[kind])))
    if plain:
        print(plain_line(*plain, config.epochs * images, statistics.mean(each.seconds for each in runs)))
    return 0


def main() -> int:
    parser = Parser("bench/speedrun.py", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--runs", type=int, default=ENOUGH, help=f"each with its own seed ({ENOUGH}; fewer: no record)")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain loop, which needs a folder or zip")
    parser.add_argument("--keep", type=nonempty, metavar="FOLDER", help="leave the runs in this new folder, by seed")
    parser.add_argument("--images", type=int, default=3840, help="an epoch of the plain loop, about (3840)")
    parser.add_argument(
        "--workers", type=int, nargs="+", help="to try in the plain loop (0, 1, 2, half the cores, all)"
    )
    parser.add_argument("rest", nargs="*", help="knobs as flags of interface.py, after --; then it is no record")
    args = parser.parse_args()
    if min(args.runs, args.images) < 1:
        parser.error("--runs and --images: 1 or more")
    if min(args.workers or [0]) < 0:
        parser.error("--workers: 0 or more")
    args.knobs = typed_knobs(args.rest, taken=("seed", "data", "runs", "run"))
    parser.resolve(argparse.Namespace(**{**CPU, **args.knobs}))  # a value that is not allowed ends the script here
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""What the benchmarks share: fresh processes that take turns, runs in folders, means and ratios, files of faces."""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from cli import Parser, add_flags, combine
from config import CLASSES, MODELS, PLACE_FIELDS, Config
from dataset import FaceData
from errors import UserError, write_json
from interface import new_model
from train import Trainer, fit
from utils import Machine, pick_machine, read_checkpoint, versions

ROOT = Path(__file__).resolve().parent.parent
Cell = dict[str, Any]  # what a fresh process gets, as JSON
Measure = Callable[[], dict[str, float]]


# --- Fresh processes ---


def run_cell(
    script: str, cell: Cell, *, checkout: Path = ROOT, cwd: Path | None = None, python: str = sys.executable
) -> dict[str, float]:
    """What `bench/script --one CELL` prints in its last line, as JSON, in a fresh process.

    The process is of `python` and imports the project from `checkout`. Raises UserError where it fails.
    """
    command = [python, "-P", str(ROOT / "bench" / script), "--one", json.dumps(cell)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script} --one '{json.dumps(cell)}' failed in {checkout}:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def train_in(folder: Path, checkout: Path, flags: Sequence[str], *, epochs: int) -> dict[str, float]:
    """Train `epochs` epochs with interface.py of `checkout`; seconds of the first, images/s of the later ones.

    The new folder `folder` gets the cache, the run (`folder`/run) and, if they are promoted, its weights.
    """
    folder.mkdir()
    places = ["--cache", str(folder / "cache"), "--runs", str(folder), "--run", "run"]
    cell = {"part": "train", "flags": [*flags, *places, "--epochs", str(epochs)], "run": str(folder / "run")}
    return run_cell("drive.py", cell, checkout=checkout, cwd=folder)


def take_turns(cells: dict[Any, Measure], rounds: int, *, label: str) -> dict[Any, list[dict[str, float]]]:
    """The results of every cell, one per round.

    The cells take turns, in reversed order in every second round, so that a slow minute affects them all.
    """
    results: dict[Any, list[dict[str, float]]] = {key: [] for key in cells}
    order = [key for turn in range(rounds) for key in (reversed(cells) if turn % 2 else cells)]
    for key in tqdm(order, label, disable=None, leave=False):
        results[key].append(cells[key]())
    return results


def parse(parser: Parser, argv: Sequence[str] | None, *, models: list[str], images: int) -> argparse.Namespace:
    """The flags of `parser` and those that the benchmarks of training and of prediction share."""
    parser.add_argument("--data", default="demo", metavar="PATH", help="the dataset (default: rendered faces)")
    parser.add_argument("--cache", default=Config().cache, help="folder for decoded images")
    parser.add_argument("--rounds", type=int, default=5, help="processes per cell (5)")
    parser.add_argument("--images", type=int, default=images, help=f"use about so many ({images or 'all'})")
    names = f"of {', '.join(MODELS)} ({' '.join(models)})"
    parser.add_argument("--models", nargs="+", choices=MODELS, default=models, metavar="MODEL", help=names)
    parser.add_argument("--against", metavar="CHECKOUT", help="compare with the code in this folder")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    return parser.parse_args(argv)


# --- Figures ---


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """The ratio of the medians, and the smallest and largest ratio within a round."""
    each = [value / of for value, of in zip(values, base, strict=True)]
    return f"{statistics.median(values) / statistics.median(base):.2f} ({min(each):.2f}-{max(each):.2f})"


def compare_checkouts(
    name: str, rounds: int, rows: Sequence[tuple[str, Callable[[Path], dict[str, float]], str, str]]
) -> None:
    """Print how fast the checkout in the folder `name` and this one are, in paired turns. Raises UserError.

    A row is its label, what measures a checkout, and the key and the unit of what counts.
    """
    other = Path(name).resolve()
    if not (other / "interface.py").is_file():
        raise UserError(f"--against {name}: no checkout of this project; make one: git worktree add DIR COMMIT")
    print(f"there: commit {commit(other)} in {name}; here: commit {commit()}")
    print(f"{'':<48}{'there':>12}{'here':>12}  {'':<10}{'times as fast':>20}", flush=True)
    for label, measure, key, unit in rows:
        cells = {"there": partial(measure, other), "here": partial(measure, ROOT)}
        found = take_turns(cells, rounds, label=label)
        there, here = ([result[key] for result in found[place]] for place in cells)
        rate = unit.endswith("/s")
        faster = ratio(here, there) if rate else ratio(there, here)
        medians = "".join(f"{statistics.median(values):>12,.{0 if rate else 4}f}" for values in (there, here))
        print(f"{label:<48}{medians}  {unit:<10}{faster:>20}", flush=True)


def header() -> str:
    """A line that names the machine, its load, the versions and the commit."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.M)
    load = f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    place = f"{model[1] if model else 'a CPU'}, {os.cpu_count()} cores{load}; {pick_machine('auto', 'auto')}"
    packages = " ".join(f"{package} {version}" for package, version in versions().items())
    return f"{place}; {packages}, commit {commit()}"


def commit(checkout: Path = ROOT) -> str:
    """The commit of `checkout`, with "-dirty" where files differ from it; "unknown" outside git."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


# --- Runs ---


def settings_after(rest: Sequence[str]) -> dict[str, Any]:
    """The settings of `rest`, flags of interface.py that follow `--`; a wrong one ends the script with status 2.

    So does one that the script sets itself.
    """
    parser = Parser("interface.py", "Flags of interface.py.")
    add_flags(parser)
    settings = vars(parser.parse_args(list(rest)))
    if mine := sorted(set(settings) & {"data", "pretrained", "run", "runs", "seed"}):
        parser.error(f"{', '.join(mine)} after --: not here, see the script's own flags")
    return settings


def config_for(settings: dict[str, Any], *, recipe: str = "") -> Config:
    """The Config with `settings` over those of `recipe`. Raises UserError."""
    try:
        return combine(settings, recipe=recipe)[0]
    except ValueError as error:
        raise UserError(str(error)) from error


def identity(config: Config) -> dict[str, Any]:
    """The settings that make a run what it is, the seed among them, whatever machine and folder it was made in."""
    settings = {name: value for name, value in asdict(config).items() if name not in PLACE_FIELDS}
    return settings | {"votes": Path(config.votes).name}


def accuracies(row: dict[str, Any]) -> tuple[float, float]:
    """The validation accuracy of an epoch in %, official and deduplicated."""
    return 100 * row["val_accuracy"], 100 * row["val_accuracy_deduplicated"]


def fingerprint(run: Path) -> str:
    """The fingerprint of what `run` was trained on."""
    return read_checkpoint(run / "best.pth", ("dataset",))["dataset"]["fingerprint"]


def train_run(run: Path, config: Config, data: FaceData, machine: Machine) -> Trainer:
    """Train in the folder `run`, from the start to the end, without a report: no weights are promoted.

    Raises KeyboardInterrupt where Ctrl-C stopped it.
    """
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", asdict(config))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = fit(new_model(config, machine), data, config, run=run, machine=machine)
    if trainer.stopped:
        raise KeyboardInterrupt
    (run / "last.pth").unlink()  # large, and not needed any more
    return trainer


def machines(runs: Sequence[Path]) -> str:
    """A line that names the machines on which the runs were made."""
    places = [place for run in runs for place in read_checkpoint(run / "best.pth").get("made_on", [])]
    names = dict.fromkeys(f"{place['machine']}, torch {place['versions']['torch']}" for place in places)
    return f"made on: {'; '.join(names) or 'an unknown machine'}"  # older files do not say


# --- Files of faces ---


def write_faces(parts: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Write images (N, 48, 48) and labels (N,) as PNG files, `folder`/PART/CLASS/NUMBER.png, and as `folder`.zip."""
    for part, (images, labels) in parts.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = folder / part / CLASSES[label] / f"{number:06}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    shutil.make_archive(str(folder), "zip", folder)


def write_dataset(data: FaceData, folder: Path) -> int:
    """Write the training images of `data` and one validation image per class by `write_faces`; how many train."""
    train, val = data.split("train"), data.split("val")
    val = val.take(np.unique(val.labels, return_index=True)[1])
    write_faces({"train": (train.images, train.labels), "val": (val.images, val.labels)}, folder)
    return len(train)

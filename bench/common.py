"""What the benchmarks share: fresh processes that take turns, runs in folders, means and ratios, files of faces."""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cli import Parser, add_flags, combine, from_dict, read_config
from config import CLASSES, MODELS, PLACE_FIELDS, Config
from errors import UserError, counted, write_json

if TYPE_CHECKING:
    import numpy as np

    from dataset import FaceData
    from train import Trainer
    from utils import Machine

ROOT = Path(__file__).resolve().parent.parent
Cell = dict[str, Any]  # what a fresh process gets, as JSON
Key = TypeVar("Key")


# --- Fresh processes ---


def run_cell(script: str, cell: Cell, *, checkout: Path = ROOT, cwd: Path | None = None) -> dict[str, float]:
    """What `bench/script --one CELL` prints in its last line, as JSON, in a fresh process.

    The process imports the project from `checkout`. Raises UserError where it fails.
    """
    command = [sys.executable, "-P", str(ROOT / "bench" / script), "--one", json.dumps(cell)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        problem = done.stderr.strip() or f"ended with status {done.returncode}"
        raise UserError(f"{script} --one '{json.dumps(cell)}' failed in {checkout}:\n{problem}")
    return json.loads(done.stdout.splitlines()[-1])


def train_in(folder: Path, checkout: Path, flags: Sequence[str], *, epochs: int) -> dict[str, float]:
    """Train `epochs` epochs with interface.py of `checkout`; seconds of the first, images/s of the later ones.

    The new folder `folder` gets the cache and the run, `folder`/run; no other weights are replaced.
    """
    folder.mkdir()
    places = ["--cache", str(folder / "cache"), "--runs", str(folder), "--run", "run"]
    cell = {"part": "train", "flags": [*flags, *places], "run": str(folder / "run"), "epochs": epochs}
    return run_cell("drive.py", cell, checkout=checkout, cwd=folder)


def take_turns(
    cells: dict[Key, Callable[[], dict[str, float]]], rounds: int, *, label: str
) -> dict[Key, list[dict[str, float]]]:
    """The results of every cell, one per round.

    The cells take turns, in reversed order in every second round, so that a slow minute affects them all.
    """
    from tqdm import tqdm  # late: --help need not wait for it

    results: dict[Key, list[dict[str, float]]] = {key: [] for key in cells}
    order = [key for turn in range(rounds) for key in (reversed(cells) if turn % 2 else cells)]
    for key in tqdm(order, label, disable=None, leave=False):
        results[key].append(cells[key]())
    return results


def scratch() -> tempfile.TemporaryDirectory:
    """A temporary folder; Windows keeps files in it that are still mapped."""
    return tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)


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
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.images < min(images, 1):
        parser.error("--rounds and --images: 1 or more")
    return args


# --- Figures ---


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation; the value alone where there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """The ratio of the medians, and the smallest and largest ratio within a round."""
    each = [value / of for value, of in zip(values, base, strict=True)]
    return f"{statistics.median(values) / statistics.median(base):.2f} ({min(each):.2f}-{max(each):.2f})"


class Against:
    """Compares another checkout, in the folder `name`, with this one, in paired turns. Raises UserError."""

    def __init__(self, name: str, rounds: int) -> None:
        self.other, self.rounds = Path(name).resolve(), rounds
        if not (self.other / "interface.py").is_file():
            raise UserError(f"--against {name}: no checkout of this project; make one: git worktree add DIR COMMIT")
        print(f"there: commit {commit(self.other)} in {name}; here: commit {commit()}")
        print(f"{'':<48}{'there':>12}{'here':>12}  {'':<10}{'times as fast':>20}", flush=True)

    def row(self, label: str, measure: Callable[[Path], dict[str, float]], key: str, unit: str) -> None:
        """Print the medians of `key`, in `unit`, that `measure` gives for both, and how many times as fast this is."""
        cells = {"there": partial(measure, self.other), "here": partial(measure, ROOT)}
        found = take_turns(cells, self.rounds, label=label)
        there, here = ([result[key] for result in found[place]] for place in cells)
        rate = unit.endswith("/s")
        faster = ratio(here, there) if rate else ratio(there, here)
        medians = "".join(f"{statistics.median(values):>12,.{0 if rate else 4}f}" for values in (there, here))
        print(f"{label:<48}{medians}  {unit:<10}{faster:>20}", flush=True)


def header() -> list[str]:
    """Lines that name the machine, its load, the versions and the commit."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")  # Linux
    known = re.findall(r"^(model name|flags)\s*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.M)
    facts = {"model name": "a CPU", "flags": ""} | dict(known)
    fast = [flag for flag in ("avx512_bf16", "amx_bf16", "avx512f", "avx2") if flag in facts["flags"].split()]
    load = f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    lines = [f"{facts['model name']}, {os.cpu_count()} cores, {' '.join(fast)}{load}"]
    if torch.cuda.is_available():
        lines.append(torch.cuda.get_device_name())
    packages = " ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "numpy"))
    python = ".".join(map(str, sys.version_info[:3]))
    return [*lines, f"python {python} {packages}, {counted(torch.get_num_threads(), 'thread')}, commit {commit()}"]


def commit(checkout: Path = ROOT) -> str:
    """The commit of `checkout`, with "-dirty" where files differ from it; "unknown" outside git."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


# --- Runs ---


def settings_after(rest: Sequence[str], *, taken: Sequence[str]) -> dict[str, Any]:
    """The settings of `rest`, flags of interface.py that follow `--`; a wrong one ends the script with status 2.

    So does one of those `taken`, which the script sets itself.
    """
    parser = Parser("interface.py", "Flags of interface.py.")
    add_flags(parser)
    settings = vars(parser.parse_args(list(rest)))
    if mine := sorted(set(settings) & set(taken)):
        parser.error(f"{', '.join(mine)} after --: this script sets them itself, see its own flags")
    return settings


def config_for(settings: dict[str, Any], *, recipe: str = "") -> Config:
    """The Config with `settings` over those of `recipe`. Raises UserError."""
    try:
        return combine(settings, recipe=recipe)[0]
    except ValueError as error:
        raise UserError(str(error)) from error


def flags_of(settings: dict[str, Any]) -> list[str]:
    """The flags that give `settings`."""
    flags = []
    for name, value in settings.items():
        word = name.replace("_", "-")
        flags += [f"--{word}" if value else f"--no-{word}"] if isinstance(value, bool) else [f"--{word}", str(value)]
    return flags


def identity(config: Config) -> dict[str, Any]:
    """The settings that make a run what it is, the seed among them, whatever machine and folder it was made in."""
    settings = {name: value for name, value in asdict(config).items() if name not in PLACE_FIELDS}
    return settings | {"votes": Path(config.votes).name}


def config_of(run: Path) -> Config:
    """The settings of `run`. Raises UserError where it is no run of this version of the code."""
    path = str(run / "config.json")
    try:
        return from_dict(read_config(path), path)
    except ValueError as error:
        raise UserError(f"{run} is no run that this code can read: {error}") from error


def accuracies(row: dict[str, Any]) -> tuple[float, float]:
    """The validation accuracy of an epoch in %, official and deduplicated."""
    return 100 * row["val_accuracy"], 100 * row["val_accuracy_deduplicated"]


def minutes(rows: Sequence[dict[str, Any]]) -> float:
    """The minutes that epochs took, with their scoring."""
    return sum(row["seconds"] for row in rows) / 60


def fingerprint(run: Path) -> str:
    """The fingerprint of what `run` was trained on, or "" where it has no best.pth."""
    from utils import read_checkpoint

    path = run / "best.pth"
    return read_checkpoint(path, ("dataset",))["dataset"]["fingerprint"] if path.exists() else ""


def fit_in(run: Path, config: Config, data: "FaceData", machine: "Machine") -> "Trainer":
    """Train to the end in the folder `run`, as interface.py does but for its report: no weights are promoted.

    A run that was stopped goes on; notes on what its weights may know are printed. Raises KeyboardInterrupt where
    Ctrl-C stopped it.
    """
    from interface import new_model
    from train import fit
    from training.distill import load_teachers
    from training.state import check_resume, read_last
    from utils import read_checkpoint
    from weights import find_weights, leakage_notes

    teachers, last, leakage = load_teachers(config, data, machine), None, []
    if (run / "last.pth").exists():
        last = read_last(run)[1]
        check_resume(last, data, teachers, machine)
    elif config.pretrained:
        path = find_weights(config.pretrained, flag="--pretrained")
        leakage = leakage_notes(path, read_checkpoint(path), data, config.val_fraction)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", asdict(config))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        model = new_model(replace(config, pretrained="") if last else config, machine)
        trainer = fit(model, data, config, run=run, machine=machine, resume=last, teachers=teachers, leakage=leakage)
    notes = [line for line in printed.getvalue().splitlines() if line.startswith("note:")]
    print("".join(f"{note}\n" for note in leakage + notes), end="")
    if trainer.stopped or not trainer.done:
        raise KeyboardInterrupt
    (run / "last.pth").unlink()  # large, and not needed any more
    return trainer


def machines(runs: Sequence[Path]) -> list[str]:
    """Lines that name the machines on which the runs were made, as far as their best.pth are there."""
    from utils import read_checkpoint

    lines = Counter()
    for path in [run / "best.pth" for run in runs if (run / "best.pth").exists()]:
        places = read_checkpoint(path).get("made_on", [])  # older files do not say
        lines[", then on ".join(f"{place['machine']}; torch {place['versions']['torch']}" for place in places)] += 1
    return [f"{counted(count, 'run')} on {line or 'an unknown machine'}" for line, count in lines.items()]


# --- Files of faces ---


def write_faces(parts: dict[str, tuple["np.ndarray", "np.ndarray"]], folder: Path) -> None:
    """Write images (N, 48, 48) and labels (N,) as PNG files, `folder`/PART/CLASS/NUMBER.png, and as `folder`.zip."""
    from PIL import Image

    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for part, (images, labels) in parts.items():
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                name = f"{part}/{CLASSES[label]}/{number:06}.png"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / name)
                archive.write(folder / name, name)


def write_dataset(data: "FaceData", folder: Path) -> int:
    """Write the training images of `data` and one validation image per class by `write_faces`; how many train."""
    import numpy as np

    train, val = data.split("train"), data.split("val")
    rows = np.flatnonzero(~val.copies)
    rows = rows[np.unique(val.labels[rows], return_index=True)[1]]
    parts = {"train": (np.asarray(train.images), train.labels), "val": (val.images[rows], val.labels[rows])}
    write_faces(parts, folder)
    return len(train)

"""What the benchmarks share: fresh processes that take turns, runs that are kept, the header of a table, random faces,
step times."""

import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from cli import Parser, add_flags, combine, from_dict, read_config
from config import MACHINE_FIELDS, SETTING, Config

ROOT = Path(__file__).resolve().parent.parent
VAL_FACES = 256  # of RandomFaces: one batch of scoring
CHUNK = 1024  # random faces drawn at a time
MAX_SEEDS = 10  # of a comparison


# --- Fresh processes ---


class CellError(Exception):
    """A cell failed; the message is its stderr, or how it ended."""


def run_cell(script: str, cell: dict[str, Any], *, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """What `script --one CELL` prints in its last line, as JSON, in a process of its own.

    `prefix` is a command that starts it, such as one that limits its memory. Raises CellError where it fails.
    """
    command = [*prefix, sys.executable, script, "--one", json.dumps(cell)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CellError(done.stderr.strip() or f"ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(
    script: str, cells: dict[Any, dict[str, Any]], rounds: int, *, label: str = "cells"
) -> dict[Any, list[dict[str, Any]]]:
    """The results of every cell, one per round; the cells take turns, so that a slow minute hits them all.

    Raises UserError where one fails.
    """
    from tqdm import tqdm  # late, as every import that --help need not wait for

    from errors import UserError

    results: dict[Any, list[dict[str, Any]]] = {key: [] for key in cells}
    for key in tqdm(list(cells) * rounds, label, disable=None, leave=False):
        try:
            results[key].append(run_cell(script, cells[key]))
        except CellError as error:
            raise UserError(f"{Path(script).name} --one {json.dumps(cells[key])} failed:\n{error}") from error
    return results


# --- Runs of interface.py, which are kept ---


def typed_knobs(rest: Sequence[str], *, taken: Sequence[str] = ()) -> dict[str, Any]:
    """The knobs that `rest` sets, flags of interface.py; a wrong one ends the script with status 2.

    So does one of those `taken`, which the script sets itself.
    """
    parser = Parser("interface.py", "What stands after -- are flags of interface.py.")
    add_flags(parser)
    knobs = vars(parser.parse_args(list(rest)))
    if mine := sorted(set(knobs) & set(taken)):
        parser.error(f"{', '.join(mine)} after --: this script sets them itself, see its own flags")
    return knobs


def flags_of(knobs: dict[str, Any]) -> list[str]:
    """The flags that set `knobs`."""
    flags = []
    for name, value in knobs.items():
        word = name.replace("_", "-")
        flags += [f"--{word}" if value else f"--no-{word}"] if isinstance(value, bool) else [f"--{word}", str(value)]
    return flags


def identity(config: Config) -> dict[str, Any]:
    """The knobs that make a run what it is, the seed among them, whatever machine and folder it is made in."""
    knobs = {name: value for name, value in asdict(config).items() if name not in SETTING}
    here = {name: from_here(knobs[name]) for name in ("teachers", "pretrained")}
    return knobs | {"votes": Path(config.votes).name} | here


def from_here(names: str) -> str:
    """The paths `names`, a comma between them, with those in the current folder as they are seen from it."""
    return ",".join(name.strip().removeprefix(f"{Path.cwd()}{os.sep}") for name in names.split(","))


def finished(run: Path) -> bool:
    return (run / "confusion.png").exists()  # written at the very end


def history(run: Path) -> list[dict[str, Any]]:
    """The figures of every epoch of `run`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def config_of(run: Path) -> Config:
    """The knobs of `run`. Raises UserError where it is no run of this version of the code."""
    from errors import UserError

    path = str(run / "config.json")
    try:
        return from_dict(read_config(path), path)
    except ValueError as error:
        raise UserError(f"{run} is no run that this code can read: {error}") from error


def train_once(run: Path, knobs: dict[str, Any], *, recipe: str = "") -> list[dict[str, Any]]:
    """The `history` of the finished run in the folder `run`: trained now unless it is there, a stopped one goes on.

    interface.py works in a folder of its own that is removed: weights that it promotes there replace no others.
    Raises UserError where `run` has other knobs, or training fails.
    """
    from errors import UserError

    config, _ = combine(knobs, recipe=recipe)
    knobs = {**knobs, **in_any_folder(config)}
    begun = (run / "config.json").exists()
    if begun:
        check_same(run, combine(knobs, recipe=recipe)[0])
    if not finished(run):
        if begun:
            on_machine = {name: value for name, value in knobs.items() if name in MACHINE_FIELDS}
            flags = ["--resume", str(run.absolute()), *flags_of(on_machine)]
        else:
            named = {**knobs, "runs": str(run.parent.absolute()), "run": run.name}
            flags = [*(["--recipe", recipe] if recipe else []), *flags_of(named)]
        with tempfile.TemporaryDirectory() as folder:
            status = call([sys.executable, str(ROOT / "interface.py"), *flags], folder)
        if status == 130:
            raise KeyboardInterrupt
        if status:
            raise UserError(f"{run}: training ended with status {status}")
    return history(run)


def call(command: list[str], folder: str) -> int:
    """The exit status of `command`, run in `folder` without its stdout; on Ctrl-C it may end what it does first.

    SIGTERM, which reaches this process alone, is Ctrl-C to both: raises KeyboardInterrupt, however `command` ends.
    """
    processes: list[subprocess.Popen] = []

    def terminated(*_: Any) -> None:
        for process in processes:
            process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        processes.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL))
        return processes[0].wait()
    except KeyboardInterrupt:  # the terminal tells both; training then writes last.pth
        for process in processes:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def in_any_folder(config: Config) -> dict[str, str]:
    """The knobs of `config` that name files here, by paths that hold in any folder."""

    def absolute(name: str) -> str:
        return os.path.abspath(name) if os.path.exists(name) else name

    files = {name: absolute(getattr(config, name)) for name in ("data", "votes", "pretrained")}
    files["cache"] = os.path.abspath(config.cache)
    files["teachers"] = ",".join(absolute(name.strip()) for name in config.teachers.split(","))
    return {name: path for name, path in files.items() if path}


def check_same(run: Path, config: Config) -> None:
    """Raise UserError unless `run` was begun with the knobs of `config`, but for where it was made.

    Teachers are known by what is in their files, as long as `run` has its last.pth, else by their names.
    """
    from errors import UserError
    from training.distill import teacher_digests
    from utils import read_checkpoint

    before, now = identity(config_of(run)), identity(config)
    if config.teachers and (run / "last.pth").exists():
        before["teachers"] = read_checkpoint(run / "last.pth", ("targets",))["targets"]["teachers"]
        now["teachers"] = teacher_digests(config)
    if other := [f"{name} {before[name]!r}, now {now[name]!r}" for name in now if before[name] != now[name]]:
        raise UserError(f"{run} holds a run with other knobs ({'; '.join(other)}): name another folder with --runs")


def check_data(run: Path, data: Any) -> None:
    """Raise UserError unless the finished `run` was trained on `data`."""
    from errors import UserError
    from utils import read_checkpoint

    if read_checkpoint(run / "best.pth", ("dataset",))["dataset"]["fingerprint"] != data.fingerprint:
        raise UserError(f"{run} was trained on other data than {data.source}: name another folder with --runs")


def notes_on(config: Config, data: Any) -> list[str]:
    """The notes on weights that runs of `config` begin with or learn from, which those print where nobody reads."""
    from training.distill import teacher_files
    from utils import read_checkpoint
    from weights import find_weights, leakage_notes

    files = [*teacher_files(config), *(find_weights(name, flag="--pretrained") for name in [config.pretrained] if name)]
    contents = {file: read_checkpoint(file, ("config", "dataset")) for file in files}
    return [note for file, known in contents.items() for note in leakage_notes(file, known, data, config.val_fraction)]


def machines(folders: Sequence[Path]) -> list[str]:
    """Lines that say where the runs were made, as far as their last.pth is there."""
    from errors import counted
    from training.state import made_on
    from utils import read_checkpoint

    lines: dict[str, int] = {}
    for folder in folders:
        if (folder / "last.pth").exists():
            places = made_on(read_checkpoint(folder / "last.pth", ("versions",)))
            line = ", then on ".join(f"{each['machine']}; {in_words(each['versions'])}" for each in places)
            lines[line] = lines.get(line, 0) + 1
    return [f"{counted(count, 'run')} on {line}" for line, count in lines.items()]


def in_words(versions: dict[str, str]) -> str:
    return " ".join(f"{name} {value}" for name, value in versions.items())


# --- The network as it is written everywhere ---


def relu_first(model: Any) -> Any:
    """`model` with every ReLU that follows a pooling put before it; the outputs stay the same."""
    from torch import nn

    for layers in [layers for layers in model.modules() if isinstance(layers, nn.Sequential)]:
        for at in range(len(layers) - 1):
            if isinstance(layers[at], nn.MaxPool2d) and isinstance(layers[at + 1], nn.ReLU):
                layers[at], layers[at + 1] = layers[at + 1], layers[at]
    return model


# --- What a table says ---


def header() -> list[str]:
    """Lines that name the machine, its load, the versions and the commit."""
    import torch

    from errors import counted

    name, flags = platform.processor() or platform.machine(), ""
    try:
        listed = subprocess.run(
            ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
        )
        facts = dict(line.split(":", 1) for line in listed.stdout.splitlines() if ":" in line)
        name, flags = facts.get("Model name", name).strip(), facts.get("Flags", "")
    except (OSError, subprocess.CalledProcessError):  # no Linux
        pass
    fast = [flag for flag in ("avx512_bf16", "amx_bf16", "avx512f", "avx2") if flag in flags.split()]
    load = f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    lines = [f"{name}, {os.cpu_count()} cores, {' '.join(fast) or 'no flags known'}{load}"]
    if torch.cuda.is_available():
        lines.append(torch.cuda.get_device_name())
    packages = " ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "numpy"))
    threads = counted(torch.get_num_threads(), "thread")
    lines.append(f"python {platform.python_version()} {packages}, {threads}, commit {commit()}")
    return lines


def commit() -> str:
    """The commit of this code, with "-dirty" where files differ from it; "unknown" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Spread(NamedTuple):
    """A figure over rounds: its median, smallest and largest value."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The Spread of the rounds' ratios: each value is divided by that of its own round."""
    each = [value / of for value, of in zip(values, base, strict=True)]
    return Spread(statistics.median(each), min(each), max(each))


# --- Random faces: a dataset of any size, through the project's own cache ---


class RandomFaces:
    """`count` training images and VAL_FACES to validate on, in the shape of a `sources.Source`.

    Every class has a smooth pattern of its own, under noise that makes every image another.
    """

    kind, renamed, notes, drawn = "random", {}, [], False
    path = Path("random faces")

    def __init__(self, count: int) -> None:
        self.count, self.total = count, count + VAL_FACES

    def key(self) -> str:
        return f"random-faces-{self.count:012d}"

    def items(self, workers: int = 0) -> Iterator[Any]:
        import numpy as np

        from readers.sources import Item

        rng = np.random.default_rng(0)
        coarse = rng.integers(20, 180, (7, 6, 6)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        for start in range(0, self.total, CHUNK):
            numbers = range(start, min(start + CHUNK, self.total))
            labels = np.asarray(numbers) % 7
            images = rng.integers(0, 64, (len(numbers), 48, 48), np.uint8) + coarse[labels]
            for number, label, image in zip(numbers, labels.tolist(), images, strict=True):
                yield Item(f"random face {number}", "val" if number < VAL_FACES else "train", label, image)


def load_random(config: Any, count: int) -> Any:
    """What `dataset.load` makes of `count` RandomFaces: built in `config.cache` where they are not there yet."""
    import dataset

    real = dataset.open_dataset
    dataset.open_dataset = lambda path: RandomFaces(count)  # whatever stands in this folder
    try:
        return dataset.load(replace(config, data="random faces"))
    finally:
        dataset.open_dataset = real


# --- Steps of the project's own loop ---


def new_trainer(config: Any, data: Any, machine: Any, run: Path) -> Any:
    """The Trainer that `python interface.py` would make."""
    from interface import new_model
    from train import Trainer

    return Trainer(new_model(config, machine), config, data, run, machine)


def train_steps(trainer: Any, steps: int) -> list[float]:
    """Train `steps` steps with `train.train_epoch`; the seconds of each but the first, from update to update."""
    from train import StopRequest, train_epoch

    request, ticks = StopRequest(), []

    def tick(*_: Any) -> None:
        wait(trainer.machine.device)
        ticks.append(time.perf_counter())
        request.asked = len(ticks) >= steps

    hook = trainer.optimizer.register_step_post_hook(tick)
    try:
        while not request.wanted:
            if train_epoch(trainer, request):
                trainer.epoch, trainer.step = trainer.epoch + 1, 0
    finally:
        hook.remove()
    return [after - before for before, after in pairwise(ticks)]


def wait(device: Any) -> None:
    """Wait until `device` has done what it was given: a GPU's calls return before that."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def median_seconds(work: Callable[[], Any], *, repeats: int, device: Any, warm_up: int = 2) -> float:
    """The median seconds of `work()` over `repeats` calls after `warm_up`."""
    seconds = []
    gc.disable()
    try:
        for _ in range(warm_up + repeats):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return statistics.median(seconds[warm_up:])


def in_percent(scores: Any) -> str:
    return f"{100 * scores.official.accuracy:.2f} / {100 * scores.deduplicated.accuracy:.2f}"

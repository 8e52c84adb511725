"""The README's table of results, from the folders of finished runs: a Markdown row for each set of knobs.

    python bench/results.py runs/small-0 runs/small-1 runs/small-2 [--tta flip crops --data archive.zip]

Runs that differ in seed, place and device alone make one row, with mean and standard deviation over its seeds. The
command is the shortest that gives the same knobs. Accuracies are "official / deduplicated". "best" is the epoch that
the run kept, by its stop metric (accuracy deduplicated, unless said otherwise), so its figures are chosen on the
images that they are of; "last" is chosen by nothing. With --tta, best.pth of each run is also scored through test.py
with each augmentation named. The machine of the runs stands below the table.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import ROOT, config_of, finished, flags_of, history, identity, machines
from cli import Parser, combine
from config import RECIPES, TTA, Config

Pair = tuple[float, float]  # accuracy in %, official and deduplicated


class Run(NamedTuple):
    """What a finished run says of itself."""

    config: Config
    best: Pair
    last: Pair
    minutes: float
    data: str  # the fingerprint of what it was trained on; "" where best.pth is gone
    augmented: list[Pair]  # its best weights with each test-time augmentation that was asked for


def read(folder: Path, *, tta: Sequence[str], data: str, cache: str) -> Run:
    """The figures of the run in `folder`; its best weights are scored now with each of `tta`. Raises UserError."""
    config, rows = config_of(folder), history(folder)
    best = [row for row in rows if row["best"]][-1]
    pairs = [(100 * row["val_accuracy"], 100 * row["val_accuracy_deduplicated"]) for row in (best, rows[-1])]
    minutes = sum(row["seconds"] for row in rows) / 60
    augmented = [scored(folder, data or config.data, cache, tta=name) for name in tta]
    return Run(config, *pairs, minutes, seen(folder), augmented)


def seen(folder: Path) -> str:
    """The fingerprint of what the run in `folder` was trained on, or "" where its best.pth is gone."""
    from utils import read_checkpoint

    path = folder / "best.pth"
    return read_checkpoint(path, ("dataset",))["dataset"]["fingerprint"] if path.exists() else ""


def scored(folder: Path, data: str, cache: str, *, tta: str) -> Pair:
    """The accuracies of best.pth on the validation images, with that augmentation. Raises UserError."""
    from errors import UserError

    with tempfile.TemporaryDirectory() as top:
        out = Path(top, "scores.json")
        command = [sys.executable, str(ROOT / "test.py"), "--split", "val", "--weights", str(folder / "best.pth")]
        command += ["--tta", tta, "--data", data, "--cache", cache, "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{folder}: {done.stderr.strip().removeprefix('error: ')}")
        scores = json.loads(out.read_text())
    if scores["trained_on"] != scores["fingerprint"]:
        raise UserError(f"{folder} was trained on other data than {scores['data']}: name its own with --data")
    return 100 * scores["official"]["accuracy"], 100 * scores["deduplicated"]["accuracy"]


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs on the same data that are alike but for seed, place and device, in the order of each group's first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([identity(run.config) | {"seed": None}, run.data]), []).append(run)
    return list(groups.values())


def command_of(config: Config) -> str:
    """The shortest command that gives the knobs of `config`, but for seed, place and device."""
    wanted, commands = identity(config), []
    for recipe in ("", *RECIPES):
        there = identity(combine({}, recipe=recipe)[0])
        flags = flags_of({name: wanted[name] for name in wanted if name != "seed" and wanted[name] != there[name]})
        commands.append(["python", "interface.py", *(["--recipe", recipe] if recipe else []), *flags])
    return shlex.join(min(commands, key=len))


def figure(values: Sequence[float]) -> str:
    """The mean, with the standard deviation where there are several; one standard error of 3,589 images is 0.8."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def row(runs: list[Run]) -> str:
    """The Markdown row of a group."""
    from torch import device

    from model import build_model
    from utils import count_params

    config = runs[0].config
    with device("meta"):  # nothing is drawn
        params = count_params(build_model(config.model, **config.arguments))
    each = zip(*([run.best, run.last, *run.augmented] for run in runs), strict=True)
    figures = [" / ".join(map(figure, zip(*pairs, strict=True))) for pairs in each]
    seeds = ", ".join(map(str, sorted(run.config.seed for run in runs)))
    cells = [
        f"`{config.model}`, {params / 1e6:.1f}M",
        f"`{command_of(config)}`",
        *figures,
        f"{statistics.mean(run.minutes for run in runs):.0f}",
        f"{len(runs)} ({seeds})",
    ]
    return f"| {' | '.join(cells)} |"


def run(args: argparse.Namespace) -> int:
    from errors import UserError

    folders = [folder for folder in map(Path, args.runs) if finished(folder)]
    for name in args.runs:
        if Path(name) not in folders:
            print(f"left out: {name} is no finished run")
    if not folders:
        raise UserError("none of these folders holds a finished run; name some, such as runs/NAME")
    groups = grouped([read(folder, tta=args.tta, data=args.data, cache=args.cache) for folder in folders])
    augmented = [f"best, `--tta {name}`" for name in args.tta]
    columns = ["model, parameters", "command", "best epoch", "last epoch", *augmented, "minutes", "seeds"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    print("\n".join(map(row, groups)))
    said = "accuracy on validation in %, official / deduplicated, mean ± standard deviation over the seeds"
    print("\n".join(["", said, *machines(folders)]))
    return 0


def main() -> int:
    parser = Parser("bench/results.py", __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--data", default="", help="with --tta: the dataset (default: each run's own)")
    parser.add_argument("--cache", default=Config().cache, help="with --tta: folder for decoded images")
    augmented = [name for name in TTA if name != "none"]
    parser.add_argument("--tta", nargs="+", choices=augmented, default=[], help="score best.pth with these too")
    args = parser.parse_args()
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""The README's table of results, from the folders of finished runs: a Markdown row for each set of knobs.

    python bench/results.py runs/small-0 runs/small-1 runs/small-2 [--tta --data archive.zip]

Runs that differ in seed, place and device alone make one row, with mean and standard deviation over its seeds. The
command is the shortest that gives the same knobs. "best" is the epoch that the run kept, by its stop metric (accuracy
without copies, unless said otherwise), so its figures are chosen on the images that they are of; "last" is chosen by
nothing. With --tta, best.pth of each run is also scored through test.py with the mirror image. The machine of the runs
stands below the table.
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

from bench.common import ROOT, config_of, finished, flags_of, history, identity
from config import RECIPES, Config, Parser, combine

COLUMNS = ("model", "parameters", "command", "best: official", "without copies", "last: official", "without copies")
TTA_COLUMNS = ("best.pth with flip: official", "without copies")
Pair = tuple[float, float]  # accuracy in %, official and without copies


class Run(NamedTuple):
    """What a finished run says of itself."""

    config: Config
    best: Pair
    last: Pair
    minutes: float
    data: str  # the fingerprint of what it was trained on; "" where best.pth is gone
    tta: Pair | None = None


def read(folder: Path, *, tta: bool, data: str, cache: str) -> Run:
    """The figures of the run in `folder`; with `tta` its best weights are scored now. Raises UserError."""
    config, rows = config_of(folder), history(folder)
    best = [row for row in rows if row["best"]][-1]
    pairs = [(100 * row["val_accuracy"], 100 * row["val_accuracy_unseen"]) for row in (best, rows[-1])]
    minutes = sum(row["seconds"] for row in rows) / 60
    return Run(config, *pairs, minutes, seen(folder), scored(folder, data or config.data, cache) if tta else None)


def seen(folder: Path) -> str:
    """The fingerprint of what the run in `folder` was trained on, or "" where its best.pth is gone."""
    from utils import read_checkpoint

    path = folder / "best.pth"
    return read_checkpoint(path, ("dataset",))["dataset"]["fingerprint"] if path.exists() else ""


def scored(folder: Path, data: str, cache: str) -> Pair:
    """The accuracies of best.pth on the validation images, with the mirror image. Raises UserError."""
    from utils import UserError

    with tempfile.TemporaryDirectory() as top:
        out = Path(top, "scores.json")
        command = [sys.executable, str(ROOT / "test.py"), "--split", "val", "--weights", str(folder / "best.pth")]
        command += ["--tta", "flip", "--data", data, "--cache", cache, "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{folder}: {done.stderr.strip().removeprefix('error: ')}")
        scores = json.loads(out.read_text())
    if scores["trained_on"] != scores["fingerprint"]:
        raise UserError(f"{folder} was trained on other data than {scores['data']}: name its own with --data")
    return 100 * scores["official"]["accuracy"], 100 * scores["unseen"]["accuracy"]


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs on the same data that are alike but for seed, place and device, in the order of each group's first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([identity(run.config) | {"seed": None}, run.data]), []).append(run)
    return list(groups.values())


def command_of(config: Config) -> str:
    """The shortest command that gives the knobs of `config`, but for seed, place and device."""
    wanted, commands = identity(config), []
    wanted["teachers"] = wanted["teachers"].replace(f"{Path.cwd()}/", "")
    for recipe in ("", *RECIPES):
        there = identity(combine({}, recipe=recipe)[0])
        flags = flags_of({name: wanted[name] for name in wanted if name != "seed" and wanted[name] != there[name]})
        commands.append(["python", "interface.py", *(["--recipe", recipe] if recipe else []), *flags])
    return shlex.join(min(commands, key=len))


def figure(values: Sequence[float], digits: int = 2) -> str:
    """The mean, with the standard deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def row(runs: list[Run]) -> str:
    """The Markdown row of a group."""
    from torch import device

    from model import build_model
    from utils import count_params

    config = runs[0].config
    with device("meta"):  # nothing is drawn
        params = count_params(build_model(config.model, **config.arguments))
    pairs = [[run.best for run in runs], [run.last for run in runs]]
    if runs[0].tta:
        pairs.append([run.tta for run in runs])
    figures = [figure(values) for pair in pairs for values in zip(*pair, strict=True)]
    seeds = ", ".join(map(str, sorted(run.config.seed for run in runs)))
    cells = [f"`{config.model}`", f"{params / 1e6:.1f}M", f"`{command_of(config)}`", *figures,
             f"{statistics.mean(run.minutes for run in runs):.1f}", f"{len(runs)} ({seeds})"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def machines(folders: Sequence[Path]) -> list[str]:
    """Lines that say where the runs were made, as far as their last.pth is there."""
    from utils import read_checkpoint

    lines: dict[str, int] = {}
    for folder in folders:
        if (folder / "last.pth").exists():
            content = read_checkpoint(folder / "last.pth", ("machine", "versions"))
            versions = " ".join(f"{name} {value}" for name, value in content["versions"].items())
            line = f"{content['machine']}; {versions}"
            lines[line] = lines.get(line, 0) + 1
    return [f"{count} runs on {line}" for line, count in lines.items()]


def run(args: argparse.Namespace) -> int:
    from utils import UserError

    folders = [folder for folder in map(Path, args.runs) if finished(folder)]
    for name in args.runs:
        if Path(name) not in folders:
            print(f"left out: {name} is no finished run")
    if not folders:
        raise UserError("none of these folders holds a finished run; name some, such as runs/NAME")
    groups = grouped([read(folder, tta=args.tta, data=args.data, cache=args.cache) for folder in folders])
    columns = (*COLUMNS, *(TTA_COLUMNS if args.tta else ()), "minutes", "seeds")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    print("\n".join(map(row, groups)))
    print("\n".join(["", "accuracy on validation in %, mean ± standard deviation over the seeds", *machines(folders)]))
    return 0


def main() -> int:
    parser = Parser("bench/results.py", __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--data", default="", help="with --tta: the dataset (default: each run's own)")
    parser.add_argument("--cache", default=Config().cache, help="with --tta: folder for decoded images")
    parser.add_argument("--tta", action="store_true", help="score best.pth with the mirror image too")
    args = parser.parse_args()
    from utils import exit_status  # late: --help need not wait for torch

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

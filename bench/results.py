"""The table of results, from the folders of finished runs: a Markdown row for each set of hyperparameters.

    python -m bench.results runs/small-0 runs/small-1 runs/small-2 [--tta flip crops --data archive.zip]

Runs that differ in seed, place and device alone make one row, with mean and standard deviation over its seeds. The
command is the shortest that gives the same settings. Accuracies are "official / deduplicated". "best" is the epoch that
the run kept, by its stop metric (accuracy deduplicated, unless set otherwise), so its figures are chosen on the
images that they are of; "last" is chosen by nothing. With --tta, best.pth of each run is also scored with each
augmentation named. Below the table are the machines of the runs.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import common
from cli import Parser, combine
from config import RECIPES, TTA, Config
from errors import UserError, exit_status

Pair = tuple[float, float]  # accuracy in %, official and deduplicated


def figures(run: Path, args: argparse.Namespace) -> list[Pair]:
    """The accuracies of the best and the last epoch of `run`, and of its best weights with each of --tta."""
    from training.state import read_history

    rows = read_history(run)
    pairs = [common.accuracies([row for row in rows if row["best"]][-1]), common.accuracies(rows[-1])]
    return pairs + (augmented(run, args) if args.tta else [])


def augmented(run: Path, args: argparse.Namespace) -> list[Pair]:
    """The accuracies of best.pth on the validation images, with each test-time augmentation. Raises UserError."""
    from dataset import load
    from utils import pick_machine
    from val import predict_logits
    from weights import load_weights

    config = common.config_of(run)
    data, machine, pairs = (
        load(replace(config, data=args.data or config.data, cache=args.cache)),
        pick_machine("auto", "auto"),
        [],
    )
    if common.fingerprint(run) != data.fingerprint:
        raise UserError(f"{run} was trained on other data than {data.source}: name its own with --data")
    model, val = load_weights(run / "best.pth", machine=machine)[0], data.split("val")
    for name in args.tta:
        hits = predict_logits(model, val, machine=machine, tta=name).argmax(1).numpy() == val.labels
        pairs.append((100 * hits.mean(), 100 * hits[~val.copies].mean()))
    return pairs


def command_of(config: Config) -> str:
    """The shortest command that gives the settings of `config`, but for seed, place and device."""
    wanted, commands = common.identity(config), []
    for recipe in ("", *RECIPES):
        there = common.identity(combine({}, recipe=recipe)[0])
        other = {name: wanted[name] for name in wanted if name != "seed" and wanted[name] != there[name]}
        flags = [*(["--recipe", recipe] if recipe else []), *common.flags_of(other)]
        commands.append(["python", "interface.py", *flags])
    return shlex.join(min(commands, key=len))


def row(runs: list[Path], args: argparse.Namespace) -> str:
    """The Markdown row of runs that differ in their seeds."""
    from torch import device

    from model import build_model
    from training.state import read_history
    from utils import count_params

    config = common.config_of(runs[0])
    with device("meta"):  # no weights are initialised
        params = count_params(build_model(config.model, **config.arguments))
    columns = zip(*(figures(run, args) for run in runs), strict=True)
    seeds = sorted(common.config_of(run).seed for run in runs)
    cells = [
        f"`{config.model}`, {params / 1e6:.1f}M",
        f"`{command_of(config)}`",
        *(" / ".join(common.mean_sd(values, 1) for values in zip(*pairs, strict=True)) for pairs in columns),
        f"{statistics.mean(common.minutes(read_history(run)) for run in runs):.0f}",
        f"{len(runs)} ({', '.join(map(str, seeds))})",
    ]
    return f"| {' | '.join(cells)} |"


def run(args: argparse.Namespace) -> int:
    from training.state import has_ended

    groups: dict[str, list[Path]] = {}  # by settings and data
    for folder in map(Path, args.runs):
        if has_ended(folder):
            settings = common.identity(common.config_of(folder)) | {"seed": None}
            groups.setdefault(json.dumps([settings, common.fingerprint(folder)]), []).append(folder)
        else:
            print(f"skipped: {folder} is no finished run")
    if not groups:
        raise UserError("none of these folders has a finished run; name some, such as runs/NAME")
    names = [f"best, `--tta {name}`" for name in args.tta]
    columns = ["model, parameters", "command", "best epoch", "last epoch", *names, "minutes", "seeds"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for folders in groups.values():
        print(row(folders, args), flush=True)
    print("\naccuracy on validation in %, official / deduplicated, mean ± standard deviation over the seeds")
    print("\n".join(common.machines([folder for folders in groups.values() for folder in folders])))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.results", __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--data", default="", help="with --tta: the dataset (default: each run's own)")
    parser.add_argument("--cache", default=Config().cache, help="with --tta: folder for decoded images")
    parser.add_argument("--tta", nargs="+", choices=TTA[1:], default=[], help="score best.pth with these too")
    return exit_status(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

"""The table of results, from the folders of finished runs: a Markdown row for each set of hyperparameters.

    python -m bench.results runs/small-0 runs/small-1 runs/small-2 [--tta flip crops --data archive.zip]

Runs that differ in seed, place and device alone make one row: mean and standard deviation over its seeds, and the
shortest command that gives its settings. Accuracies are "official / deduplicated". "best" is the epoch that the run
kept, chosen on these images; "last" is chosen by nothing. With --tta, best.pth is also scored with each augmentation.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench import common
from cli import Parser, combine
from config import RECIPES, TTA, Config
from dataset import load
from errors import UserError, exit_status
from model import build_model
from study.stats import mean_sd
from training.state import has_ended, read_history, read_last
from utils import count_params, pick_machine
from val import predict_logits
from weights import load_weights


def figures(run: Path, args: argparse.Namespace) -> list[tuple[float, float]]:
    """The accuracies of the best and the last epoch of `run`, and of its best weights with each of --tta.

    Accuracies are in %, official and deduplicated. Raises UserError where --data is not what the run was trained on.
    """
    rows = read_history(run)
    pairs = [common.accuracies([row for row in rows if row["best"]][-1]), common.accuracies(rows[-1])]
    if not args.tta:
        return pairs
    config, machine = read_last(run)[0], pick_machine("auto", "auto")
    data = load(replace(config, data=args.data or config.data, cache=args.cache))
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
        words = ["python", "interface.py", *(["--recipe", recipe] if recipe else [])]
        for name, value in wanted.items():
            word = name.replace("_", "-")
            if name != "seed" and value != there[name]:
                switch = [f"--{word}" if value else f"--no-{word}"]
                words += switch if isinstance(value, bool) else [f"--{word}", str(value)]
        commands.append(words)
    return shlex.join(min(commands, key=len))


def row(runs: list[Path], args: argparse.Namespace) -> str:
    """The Markdown row of runs that differ in their seeds."""
    config = read_last(runs[0])[0]
    with torch.device("meta"):  # no weights are initialised
        params = count_params(build_model(config.model, **config.arguments))
    columns = zip(*(figures(run, args) for run in runs), strict=True)
    seeds = sorted(read_last(run)[0].seed for run in runs)
    minutes = [sum(row["seconds"] for row in read_history(run)) / 60 for run in runs]
    cells = [
        f"`{config.model}`, {params / 1e6:.1f}M",
        f"`{command_of(config)}`",
        *(" / ".join(mean_sd(values, 1) for values in zip(*pairs, strict=True)) for pairs in columns),
        f"{statistics.mean(minutes):.0f}",
        f"{len(runs)} ({', '.join(map(str, seeds))})",
    ]
    return f"| {' | '.join(cells)} |"


def run(args: argparse.Namespace) -> int:
    groups: dict[str, list[Path]] = {}  # by settings and data
    for folder in map(Path, args.runs):
        if has_ended(folder):
            settings = common.identity(read_last(folder)[0]) | {"seed": None}
            groups.setdefault(json.dumps([settings, common.fingerprint(folder)]), []).append(folder)
        else:
            print(f"skipped: {folder} is no finished run")
    names = [f"best, `--tta {name}`" for name in args.tta]
    columns = ["model, parameters", "command", "best epoch", "last epoch", *names, "minutes", "seeds"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for folders in groups.values():
        print(row(folders, args), flush=True)
    print("\naccuracy on validation in %, official / deduplicated, mean ± standard deviation over the seeds")
    print(common.machines([folder for folders in groups.values() for folder in folders]))
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

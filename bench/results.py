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
from typing import NamedTuple

from bench.common import accuracies, config_of, fingerprint, flags_of, history, identity, machines, mean_sd, minutes
from cli import Parser, combine
from config import RECIPES, TTA, Config
from errors import UserError, exit_status
from ranks import Ranks

Pair = tuple[float, float]  # accuracy in %, official and deduplicated


class Run(NamedTuple):
    """What a finished run reached."""

    config: Config
    best: Pair
    last: Pair
    minutes: float
    data: str  # the fingerprint of what it was trained on; "" where best.pth is gone
    augmented: list[Pair]  # its best weights with each test-time augmentation that was asked for


def finished(folder: Path) -> bool:
    """Whether the run in `folder` reached its last epoch, or ended early for want of a better one."""
    if not (folder / "config.json").exists():
        return False
    config, best = config_of(folder), [row["best"] for row in history(folder)]
    stale = best[::-1].index(True) if True in best else 0
    return len(best) >= config.epochs or 0 < config.stop_patience <= stale


def read(folder: Path, *, tta: Sequence[str], data: str, cache: str) -> Run:
    """The figures of the run in `folder`; its best weights are scored now with each of `tta`. Raises UserError."""
    config, rows = config_of(folder), history(folder)
    best = [row for row in rows if row["best"]][-1]
    place = replace(config, data=data or config.data, cache=cache)
    augmented = augmented_scores(folder, place, tta) if tta else []
    return Run(config, accuracies(best), accuracies(rows[-1]), minutes(rows), fingerprint(folder), augmented)


def augmented_scores(folder: Path, config: Config, tta: Sequence[str]) -> list[Pair]:
    """The accuracies of best.pth on the validation images, with each test-time augmentation. Raises UserError."""
    from dataset import load
    from utils import pick_machine
    from val import predict_logits
    from weights import load_weights

    data, machine, pairs = load(config), pick_machine("auto", "auto"), []
    if fingerprint(folder) != data.fingerprint:
        raise UserError(f"{folder} was trained on other data than {data.source}: name its own with --data")
    model, val = load_weights(folder / "best.pth", machine=machine)[0], data.split("val")
    for name in tta:
        hits = predict_logits(model, val, machine=machine, ranks=Ranks(), tta=name).argmax(1).numpy() == val.labels
        pairs.append((100 * hits.mean(), 100 * hits[~val.copies].mean()))
    return pairs


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs on the same data that are alike but for seed, place and device, in the order of each group's first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([identity(run.config) | {"seed": None}, run.data]), []).append(run)
    return list(groups.values())


def command_of(config: Config) -> str:
    """The shortest command that gives the settings of `config`, but for seed, place and device."""
    wanted, commands = identity(config), []
    for recipe in ("", *RECIPES):
        there = identity(combine({}, recipe=recipe)[0])
        flags = flags_of({name: wanted[name] for name in wanted if name != "seed" and wanted[name] != there[name]})
        commands.append(["python", "interface.py", *(["--recipe", recipe] if recipe else []), *flags])
    return shlex.join(min(commands, key=len))


def row(runs: list[Run]) -> str:
    """The Markdown row of a group."""
    from torch import device

    from model import build_model
    from utils import count_params

    config = runs[0].config
    with device("meta"):  # no weights are initialised
        params = count_params(build_model(config.model, **config.arguments))
    each = zip(*([run.best, run.last, *run.augmented] for run in runs), strict=True)
    cells = [
        f"`{config.model}`, {params / 1e6:.1f}M",
        f"`{command_of(config)}`",
        *(" / ".join(mean_sd(values, 1) for values in zip(*pairs, strict=True)) for pairs in each),
        f"{statistics.mean(run.minutes for run in runs):.0f}",
        f"{len(runs)} ({', '.join(map(str, sorted(run.config.seed for run in runs)))})",
    ]
    return f"| {' | '.join(cells)} |"


def run(args: argparse.Namespace) -> int:
    folders = [folder for folder in map(Path, args.runs) if finished(folder)]
    for name in args.runs:
        if Path(name) not in folders:
            print(f"skipped: {name} is no finished run")
    if not folders:
        raise UserError("none of these folders has a finished run; name some, such as runs/NAME")
    groups = grouped([read(folder, tta=args.tta, data=args.data, cache=args.cache) for folder in folders])
    augmented = [f"best, `--tta {name}`" for name in args.tta]
    columns = ["model, parameters", "command", "best epoch", "last epoch", *augmented, "minutes", "seeds"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    print("\n".join(map(row, groups)))
    caption = "accuracy on validation in %, official / deduplicated, mean ± standard deviation over the seeds"
    print("\n".join(["", caption, *machines(folders)]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.results", __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--data", default="", help="with --tta: the dataset (default: each run's own)")
    parser.add_argument("--cache", default=Config().cache, help="with --tta: folder for decoded images")
    augmented = [name for name in TTA if name != "none"]
    parser.add_argument("--tta", nargs="+", choices=augmented, default=[], help="score best.pth with these too")
    return exit_status(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

"""What each part of a recipe is worth: paired runs with and without it, and two 95 % intervals of the difference.

    python -m bench.ablate --data archive.zip --recipe nano --without ema=0 flip=no dropout=0 -- --epochs 12
    python -m bench.ablate --data archive.zip --without precision=fp32 -- --precision bf16

Each value of --without is a variant: settings, with spaces between them, that take a part away ("shift=0 zoom=0").
For each seed the recipe (without --recipe: config.py) is trained as it is ("all") and in every variant; flags of
interface.py after `--` are for every run. The figure is the validation accuracy after the last epoch, so nothing is
selected. A gain is what the part brings: all less the variant. Its interval over seeds is Student's t over the seeds'
differences: would other seeds show it? The one over images resamples the deduplicated images 10,000 times, the same
ones for both runs and for all seeds: would other faces show it, with these weights? Believe a part that passes both.

The runs stay in --runs; a finished one is not trained again. No weights are promoted.
"""

import argparse
import io
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import common
from cli import Parser, nonempty
from config import RECIPES, Config
from dataset import load
from errors import UserError, exit_status, write_file
from study.stats import bootstrap, interval, mean_sd
from training.state import read_history, read_last
from utils import pick_machine
from val import predict_logits

ALL = "all"


class Result(NamedTuple):
    """What a run reached after its last epoch."""

    official: float  # accuracy in %
    deduplicated: float
    minutes: float
    hits: np.ndarray  # (N,) bool, whether each validation image is classified correctly


def settings_in(variant: str) -> dict[str, Any]:
    """The settings that a value of --without names; a wrong one ends the script with status 2."""
    flags = []
    for name, _, value in (word.partition("=") for word in variant.split()):
        word = name.replace("_", "-")
        flags += {"no": [f"--no-{word}"], "yes": [f"--{word}"]}.get(value, [f"--{word}", value])
    return common.settings_after(flags)


def measure(run: Path, config: Config) -> Result:
    """What `run` reached after its last epoch, trained now unless its hits.npy is there.

    Raises UserError where the folder has a run with other settings, or on other data.
    """
    data, path = load(config), run / "hits.npy"
    if path.exists():
        before = common.identity(read_last(run)[0]) | {"data": common.fingerprint(run)}
        now = common.identity(config) | {"data": data.fingerprint}
        if other := [f"{name} {before[name]!r}, now {now[name]!r}" for name in now if before[name] != now[name]]:
            raise UserError(f"{run} is a run with {'; '.join(other)}: name another folder with --runs")
    else:
        machine, val = pick_machine(config.device, config.precision, config.threads), data.split("val")
        trainer, buffer = common.train_run(run, config, data, machine), io.BytesIO()
        np.save(buffer, predict_logits(trainer.eval_model, val, machine=machine).argmax(1).numpy() == val.labels)
        write_file(path, buffer.getvalue())
    rows = read_history(run)
    return Result(*common.accuracies(rows[-1]), sum(row["seconds"] for row in rows) / 60, np.load(path))


def table(results: dict[str, list[Result]], deduplicated: np.ndarray) -> list[str]:
    """Markdown rows with the accuracy of every variant, by its name the results of each seed, and the gains.

    `deduplicated` (N,) bool marks the validation images that are not in train too.
    """
    columns = ("", "official", "gain over seeds", "deduplicated", "gain over seeds", "gain over images", "minutes")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, own in results.items():
        cells = [name if name == ALL else f"without: {name}"]
        for figure in ("official", "deduplicated"):
            whole, part = ([getattr(result, figure) for result in each] for each in (results[ALL], own))
            mean, half = interval([one - other for one, other in zip(whole, part, strict=True)])
            cells += [mean_sd(part), f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"]
        hits = (np.stack([result.hits[deduplicated] for result in each]) for each in (results[ALL], own))
        cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(*bootstrap(*hits)))
        cells.append(f"{statistics.mean(result.minutes for result in own):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def run(args: argparse.Namespace) -> int:
    data = load(common.config_for(args.settings, recipe=args.recipe))
    print("\n".join([common.header(), *data.describe()]))
    results, folders = {name: [] for name in args.variants}, []
    for seed in range(args.seeds):
        for name, changed in args.variants.items():
            config = common.config_for({**args.settings, **changed, "seed": seed}, recipe=args.recipe)
            words = [args.recipe or config.model, *re.findall(r"[\w.]+", name), str(seed)]
            folders.append(Path(args.runs, "-".join(words)))
            result = measure(folders[-1], config)
            results[name].append(result)
            print("seed {}  {}  {:.2f} / {:.2f}  {:.1f} minutes".format(seed, name, *result[:3]), flush=True)
    print(f"{args.seeds} seeds: accuracy in %, gains in points with 95 % intervals")
    print("\n".join([*table(results, ~data.split("val").copies), common.machines(folders)]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.ablate", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--recipe", default="", choices=tuple(RECIPES), help="default: the values in config.py")
    parser.add_argument("--without", nargs="+", required=True, metavar="SETTINGS", help='variants, such as "ema=0"')
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, 2 or more (3)")
    parser.add_argument("--runs", default="runs/ablate", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py for every run, after --")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error("--seeds: 2 or more, for an interval")
    args.settings = {"data": args.data, **common.settings_after(args.rest)}
    args.variants = {ALL: {}, **{variant: settings_in(variant) for variant in args.without}}
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""What each part of a recipe is worth: paired runs with and without it, and two 95 % intervals of the difference.

    python -m bench.ablate --data archive.zip --recipe small --only EMA mixup -- --epochs 12
    python -m bench.ablate --data archive.zip --only bfloat16 -- --precision bf16 --epochs 6 --schedule onecycle

For each seed the recipe (without --recipe: config.py) is trained as it is ("all"), without each part of LESS that it
has, and with each of MORE that it lacks; flags of interface.py after `--` are for every run. The figure is the
validation accuracy after the last epoch, so nothing is selected. A gain is what the part brings: all less the run
without it, or the run with it less all. Its interval over seeds is Student's t over the seeds' differences: would other
seeds show it? The one over images resamples the deduplicated images 10,000 times, the same ones for both runs and
for all seeds: would other faces show it, with these weights? Believe a part that passes both.

The runs stay in --runs; a finished one is not trained again, a stopped one goes on. No weights are promoted.
"""

import argparse
import io
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.common import (
    accuracies,
    config_for,
    config_of,
    fingerprint,
    fit_in,
    header,
    history,
    identity,
    machines,
    minutes,
    settings_after,
)
from cli import Parser, nonempty
from config import RECIPES, Config
from errors import UserError, exit_status, write_file
from study.stats import bootstrap, interval

if TYPE_CHECKING:
    import numpy as np

MAX_SEEDS = 10

# The settings that switch a part off: a recipe that has all of them already lacks it. Plateau looks at the validation
# loss, so "schedule" alone is not free of selection.
LESS: dict[str, dict[str, Any]] = {
    "label smoothing": {"label_smoothing": 0.0},
    "EMA": {"ema": 0.0},
    "window": {"window": 48},
    "cutout": {"cutout": 0.0},
    "tones": {"contrast": 0.0, "brightness": 0.0},
    "mixup": {"mixup": 0.0},
    "cutmix": {"cutmix": 0.0},
    "flip": {"flip": False},
    "moves": {"shift": 0.0, "rotation": 0.0, "zoom": 0.0},
    "dropout": {"dropout": 0.0},
    "weight decay": {"weight_decay": 0.0},
    "SGD": {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05},
    "schedule": {"schedule": "plateau"},
    "votes": {"votes": ""},
    "teachers": {"teachers": ""},
    "pretraining": {"pretrained": ""},
    "bfloat16": {"precision": "fp32"},
}
# The settings that switch a part on. A recipe that changes the first one has the part already.
MORE: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "class weights": {"class_weights": "effective"},
    "clipping": {"clip": 1.0},
}
OF_AUGMENTATION = ("window", "cutout", "tones", "flip", "moves")  # parts that do nothing without it
FIGURES = ("official", "deduplicated")
HEAD = ("official", "gain (over seeds)", "deduplicated", "gain (over seeds)", "gain (over images)", "minutes")


class Part(NamedTuple):
    """One row of the table: the recipe with `settings` over it; none for the recipe as it is."""

    name: str
    settings: dict[str, Any]
    added: bool = False  # else the settings take the part away

    def __str__(self) -> str:
        return f"{'with' if self.added else 'without'} {self.name}" if self.settings else self.name


class Result(NamedTuple):
    """What a run reached after its last epoch."""

    official: float  # accuracy in %
    deduplicated: float
    minutes: float
    hits: "np.ndarray"  # (N,) bool, whether each validation image is classified correctly


ALL = Part("all", {})
Results = dict[tuple[str, int], Result]  # by str(part) and seed


def parts_of(config: Config, only: Sequence[str]) -> tuple[list[Part], list[Part]]:
    """The parts to study in the recipe that `config` is, and those that would change nothing."""
    parts, idle, defaults = [], [], Config()
    needed = {"SGD": config.optimizer == "sgd", "bfloat16": config.precision == "bf16"}
    needed |= dict.fromkeys(OF_AUGMENTATION, config.augment)
    for table, added in ((LESS, False), (MORE, True)):
        for name, settings in table.items():
            first, value = next(iter(settings)), getattr(config, next(iter(settings)))
            # A rule or a file is there or not, whatever the numbers that go with it
            deciding = [first] if isinstance(value, str) else settings
            changed = any(getattr(config, each) != settings[each] for each in deciding)
            fits = value == getattr(defaults, first) if added else changed and needed.get(name, True)
            if not only or name in only:
                (parts if fits else idle).append(Part(name, settings, added))
    return parts, idle


def measure(run: Path, config: Config) -> Result:
    """What `run` reached after its last epoch, trained now unless its hits.npy is there.

    Raises UserError where the folder has a run with other settings, or on other data.
    """
    import numpy as np

    from dataset import load
    from ranks import Ranks
    from utils import pick_machine
    from val import predict_logits

    data, path = load(config), run / "hits.npy"
    if (run / "config.json").exists():
        before, now = identity(config_of(run)), identity(config)
        other = [f"{name} {before[name]!r}, now {now[name]!r}" for name in now if before[name] != now[name]]
        if fingerprint(run) not in ("", data.fingerprint):
            other.append(f"other data than {data.source}")
        if other:
            raise UserError(f"{run} is a run with {'; '.join(other)}: name another folder with --runs")
    if not path.exists():
        machine = pick_machine(config.device, config.precision, config.threads)
        trainer, val = fit_in(run, config, data, machine), data.split("val")
        hits = predict_logits(trainer.kept, val, machine=machine, ranks=Ranks()).argmax(1).numpy() == val.labels
        buffer = io.BytesIO()
        np.save(buffer, hits)
        write_file(path, buffer.getvalue())
    rows = history(run)
    return Result(*accuracies(rows[-1]), minutes(rows), np.load(path))


def over_seeds(gains: list[float]) -> str:
    """The mean gain, and its interval where there are seeds enough for one."""
    if len(gains) < 2:
        return f"{gains[0]:+.2f}"
    mean, half = interval(gains)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def table(parts: list[Part], results: Results, seeds: int, deduplicated: "np.ndarray") -> list[str]:
    """Lines with the accuracy of every variant over the first `seeds` seeds, and the gain of its part.

    `deduplicated` (N,) bool marks the validation images that do not also stand in train.
    """
    whole = [results[str(ALL), seed] for seed in range(seeds)]
    lines = [f"{'':<24}" + "".join(f"{name:>27}" for name in HEAD)]
    for part in (ALL, *parts):
        own = [results[str(part), seed] for seed in range(seeds)]
        more, less = (own, whole) if part.added else (whole, own)
        cells = []
        for name in FIGURES:
            cells.append(f"{statistics.mean(getattr(each, name) for each in own):.2f}")
            gains = [getattr(one, name) - getattr(other, name) for one, other in zip(more, less, strict=True)]
            cells.append(over_seeds(gains) if part.settings else "")
        hits = [[each.hits[deduplicated] for each in side] for side in (more, less)]
        cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(*bootstrap(*hits)) if part.settings else "")
        cells.append(f"{statistics.mean(each.minutes for each in own):.1f}")
        lines.append(f"{part!s:<24}" + "".join(f"{cell:>27}" for cell in cells))
    if seeds > 1:
        spread = [statistics.stdev(getattr(each, name) for each in whole) for name in FIGURES]
        lines.append("all: standard deviation {:.2f} official, {:.2f} deduplicated".format(*spread))
    return lines


def run(args: argparse.Namespace) -> int:
    from dataset import DEMO_NOTE, load

    config = config_for({"data": args.data, **args.settings}, recipe=args.recipe)
    print("\n".join(header()))
    parts, idle = parts_of(config, args.only)
    if idle:
        print(f"left out, since the recipe lacks or has them: {', '.join(map(str, idle))}")
    if not parts:
        raise UserError("no part is left to study: name others with --only")
    data = load(config)
    if data.demo:
        print(DEMO_NOTE)
    results, folders = {}, []
    for seed in range(args.seeds):
        for part in (ALL, *parts):
            words = [args.recipe or config.model, *re.findall(r"[a-z0-9]+", str(part).lower()), str(seed)]
            folders.append(Path(args.runs, "-".join(words)))
            settings = {"data": args.data, **args.settings, **part.settings, "seed": seed}
            result = results[str(part), seed] = measure(folders[-1], config_for(settings, recipe=args.recipe))
            shown = f"{result.official:.2f} / {result.deduplicated:.2f}  {result.minutes:.1f} minutes"
            print(f"seed {seed}  {part!s:<24}{shown}", flush=True)
        print(f"after {seed + 1} of {args.seeds} seeds: accuracy in %, gains in points with 95 % intervals")
        print("\n".join(table(parts, results, seed + 1, ~data.split("val").copies)))
    made = machines(folders)
    if len(made) > 1:
        made.append("note: runs of several machines, precisions or versions are compared: a gain may come from that")
    print("\n".join(made))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.ablate", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--recipe", default="", choices=tuple(RECIPES), help="default: the values in config.py")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, MAX_SEEDS + 1), metavar="N")
    parser.add_argument("--only", nargs="+", choices=list(LESS | MORE), default=[], metavar="PART", help="these parts")
    parser.add_argument("--runs", default="runs/ablate", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py for every run, after --")
    args = parser.parse_args(argv)
    args.settings = settings_after(args.rest, taken=("seed", "data", "runs", "run"))
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

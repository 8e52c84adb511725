"""What each part of a recipe is worth: paired runs with and without it, and two 95 % intervals of the difference.

    python bench/study.py --data archive.zip --recipe small --seeds 3 --runs runs/study
    python bench/study.py --data archive.zip --recipe small --only EMA window -- --epochs 12

For each seed the recipe is trained as it is ("all"), without each part of LESS that it has, and with each of MORE that
it lacks; what stands after `--` goes to interface.py for every run. Every run is a process of its own. The figure is
the validation accuracy after the last epoch, so nothing is selected. A gain is what the part brings: all less the run
without it, or the run with it less all. Its interval over seeds is Student's t over the seeds' differences: would other
seeds show it? The one over images draws the images deduplicated 10,000 times anew, the same ones for both runs and
for all seeds: would other faces show it, with these weights? Believe a part that passes both.

The runs stay in --runs, and one that is there is not run again; one that was stopped goes on. The table is printed
after each seed. Weights that are shipped stay as they are.
"""

import argparse
import io
import re
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import MAX_SEEDS, check_data, finished, header, machines, notes_on, train_once, typed_knobs
from cli import Parser, from_dict, nonempty
from config import RECIPES, Config
from study.stats import bootstrap, interval

# The knobs that switch a part off: a recipe that has all these values already lacks it. Plateau looks at the validation
# loss, so "schedule" alone is not free of selection.
LESS: dict[str, dict[str, Any]] = {
    "label smoothing": {"label_smoothing": 0.0},
    "EMA": {"ema": 0.0},
    "window": {"window": 48},
    "erasing": {"cutout": 0.0},
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
}
# The knobs that switch a part on. A recipe that changes the first one has the part already.
MORE: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "class weights": {"class_weights": "effective"},
    "clipping": {"clip": 1.0},
}
OF_AUGMENTATION = ("window", "erasing", "tones", "flip", "moves")  # parts that do nothing without it
FIGURES = ("official", "deduplicated")
HEAD = ("official", "gain (over seeds)", "deduplicated", "gain (over seeds)", "gain (over images)", "minutes")
WIDTHS = (10, 28, 17, 28, 28, 9)


class Part(NamedTuple):
    """One row of the table: the recipe with `knobs` over it; none for the recipe as it is."""

    name: str
    knobs: dict[str, Any]
    added: bool = False  # else the knobs take the part away

    def __str__(self) -> str:
        return f"{'with' if self.added else 'without'} {self.name}" if self.knobs else self.name

    def folder(self, recipe: str, seed: int) -> str:
        return "-".join([recipe, *re.findall(r"[a-z0-9]+", str(self).lower()), str(seed)])


class Result(NamedTuple):
    """What a run reached after its last epoch."""

    official: float  # accuracy in %
    deduplicated: float  # the same without the images that also stand in train
    minutes: float
    hits: Any  # (N,) bool, whether each validation image is named right


ALL = Part("all", {})
Results = dict[tuple[str, int], Result]  # by str(part) and seed


def parts_of(config: Config, only: list[str]) -> tuple[list[Part], list[Part]]:
    """The parts to study in the recipe that `config` is, and those that would change nothing."""
    parts, idle, defaults = [], [], Config()
    needed = {"SGD": config.optimizer == "sgd", **dict.fromkeys(OF_AUGMENTATION, config.augment)}
    for table, added in ((LESS, False), (MORE, True)):
        for name, knobs in table.items():
            first = next(iter(knobs))
            value = getattr(config, first)
            # A rule or a file is there or not, whatever the numbers that go with it
            deciding = [first] if isinstance(value, str) else knobs
            changed = any(getattr(config, knob) != knobs[knob] for knob in deciding)
            fits = value == getattr(defaults, first) if added else changed and needed.get(name, True)
            if not only or name in only:
                (parts if fits else idle).append(Part(name, knobs, added))
    return parts, idle


# --- One run ---


def measure(run: Path, knobs: dict[str, Any], recipe: str, data: Any) -> Result:
    """What `run` reached after its last epoch, trained now if need be."""
    rows = train_once(run, knobs, recipe=recipe)
    last, minutes = rows[-1], sum(row["seconds"] for row in rows) / 60
    return Result(100 * last["val_accuracy"], 100 * last["val_accuracy_deduplicated"], minutes, hits_of(run, data))


def hits_of(run: Path, data: Any) -> Any:
    """Whether the network of the last epoch of `run` names each validation image right: (N,) bool, kept in hits.npy.

    Raises UserError where `run` was trained on other data.
    """
    import numpy as np

    from errors import UserError, write_file
    from ranks import Ranks
    from val import predict_logits

    path, val = run / "hits.npy", data.split("val")
    check_data(run, data)
    if not path.exists():
        model, machine = last_network(run)
        logits = predict_logits(model, val, machine=machine, ranks=Ranks())
        buffer = io.BytesIO()
        np.save(buffer, logits.argmax(1).numpy() == val.labels)
        write_file(path, buffer.getvalue())
    hits = np.load(path)
    if len(hits) != len(val):
        raise UserError(f"{path} is of {len(hits)} images, the data have {len(val)} to validate on: remove it")
    return hits


def last_network(run: Path) -> tuple[Any, Any]:
    """The network that was scored after the last epoch of `run`, and its Machine.

    It is the averaged one where there is one. Raises UserError where last.pth is gone or of another version.
    """
    from model import build_model
    from training.optim import WeightAverage
    from utils import pick_machine, read_checkpoint

    content = read_checkpoint(run / "last.pth", ("config", "state_dict"))
    config = from_dict(content["config"], str(run))
    model = build_model(config.model, **config.arguments)
    model.load_state_dict(content["state_dict"])
    if config.ema:
        average = WeightAverage(model, config.ema)
        average.load_state_dict(content["ema"])
        model = average.module
    machine = pick_machine(config.device, config.precision, config.threads)
    return model.to(machine.device, memory_format=machine.layout), machine


# --- The table ---


def over_seeds(gains: list[float]) -> str:
    """The mean gain, and its interval where there are seeds enough for one."""
    if len(gains) < 2:
        return f"{gains[0]:+.2f}"
    mean, half = interval(gains)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def table(parts: list[Part], results: Results, seeds: int, deduplicated: Any) -> list[str]:
    """Lines with the accuracy of every variant over the first `seeds` seeds, and the gain of its part.

    `deduplicated` (N,) bool marks the validation images that do not also stand in train.
    """
    rows = {str(part): [results[str(part), seed] for seed in range(seeds)] for part in (ALL, *parts)}
    whole = rows[str(ALL)]
    lines = [f"{'':<24}" + "".join(f"{name:>{width}}" for name, width in zip(HEAD, WIDTHS, strict=True))]
    for part in (ALL, *parts):
        own = rows[str(part)]
        cells = {name: f"{statistics.mean(getattr(each, name) for each in own):.2f}" for name in FIGURES}
        gains = dict.fromkeys((*FIGURES, "images"), "")
        if part.knobs:
            more, less = (own, whole) if part.added else (whole, own)
            for name in FIGURES:
                pairs = zip(more, less, strict=True)
                gains[name] = over_seeds([getattr(one, name) - getattr(other, name) for one, other in pairs])
            hits = [[each.hits[deduplicated] for each in side] for side in (more, less)]
            gains["images"] = "{:+.2f} ({:+.2f} to {:+.2f})".format(*bootstrap(*hits))
        minutes = f"{statistics.mean(each.minutes for each in own):.1f}"
        shown = (
            cells["official"],
            gains["official"],
            cells["deduplicated"],
            gains["deduplicated"],
            gains["images"],
            minutes,
        )
        lines.append(f"{part!s:<24}" + "".join(f"{cell:>{width}}" for cell, width in zip(shown, WIDTHS, strict=True)))
    if seeds > 1:
        spread = [statistics.stdev(getattr(each, name) for each in whole) for name in FIGURES]
        lines.append("all: standard deviation {:.2f} official, {:.2f} deduplicated".format(*spread))
    return lines


def places(runs: list[Path]) -> list[str]:
    """Lines that say where `runs` were made, and a warning where that is not the same for all."""
    lines = machines(runs)
    if len(lines) > 1:
        lines.append("note: runs of several machines, precisions or versions are compared: a gain may come from that")
    return lines


# --- All runs ---


def run(args: argparse.Namespace) -> int:
    from dataset import DEMO_NOTE, load
    from errors import UserError

    print("\n".join(header()))
    parts, idle = parts_of(args.config, args.only)
    if idle:
        print(f"left out, since the recipe lacks or has them: {', '.join(map(str, idle))}")
    if not parts:
        raise UserError(f"no part is left to study in the recipe {args.recipe}: name others with --only")
    data = load(args.config)
    for note in [*([DEMO_NOTE] if data.demo else []), *notes_on(args.config, data)]:
        print(note)
    deduplicated = ~data.split("val").copies
    cells = [
        (seed, part, Path(args.runs, part.folder(args.recipe, seed)))
        for seed in range(args.seeds)
        for part in (ALL, *parts)
    ]
    there = sum(finished(folder) for *_, folder in cells)
    print(
        f"recipe {args.recipe} {' '.join(args.rest)}: {len(cells)} runs, {len(parts) + 1} for each of {args.seeds} "
        f"seeds; {there} of them are there",
        flush=True,
    )
    results: Results = {}
    for number, (seed, part, folder) in enumerate(cells):
        knobs = {"data": args.data, **args.knobs, **part.knobs, "seed": seed}
        result = results[str(part), seed] = measure(folder, knobs, args.recipe, data)
        print(
            f"seed {seed}  {part!s:<24}{result.official:.2f} / {result.deduplicated:.2f}  {result.minutes:.1f} minutes"
        )
        if not number:
            left = sum(not finished(folder) for *_, folder in cells)
            print(f"{left} runs are left: about {left * result.minutes / 60:.1f} hours")
        if part is parts[-1]:
            print(
                f"seed {seed} done: accuracy in % after the last epoch, gains in points with 95 % intervals, over "
                f"images deduplicated; means over the seeds so far: {seed + 1}"
            )
            print("\n".join(table(parts, results, seed + 1, deduplicated)))
            print("\n".join(places([folder for other, _, folder in cells if other <= seed])))
        sys.stdout.flush()
    return 0


def main() -> int:
    parser = Parser("bench/study.py", __doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=nonempty, help="the dataset, as for interface.py")
    parser.add_argument("--recipe", required=True, choices=tuple(RECIPES))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, MAX_SEEDS + 1), metavar="N")
    parser.add_argument("--only", nargs="+", choices=list(LESS | MORE), default=[], metavar="PART", help="these parts")
    parser.add_argument("--runs", default="runs/study", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py for every run, after --")
    args = parser.parse_args()
    args.knobs = typed_knobs(args.rest, taken=("seed", "data", "runs", "run"))
    args.config = parser.resolve(argparse.Namespace(recipe=args.recipe, **{"data": args.data, **args.knobs})).config
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

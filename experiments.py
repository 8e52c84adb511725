"""The study: one residual network against mixtures of experts for groups of emotions, and a report of it.

    python experiments.py --quick                  # trains, scores, writes reports/quick/; stopped, it goes on likewise
    python experiments.py --render reports/quick   # writes the report again from its results.json

Trained are a single network, experts for groups of emotions from several groupings, a gate over each, all of a mixture
together, and controls (docs/mixtures.md). Every network is scored on the validation images after its last epoch, so no
epoch is selected. Stages are kept in runs/study-NAME/.
"""

from cli import Parser, add_flags, combine

# isort: split
import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import CLASSES, GROUPINGS
from errors import UserError, counted, exit_status, locked

if TYPE_CHECKING:
    from dataset import FaceData

# Sizes of a study: recipe, images (0 is all), seeds, epochs of the single network, experts, gates and whole mixtures
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"recipe": "nano", "limit": 9000, "seeds": 1, "epochs": (10, 5, 3, 2)},
    "medium": {"recipe": "nano", "limit": 0, "seeds": 1, "epochs": (14, 7, 4, 3)},
    "full": {"recipe": "small", "limit": 0, "seeds": 3, "epochs": (110, 40, 20, 20)},
}
ENOUGH_TRAIN, ENOUGH_VAL = 10_000, 1_000  # images: with fewer a study is too small to conclude from
WINDOW = 40  # pixels a side that every size trains on, whatever its recipe does: a fifth to a third quicker
KNOWN = (*GROUPINGS, "clusters", "random", "all-classes")  # groupings


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("experiments.py", "Compare one residual network with mixtures of experts, and write a report.")
    what = parser.add_mutually_exclusive_group(required=True)
    for name, preset in PRESETS.items():
        images = f"{preset['limit']:,} images" if preset["limit"] else "all images"
        text = f"recipe {preset['recipe']}, {images}, seeds: {preset['seeds']}"
        what.add_argument(f"--{name}", dest="preset", action="store_const", const=name, help=text)
    what.add_argument("--render", metavar="FOLDER", help="write the report of the results.json there again")
    add = parser.add_argument
    text = f"those to compare: {', '.join(KNOWN)} (default: all)"
    add("--groupings", nargs="+", choices=KNOWN, default=list(KNOWN), metavar="NAME", help=text)
    text = "of a mixture whose groups are not made by hand, and the size of the controls (default: 3)"
    add("--experts", type=int, default=3, choices=range(2, len(CLASSES)), metavar="N", help=text)
    add("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default: the size's)")
    epochs = ("BASE", "EXPERT", "GATE", "TOGETHER")
    add("--epochs", dest="lengths", type=int, nargs=4, metavar=epochs, help="of each stage (default: the size's)")
    add("--name", help="of the study (default: quick, medium or full)")
    add("--out", default="reports", metavar="FOLDER", help="where the report's folder is made")
    names = ("data", "cache", "limit", "device", "precision", "threads", "runs")
    add_flags(parser, names=names, defaults={"limit": "the size's"})
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "experiments.py", *(sys.argv[1:] if argv is None else argv)])
    args.name = args.name or args.preset
    if min(1 if args.seeds is None else args.seeds, *(args.lengths or [1])) < 1:
        parser.error("--seeds and --epochs: 1 or more")
    return parser.resolve(args)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return exit_status(render, Path(args.render)) if args.render else exit_status(run, args)


def render(folder: Path) -> int:
    """Write the report of the results.json in `folder`."""
    from study.report import write_report
    from study.results import FILE, read_results

    print(f"the report is {write_report(read_results(folder / FILE), folder)}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Train what is missing, score, and write the report; 0, or 130 where Ctrl-C ended it early."""
    print(f"study {args.name}: loading torch", flush=True)
    from dataset import DEMO_NOTE, load
    from study.configurations import Size, StudyRun
    from study.groupings import resolve
    from study.results import FILE, save_results
    from study.stages import Stages, Stopped
    from utils import pick_machine

    preset = PRESETS[args.preset]
    config = combine({"limit": preset["limit"], "window": WINDOW, **args.flags}, recipe=preset["recipe"])[0]
    lengths, seeds = args.lengths or preset["epochs"], args.seeds or preset["seeds"]
    size = Size(config, seeds, *lengths, experts=args.experts)
    wanted = resolve(GROUPINGS, list(dict.fromkeys(args.groupings)), args.experts)
    folder, out = Path(config.runs, f"study-{args.name}"), Path(args.out, args.name)
    machine = pick_machine(config.device, config.precision, config.threads)
    print(f"machine: {machine}\nreading {config.data or 'the dataset'}, which is decoded once", flush=True)
    data = load(config)
    print("\n".join([*data.describe(), *([DEMO_NOTE] if data.demo else [])]))
    check(data)
    stages = Stages(folder / "stages", data, machine, count=size.stages(wanted))
    print(f"{stages.count} stages, kept in {folder}; the report goes to {out}", flush=True)
    for path in (folder, out):  # now, not after hours
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror}): give another --runs or --out") from error
    with locked(folder):
        study = StudyRun(size, wanted, stages)
        try:
            study.run()
        except Stopped:
            print(f"stopped after {stages.done} of {stages.count} stages; nothing is lost, the same command goes on")
            return 130
        print("every stage is trained: writing the report", flush=True)
        results = study.results(args.name, command=args.command, why=why(size, data))
    save_results(results, out / FILE)
    render(out)
    if data.demo:
        print(DEMO_NOTE)
    return 0


def check(data: "FaceData") -> None:
    """Raise UserError where a class has no validation image, or only copies of train images."""
    if data.classes != CLASSES:
        raise UserError(f"{data.source}: the study is of FER2013's classes, these are {', '.join(data.classes)}")
    val = data.split("val")
    there = set(val.labels[~val.copies].tolist())
    if missing := [name for label, name in enumerate(CLASSES) if label not in there]:
        copies = ", without copies of train images," if val.copies.any() else ""
        raise UserError(f"{data.source}: the validation part{copies} has no image of {', '.join(missing)}; add some")


def why(size: Any, data: "FaceData") -> str:
    """Why a study is too small to conclude from, against --full on real faces; "" if it is not."""
    full, lengths = PRESETS["full"], (size.base, size.expert, size.gate, size.together)
    train, val = len(data.split("train")), int((~data.split("val").copies).sum())
    reasons = {
        "its faces are rendered": data.demo,
        "its networks are small": size.config.model == "EmotionResNet-nano",
        f"it trains on {train:,} images": train < ENOUGH_TRAIN or size.config.limit,
        f"it scores {val:,} images": val < ENOUGH_VAL,
        f"it has {counted(size.seeds, 'seed')}": size.seeds < full["seeds"],
        f"its stages are short ({' + '.join(map(str, lengths))} epochs)": any(
            own < least for own, least in zip(lengths, full["epochs"], strict=True)
        ),
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


if __name__ == "__main__":
    sys.exit(main())

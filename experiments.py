"""The study: one residual network against mixtures of experts for groups of emotions, and a report of it.

    python experiments.py --quick

trains a single network, experts for groups of emotions from several groupings, a gate over each, and all of a mixture
together; and what makes the comparison fair: a wider network with as many parameters and multiplications as a mixture,
one with those of top-1 gating, and an ensemble of as many networks. It scores all on the validation images after the
last epoch of each stage, so that no epoch is selected, and writes reports/NAME/. Stages are kept in runs/study-NAME/: a
study that was stopped, by Ctrl-C or otherwise, goes on with the same command.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import CLASSES, GROUPINGS, Config, Parser, add_flags, combine

# Sizes of a study: recipe, images (0 is all), seeds, epochs of the kinds of stages, and why it is not conclusive
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"recipe": "nano", "limit": 9000, "seeds": 1, "epochs": (12, 6, 4, 3),
              "why": "its networks are small and see at most 9,000 images, for a few epochs each"},
    "medium": {"recipe": "nano", "limit": 0, "seeds": 1, "epochs": (14, 8, 5, 4),
               "why": "its networks are small and it has a single seed"},
    "full": {"recipe": "small", "limit": 0, "seeds": 3, "epochs": (110, 40, 20, 20), "why": ""},
}  # fmt: skip

KNOWN = (*GROUPINGS, "clusters", "random", "all-classes")  # groupings
OVERHEAD = 1.2  # of scoring and saving


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("experiments.py", "Compare one residual network with mixtures of experts, and write a report.")
    size = parser.add_mutually_exclusive_group(required=True)
    for name, preset in PRESETS.items():
        images = f"{preset['limit']:,} images" if preset["limit"] else "all images"
        size.add_argument(f"--{name}", dest="preset", action="store_const", const=name,
                          help=f"recipe {preset['recipe']}, {images}, seeds: {preset['seeds']}")  # fmt: skip
    parser.add_argument("--groupings", nargs="+", choices=KNOWN, default=list(KNOWN), metavar="NAME",
                        help=f"those to compare: {', '.join(KNOWN)} (default: all)")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="seeds 0 to N - 1 (default: the size's)")
    parser.add_argument("--epochs", dest="lengths", type=int, nargs=4, metavar=("BASE", "EXPERT", "GATE", "TOGETHER"),
                        help="of each kind of stage (default: the size's)")  # fmt: skip
    parser.add_argument(
        "--scratch", action="store_true", help="experts and gates begin anew, not as the single network"
    )
    parser.add_argument("--name", default="", help="of the study (default: quick, medium or full)")
    parser.add_argument("--out", default="reports", metavar="FOLDER", help="where the report's folder goes")
    add_flags(parser, names=("data", "cache", "limit", "device", "precision", "threads", "runs"))
    args = parser.parse_args(argv)
    args.typed = list(sys.argv[1:] if argv is None else argv)
    if args.seeds < 0 or (args.lengths and min(args.lengths) < 1):
        parser.error("--seeds and --epochs: 1 or more")
    return parser.resolve(args)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from utils import exit_status  # late: --help and a typo need not wait for torch

    return exit_status(run, args)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, score, and write the report; 0, or 130 where Ctrl-C ended it early."""
    from dataset import DEMO_NOTE, load
    from mixtures import Size, Study
    from report import write_report
    from stages import Stages, Stopped, seconds_per_image
    from utils import locked, pick_machine

    typed = {"seeds": args.seeds, "epochs": args.lengths}
    preset = PRESETS[args.preset] | {key: value for key, value in typed.items() if value}
    config = combine({"limit": preset["limit"], **args.flags}, recipe=preset["recipe"])[0]
    size = Size(config, preset["seeds"], *preset["epochs"])
    machine = pick_machine(config.device, config.precision, config.threads)
    print(f"machine: {machine}")
    data = load(config)
    print("\n".join(data.describe()))
    if data.demo:
        print(DEMO_NOTE)
    check(data)
    name = args.name or args.preset
    folder, works = Path(config.runs, f"study-{name}"), plan(size, args.groupings)
    images = len(data.split("train")) * sum(epochs * work for epochs, work in works)
    minutes = OVERHEAD * images * seconds_per_image(config, machine) / 60
    print(f"{len(works)} stages, kept in {folder}; about {minutes:.0f} minutes if all are to be trained", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        study = Study(size, args.groupings, Stages(folder / "stages", data, machine, planned=len(works)), args.scratch)
        try:
            for seed in range(size.seeds):
                study.run_seed(seed)
        except Stopped:
            print(f"stopped in stage {study.stages.done} of {len(works)}, nothing is lost; the same command goes on")
            return 130
        study.write(name, command=shlex.join(["python", "experiments.py", *args.typed]), why=why(args, config))
    out = Path(args.out, name)
    write_report(folder / "results", out)
    print(f"the report is {out / 'report.md'}, and as a page {out / 'report.html'}")
    if data.demo:
        print(DEMO_NOTE)
    return 0


def check(data: Any) -> None:
    """Raise UserError where a class has no validation image: nothing could be said of it."""
    from utils import UserError

    if bare := [name for name, count in zip(CLASSES, data.split("val").counts(), strict=True) if not count]:
        raise UserError(f"{data.source}: the validation part has no image of {', '.join(bare)}; add some")


def why(args: argparse.Namespace, config: Config) -> str:
    """Why the study is too small to conclude anything; "" if it is not."""
    preset = PRESETS[args.preset]
    if config.limit != preset["limit"] or args.seeds or args.lengths or args.groupings != list(KNOWN):
        return preset["why"] or "it was run smaller than it is meant"
    return preset["why"]


def plan(size: Any, groupings: Sequence[str]) -> list[tuple[int, float]]:
    """The epochs of every stage, and its work for an image, in training steps of the single network."""
    from mixtures import EXPERTS, MEMBERS

    stages = [(size.base, 1.0)] * MEMBERS + [(size.base, float(MEMBERS)), (size.base, 2.0)]
    groups: set[tuple[str, ...]] = set()
    for name in groupings:
        found = [tuple(sorted(group)) for group in GROUPINGS.get(name, [[name, str(at)] for at in range(EXPERTS)])]
        groups |= set() if name == "all-classes" else set(found)
        # A frozen expert's part of a step is a third of one: forward alone
        stages += [(size.gate, 1 + len(found) / 3), (size.together, 1.0 + len(found))]
    return (stages + [(size.expert, 1.0)] * len(groups)) * size.seeds


if __name__ == "__main__":
    sys.exit(main())

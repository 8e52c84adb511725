"""The study: one residual network against mixtures of experts for groups of emotions, and a report of it.

    python experiments.py --quick

trains a single network, experts for groups of emotions from several groupings, a gate over each, and all of a mixture
together; and what makes the comparison fair: the single network trained on as long as a mixture, a wider one with as
many parameters and multiplications, one with those of top-1 gating, an ensemble of as many networks, and mixtures with
drawn groups and with experts for all emotions. It scores all on the validation images after the last epoch of each
stage, so that no epoch is selected, and writes reports/NAME/. Stages are kept in runs/study-NAME/: a study that was
stopped, by Ctrl-C or otherwise, goes on with the same command.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli import Parser, add_flags, combine
from config import CLASSES, GROUPINGS

# Sizes of a study: recipe, images (0 is all), seeds, epochs of the single network, experts, gates and whole mixtures
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"recipe": "nano", "limit": 9000, "seeds": 1, "epochs": (10, 5, 3, 2)},
    "medium": {"recipe": "nano", "limit": 0, "seeds": 1, "epochs": (14, 7, 4, 3)},
    "full": {"recipe": "small", "limit": 0, "seeds": 3, "epochs": (110, 40, 20, 20)},
}
ENOUGH = (10000, 1000)  # images to learn from and to score: fewer are too few to conclude from
WINDOW = 40  # pixels a side that every size trains on, whatever its recipe does: a fifth to a third quicker
KNOWN = (*GROUPINGS, "clusters", "random", "all-classes")  # groupings
EXPERTS = range(2, len(CLASSES) + 1)  # of a mixture
FOLDERS = ("--data", "--cache", "--out", "--runs")  # flags that take a path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser("experiments.py", "Compare one residual network with mixtures of experts, and write a report.")
    size = parser.add_mutually_exclusive_group(required=True)
    for name, preset in PRESETS.items():
        images = f"{preset['limit']:,} images" if preset["limit"] else "all images"
        size.add_argument(
            f"--{name}",
            dest="preset",
            action="store_const",
            const=name,
            help=f"recipe {preset['recipe']}, {images}, seeds: {preset['seeds']}",
        )
    parser.add_argument(
        "--groupings",
        nargs="+",
        choices=KNOWN,
        default=list(KNOWN),
        metavar="NAME",
        help=f"those to compare: {', '.join(KNOWN)} (default: all)",
    )
    parser.add_argument(
        "--experts",
        type=int,
        default=3,
        metavar="N",
        help=f"{EXPERTS[0]} to {EXPERTS[-1]}, where groups are not by hand, and of that many the size "
        "of the ensemble and of the wide network (default: 3)",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default: the size's)")
    parser.add_argument(
        "--epochs",
        dest="lengths",
        type=int,
        nargs=4,
        metavar=("BASE", "EXPERT", "GATE", "TOGETHER"),
        help="of each kind of stage (default: the size's)",
    )
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="experts and gates begin anew, and experts get the single network's epochs",
    )
    parser.add_argument("--name", help="of the study (default: quick, medium or full)")
    parser.add_argument("--out", default="reports", metavar="FOLDER", help="where the report's folder goes")
    names = ("data", "cache", "limit", "device", "precision", "threads", "runs")
    add_flags(parser, names=names, defaults={"limit": "the size's"})
    args = parser.parse_args(argv)
    args.typed = list(sys.argv[1:] if argv is None else argv)
    args.groupings = list(dict.fromkeys(args.groupings))
    args.name = args.preset if args.name is None else args.name
    if (args.seeds is not None and args.seeds < 1) or (args.lengths and min(args.lengths) < 1):
        parser.error("--seeds and --epochs: 1 or more")
    if args.experts not in EXPERTS:
        parser.error(f"--experts {args.experts}: {EXPERTS[0]} to {EXPERTS[-1]} are allowed, as there are emotions")
    if args.experts == len(CLASSES) and "random" in args.groupings:
        parser.error(
            f"--experts {args.experts}: with one emotion each there is nothing to draw for `random`: "
            "leave it out of --groupings"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", args.name):
        parser.error(f"--name {args.name!r}: it names folders: letters, digits, . _ and - only, and no . at the start")
    return parser.resolve(args)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from errors import exit_status

    return exit_status(run, args)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, score, and write the report; 0, or 130 where Ctrl-C ended it early."""
    print(f"study {args.name}: loading torch", flush=True)
    from dataset import DEMO_NOTE, load
    from errors import UserError, locked
    from study.configurations import Study
    from study.groupings import given
    from study.plan import Size, seconds, steps
    from study.report import write_report
    from study.stages import Stages, Stopped, in_words, seconds_per_image
    from utils import pick_machine

    wanted = given(GROUPINGS, args.groupings, args.experts)
    preset = PRESETS[args.preset]
    config = combine({"limit": preset["limit"], "window": WINDOW, **args.flags}, recipe=preset["recipe"])[0]
    lengths, seeds = args.lengths or preset["epochs"], args.seeds or preset["seeds"]
    size = Size(config, seeds, *lengths, experts=args.experts, scratch=args.scratch)
    machine = pick_machine(config.device, config.precision, config.threads)
    print(f"machine: {machine}")
    print(f"reading {config.data or 'the dataset'}: decoded once, then kept in the cache", flush=True)
    data = load(config)
    print("\n".join(data.describe()))
    if data.demo:
        print(DEMO_NOTE)
    check(data)
    images = {name: len(data.split(name)) for name in ("train", "val")}
    whole = len(load(replace(config, limit=0)).split("train")) if config.limit else images["train"]
    scored = int((~data.split("val").copies).sum())
    too_small = why(size, seen=images["train"], whole=whole, scored=scored, drawn=data.demo)
    print("timing a few training steps", flush=True)
    each = seconds_per_image(config, machine)
    plan = [(step.name, seconds(step, config, **images, each=each)) for step in steps(size, wanted)]
    folder, out = Path(config.runs, f"study-{args.name}"), Path(args.out, args.name)
    total = in_words(sum(dict(plan).values()))
    print(f"{len(plan)} stages, kept in {folder}; about {total} if all are to be trained", flush=True)
    for made, flag in ((folder, "--runs"), (out, "--out")):
        try:
            made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{made} cannot be made ({error.strerror}); name another folder with {flag}") from error
    with locked(folder):
        study = Study(size, wanted, Stages(folder / "stages", data, machine, plan=plan))
        try:
            for seed in range(size.seeds):
                study.run_seed(seed)
        except Stopped:
            print(f"stopped in stage {study.stages.done} of {len(plan)}, nothing is lost; the same command goes on")
            return 130
        study.write(args.name, command=command(args.typed), why=too_small)
    write_report(folder / "results", out)
    print(f"the report is {out / 'report.md'}, and as a page {out / 'report.html'}")
    if data.demo:
        print(DEMO_NOTE)
    return 0


def check(data: Any) -> None:
    """Raise UserError where a class has no validation image but copies of train images, or all have too few to show."""
    import numpy as np  # late, as all that --help can do without

    from dataset import stratified_rows
    from errors import UserError
    from study.configurations import SHOWN
    from study.results import LEAST_ROWS

    val = data.split("val")
    shown = int((~val.copies)[stratified_rows(val.labels, SHOWN)].sum())
    counts = np.bincount(val.labels[~val.copies], minlength=len(CLASSES))
    if bare := [name for name, count in zip(CLASSES, counts, strict=True) if not count]:
        copies = ", copies of train images left out," if val.copies.any() else ""
        raise UserError(f"{data.source}: the validation part{copies} has no image of {', '.join(bare)}; add some")
    if shown < LEAST_ROWS:
        raise UserError(
            f"{data.source}: the validation part has {shown} images to show that are no copies of train "
            f"images, a report needs {LEAST_ROWS}; add some"
        )


def why(size: Any, *, seen: int, whole: int, scored: int, drawn: bool) -> str:
    """Why a study of `size` on `seen` of `whole` training images is too small to conclude from; "" if it is not.

    The measure is --full, on faces that are not `drawn`, and ENOUGH images to learn from and `scored`, copies left out.
    """
    full = PRESETS["full"]
    lengths = (size.base, size.expert, size.gate, size.together)
    reasons = {
        "its faces are drawn": drawn,
        "its networks are small": size.config.model == "EmotionResNet-nano",
        f"it sees {seen:,} of the {whole:,} images": seen < whole,
        f"it learns from {seen:,} images": seen == whole < ENOUGH[0],
        f"it scores {scored:,} images": scored < ENOUGH[1],
        f"it has {'a single seed' if size.seeds == 1 else f'{size.seeds} seeds'}": size.seeds < full["seeds"],
        f"its stages are short ({' + '.join(map(str, lengths))} epochs)": any(
            own < least for own, least in zip(lengths, full["epochs"], strict=True)
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return " and ".join(part for part in (", ".join(found[:-1]), *found[-1:]) if part)


def command(typed: Sequence[str]) -> str:
    """The command with the words `typed`, without the folders above its files: those are nobody else's business."""
    words = ["python", "experiments.py"]
    for word in typed:
        flag, equals, value = word.partition("=")
        if words[-1] in FOLDERS:
            word = Path(word).name or word
        elif equals and flag in FOLDERS:
            word = f"{flag}={Path(value).name or value}"
        words.append(word)
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())

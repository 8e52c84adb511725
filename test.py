"""Test: score a split of the dataset. `python test.py --split val` takes the validation images."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cli import Parser, add_flags, nonempty
from config import TTA, TTA_HELP, Config
from tables import check_target


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser(
        "test.py",
        "Score a split of the dataset: accuracy, macro-F1, recall of every class, confusion matrix, "
        "once as the split stands and once without the images that also stand in train.",
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="what is scored (default: test)")
    parser.add_argument("--weights", type=nonempty, metavar="FILE", help="weights to score (default: the shipped ones)")
    parser.add_argument("--json", type=nonempty, metavar="FILE", help="write the same figures to this file too")
    parser.add_argument("--tta", choices=TTA, default="none", help=TTA_HELP)
    add_flags(parser, names=("data", "cache", "votes", "device", "precision", "threads"))
    return parser.resolve(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from errors import exit_status

    return exit_status(score, args)


class Task(NamedTuple):
    """What there is to do: a network with its file's path and content, the data, one of its splits.

    `voted` (N,) are the most-voted emotions of its images, -1 where there is none; None without votes.
    """

    machine: Any
    path: Path
    model: Any
    content: dict[str, Any]
    data: Any
    split: Any
    voted: Any


def score(args: argparse.Namespace) -> int:
    """Load weights and data, score the split, print the figures. Of several processes (torchrun) each scores a part."""
    from ranks import joined
    from val import predict_logits
    from val import score as score_logits

    with joined() as ranks:
        task = ranks.in_turn(lambda: prepare(args))
        ranks.check(task.machine.device.type)
        split = task.split
        logits = predict_logits(task.model, split, machine=task.machine, ranks=ranks, tta=args.tta)
        scores = score_logits(logits, split.labels, split.copies)
        voted = None if task.voted is None else score_logits(logits, task.voted, split.copies)
        ranks.first_does(lambda: show(task, scores, voted, args))
    return 0


def prepare(args: argparse.Namespace) -> Task:
    """Load weights and data, and say what they are. Raises UserError."""
    from dataset import GET_FER2013, find, is_demo, load
    from errors import UserError
    from utils import pick_machine
    from weights import SHIPPED, describe, find_weights, load_weights, same_dataset

    out = args.json
    if out:
        check_target(out, "json")
    if out == "-":
        raise UserError("--json -: standard output has the figures as lines already; name a file")
    if out and (os.path.isdir(out) or not os.path.isdir(os.path.dirname(os.path.abspath(out)))):
        raise UserError(f"--json {out}: a folder, or a file in a folder that is not there; name another file")
    config: Config = args.config
    machine = pick_machine(config.device, config.precision, config.threads)
    path = find_weights(args.weights or SHIPPED)
    model, content = load_weights(path, machine=machine)
    print(describe(path, content, tta=args.tta))
    # The validation part that training drew is drawn again: its share stands in the weights' own config.
    fraction = content.get("config", {}).get("val_fraction", config.val_fraction)
    try:
        config = replace(config, val_fraction=fraction)
    except ValueError as error:
        raise UserError(f"{path}: {error}; these weights were not written by this project") from error
    if not config.data and is_demo(find(config)[0]) and not content["dataset"]["demo"]:
        raise UserError(
            f"there is no dataset in this folder, and {path} was trained on real faces: name one with --data (the "
            f"drawn faces are --data demo). {GET_FER2013}"
        )
    data = load(config)
    print("\n".join(data.describe()))
    if not same_dataset(content, data):
        print(
            f"note: these weights were trained on another dataset ({content['dataset']['fingerprint']}, "
            f"this one is {data.fingerprint}); "
            f"'deduplicated' can only look at this one's train images"
        )
    split = data.split(args.split)
    return Task(machine, path, model, content, data, split, split.most_voted() if config.votes else None)


def show(task: Task, scores: Any, voted: Any, args: argparse.Namespace) -> None:
    """Print the figures, against the labels and, if there are some, FER+ votes (`voted`), and write them to --json.

    Raises UserError.
    """
    from dataset import DEMO_NOTE
    from errors import write_json

    data, split = task.data, task.split
    drawn = split.name == "val" and data.sampled_val
    name = f"{split.name} (drawn)" if drawn else split.name
    print("\n".join(lines(name, scores)))
    if voted:
        print("\n".join(f"{name}  {line}" for line in voted_lines(voted)))
    if args.json:
        write_json(
            Path(args.json),
            {
                "split": split.name,
                "drawn": drawn,
                **scores.plain(),
                "ferplus": voted and voted.plain(),
                "tta": args.tta,
                "weights": str(task.path),
                "model": task.content["model"],
                "trained_on": task.content["dataset"]["fingerprint"],
                "data": data.source,
                "fingerprint": data.fingerprint,
                "demo": data.demo,
                "machine": str(task.machine),
            },
        )
    if data.demo:
        print(DEMO_NOTE)


def lines(split: str, scores: Any) -> list[str]:
    """The figures of a split: both summaries, then recall and confusion; each line begins with its name."""
    from metrics import summary, table

    shown = [
        "loss is cross-entropy, in nats per image",
        f"official        {summary(scores.official)}",
        f"deduplicated    {summary(scores.deduplicated)}",
        "recall and confusion, official:",
        *table(scores.official),
    ]
    return [f"{split}  {line}" for line in shown]


def voted_lines(voted: Any) -> list[str]:
    """The figures against the majority of the FER+ votes."""
    from metrics import summary

    return [
        "FER+ is against the most-voted of the seven emotions, where there is one; published figures are of 8 classes",
        f"FER+ official        {summary(voted.official)}",
        f"FER+ deduplicated    {summary(voted.deduplicated)}",
    ]


if __name__ == "__main__":
    sys.exit(main())

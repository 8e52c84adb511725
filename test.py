"""Score a split of the dataset: `python test.py --split val` takes the validation images.

`--weights a.pth b.pth` scores several networks as one, by the mean of their logits.
"""

from cli import Parser, add_flags, nonempty

# isort: split
import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classes import text_for
from config import TTA, TTA_HELP
from errors import SHIPPED, UserError, check_replaceable, exit_status, write_json
from metrics import describe
from ranks import joined

if TYPE_CHECKING:
    from dataset import FaceData
    from model import FaceNet
    from utils import Machine
    from val import Ensemble


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, or a value that is not allowed, exits with status 2."""
    parser = Parser(
        "test.py",
        "Score a split of the dataset: accuracy, macro-F1, recall of every class, confusion matrix. Where some of its "
        "images are also in train, once more without these.",
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="what is scored (default: test)")
    help = "weight files or runs; the logits of several are averaged (default: the shipped one)"
    parser.add_argument("--weights", type=nonempty, nargs="+", metavar="FILE", help=help)
    parser.add_argument("--json", type=nonempty, metavar="FILE", help="write the same figures to this file too")
    parser.add_argument("--tta", choices=TTA, default="none", help=TTA_HELP)
    add_flags(parser, names=("data", "follow_links", "classes", "cache", "votes", "device", "precision", "threads"))
    return parser.resolve(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, parse(argv))


def run(args: argparse.Namespace) -> int:
    """Load weights and data, score the split, print the figures. Of several processes (torchrun) each scores a part."""
    from dataset import DEMO_NOTE
    from val import predict_logits, score

    with joined() as ranks:
        machine, model, files, data = ranks.in_turn(prepare, args)
        ranks.check(machine.device.type)
        split = data.split(args.split)
        logits = predict_logits(model, split, machine=machine, ranks=ranks, tta=args.tta)
        scores, voted = score(logits, split.labels, split.copies), None
        lines = [*scores.lines(), *scores.tables(split.classes)]
        if args.config.votes:
            voted = score(logits, most_voted(split.votes), split.copies)
            lines.append("against the most-voted of the seven emotions (published FER+ figures are of 8 classes):")
            lines += [f"FER+ {line}" for line in voted.lines()]
        sampled = split.name == "val" and data.sampled_val
        name = f"{split.name} (sampled)" if sampled else split.name
        print("\n".join(f"{name}  {line}" for line in lines))
        if args.json and ranks.first:
            figures = {"split": split.name, "sampled": sampled, **scores.plain(), "ferplus": voted and voted.plain()}
            weights = [
                {"file": str(path), "model": file["model"], "dataset": file["dataset"]} for path, file in files.items()
            ]
            setting = {"tta": args.tta, "temperature": model.temperature, "weights": weights, "machine": str(machine)}
            dataset = {"data": data.source, "name": data.name, "fingerprint": data.fingerprint, "demo": data.demo}
            write_json(Path(args.json), figures | setting | dataset)
        if data.demo:
            print(DEMO_NOTE)
    return 0


def prepare(args: argparse.Namespace) -> "tuple[Machine, FaceNet | Ensemble, dict[Path, dict[str, Any]], FaceData]":
    """The machine, the network, the content of each of its files, and the data; prints what they are.

    Raises UserError.
    """
    from dataset import GET_FER2013, find, load
    from utils import pick_machine
    from weights import load_ensemble, same_dataset

    config = args.config
    if args.json:
        check_replaceable("--json", args.json, '{\n  "split": ')
    machine = pick_machine(config.device, config.precision, config.threads)
    model, files = load_ensemble(args.weights or [SHIPPED], machine=machine)
    print("\n".join(describe(path, content, tta=args.tta) for path, content in files.items()))
    # Where the data has no validation part, it is the one that the weights were not trained on.
    fractions = {content["config"].get("val_fraction", config.val_fraction) for content in files.values()}
    config = replace(config, val_fraction=fractions.pop())
    if not config.data and find(config)[0] == "demo" and not any(file["dataset"]["demo"] for file in files.values()):
        raise UserError(
            "there is no dataset in this folder, and these weights were trained on real faces: name one with --data "
            f"(the rendered faces are --data demo). {GET_FER2013}"
        )
    data = load(replace(config, classes=text_for(next(iter(files.values())), config.classes)), fixed=True)
    print("\n".join(data.describe()))
    if data.sampled_val and fractions:
        raise UserError("--weights: these runs left different parts of the data for validation; score them one by one")
    for path, content in files.items():
        if not same_dataset(content, data):
            print(
                f"note: {path} was trained on other data ({content['dataset']['fingerprint']}, this is "
                f"{data.fingerprint}): it may have seen these images"
            )
    return machine, model, files, data


def most_voted(votes: np.ndarray) -> np.ndarray:
    """Return the emotion (N,) int64 with the most votes of the seven; -1 for a tie, and where there are none."""
    most = votes.max(1, keepdims=True)
    clear = (most[:, 0] > 0) & ((votes == most).sum(1) == 1)
    return np.where(clear, votes.argmax(1), -1)


if __name__ == "__main__":
    sys.exit(main())

"""Score a split of the dataset: `python test.py --split val` takes the validation images.

`--weights a.pth b.pth` scores several networks as one, by the mean of their logits.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cli import Parser, add_flags, nonempty
from config import TTA, TTA_HELP
from errors import UserError, exit_status, write_json
from metrics import table
from ranks import joined

if TYPE_CHECKING:
    from dataset import FaceData
    from model import FaceNet
    from utils import Machine
    from val import Ensemble, Scores


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
    add_flags(parser, names=("data", "cache", "votes", "device", "precision", "threads"))
    return parser.resolve(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, parse(argv))


class Task(NamedTuple):
    """What there is to do: a network, the content (JSON-like) of each of its files, and the data."""

    machine: "Machine"
    model: "FaceNet | Ensemble"
    files: dict[Path, dict[str, Any]]
    data: "FaceData"


def run(args: argparse.Namespace) -> int:
    """Load weights and data, score the split, print the figures. Of several processes (torchrun) each scores a part."""
    from dataset import DEMO_NOTE
    from val import predict_logits, score

    with joined() as ranks:
        machine, model, files, data = ranks.in_turn(prepare, args)
        ranks.check(machine.device.type)
        split = data.split(args.split)
        most_voted = split.most_voted() if args.config.votes else None
        logits = predict_logits(model, split, machine=machine, ranks=ranks, tta=args.tta)
        scores = score(logits, split.labels, split.copies)
        voted = None if most_voted is None else score(logits, most_voted, split.copies)
        sampled = split.name == "val" and data.sampled_val
        name = f"{split.name} (sampled)" if sampled else split.name
        print("\n".join(f"{name}  {line}" for line in lines(scores, voted)))
        if args.json and ranks.first:
            figures = {"split": split.name, "sampled": sampled, **scores.plain(), "ferplus": voted and voted.plain()}
            weights = [
                {"file": str(path), "model": content["model"], "dataset": content["dataset"]}
                for path, content in files.items()
            ]
            setting = {"tta": args.tta, "temperature": model.temperature, "weights": weights, "machine": str(machine)}
            dataset = {"data": data.source, "name": data.name, "fingerprint": data.fingerprint, "demo": data.demo}
            write_json(Path(args.json), figures | setting | dataset)
        if data.demo:
            print(DEMO_NOTE)
    return 0


def prepare(args: argparse.Namespace) -> Task:
    """Load weights and data, and print what they are. Raises UserError."""
    from dataset import GET_FER2013, find, load
    from utils import pick_machine
    from weights import SHIPPED, describe, load_ensemble, same_dataset

    config = args.config
    machine = pick_machine(config.device, config.precision, config.threads)
    model, files = load_ensemble(args.weights or [SHIPPED], machine=machine)
    check_json(args.json, [*map(str, files), config.data])
    print("\n".join(describe(path, content, tta=args.tta) for path, content in files.items()))
    # Where the data has no validation part, it is the one that the weights were not trained on.
    fractions = {content["config"].get("val_fraction", config.val_fraction) for content in files.values()}
    try:
        config = replace(config, val_fraction=fractions.pop())
    except ValueError as error:
        raise UserError(f"--weights: {error}; this file was not written by this project") from error
    if not config.data and find(config)[0] == "demo" and not any(file["dataset"]["demo"] for file in files.values()):
        raise UserError(
            "there is no dataset in this folder, and these weights were trained on real faces: name one with --data "
            f"(the rendered faces are --data demo). {GET_FER2013}"
        )
    data = load(config)
    print("\n".join(data.describe()))
    if data.sampled_val and fractions:
        raise UserError("--weights: these runs left different parts of the data for validation; score them one by one")
    for path, content in files.items():
        if not same_dataset(content, data):
            print(
                f"note: {path} was trained on other data ({content['dataset']['fingerprint']}, this is "
                f"{data.fingerprint}): it may have seen these images"
            )
    return Task(machine, model, files, data)


def check_json(target: str | None, inputs: Sequence[str]) -> None:
    """Raise UserError where --json cannot be written, or would replace what is read."""
    if not target:
        return
    if target == "-":
        raise UserError("--json -: standard output has the figures as lines already; name a file")
    if os.path.isdir(target) or not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise UserError(f"--json {target}: a folder, or a file in a folder that is not there; name another file")
    if os.path.realpath(target) in {os.path.realpath(name) for name in inputs if name}:
        raise UserError(f"--json {target}: that file is read here, and would be replaced; name another file")


def lines(scores: "Scores", voted: "Scores | None") -> list[str]:
    """The figures against the labels, then, if there are FER+ votes, against the majority of these."""
    title = "recall and confusion" if len(scores.lines()) == 1 else "recall and confusion, official"
    shown = [*scores.lines(), f"{title}:", *table(scores.official)]
    if voted:
        shown.append("against the most-voted of the seven emotions (published FER+ figures are of 8 classes):")
        shown += [f"FER+ {line}" for line in voted.lines()]
    return shown


if __name__ == "__main__":
    sys.exit(main())

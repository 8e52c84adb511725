"""What the mean of trained networks' probabilities is worth against the best of them.

    python bench/ensemble.py final_weights_new.pth runs/small0/best.pth --data archive.zip [--tta flip]

Scores every weight file and their mean on the validation images. The best single network is the one with the highest
accuracy deduplicated, so it is chosen on the images that it is compared on; the gain over it is deduplicated, with
its 95 % interval over images (paired bootstrap) and the p-value of the sign-flip test.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

import numpy as np

from bench.common import header, in_percent
from cli import Parser
from config import TTA


def run(args: argparse.Namespace) -> int:
    import torch

    from dataset import DEMO_NOTE, load
    from errors import UserError
    from ranks import Ranks
    from study.stages import macs
    from study.stats import bootstrap, sign_flip
    from utils import pick_machine
    from val import predict_logits, score, tta_views
    from weights import find_weights, load_weights

    files = [find_weights(name, flag="WEIGHTS") for name in args.files]
    if len(set(files)) < 2:
        raise UserError("an ensemble has two networks or more: name other weight files too")
    print("\n".join(header()))
    data = load(args.resolved)
    if data.demo:
        print(DEMO_NOTE)
    val, machine = data.split("val"), pick_machine(args.resolved.device, args.resolved.precision, args.resolved.threads)
    print(
        f"machine: {machine}; accuracy in % on validation images, official / deduplicated; "
        f"views of an image: {len(tta_views(args.tta))}"
    )
    log_p, work, known = [], [], [load_weights(file, machine=machine) for file in files]
    for file, (_, content) in zip(files, known, strict=True):
        if content["dataset"]["fingerprint"] != data.fingerprint:
            raise UserError(f"{file} was trained on other data than {data.source}, and may know these images")
    if data.sampled_val:  # the part that none of them was trained on
        fractions = {content["config"]["val_fraction"] for _, content in known}
        if len(fractions) > 1:
            raise UserError(
                f"{data.source}: the weights left different shares of it for validation "
                f"({', '.join(map(str, sorted(fractions)))}): name weights of runs with the same --val-fraction"
            )
        val = load(replace(args.resolved, val_fraction=fractions.pop())).split("val")
    for file, (model, _) in zip(files, known, strict=True):
        log_p.append(predict_logits(model, val, machine=machine, ranks=Ranks(), tta=args.tta).log_softmax(1))
        work.append(macs(model) * len(tta_views(args.tta)))
        print(line(str(file), score(log_p[-1], val.labels, val.copies), work[-1]), flush=True)
    mean = torch.stack(log_p).mean(0)
    print(line(f"mean of all {len(files)}", score(mean, val.labels, val.copies), sum(work)))
    deduplicated = (val.labels >= 0) & ~val.copies
    *each, whole = [(values.argmax(1).numpy() == val.labels)[None, deduplicated] for values in (*log_p, mean)]
    best = int(np.argmax([hits.mean() for hits in each]))
    gain, chance = bootstrap(whole, each[best]), sign_flip(whole, each[best])
    print(
        f"mean less {files[best]}, deduplicated: {gain.mean:+.2f} points ({gain.low:+.2f} to {gain.high:+.2f}), "
        f"p {chance:.4f}"
    )
    return 0


def line(name: str, scores, work: int) -> str:
    return f"{in_percent(scores)}  {work / 1e6:,.0f}M multiply-adds  {name}"


def main() -> int:
    parser = Parser("bench/ensemble.py", __doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="WEIGHTS", help="weight files, two or more")
    parser.add_argument("--data", required=True, help="the dataset that they were trained on")
    parser.add_argument("--cache", default=".cache", help="folder for decoded images")
    parser.add_argument("--tta", default="none", choices=TTA, help="test-time augmentation of each, as for test.py")
    args = parser.parse_args()
    args.resolved = parser.resolve(argparse.Namespace(data=args.data, cache=args.cache)).config
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""What batch norm's statistics are worth: finished runs scored with those of training, and with those of plain images.

    python bench/recalibrate.py runs/small0 runs/small1 --data archive.zip [--out runs/small1-recalibrated]

For runs without the knob `recalibrate`: the statistics are set by all training images, without augmentation, and
best.pth is scored on the validation images before and after. With --out the last run's weights are kept that way in a
new folder, and held to the shipped ones as at the end of training.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import config_of, header
from cli import Parser, nonempty


def run(args: argparse.Namespace) -> int:
    from dataset import DEMO_NOTE, load
    from errors import UserError
    from utils import pick_machine
    from weights import load_weights

    print("\n".join(header()))
    data = load(args.resolved)
    if data.demo:
        print(DEMO_NOTE)
    machine = pick_machine(args.resolved.device, args.resolved.precision, args.resolved.threads)
    print(
        f"machine: {machine}; accuracy in %, official / deduplicated, with the statistics of training, then of "
        f"plain images"
    )
    for name in args.runs:
        config = config_of(Path(name))
        model, content = load_weights(Path(name, "best.pth"), machine=machine)
        if content["dataset"]["fingerprint"] != data.fingerprint:
            raise UserError(f"{name} was trained on other data than {data.source}: score it on its own with --data")
        if data.sampled_val:  # the part that this run did not train on
            data = load(replace(args.resolved, val_fraction=config.val_fraction))
        before, after = recalibrated(model, data, machine)
        images = f"{len(data.split('train')):,} images"
        print(f"{name}  {in_percent(before)}, then {in_percent(after)} with {images}", flush=True)
    if args.out:
        print(keep(Path(args.out), model, after, config, data, machine, content["dataset"]))
    return 0


def recalibrated(model: Any, data: Any, machine: Any) -> tuple[Any, Any]:
    """The scores of `model` before and after its statistics are set by the training images of `data`."""
    from training.optim import recalibrate
    from val import evaluate

    before = evaluate(model, data.split("val"), machine=machine)
    recalibrate(model, data.split("train").images, machine=machine)
    return before, evaluate(model, data.split("val"), machine=machine)


def in_percent(scores: Any) -> str:
    return f"{100 * scores.official.accuracy:.2f} / {100 * scores.deduplicated.accuracy:.2f}"


def keep(out: Path, model: Any, scores: Any, config: Any, data: Any, machine: Any, dataset: dict[str, Any]) -> str:
    """Write best.pth into the new folder `out` and promote it; a line that says whether it is the shipped one now.

    `dataset` is what the run's weights say they were trained on.
    """
    from errors import new_run_folder
    from weights import promote, save_weights

    run = new_run_folder(str(out.parent), out.name)
    save_weights(run / "best.pth", model, scores, config=config, data=data, dataset=dataset)
    return promote(run, data, machine=machine)


def main() -> int:
    parser = Parser("bench/recalibrate.py", __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--data", required=True, help="the dataset that they were trained on")
    parser.add_argument("--cache", default=".cache", help="folder for decoded images")
    parser.add_argument("--precision", default="auto", help="of the scoring, as for test.py (auto)")
    parser.add_argument("--out", type=nonempty, help="folder for the last run's weights with the new statistics")
    args = parser.parse_args()
    knobs = {name: getattr(args, name) for name in ("data", "cache", "precision")}
    args.resolved = parser.resolve(argparse.Namespace(**knobs)).config
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""Train: find the data, build the network, fit it, report. `python interface.py --help` lists the knobs."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cli import Parser, add_flags, differences, nonempty
from config import MACHINE_FIELDS, RECIPES, Config
from losses import make_loss


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, a value that is not allowed, or an unreadable --config exits with status 2."""
    parser = Parser("interface.py", "Train a network on FER2013 or on your own faces.")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="", help="a named set of knobs, see README")
    parser.add_argument("--config", type=nonempty, metavar="FILE", help="knobs from a run's config.json")
    parser.add_argument("--resume", type=nonempty, metavar="RUN", help="go on with this run's folder")
    parser.add_argument(
        "--promote",
        action="store_true",
        help="at the end, put this run's weights in the place of "
        "final_weights_new.pth, whatever they score; the old file is kept in the run's folder",
    )
    add_flags(parser)
    typed = parser.parse_args(argv)
    args = parser.resolve(typed)
    if args.resume:
        layers = [name for name in ("recipe", "config") if getattr(typed, name)]
        fixed = sorted({*args.flags, *layers} - set(MACHINE_FIELDS))
        if fixed:
            parser.error(
                f"--resume goes on with the run's own knobs; only {', '.join(MACHINE_FIELDS)} may be "
                f"given with it, not {', '.join(fixed)}"
            )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from errors import exit_status

    return exit_status(run_from, args)


def run_from(args: argparse.Namespace) -> int:
    """Find the data, then train in a new run's folder or go on in an old one; nothing else may write there.

    Of several processes (torchrun) each runs this; the first one prints and writes.
    """
    from dataset import load
    from errors import locked, new_run_folder, run_folder, write_json
    from ranks import joined
    from train import check_run
    from training.resume import check_resume, read_last
    from training.state import ranks_on
    from utils import pick_machine

    with joined() as ranks, ExitStack() as stack:
        config, run, last = args.config, None, None
        for line in args.notes:
            print(line)
        if args.resume:
            run = ranks.in_turn(lambda: run_folder(args.resume))
            ranks.first_does(lambda: stack.enter_context(locked(run)))
            config, last = ranks.in_turn(lambda: read_last(run, args.flags))
        machine = ranks.in_turn(lambda: pick_machine(config.device, config.precision, config.threads))
        ranks.check(machine.device.type)
        print(f"machine: {ranks_on(machine, ranks)}")
        data = ranks.in_turn(lambda: load(config))
        print("\n".join(data.describe()))
        drawn = replace(config, pretrained="") if last else config  # last.pth has the weights
        model = ranks.in_turn(lambda: new_model(drawn, machine))
        if last:
            ranks.in_turn(lambda: check_resume(last, data, config, machine, ranks))
        elif not args.resume:
            ranks.in_turn(lambda: check_run(model, data, config, machine, ranks))
            name = ranks.share(config.run or f"{config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
            run = Path(config.runs, name)

            def begin() -> None:
                new_run_folder(config.runs, name)
                write_json(run / "config.json", asdict(config))
                stack.enter_context(locked(run))

            ranks.first_does(begin)
        return train(model, data, config, run=run, machine=machine, last=last, ranks=ranks, asked=args.promote)


def new_model(config: Config, machine: Any) -> Any:
    """Seed everything, then draw the network, or begin with the weights of `config.pretrained`. Raises UserError."""
    from model import build_model
    from utils import seed_everything
    from weights import load_pretrained

    seed_everything(config.seed, deterministic=config.deterministic)
    model = build_model(config.model, **config.arguments).to(machine.device, memory_format=machine.layout)
    if config.pretrained:
        load_pretrained(model, config, machine=machine)
    return model


def train(
    model: Any,
    data: Any,
    config: Config,
    *,
    run: Path,
    machine: Any,
    last: dict[str, Any] | None,
    ranks: Any,
    asked: bool = False,
) -> int:
    """Fit and report; 0, or 130 where Ctrl-C ended the run early. `asked` promotes the weights in any case."""
    from dataset import DEMO_NOTE
    from errors import quoted
    from train import fit
    from utils import count_params, read_checkpoint
    from weights import describe, find_weights, leakage_notes

    changed = ", ".join(f"{key} {value}" for key, value in differences(config).items()) or "nothing"
    print(f"{config.model}, {count_params(model):,} parameters; run {run}; differs from config.py: {changed}")
    if data.demo:
        print(DEMO_NOTE)
    notes: list[str] = []
    if config.pretrained and not last:
        path = find_weights(config.pretrained, flag="--pretrained")
        content = read_checkpoint(path)
        notes = leakage_notes(path, content, data, config.val_fraction)
        print("\n".join([f"begins with {describe(path, content)}", *notes]))
    print(
        f"loss is {make_loss(config, data.split('train').counts())[1]}, in nats per image; train is measured in "
        f"passing, with augmentation, dropout and training's targets; val is official / deduplicated; "
        f"* is a new best"
    )
    trainer = fit(model, data, config, run=run, machine=machine, resume=last, ranks=ranks, leakage=notes)
    if not trainer.done:
        print(
            f"stopped in epoch {trainer.epoch + 1}, nothing is lost; "
            f"go on with: python interface.py --resume {quoted(run)}"
        )
        return 130
    ranks.first_does(lambda: report(trainer, asked))
    return 0


def report(trainer: Any, asked: bool) -> None:
    """Score the best weights, draw the figures, promote the weights, and say what to do next."""
    from dataset import DEMO_NOTE
    from errors import counted, quoted
    from metrics import summary, table
    from weights import promote

    run, data, machine = trainer.run, trainer.data, trainer.machine
    scores = draw(trainer)
    print(f"\nbest weights on validation, loss is {trainer.loss_name}:")
    print(f"  official        {summary(scores.official)}")
    print(f"  deduplicated    {summary(scores.deduplicated)}")
    print("\n".join(["recall and confusion, deduplicated:", *table(scores.deduplicated)]))
    minutes = sum(row["seconds"] for row in trainer.history) / 60
    print(
        f"{counted(len(trainer.history), 'epoch')} in {minutes:.1f} minutes; {run} holds best.pth, last.pth, "
        f"config.json, metrics.jsonl, curves.png, confusion.png"
    )
    print(promote(run, data, machine=machine, asked=asked))
    if data.demo:
        print(DEMO_NOTE)
    print(f"predict with this run: python predict.py PHOTO --weights {quoted(run)}")


def draw(trainer: Any) -> Any:
    """Score the best weights and draw the run's figures, the last files of its folder; the validation scores."""
    import plots
    from val import evaluate
    from weights import load_weights

    run, machine = trainer.run, trainer.machine
    model, _ = load_weights(run / "best.pth", machine=machine)
    scores = evaluate(model, trainer.data.split("val"), machine=machine, loss=trainer.loss)
    plots.curves(trainer.history, run / "curves.png", title=f"{run.name}: {trainer.loss_name}")
    plots.confusion(scores.deduplicated.confusion, run / "confusion.png", title=f"{run.name}: validation deduplicated")
    return scores


if __name__ == "__main__":
    sys.exit(main())

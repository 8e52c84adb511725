"""Train: find the data, build the network, fit it, report. `python interface.py --help` lists the settings."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cli import Parser, add_flags, differences, nonempty
from config import MACHINE_FIELDS, RECIPES, Config
from errors import counted, exit_status, locked, new_run_folder, quoted, run_folder, write_json

if TYPE_CHECKING:
    from dataset import FaceData
    from model import FaceNet
    from ranks import Ranks
    from training.distill import Teachers
    from utils import Machine
    from val import Scores


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, a value that is not allowed, or an unreadable --config exits with status 2."""
    parser = Parser("interface.py", "Train a network on FER2013 or on your own faces.")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="", help="a named set of settings, see README")
    parser.add_argument("--config", type=nonempty, metavar="FILE", help="settings from a run's config.json")
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
                f"--resume goes on with the run's own settings; only {', '.join(MACHINE_FIELDS)} may be given with it, "
                f"not {', '.join(fixed)}. {longer(args.resume, args.flags.get('epochs'))}"
            )
    return args


def longer(run: Path | str, epochs: int | None = None) -> str:
    """How a run is trained for longer than it was begun with."""
    return (
        f"To train a run's weights for longer, begin a new run with them: "
        f"python interface.py --config {quoted(run)} --pretrained {quoted(run)} --epochs {epochs or 'N'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run_from, parse(argv))


class Task(NamedTuple):
    """A run about to begin or to go on. `last` is last.pth's content; `ended`: it was trained to its end before."""

    config: Config
    run: Path
    machine: "Machine"
    data: "FaceData"
    model: "FaceNet"
    teachers: "Teachers | None"
    last: dict[str, Any] | None
    leakage: list[str]
    ended: bool


def run_from(args: argparse.Namespace) -> int:
    """Train in a new run's folder or go on in an old one, and report; 0, or 130 where Ctrl-C ended the run early.

    Of several processes (torchrun) each runs this; the first one prints and writes.
    """
    from ranks import joined
    from train import fit
    from training.resume import read_history

    with joined() as ranks, ExitStack() as stack:
        name = ranks.share(args.config.run or f"{args.config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
        task = ranks.in_turn(lambda: prepare(args, name, ranks, stack))
        config, run, machine, data, model, teachers, last, leakage, ended = task
        if ended:
            history = read_history(run)
        else:
            trainer = fit(
                model,
                data,
                config,
                run=run,
                machine=machine,
                resume=last,
                ranks=ranks,
                teachers=teachers,
                leakage=leakage,
            )
            history = trainer.history
            if not trainer.done:
                print(
                    f"stopped in epoch {trainer.epoch + 1}, nothing is lost; "
                    f"go on with: python interface.py --resume {quoted(run)}"
                )
                return 130
        ranks.first_does(lambda: report(run, data, config, history, machine=machine, asked=args.promote))
    return 0


def prepare(args: argparse.Namespace, name: str, ranks: "Ranks", stack: ExitStack) -> Task:
    """Find the data, build the network, and make the folder runs/`name` or read the one to go on with.

    `stack` holds the folder's lock. Raises UserError.
    """
    from dataset import DEMO_NOTE, load
    from losses import make_loss
    from train import check_run
    from training.distill import load_teachers
    from training.resume import check_fingerprint, check_resume, has_ended, read_last
    from training.state import ranks_on
    from utils import count_params, pick_machine, read_checkpoint
    from weights import describe, find_weights, leakage_notes

    config, run, last, ended = args.config, Path(args.config.runs, name), None, False
    print("\n".join(args.notes), end="\n" if args.notes else "")
    if args.resume:
        run = run_folder(args.resume)
        if ranks.first:
            stack.enter_context(locked(run))
        config, last = read_last(run, args.flags)
        ended = has_ended(run)
    machine = pick_machine(config.device, config.precision, config.threads)
    ranks.check(machine.device.type)
    print(f"machine: {ranks_on(machine, ranks)}")
    data = load(config)
    print("\n".join(data.describe()))
    if ended:
        check_fingerprint(read_checkpoint(run / "best.pth", ("dataset",))["dataset"]["fingerprint"], data)
    model = new_model(replace(config, pretrained="") if last or ended else config, machine)  # those files have them
    teachers = None if ended else load_teachers(config, machine)
    if last:
        check_resume(last, data, teachers, machine, ranks)
    elif not ended:
        check_run(model, data, config, ranks)
    if not args.resume and ranks.first:
        new_run_folder(config.runs, name)
        write_json(run / "config.json", asdict(config))
        stack.enter_context(locked(run))
    changed = ", ".join(f"{key} {value}" for key, value in differences(config).items()) or "nothing"
    print(f"{config.model}, {count_params(model):,} parameters; run {run}; differs from config.py: {changed}")
    if data.demo:
        print(DEMO_NOTE)
    leakage: list[str] = []
    if config.pretrained and not (last or ended):
        path = find_weights(config.pretrained, flag="--pretrained")
        content = read_checkpoint(path)
        leakage = leakage_notes(path, content, data, config.val_fraction)
        print("\n".join([f"begins with {describe(path, content)}", *leakage]))
    if not ended:
        both = "; val is official / deduplicated" if data.split("val").copies.any() else ""
        print(
            f"loss is {make_loss(config, data.split('train').counts())[1]}, in nats per image; train is measured in "
            f"passing, with augmentation, dropout and training's targets{both}; * is a new best"
        )
    return Task(config, run, machine, data, model, teachers, last, leakage, ended)


def new_model(config: Config, machine: "Machine") -> "FaceNet":
    """Seed everything, then draw the network, or begin with the weights of `config.pretrained`. Raises UserError."""
    from model import build_model
    from utils import seed_everything
    from weights import load_pretrained

    seed_everything(config.seed, deterministic=config.deterministic)
    model = build_model(config.model, **config.arguments).to(machine.device, memory_format=machine.layout)
    if config.pretrained:
        load_pretrained(model, config, machine=machine)
    return model


def report(
    run: Path, data: "FaceData", config: Config, history: list[dict[str, Any]], *, machine: "Machine", asked: bool
) -> None:
    """Score the best weights, draw the figures, promote the weights, and say what to do next.

    last.pth, which the run no longer needs, is removed. `asked` promotes the weights in any case.
    """
    from dataset import DEMO_NOTE
    from losses import make_loss
    from metrics import summary, table
    from weights import promote

    scores = draw(run, data, config, history, machine=machine)
    print(f"\nbest weights on validation, loss is {make_loss(config, data.split('train').counts())[1]}:")
    print(f"  official        {summary(scores.official)}")
    if data.split("val").copies.any():
        print(f"  deduplicated    {summary(scores.deduplicated)}")
    print("\n".join(["recall and confusion, deduplicated:", *table(scores.deduplicated)]))
    minutes = sum(row["seconds"] for row in history) / 60
    print(
        f"{counted(len(history), 'epoch')} in {minutes:.1f} minutes; {run} holds best.pth, config.json, "
        f"metrics.jsonl, curves.png, confusion.png"
    )
    if (run / "last.pth").exists():
        megabytes = (run / "last.pth").stat().st_size / 1e6
        (run / "last.pth").unlink()
        print(f"last.pth ({megabytes:.0f} MB), which a stopped run goes on from, is removed: this run has ended")
    print(longer(run))
    print(promote(run, data, machine=machine, asked=asked))
    if data.demo:
        print(DEMO_NOTE)
    print(f"predict with this run: python predict.py PHOTO --weights {quoted(run)}")


def draw(run: Path, data: "FaceData", config: Config, history: list[dict[str, Any]], *, machine: "Machine") -> "Scores":
    """Score the best weights and draw the run's figures, the last files of its folder; the validation scores."""
    import plots
    from losses import make_loss
    from val import evaluate
    from weights import load_weights

    model, _ = load_weights(run / "best.pth", machine=machine)
    loss, loss_name = make_loss(config, data.split("train").counts())
    scores = evaluate(model, data.split("val"), machine=machine, loss=loss)
    plots.curves(history, run / "curves.png", title=f"{run.name}: {loss_name}")
    plots.confusion(scores.deduplicated.confusion, run / "confusion.png", title=f"{run.name}: validation deduplicated")
    return scores


if __name__ == "__main__":
    sys.exit(main())

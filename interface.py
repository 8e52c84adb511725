"""Train: find the data, build the network, fit it, report. `python interface.py --help` lists the settings."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cli import Parser, add_flags, combine, differences, nonempty
from config import MACHINE_FIELDS, RECIPES, Config
from errors import counted, exit_status, locked, new_run_folder, quoted, run_folder, write_json
from ranks import Ranks, joined

if TYPE_CHECKING:
    from dataset import FaceData
    from model import FaceNet
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
    layers = [name for name in ("recipe", "config") if getattr(typed, name)]
    args.bare = not layers
    fixed = sorted({*args.flags, *layers} - set(MACHINE_FIELDS))
    if args.resume and fixed:
        parser.error(
            f"--resume goes on with the run's own settings; only {', '.join(MACHINE_FIELDS)} may be given with it, "
            f"not {', '.join(fixed)}. {longer(args.resume, args.flags.get('epochs'))}"
        )
    return args


def longer(run: Path | str, epochs: int | None = None) -> str:
    """How the weights of a run are trained for longer than it."""
    return (
        f"To train its weights for longer, begin a new run with them: "
        f"python interface.py --config {quoted(run)} --pretrained {quoted(run)} --epochs {epochs or 'N'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run_from, parse(argv))


class Task(NamedTuple):
    """What is to be trained, and reported in the folder `run`.

    `last` is the content of last.pth, where a stopped run goes on. `leakage` are notes on weights that `model` begins
    with. Of a run that has ended there is only its `history`, to be reported again.
    """

    config: Config
    run: Path
    data: "FaceData"
    machine: "Machine"
    model: "FaceNet | None" = None
    teachers: "Teachers | None" = None
    last: dict[str, Any] | None = None
    leakage: list[str] = []  # noqa: RUF012
    history: list[dict[str, Any]] | None = None


def run_from(args: argparse.Namespace) -> int:
    """Train in a new run's folder or go on in an old one, then report; 130 where Ctrl-C ended the run early.

    Of several processes (torchrun) each runs this; the first one prints and writes.
    """
    from train import fit

    with joined() as ranks, ExitStack() as locks:
        name = ranks.share(args.config.run or f"{args.config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
        task = ranks.in_turn(prepare, args, name, ranks, locks)
        if task.history is None:
            trainer = fit(
                task.model,
                task.data,
                task.config,
                run=task.run,
                machine=task.machine,
                resume=task.last,
                ranks=ranks,
                teachers=task.teachers,
                leakage=task.leakage,
            )
            if not trainer.done:
                print(
                    f"stopped in epoch {trainer.progress.epoch + 1}, nothing is lost; "
                    f"go on with: python interface.py --resume {quoted(task.run)}"
                )
                return 130
            task = task._replace(history=trainer.history)
        if ranks.first:
            report(task, promoted=args.promote)
    return 0


def prepare(args: argparse.Namespace, name: str, ranks: Ranks, locks: ExitStack) -> Task:
    """Find the data, build the network, and make the folder runs/`name`, or read the one to go on with.

    The folder is locked until `locks` is closed. Raises UserError.
    """
    from dataset import DEMO_NOTE, load
    from losses import make_loss
    from train import check_run
    from training.distill import load_teachers
    from training.state import check_fingerprint, check_resume, describe_machine, has_ended, read_history, read_last
    from utils import count_params, pick_machine, read_checkpoint
    from weights import describe, find_weights, leakage_notes

    config, run, last, leakage = args.config, Path(args.config.runs, name), None, []
    for note in args.notes:
        print(note)
    if args.resume:
        run = run_folder(args.resume)
        if ranks.first:
            locks.enter_context(locked(run))
        config, last = read_last(run, args.flags)
    machine = pick_machine(config.device, config.precision, config.threads)
    ranks.check(machine.device.type)
    print(f"machine: {describe_machine(machine, ranks)}")
    data = load(config)
    print("\n".join(data.describe()))
    if data.demo:
        print(DEMO_NOTE)
    if args.resume and has_ended(run):
        check_fingerprint(read_checkpoint(run / "best.pth", ("dataset",))["dataset"]["fingerprint"], data)
        print(f"run {run} has ended: what follows is its report again. {longer(run)}")
        return Task(config, run, data, machine, history=read_history(run))
    if data.demo and args.bare and not args.resume:
        config, _ = combine(args.flags, recipe="demo")
    model = new_model(replace(config, pretrained="") if last else config, machine)  # last.pth has the weights
    teachers = load_teachers(config, machine)
    if last:
        check_resume(last, data, teachers, machine, ranks)
    check_run(model, data, config, ranks)
    if not args.resume and ranks.first:
        new_run_folder(config.runs, name)
        write_json(run / "config.json", asdict(config))
        locks.enter_context(locked(run))
    changed = ", ".join(f"{key} {value}" for key, value in differences(config).items()) or "nothing"
    print(f"{config.model}, {count_params(model):,} parameters; run {run}; differs from config.py: {changed}")
    if config.pretrained and not last:
        path = find_weights(config.pretrained, flag="--pretrained")
        content = read_checkpoint(path)
        leakage = leakage_notes(path, content, data, config.val_fraction)
        print("\n".join([f"begins with {describe(path, content)}", *leakage]))
    both = "; val is official / deduplicated" if data.split("val").copies.any() else ""
    print(
        f"loss is {make_loss(config, data.split('train').counts())[1]}, in nats per image; train is measured in "
        f"passing, with augmentation, dropout and training's targets{both}; * is a new best"
    )
    return Task(config, run, data, machine, model, teachers, last, leakage)


def new_model(config: Config, machine: "Machine") -> "FaceNet":
    """Seed everything, then initialise the network, or give it the weights of `config.pretrained`. Raises UserError."""
    from model import build_model
    from utils import seed_everything
    from weights import load_pretrained

    seed_everything(config.seed, deterministic=config.deterministic)
    model = build_model(config.model, **config.arguments).to(machine.device, memory_format=machine.layout)
    if config.pretrained:
        load_pretrained(model, config, machine=machine)
    return model


def report(task: Task, *, promoted: bool) -> None:
    """Calibrate and score the best weights, plot the figures, promote the weights, and say what to do next.

    last.pth, which the run no longer needs, is removed. `promoted`: whatever the weights score.
    """
    from dataset import DEMO_NOTE
    from metrics import table
    from training.promote import promote
    from weights import calibrate

    run, data, machine, history = task.run, task.data, task.machine, task.history
    temperature, before, after = calibrate(run / "best.pth", data, machine=machine)
    plot(task, temperature, before, after)
    print("\nbest weights on validation, loss is cross-entropy:")
    print("\n".join(f"  {line}" for line in after.lines()))
    print("\n".join(["recall and confusion, deduplicated:", *table(after.deduplicated)]))
    print(
        f"temperature {temperature:.3f} divides the logits from now on: calibration error (ECE), deduplicated, "
        f"{before.deduplicated.ece:.4f} before and {after.deduplicated.ece:.4f} after"
    )
    minutes = sum(row["seconds"] for row in history) / 60
    files = "best.pth, config.json, metrics.jsonl, curves.png, confusion.png, reliability.png, mistakes.png"
    print(f"{counted(len(history), 'epoch')} in {minutes:.1f} minutes; {run} holds {files}")
    if (run / "last.pth").exists():
        megabytes = (run / "last.pth").stat().st_size / 1e6
        (run / "last.pth").unlink()
        print(f"last.pth ({megabytes:.0f} MB), from which a stopped run goes on, is removed: this one has ended")
    print(promote(run, data, machine=machine, asked=promoted))
    if data.demo:
        print(DEMO_NOTE)
    print(f"predict with this run: python predict.py PHOTO --weights {quoted(run)}")


def plot(task: Task, temperature: float, before: "Scores", after: "Scores") -> None:
    """Plot the run's figures: curves, confusion matrix, reliability before and after the temperature, mistakes."""
    import plots
    from losses import make_loss
    from val import predict_logits
    from weights import load_weights

    run, val = task.run, task.data.split("val")
    caption = "these faces are rendered, not photographs" if task.data.demo else ""
    model, _ = load_weights(run / "best.pth", machine=task.machine)
    kept = ~val.copies
    probabilities = predict_logits(model, val, machine=task.machine).softmax(1).numpy()[kept]
    loss_name = make_loss(task.config, task.data.split("train").counts())[1]
    plots.curves(task.history, run / "curves.png", title=f"{run.name}: {loss_name}", caption=caption)
    name = f"{run.name}: validation, deduplicated"
    plots.confusion(after.deduplicated.confusion, run / "confusion.png", title=name, caption=caption)
    plots.reliability(
        before.deduplicated,
        after.deduplicated,
        run / "reliability.png",
        title=name,
        caption=f"temperature {temperature:.3f}. {caption}".strip(),
    )
    plots.mistakes(val.images[kept], val.labels[kept], probabilities, run / "mistakes.png", title=name, caption=caption)


if __name__ == "__main__":
    sys.exit(main())

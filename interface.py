"""Train: find the data, build the network, fit it, report. `python interface.py --help` lists the settings."""

from cli import Parser, add_flags, combine, differences, nonempty

# isort: split
import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from config import CLASSES, MACHINE_FIELDS, RECIPES, Config
from errors import check_unused, counted, exit_status, locked, new_run_folder, plain, quoted, run_folder, write_json
from metrics import ANSWERED_RIGHT, describe
from ranks import Ranks, joined

if TYPE_CHECKING:
    from model import FaceNet
    from training.state import Trainer
    from utils import Machine
    from weights import Calibration


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The typed flags. A typo, a value that is not allowed, or an unreadable --config exits with status 2."""
    parser = Parser("interface.py", "Train a network on FER2013 or on your own faces.")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="", help="settings by name: docs/training.md")
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
    args.bare = not (layers or args.resume)
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


def run_from(args: argparse.Namespace) -> int:
    """Train in a new run's folder or go on in an old one, then report; 130 where Ctrl-C ended the run early.

    Of several processes (torchrun) each runs this; the first one prints and writes.
    """
    from train import run_epochs

    with joined() as ranks, ExitStack() as locks:
        name = ranks.share(args.config.run or f"{args.config.model}-{time.strftime('%Y%m%d-%H%M%S')}")
        trainer = ranks.in_turn(prepare, args, name, ranks, locks)
        run_epochs(trainer)
        if not trainer.done:
            typed = args.config.cache != Config().cache
            cache = f" --cache {quoted(args.config.cache)}" if typed else ""
            print(
                f"stopped in epoch {trainer.progress.epoch + 1}, nothing is lost; "
                f"go on with: python interface.py --resume {quoted(trainer.run)}{cache}"
            )
            return 130
        if ranks.first:
            report(trainer, promoted=args.promote)
    return 0


def prepare(args: argparse.Namespace, name: str, ranks: Ranks, locks: ExitStack) -> "Trainer":
    """Find the data, build the network, and make the folder runs/`name`, or read the one to go on with.

    The folder is locked until `locks` is closed. Raises UserError.
    """
    from dataset import DEMO_NOTE, load
    from train import check_run
    from training.distill import load_teachers
    from training.state import (
        Trainer,
        check_fingerprint,
        check_resume,
        describe_machine,
        final_progress,
        has_ended,
        read_last,
    )
    from utils import count_params, pick_machine, read_checkpoint
    from weights import leakage_notes, load_pretrained

    config, run, last, ended, leakage = args.config, Path(args.config.runs, name), None, False, []
    for note in args.notes:
        print(note)
    if args.resume:
        run = run_folder(args.resume)
        if ranks.first:
            locks.enter_context(locked(run))
        config, last = read_last(run, args.flags)
        ended = has_ended(run)
    elif ranks.first and args.config.run:
        check_unused(run)
    machine = pick_machine(config.device, config.precision, config.threads)
    ranks.check(machine.device.type)
    print(f"machine: {describe_machine(machine, ranks)}")
    data = load(config)
    print("\n".join([*data.describe(), *data.doubts()]))
    if data.demo:
        print(DEMO_NOTE)
        if args.bare:
            config, _ = combine(args.flags, recipe="demo")
    fresh = not (last or ended)  # else the weights of `pretrained` and `teachers` are in the run's own files
    model = new_model(config, machine, len(data.classes))
    teachers = None if ended else load_teachers(config, data, machine)
    if last:
        check_resume(last, data, teachers, machine, ranks)
    if ended:
        check_fingerprint(read_checkpoint(run / "best.pth", ("dataset",))["dataset"]["fingerprint"], data)
        print(f"{run} has ended: it is reported again. {longer(run)}")
    check_run(model, data, config, ranks)
    if config.pretrained and fresh:
        path, content = load_pretrained(model, config, data.classes, machine=machine)
        leakage = leakage_notes(path, content, data, config.val_fraction)
        print("\n".join([f"begins with {describe(path, content)}", *leakage]))
    trainer = Trainer(model, data, config, run=run, machine=machine, ranks=ranks, teachers=teachers, leakage=leakage)
    if not args.resume and ranks.first:  # only now, so that what is refused leaves no folder
        trainer.run = new_run_folder(config.runs, name, number=int(not args.config.run))
        locks.enter_context(locked(trainer.run))
        write_json(trainer.run / "config.json", asdict(config))
    changed = plain(", ".join(f"{key} {value}" for key, value in differences(config).items()) or "nothing")
    print(f"{config.model}, {count_params(model):,} parameters; run {trainer.run}; differs from config.py: {changed}")
    both = "; val is official / deduplicated" if data.split("val").copies.any() else ""
    print(
        f"loss is {trainer.loss_name}, in nats per image; train is the mean over an epoch's batches, with augmentation "
        f"and dropout{both}; * is a new best"
    )
    if last:
        trainer.restore(last)
        print(f"goes on in epoch {trainer.progress.epoch + 1}, after {trainer.progress.step} of {trainer.steps} steps")
    if ended:
        trainer.progress = final_progress(run)
    return trainer


def new_model(config: Config, machine: "Machine", classes: int = len(CLASSES)) -> "FaceNet":
    """Seed everything, then initialise the network for so many classes."""
    from model import build_model
    from utils import seed_everything

    seed_everything(config.seed, deterministic=config.deterministic)
    return build_model(config.model, num_classes=classes, **config.arguments).to(
        machine.device, memory_format=machine.layout
    )


def report(trainer: "Trainer", *, promoted: bool) -> None:
    """Calibrate and score the best weights, plot the figures, promote the weights, and say what to do next.

    last.pth, which the run no longer needs, is removed. `promoted`: whatever the weights score.
    """
    from dataset import DEMO_NOTE
    from train import duration
    from training.promote import promote
    from val import CALIBRATION_IMAGES
    from weights import calibrate

    run, data, history, last = trainer.run, trainer.data, trainer.history, trainer.run / "last.pth"
    fitted = calibrate(run / "best.pth", data, machine=trainer.machine)
    before, after = fitted.before, fitted.after
    files = ", ".join(["best.pth", "config.json", "metrics.jsonl", *plot(trainer, fitted)])
    print("\nbest weights on validation, loss is cross-entropy:")
    print("\n".join(f"  {line}" for line in after.lines()))
    print("\n".join(after.tables(data.classes)))
    part = ", deduplicated" if data.split("val").copies.any() else ""
    if not fitted.threshold:
        print(
            f"fewer than {CALIBRATION_IMAGES} validation images: the probabilities are not calibrated, and predict.py "
            'never answers "not sure" with these weights'
        )
    else:
        print(
            f"temperature: the logits are divided by {fitted.temperature:.3f}, fitted on these images{part}; "
            f"calibration error (ECE) {before.deduplicated.ece:.4f} before, {after.deduplicated.ece:.4f} after"
        )
        answered = (
            f"below a probability of {fitted.threshold:.3f}; {fitted.coverage:.1%} of these images reach it, and "
            f"{fitted.right:.1%} of their answers are right"
        )
        never = f"always: at no probability {ANSWERED_RIGHT:.0%} of the answers are right"
        print(f'predict.py answers "not sure" {answered if fitted.coverage else never}')
    took = duration(sum(row["seconds"] for row in history))
    print(f"{counted(len(history), 'epoch')} in {took}; {run} holds {files}")
    if last.exists():
        size = last.stat().st_size / 1e6
        last.unlink()
        print(f"last.pth ({size:.0f} MB), from which a stopped run goes on, is removed: this one has ended")
    print(promote(run, data, machine=trainer.machine, asked=promoted))
    if data.demo:
        print(DEMO_NOTE)
    print(f"predict with this run: python predict.py PHOTO --weights {quoted(run)}")


def plot(trainer: "Trainer", fitted: "Calibration") -> list[str]:
    """Plot a run's curves, confusion matrix, reliability before and after the temperature, and mistakes; the files."""
    import plots

    run, val = trainer.run, trainer.data.split("val")
    kept = ~val.copies
    name = f"{run.name}, validation{'' if kept.all() else ', deduplicated'}"
    caption = "These faces are rendered, not photographs." if trainer.data.demo else ""
    scaled = f"Temperature {fitted.temperature:.3f}. {caption}".strip()
    files = [run / f"{figure}.png" for figure in ("curves", "confusion", "reliability", "mistakes")]
    plots.curves(trainer.history, files[0], title=f"{run.name}: {trainer.loss_name}", caption=caption)
    title = f"Confusion matrix: {name}"
    plots.confusion(
        fitted.after.deduplicated.confusion, files[1], title=title, caption=caption, classes=trainer.data.classes
    )
    plots.reliability(
        fitted.before.deduplicated, fitted.after.deduplicated, files[2], title=f"Calibration: {name}", caption=scaled
    )
    plots.mistakes(
        val.images[kept],
        val.labels[kept],
        fitted.probabilities[kept],
        files[3],
        title=f"Most confident mistakes: {name}",
        caption=caption,
        classes=trainer.data.classes,
    )
    return [file.name for file in files]


if __name__ == "__main__":
    sys.exit(main())

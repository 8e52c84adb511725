"""The training loop: one epoch, and `fit` around it with schedule, early stopping, checkpoints and resume."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from config import CLASSES, Config
from dataset import FaceData, preprocess
from errors import UserError
from ranks import Ranks
from training.augment import augment, blend, draw_blend, window_at
from training.batches import Batch
from training.distill import Teachers, load_teachers
from training.state import Trainer
from utils import Machine, channels_last
from val import Scores, evaluate

SAVE_SECONDS = 30.0  # on a GPU, where an epoch takes seconds, best.pth and last.pth are written at most this often


class StopRequest:
    """`asked` is set by Ctrl-C at any moment, `wanted` after a step, in all processes alike."""

    asked = wanted = False


@contextmanager
def ctrl_c_is_a_request(ranks: Ranks) -> Iterator[StopRequest]:
    """While inside, the first Ctrl-C only sets the request; a second one stops at once."""
    request = StopRequest()

    def on_signal(*_: Any) -> None:
        request.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if ranks.first:
            print("\nstopping after this step; Ctrl-C again stops at once, without saving", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread only
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)


def step_seed(config: Config, epoch: int, step: int, rank: int) -> int:
    """Torch's seed for one step: what a step draws (dropout) depends on nothing that came before it."""
    return ((config.seed * 1_000_003 + epoch) * 1_000_003 + step + rank * 7_368_787) % 2**63


def train_epoch(trainer: Trainer, request: StopRequest) -> bool:
    """Train from `trainer.step` to the end of its epoch; False where a stop was requested before that.

    Batches are near-equal parts of the epoch's order, none larger than `batch_size`: no tiny last one. Each
    process takes its part of every batch. Raises UserError where the loss is no longer finite.
    """
    config, machine, ranks = trainer.config, trainer.machine, trainer.ranks
    count = len(trainer.data.split("train"))
    order = np.random.default_rng([config.seed, trainer.epoch]).permutation(count)
    whole = np.array_split(order, trainer.steps)[trainer.step :]
    parts = [rank_rows(rows, config, ranks) for rows in whole]
    trainer.network.train()
    loss_sum = torch.tensor(trainer.loss_sum, dtype=machine.sum_dtype, device=machine.device)
    correct = torch.tensor(trainer.correct, device=machine.device)
    on_cpu = machine.device.type == "cpu"  # elsewhere a look at the loss waits for the device
    bar = tqdm(
        trainer.feed.batches(parts, epoch=trainer.epoch),
        f"epoch {trainer.epoch + 1}",
        trainer.steps,
        initial=trainer.step,
        disable=None if ranks.first else True,
        leave=False,
        unit="step",
    )
    for rows, batch in zip(whole, bar, strict=True):
        torch.manual_seed(step_seed(config, trainer.epoch, trainer.step, ranks.rank))
        trainer.rate = float(trainer.optimizer.param_groups[0]["lr"])
        losses, hits = train_step(trainer, batch, len(rows))
        loss_sum += losses
        correct += hits
        trainer.step += 1
        if agreed(ranks, stop=request, bad=on_cpu and not math.isfinite(loss_sum.item())):
            break
    trainer.loss_sum, trainer.correct = loss_sum.item(), int(correct.item())
    bad = not math.isfinite(trainer.loss_sum)
    if agreed(ranks, bad=bad):
        raise ranks.common(not_finite(trainer))
    trainer.combine()
    return trainer.step == trainer.steps


def agreed(ranks: Ranks, *, bad: bool, stop: StopRequest | None = None) -> bool:
    """Whether any process found its loss `bad`, or was asked to `stop`, which the others then are too."""
    asked = bool(stop and stop.asked)
    if ranks.size > 1:
        bad, asked = map(bool, ranks.sum(torch.tensor([int(bad), int(asked)])).tolist())
    if stop:
        stop.wanted = asked
    return bad or asked


def rank_rows(rows: np.ndarray, config: Config, ranks: Ranks) -> np.ndarray:
    """This process's part of a batch's `rows`; where images are blended, one more stands before it.

    Each image's partner is the one before it in the whole batch, the first one's the last, whatever the number of
    processes.
    """
    part = ranks.part(len(rows))
    return rows[np.arange(part.start - bool(config.mixup or config.cutmix), part.stop)]


def inputs_and_targets(trainer: Trainer, batch: Batch, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Network inputs (B, 1, H, H), augmented and blended, and targets: labels (B,), or each class's share (B, 7)."""
    config = trainer.config
    images, targets = preprocess(batch.images), batch.labels if batch.targets is None else batch.targets
    if batch.draws is not None:
        images = augment(images, batch.draws, window=window_at(config, trainer.epoch))
    how = draw_blend(config, count, epoch=trainer.epoch, step=trainer.step)
    if targets.ndim == 1 and (how or trainer.teachers):
        targets = nn.functional.one_hot(targets, len(CLASSES)).float()
    if how:
        part = trainer.ranks.part(count)
        how = how.each(lambda values: trainer.feed.send(values[part]))
        images = blend(images[1:], images[:-1], how)
        targets = torch.lerp(targets[:-1], targets[1:], how.share[:, None])
    if trainer.teachers:
        targets = torch.lerp(targets, trainer.teachers(images), config.distill_weight)
    return images, targets


def train_step(trainer: Trainer, batch: Batch, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One update, on this process's part of a batch of `count` images; the sum of its losses, and its hits."""
    images, targets = inputs_and_targets(trainer, batch, count)
    with trainer.machine.autocast():
        logits = trainer.network(channels_last(images))
    logits = logits.float()
    losses = trainer.loss(logits, targets)
    mean = losses.sum() * (trainer.ranks.size / count)  # gradients are averaged over the processes
    penalty = getattr(trainer.model, "penalty", None)  # of a mixture, for experts that are used unevenly
    trainer.scaler.scale(mean if penalty is None else mean + penalty).backward()
    if trainer.config.clip:
        trainer.scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.clip)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.ema:
        trainer.ema.update()
    if trainer.config.schedule != "plateau":
        trainer.scheduler.step()
    return losses.detach().to(trainer.machine.sum_dtype).sum(), (
        logits.detach().argmax(1) == batch.labels[-len(images) :]
    ).sum()


def not_finite(trainer: Trainer) -> UserError:
    return UserError(
        f"the training loss is no longer finite at epoch {trainer.epoch + 1}, step {trainer.step}: "
        f"lower --lr (now {trainer.config.lr:g}) and start a new run. "
        f"{trainer.run / 'last.pth'} holds the last state that was saved before"
    )


def fit(
    model: nn.Module,
    data: FaceData,
    config: Config,
    *,
    run: Path,
    machine: Machine,
    resume: dict | None = None,
    ranks: Ranks | None = None,
    teachers: Teachers | None = None,
    leakage: Sequence[str] = (),
) -> Trainer:
    """Train until the epochs are over, early stopping, or Ctrl-C; the Trainer with its history.

    Writes last.pth (before the first step, after each epoch, on Ctrl-C), best.pth and metrics.jsonl into
    `run`. `resume` is last.pth's content. The validation figures that choose weights, cut the rate and
    stop leave out the images that also stand in train. After Ctrl-C `trainer.stopped` is True, and `trainer.done`
    False unless nothing was left to do. `teachers` are those that `config` names, where they are loaded already;
    `leakage` are notes on weights that `model` began with.
    """
    ranks = ranks or Ranks()
    ranks.in_turn(lambda: check_run(model, data, config, ranks))
    teachers = teachers or ranks.in_turn(lambda: load_teachers(config, machine))
    trainer = Trainer(model, config, data, run, machine, ranks, teachers)
    trainer.leakage = list(leakage)
    if trainer.teachers:
        about, known = trainer.teachers.lines(data)
        trainer.leakage += known
        print("\n".join([*about, *known]))
    if trainer.feed.place != "host":
        print(f"training images are {trainer.feed}")
    if resume:
        ranks.in_turn(lambda: trainer.restore(resume))
    if not trainer.done:
        trainer.sign()
    if ranks.first:
        for stray in run.glob(".*.tmp"):
            stray.unlink()  # of a write that was killed
    trainer.save()
    with ctrl_c_is_a_request(ranks) as request:
        try:
            go_on(trainer, request)
        except UserError:  # the numbers are no longer finite; what was best until then is
            trainer.save_best()
            raise
        if request.wanted:
            trainer.save()
        trainer.stopped = request.wanted or request.asked
    return trainer


def go_on(trainer: Trainer, request: StopRequest) -> None:
    """Train epoch after epoch to the end, or until a stop is requested. Raises UserError as `train_epoch` does."""
    data, ranks, saved = trainer.data, trainer.ranks, time.monotonic()
    while not trainer.done and not request.wanted:
        start, first_step = time.perf_counter(), trainer.step
        if not train_epoch(trainer, request):
            trainer.seconds += time.perf_counter() - start
            break
        seconds = time.perf_counter() - start
        rate = len(data.split("train")) * (trainer.steps - first_step) / trainer.steps / seconds
        scores = evaluate(trainer.kept, data.split("val"), machine=trainer.machine, loss=trainer.loss, ranks=ranks)
        end_epoch(trainer, scores, rate, trainer.seconds + time.perf_counter() - start)
        if trainer.done or time.monotonic() - saved >= save_seconds(trainer.machine):
            trainer.save()
            saved = time.monotonic()
        agreed(ranks, bad=False, stop=request)


def save_seconds(machine: Machine) -> float:
    """How long after a save an epoch's end is saved again: always on a CPU, whose epochs take long."""
    return 0.0 if machine.device.type == "cpu" else SAVE_SECONDS


def end_epoch(trainer: Trainer, scores: Scores, rate: float, seconds: float) -> None:
    """Note and print the epoch's figures, keep the weights if they are the best, move the rate."""
    config, deduplicated, official = trainer.config, scores.deduplicated, scores.official
    value = -deduplicated.loss if config.stop_metric == "loss" else getattr(deduplicated, config.stop_metric)
    best = trainer.best is None or value > trainer.best
    images = len(trainer.data.split("train"))
    row = {
        "epoch": trainer.epoch + 1,
        "lr": trainer.rate,
        "train_loss": trainer.loss_sum / images,
        "train_accuracy": trainer.correct / images,
        "val_loss": official.loss,
        "val_accuracy": official.accuracy,
        "val_loss_deduplicated": deduplicated.loss,
        "val_accuracy_deduplicated": deduplicated.accuracy,
        "val_macro_f1_deduplicated": deduplicated.macro_f1,
        "best": best,
        "seconds": round(seconds, 2),
        "images_per_second": round(rate, 1),
    }
    trainer.history.append(row)
    copies = bool(trainer.data.split("val").copies.any())
    print(epoch_line(trainer.history, config.epochs, copies=copies), flush=True)
    if best:
        trainer.best, trainer.stale = value, 0
        trainer.hold(scores)
    else:
        trainer.stale += 1
    if config.schedule == "plateau":
        trainer.scheduler.step(deduplicated.loss)
    trainer.epoch += 1
    trainer.step, trainer.seconds, trainer.loss_sum, trainer.correct = 0, 0.0, 0.0, 0


def epoch_line(history: list[dict], epochs: int, *, copies: bool) -> str:
    """The last row of `history` in a line of fixed width, with the time left for the rest of `epochs`.

    The second validation accuracy, deduplicated, is shown where there are `copies`.
    """
    row, recent = history[-1], history[-3:]
    seconds = (epochs - len(history)) * sum(each["seconds"] for each in recent) / len(recent)
    deduplicated = f" / {row['val_accuracy_deduplicated']:6.1%}" if copies else ""
    left = f"  {duration(seconds):>6} left" if len(history) < epochs else ""
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:<8.3g}  "
        f"train {row['train_loss']:.3f} {row['train_accuracy']:6.1%}  "
        f"val {row['val_loss']:.3f} {row['val_accuracy']:6.1%}{deduplicated} {'*' if row['best'] else ' '} "
        f"{row['seconds']:6.1f}s {row['images_per_second']:6.0f} img/s{left}"
    )


def duration(seconds: float) -> str:
    """A length of time in its largest unit: "45 s", "12 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def check_run(model: nn.Module, data: FaceData, config: Config, ranks: Ranks) -> None:
    """Raise UserError for what would end the run later.

    A process would be left without images, or its batch norm with a single one; or the network takes no windows.
    """
    images = len(data.split("train"))
    smallest = images // math.ceil(images / config.batch_size) // ranks.size
    norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if smallest < 1 + norm:
        why = f"; {config.model} has batch norm and needs at least two" if norm else ""
        each = f" for each of {ranks.size} processes" if ranks.size > 1 else ""
        made = "no image" if smallest < 1 else "one image"
        raise UserError(
            f"--batch-size {config.batch_size} over {images} images makes batches of {made}{each}{why}: "
            f"use a larger --batch-size"
        )
    if config.augment and config.window < 48 and not getattr(model, "any_size", False):
        raise UserError(f"--window {config.window}: {config.model} takes whole faces only; give --window 48")

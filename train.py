"""The training loop: `train_step`, `train_epoch` over them, `run_epochs` with scoring, early stopping and files."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from dataset import FaceData, preprocess
from errors import UserError
from model import FaceNet
from ranks import Ranks
from training.augment import Epoch, augment, blend, rows, sample_epoch, window_size
from training.batches import Batch
from training.distill import Teachers, load_teachers
from training.optim import warm_up
from training.state import Trainer
from training.stop import StopRequest, agreed, ctrl_c_is_a_request
from utils import Machine, channels_last
from val import Scores, evaluate

SAVE_SECONDS = 30.0  # on a GPU, whose epochs take seconds, best.pth and last.pth are written at most this often


# --- A step ---


def train_step(trainer: Trainer, epoch: Epoch, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """One update on this process's part of the images at the rows `batch`; the sum of its losses, and its hits."""
    images, labels, targets = inputs_and_targets(trainer, epoch, batch)
    with trainer.machine.autocast():
        logits = trainer.network(channels_last(images)).float()
    losses = trainer.loss(logits, targets)
    mean = losses.sum() * (trainer.ranks.size / len(batch))  # gradients are averaged over the processes
    penalty = getattr(trainer.model, "penalty", None)  # of a mixture, for using its experts unevenly
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
    return losses.detach().to(trainer.machine.sum_dtype).sum(), (logits.detach().argmax(1) == labels).sum()


def inputs_and_targets(trainer: Trainer, epoch: Epoch, batch: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Network inputs (B, 1, H, H), labels (B,), and targets: the labels, or the share of each class (B, 7).

    Where images are blended, the partner of each is the one before it in the whole batch, the first one's the last.
    """
    part = trainer.ranks.part(len(batch))
    own = trainer.images.batch(batch[part])
    images, targets = augmented(trainer, epoch, own), own.targets
    if epoch.blending:
        other, how = trainer.images.batch(np.roll(batch, 1)[part]), rows(epoch.blending, own.at)
        images = blend(images, augmented(trainer, epoch, other), how)
        targets = torch.lerp(other.targets, targets, how.share[:, None])
    if trainer.teachers:
        targets = torch.lerp(targets, trainer.teachers(images), trainer.config.distill_weight)
    return images, own.labels, targets


def augmented(trainer: Trainer, epoch: Epoch, batch: Batch) -> Tensor:
    """Network inputs (B, 1, H, H) of `batch`, as `epoch` changes them."""
    images = preprocess(batch.images)
    if not epoch.augmentation:
        return images
    window = window_size(trainer.config, trainer.progress.epoch)
    return augment(images, rows(epoch.augmentation, batch.at), window=window)


# --- An epoch ---


def train_epoch(trainer: Trainer, request: StopRequest) -> bool:
    """Train from `progress.step` to the end of the epoch; False where a stop was requested before that.

    Batches are near-equal parts of the epoch's order, none larger than `batch_size`: no tiny last one. Raises
    UserError where the loss is no longer finite.
    """
    progress, ranks, device = trainer.progress, trainer.ranks, trainer.machine.device
    epoch = sample_epoch(trainer.config, len(trainer.images), progress.epoch, device)
    batches = np.array_split(epoch.order, trainer.steps)[progress.step :]
    loss_sum = torch.tensor(progress.loss_sum, dtype=trainer.machine.sum_dtype, device=device)
    correct, finite_steps = torch.tensor([progress.correct, progress.step], device=device)
    trainer.network.train()
    bar = {"total": trainer.steps, "initial": progress.step, "leave": False, "unit": "step"}
    for batch in tqdm(batches, f"epoch {progress.epoch + 1}", disable=None if ranks.first else True, **bar):
        torch.manual_seed(step_seed(trainer.config, progress.epoch, progress.step, ranks.rank))
        step, steps = progress.epoch * trainer.steps + progress.step, trainer.config.epochs * trainer.steps
        warm_up(trainer.optimizer, trainer.config, step=step, steps=steps)
        progress.rate = float(trainer.optimizer.param_groups[0]["lr"])
        losses, hits = train_step(trainer, epoch, batch)
        loss_sum += losses
        correct += hits
        finite_steps += loss_sum.isfinite()
        progress.step += 1
        # On a GPU a look at the loss waits for the device: there it is looked at when the epoch ends
        if agreed(ranks, request, bad=device.type == "cpu" and not math.isfinite(loss_sum.item())):
            break
    progress.loss_sum, progress.correct = loss_sum.item(), int(correct)
    if agreed(ranks, bad=not math.isfinite(progress.loss_sum)):
        raise UserError(not_finite(trainer, min(int(finite_steps) + 1, progress.step)) if ranks.first else "")
    trainer.sync_ranks()
    return progress.step == trainer.steps


def step_seed(config: Config, epoch: int, step: int, rank: int) -> int:
    """Torch's seed for one step: what is random in it (dropout) depends on nothing that came before."""
    return ((config.seed * 1_000_003 + epoch) * 1_000_003 + step + rank * 7_368_787) % 2**63


def not_finite(trainer: Trainer, step: int) -> str:
    return (
        f"the training loss is no longer finite at epoch {trainer.progress.epoch + 1}, step {step}: "
        f"lower --lr (now {trainer.config.lr:g}) and start a new run. "
        f"{trainer.run / 'last.pth'} holds the last state that was saved before"
    )


def end_epoch(trainer: Trainer, scores: Scores, rate: float, seconds: float) -> None:
    """Record and print the epoch's figures, keep the weights if they are the best so far, adapt the learning rate."""
    config, progress, deduplicated = trainer.config, trainer.progress, scores.deduplicated
    value = -deduplicated.loss if config.stop_metric == "loss" else getattr(deduplicated, config.stop_metric)
    best = progress.best is None or value > progress.best
    row = {
        "epoch": progress.epoch + 1,
        "lr": progress.rate,
        "train_loss": progress.loss_sum / len(trainer.images),
        "train_accuracy": progress.correct / len(trainer.images),
        "val_loss": scores.official.loss,
        "val_accuracy": scores.official.accuracy,
        "val_loss_deduplicated": deduplicated.loss,
        "val_accuracy_deduplicated": deduplicated.accuracy,
        "val_macro_f1_deduplicated": deduplicated.macro_f1,
        "best": best,
        "seconds": round(seconds, 2),
        "images_per_second": round(rate, 1),
    }
    progress.history.append(row)
    print(epoch_line(progress.history, config.epochs, copies=trainer.data.split("val").copies.any()), flush=True)
    if best:
        progress.best, progress.stale = value, 0
        trainer.keep_best(scores)
    else:
        progress.stale += 1
    if config.schedule == "plateau":
        trainer.scheduler.step(deduplicated.loss)
    progress.epoch += 1
    progress.step, progress.seconds, progress.loss_sum, progress.correct = 0, 0.0, 0.0, 0


def epoch_line(history: Sequence[dict[str, Any]], epochs: int, *, copies: bool) -> str:
    """The last row of `history` in a line of fixed width, with the time left for the rest of `epochs`.

    With `copies` the deduplicated accuracy follows the official one.
    """
    row, recent = history[-1], history[-3:]
    left = (epochs - len(history)) * sum(each["seconds"] for each in recent) / len(recent)
    deduplicated = f" / {row['val_accuracy_deduplicated']:6.1%}" if copies else ""
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:<8.3g}  "
        f"train {row['train_loss']:.3f} {row['train_accuracy']:6.1%}  "
        f"val {row['val_loss']:.3f} {row['val_accuracy']:6.1%}{deduplicated} {'*' if row['best'] else ' '} "
        f"{row['seconds']:6.1f}s {row['images_per_second']:6.0f} img/s"
        + (f"  {duration(left):>6} left" if len(history) < epochs else "")
    )


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it: "45 s", "12 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- A run ---


def fit(
    model: FaceNet,
    data: FaceData,
    config: Config,
    *,
    run: Path,
    machine: Machine,
    resume: dict[str, Any] | None = None,
    teachers: Teachers | None = None,
    leakage: Sequence[str] = (),
) -> Trainer:
    """Train as `python interface.py` does, but for its report, in the folder `run`; the Trainer with its history.

    `resume` is last.pth's content, `leakage` are notes on weights that `model` begins with. Raises UserError.
    """
    check_run(model, data, config)
    teachers = teachers or load_teachers(config, data, machine)
    trainer = Trainer(model, data, config, run=run, machine=machine, teachers=teachers, leakage=leakage)
    if resume:
        trainer.restore(resume)
    run_epochs(trainer)
    return trainer


def run_epochs(trainer: Trainer) -> None:
    """Train and score epoch after epoch until they are over, early stopping, or Ctrl-C: then `trainer.stopped` is set.

    Writes last.pth (before the first step, after each epoch, on Ctrl-C), best.pth and metrics.jsonl. The validation
    figures that choose weights, cut the rate and stop are deduplicated. Raises UserError.
    """
    if trainer.done:
        return
    trainer.start()
    pause, saved = save_pause(trainer.machine), time.monotonic()
    with ctrl_c_is_a_request(trainer.ranks) as request:
        try:
            while not trainer.done and not request.wanted:
                if run_epoch(trainer, request) and (trainer.done or time.monotonic() - saved >= pause):
                    trainer.save()
                    saved = time.monotonic()
        except UserError:  # the numbers are no longer finite; what was best until then is
            trainer.save_best()
            raise
        if request.wanted:
            trainer.save()
        trainer.stopped = request.wanted or request.asked


def run_epoch(trainer: Trainer, request: StopRequest) -> bool:
    """Train and score one epoch, or the rest of it; False where it was stopped before its end."""
    progress, start, first_step = trainer.progress, time.perf_counter(), trainer.progress.step
    if not train_epoch(trainer, request):
        progress.seconds += time.perf_counter() - start
        return False
    share = (trainer.steps - first_step) / trainer.steps
    rate = share * len(trainer.images) / (time.perf_counter() - start)
    val, kind = trainer.data.split("val"), {"machine": trainer.machine, "loss": trainer.loss, "ranks": trainer.ranks}
    scores = evaluate(trainer.eval_model, val, **kind)
    end_epoch(trainer, scores, rate, progress.seconds + time.perf_counter() - start)
    agreed(trainer.ranks, request)
    return True


def save_pause(machine: Machine) -> float:
    """The least seconds between saves; none on a CPU, whose epochs take long."""
    return 0.0 if machine.device.type == "cpu" else SAVE_SECONDS


def check_run(model: FaceNet, data: FaceData, config: Config, ranks: Ranks | None = None) -> None:
    """Raise UserError for what would end the run later.

    A process would be left without images, or its batch norm with a single one; or the network takes no windows.
    """
    images, size = len(data.split("train")), ranks.size if ranks else 1
    smallest = images // math.ceil(images / config.batch_size) // size
    norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if smallest < 1 + norm:
        why = f"; {config.model} has batch norm and needs at least two" if norm else ""
        each = f" for each of {size} processes" if size > 1 else ""
        raise UserError(
            f"--batch-size {config.batch_size} over {images} images makes batches of "
            f"{'no' if smallest < 1 else 'one'} image{each}{why}: use a larger --batch-size"
        )
    if config.augment and config.window < 48 and not model.any_size:
        raise UserError(f"--window {config.window}: {config.model} takes whole faces only; give --window 48")

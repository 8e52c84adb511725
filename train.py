"""The training loop: one epoch, and `fit` around it with schedule, early stopping, checkpoints and resume."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from augment import augment, draw
from config import Config, from_dict, make_loss, read_config
from dataset import FaceData, Split, preprocess
from utils import Machine, UserError, read_checkpoint, versions, write_checkpoint, write_file
from val import Scores, evaluate
from weights import save_weights

SAVE_SECONDS = 30.0  # on a GPU, where an epoch takes seconds, last.pth is written at most this often
GPU_CHECK_STEPS = 50  # on a GPU a look at the loss waits for the device: only every so many steps


@dataclass
class Trainer:
    """A run in progress: the fixed parts, then the state that last.pth holds."""

    model: nn.Module
    config: Config
    data: FaceData
    run: Path
    machine: Machine
    # State
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    seconds: float = 0.0  # spent on the epoch under way by processes before this one
    rate: float = 0.0  # learning rate of the last step
    loss_sum: float = 0.0  # over the images seen in the epoch under way, in nats
    correct: int = 0
    best: float | None = None  # of the stop metric; larger is better
    stale: int = 0  # epochs since the best one
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        train = self.data.split("train")
        self.steps = math.ceil(len(train) / self.config.batch_size)
        self.loss, self.loss_name = make_loss(self.config, train.counts())
        self.optimizer = make_optimizer(self.model, self.config, self.machine)
        self.scheduler = make_scheduler(self.optimizer, self.config, self.steps)
        self.scaler = torch.amp.GradScaler(self.machine.device.type, enabled=self.machine.dtype is torch.float16)
        average = get_ema_multi_avg_fn(self.config.ema)
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True) if self.config.ema else None

    @property
    def kept(self) -> nn.Module:
        """The network that is scored and saved: the averaged one where there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def done(self) -> bool:
        patience = self.config.stop_patience
        return self.epoch >= self.config.epochs or bool(patience and self.stale >= patience)

    def parts(self) -> dict[str, Any]:
        """The stateful objects by their key in last.pth."""
        parts = {
            "state_dict": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "ema": self.ema,
        }
        return {key: part for key, part in parts.items() if part is not None}

    def save(self) -> None:
        """Write last.pth, everything needed to go on, and metrics.jsonl."""
        write_checkpoint(self.run / "last.pth", {
            "model": self.config.model,
            "config": asdict(self.config),
            "fingerprint": self.data.fingerprint,
            "machine": str(self.machine),
            "progress": {name: getattr(self, name) for name in PROGRESS},
            **{key: part.state_dict() for key, part in self.parts().items()},
        })  # fmt: skip
        lines = "".join(f"{json.dumps(row)}\n" for row in self.history)
        write_file(self.run / "metrics.jsonl", lines.encode())

    def restore(self, content: dict[str, Any]) -> None:
        """Go back to the state in last.pth's `content`."""
        for key, part in self.parts().items():
            part.load_state_dict(content[key])
        for name in PROGRESS:
            setattr(self, name, content["progress"][name])


LAST = (
    "config",
    "fingerprint",
    "machine",
    "versions",
    "progress",
    "state_dict",
    "optimizer",
    "scheduler",
)  # in every last.pth
PROGRESS = ("epoch", "step", "seconds", "rate", "loss_sum", "correct", "best", "stale", "history")


def make_optimizer(model: nn.Module, config: Config, machine: Machine) -> torch.optim.Optimizer:
    """The configured update rule over all weights, fused where torch has that."""
    fused = machine.device.type in ("cpu", "cuda")
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **shared)
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return rule(model.parameters(), **shared)


def make_scheduler(optimizer: torch.optim.Optimizer, config: Config, steps: int) -> Any:
    """The course of the learning rate: plateau moves per epoch on validation loss, the others per step."""
    if config.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=config.plateau_factor, patience=config.plateau_patience)
    if config.schedule == "onecycle":
        total = config.epochs * steps
        total += total == 5  # there torch's rise would end at step 0, and divide by it
        return lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=total, pct_start=0.2, cycle_momentum=False)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


class StopRequest:
    """Set by Ctrl-C; the loop looks at it after every step."""

    wanted = False


@contextmanager
def ctrl_c_is_a_request() -> Iterator[StopRequest]:
    """While inside, the first Ctrl-C only sets the request; a second one stops at once."""
    request = StopRequest()

    def on_signal(*_: Any) -> None:
        request.wanted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step; Ctrl-C again stops at once, without saving", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread only
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)


def epoch_seed(config: Config, epoch: int, step: int) -> int:
    """Torch's seed for one step: what a step draws (dropout) depends on nothing that came before it."""
    return ((config.seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63


def train_epoch(trainer: Trainer, request: StopRequest) -> bool:
    """Train from `trainer.step` to the end of its epoch; False where a stop was requested before that.

    Batches are near-equal parts of the epoch's order, none larger than `batch_size`: no tiny last one.
    Raises UserError where the loss is no longer finite.
    """
    config, machine, split = trainer.config, trainer.machine, trainer.data.split("train")
    order = np.random.default_rng([config.seed, trainer.epoch]).permutation(len(split))
    draws = draw(config, count=len(split), epoch=trainer.epoch)
    trainer.model.train()
    loss_sum = torch.tensor(trainer.loss_sum, dtype=machine.sum_dtype, device=machine.device)
    correct = torch.tensor(trainer.correct, device=machine.device)
    every = 1 if machine.device.type == "cpu" else GPU_CHECK_STEPS
    batches = np.array_split(order, trainer.steps)
    bar = tqdm(
        batches[trainer.step :],
        f"epoch {trainer.epoch + 1}",
        trainer.steps,
        initial=trainer.step,
        disable=None,
        leave=False,
        unit="step",
    )
    for rows in bar:
        torch.manual_seed(epoch_seed(config, trainer.epoch, trainer.step))
        trainer.rate = float(trainer.optimizer.param_groups[0]["lr"])
        losses, hits = train_step(trainer, split, rows, draws)
        loss_sum += losses
        correct += hits
        trainer.step += 1
        if trainer.step % every == 0 and not math.isfinite(loss_sum.item()):
            raise not_finite(trainer)
        if request.wanted:
            break
    trainer.loss_sum, trainer.correct = loss_sum.item(), int(correct.item())
    if not math.isfinite(trainer.loss_sum):
        raise not_finite(trainer)
    return trainer.step == trainer.steps


def train_step(trainer: Trainer, split: Split, rows: np.ndarray, draws: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """One update on the images `rows`; the sum of their losses in nats, and how many were right."""
    device = trainer.machine.device
    labels = torch.from_numpy(split.labels[rows]).to(device, non_blocking=True)
    images = preprocess(torch.from_numpy(split.images[rows]).to(device, non_blocking=True))
    if draws is not None:
        images = augment(images, draws.rows(torch.from_numpy(rows), device))
    images = images.contiguous(memory_format=torch.channels_last)
    with trainer.machine.autocast():
        logits = trainer.model(images)
    logits = logits.float()
    losses = trainer.loss(logits, labels)
    trainer.scaler.scale(losses.mean()).backward()
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.ema:
        trainer.ema.update_parameters(trainer.model)
    if trainer.config.schedule != "plateau":
        trainer.scheduler.step()
    return losses.detach().to(trainer.machine.sum_dtype).sum(), (logits.detach().argmax(1) == labels).sum()


def not_finite(trainer: Trainer) -> UserError:
    return UserError(
        f"the training loss is no longer finite at epoch {trainer.epoch + 1}, step {trainer.step}: "
        f"lower --lr (now {trainer.config.lr:g}) and start a new run. "
        f"{trainer.run / 'last.pth'} holds the last state that was saved before"
    )


def fit(
    model: nn.Module, data: FaceData, config: Config, *, run: Path, machine: Machine, resume: dict | None = None
) -> Trainer:
    """Train until the epochs are over, early stopping, or Ctrl-C; the Trainer with its history.

    Writes last.pth (before the first step, after each epoch, on Ctrl-C), best.pth and metrics.jsonl into
    `run`. `resume` is last.pth's content. The validation figures that choose weights, cut the rate and
    stop leave out the images that also stand in train. `trainer.done` is False after Ctrl-C.
    """
    check_batch(model, data, config)
    trainer = Trainer(model, config, data, run, machine)
    for stray in run.glob(".*.tmp"):
        stray.unlink()  # of a write that was killed
    if resume:
        trainer.restore(resume)
    trainer.save()
    saved = time.monotonic()
    with ctrl_c_is_a_request() as request:
        while not trainer.done and not request.wanted:
            start, first_step = time.perf_counter(), trainer.step
            if not train_epoch(trainer, request):
                trainer.seconds += time.perf_counter() - start
                break
            seconds = time.perf_counter() - start
            rate = len(data.split("train")) * (trainer.steps - first_step) / trainer.steps / seconds
            scores = evaluate(trainer.kept, data.split("val"), machine=machine, loss=trainer.loss)
            end_epoch(trainer, scores, rate, trainer.seconds + time.perf_counter() - start)
            if machine.device.type == "cpu" or trainer.done or time.monotonic() - saved > SAVE_SECONDS:
                trainer.save()
                saved = time.monotonic()
        if request.wanted:
            trainer.save()
    return trainer


def end_epoch(trainer: Trainer, scores: Scores, rate: float, seconds: float) -> None:
    """Note and print the epoch's figures, keep the weights if they are the best, move the rate."""
    config, unseen, official = trainer.config, scores.unseen, scores.official
    value = -unseen.loss if config.stop_metric == "loss" else getattr(unseen, config.stop_metric)
    best = trainer.best is None or value > trainer.best
    images = len(trainer.data.split("train"))
    row = {"epoch": trainer.epoch + 1, "lr": trainer.rate,
           "train_loss": trainer.loss_sum / images, "train_accuracy": trainer.correct / images,
           "val_loss": official.loss, "val_accuracy": official.accuracy,
           "val_loss_unseen": unseen.loss, "val_accuracy_unseen": unseen.accuracy,
           "val_macro_f1_unseen": unseen.macro_f1, "best": best,
           "seconds": round(seconds, 2), "images_per_second": round(rate, 1)}  # fmt: skip
    print(f"epoch {row['epoch']:3d}/{config.epochs}  lr {row['lr']:.5f}  "
          f"train {row['train_loss']:.3f} {row['train_accuracy']:6.1%}  "
          f"val {row['val_loss']:.3f} {row['val_accuracy']:6.1%} / {row['val_accuracy_unseen']:6.1%} "
          f"{'*' if best else ' '} {seconds:6.1f}s {rate:6.0f} img/s", flush=True)  # fmt: skip
    trainer.history.append(row)
    if best:
        trainer.best, trainer.stale = value, 0
        save_weights(trainer.run / "best.pth", trainer.kept, scores, config=config, data=trainer.data)
    else:
        trainer.stale += 1
    if config.schedule == "plateau":
        trainer.scheduler.step(unseen.loss)
    trainer.epoch += 1
    trainer.step, trainer.seconds, trainer.loss_sum, trainer.correct = 0, 0.0, 0.0, 0


def check_batch(model: nn.Module, data: FaceData, config: Config) -> None:
    """Raise UserError where a batch of one image would reach a batch norm, which needs two."""
    images = len(data.split("train"))
    smallest = images // math.ceil(images / config.batch_size)
    if smallest < 2 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise UserError(
            f"--batch-size {config.batch_size} over {images} images makes batches of one image; "
            f"{config.model} has batch norm and needs at least two: use a larger --batch-size"
        )


def read_last(run: Path, flags: dict[str, Any] | None = None) -> tuple[Config, dict[str, Any] | None]:
    """The Config of a stopped run, with `flags` over it, and the content of its last.pth.

    The content is None for a run that was killed between making its folder and the first last.pth.
    Raises UserError where the folder holds no run, or one of another version.
    """
    path, content = run / "last.pth", None
    try:
        if path.exists():
            content = read_checkpoint(path, LAST)
            return from_dict(content["config"] | (flags or {}), str(path)), content
        path = run / "config.json"
        if path.exists():
            return from_dict(read_config(str(path)) | (flags or {}), str(path)), None
    except ValueError as error:
        raise UserError(f"{path} does not fit this version of the code: {error}; start a new run") from error
    raise UserError(f"{run} holds no run to go on with; --resume takes a run's folder, such as runs/NAME")


def check_resume(last: dict[str, Any], data: FaceData, machine: Machine) -> None:
    """Raise UserError where the data are not the run's; say where the machine is not."""
    if last["fingerprint"] != data.fingerprint:
        raise UserError(
            f"the run was trained on data with fingerprint {last['fingerprint']}, these have "
            f"{data.fingerprint}: name the run's dataset with --data"
        )
    before, now = (last["machine"], last["versions"]["torch"]), (str(machine), versions()["torch"])
    if before != now:
        print(
            f"note: the run began on {before[0]} with torch {before[1]}, this is {now[0]} with torch {now[1]}: "
            f"from here on its weights are not bit for bit the same"
        )

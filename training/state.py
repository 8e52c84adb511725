"""A run in progress: what is fixed about it, what last.pth saves of it, and how a stopped one is resumed."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cli import current_names, from_dict, read_config
from config import Config
from dataset import FaceData
from errors import UserError, plain, quoted, sweep, write_file
from losses import make_loss
from metrics import fits
from model import FaceNet
from ranks import Ranks
from training.batches import TrainingImages
from training.distill import Teachers, target_sources
from training.optim import WeightAverage, make_optimizer, make_scheduler
from utils import Machine, read_checkpoint, versions, write_checkpoint
from val import Scores
from weights import weight_file


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the current epoch
    seconds: float = 0.0  # of the current epoch, spent before the run was resumed
    rate: float = 0.0  # learning rate of the last step
    loss_sum: float = 0.0  # of the current epoch, in nats, over the images that this process trained on
    correct: int = 0  # of the current epoch, likewise
    best: float | None = None  # of the stop metric; larger is better
    stale: int = 0  # epochs since the best one
    history: list[dict[str, Any]] = field(default_factory=list)  # a row of metrics.jsonl per epoch
    made_on: list[dict[str, Any]] = field(default_factory=list)  # machines and versions that trained it, each once
    leakage: list[str] = field(default_factory=list)  # notes on weights it learned from: they may know the validation


class Trainer:
    """A run in progress. `train.py` moves it on."""

    def __init__(
        self,
        model: FaceNet,
        data: FaceData,
        config: Config,
        *,
        run: Path,
        machine: Machine,
        ranks: Ranks | None = None,
        teachers: Teachers | None = None,
        leakage: Sequence[str] = (),
    ) -> None:
        # Fixed
        self.data, self.config, self.run, self.machine, self.teachers = data, config, run, machine, teachers
        self.ranks = ranks or Ranks()
        self.images = TrainingImages(data.split("train"), machine, soft=bool(teachers or config.mixup or config.cutmix))
        self.steps = math.ceil(len(self.images) / config.batch_size)  # of an epoch
        self.loss, self.loss_name = make_loss(config, data.split("train").counts(), machine.device)
        # Saved in last.pth
        self.model = model
        self.optimizer = make_optimizer(model, config, machine)
        self.scheduler = make_scheduler(self.optimizer, config, self.steps)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype is torch.float16)
        self.ema = WeightAverage(model, config.ema) if config.ema else None
        self.progress = Progress(leakage=[*leakage, *(teachers.leakage if teachers else [])])
        # Neither
        self.network: nn.Module = model  # as a step calls it
        self.pending_best: dict[str, Any] | None = None  # best.pth's content, from its epoch to the next `save`
        self.stopped = False  # by Ctrl-C, be it in the last epoch, which then is done all the same

    @property
    def eval_model(self) -> FaceNet:
        """The network that is scored and kept: the averaged one where there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.progress.history

    @property
    def done(self) -> bool:
        return is_over(self.config, self.progress.epoch, self.progress.stale)

    def stateful(self) -> dict[str, Any]:
        """The objects with a state of their own, by their key in last.pth."""
        names = {"state_dict": "model"} | {name: name for name in ("optimizer", "scheduler", "scaler", "ema")}
        return {key: getattr(self, name) for key, name in names.items() if getattr(self, name) is not None}

    def keep_best(self, scores: Scores) -> None:
        """Keep a copy of the weights, the best so far, for the next `save`."""
        if self.ranks.first:
            leakage = bool(self.progress.leakage)
            content = weight_file(self.eval_model, scores, config=self.config, data=self.data, leakage=leakage)
            self.pending_best = content | {"made_on": self.progress.made_on}

    def save(self) -> None:
        """Write best.pth where there is a new one, metrics.jsonl and last.pth. Raises UserError."""
        if not self.ranks.first:
            return
        self.save_best()
        if self.history:
            write_file(self.run / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in self.history).encode())
        write_checkpoint(  # last: where it says that the run is done, all is written
            self.run / "last.pth",
            {
                "classes": list(self.data.classes),
                "model": self.config.model,
                "config": asdict(self.config),
                "fingerprint": self.data.fingerprint,
                "targets": target_sources(self.data, self.teachers),
                "progress": asdict(self.progress),
                **{key: part.state_dict() for key, part in self.stateful().items()},
            },
        )

    def save_best(self) -> None:
        """Write best.pth where there is a new one. Raises UserError."""
        if self.pending_best:
            write_checkpoint(self.run / "best.pth", self.pending_best)
            self.pending_best = None

    def restore(self, content: dict[str, Any]) -> None:
        """Go back to the state in last.pth's `content`. Raises UserError where that is of another network or code."""
        try:
            saved = content["optimizer"]
            groups = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
            # Whether it is fused is this machine's, and decides where the counts of steps are kept
            groups = [group | {"fused": own["fused"]} for group, own in groups]
            content = content | {"optimizer": saved | {"param_groups": groups}}
            for key, part in self.stateful().items():
                part.load_state_dict(content[key])
            self.progress = Progress(**{each.name: content["progress"][each.name] for each in fields(Progress)})
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.run / 'last.pth'} does not fit the network {self.config.model!r} and the optimizer of this "
                f"code: {str(error).splitlines()[0]}; go on with the code it was begun with, or start a new run"
            ) from error
        if not self.ranks.first:
            self.progress.loss_sum, self.progress.correct = 0.0, 0  # the first process has the sums of all

    def start(self) -> None:
        """Before the first step: enter this machine into what the run was made on, join the processes, save."""
        here = {"machine": describe_machine(self.machine, self.ranks), "versions": versions()}
        if here not in self.progress.made_on:
            self.progress.made_on.append(here)
        self.network = distributed(self.model, self.ranks)
        if self.ranks.first:
            sweep(self.run)
        self.save()

    def sync_ranks(self) -> None:
        """Bring the processes together: the sums on the first one, averaged statistics of batch norm on all."""
        if self.ranks.size == 1:
            return
        sums = torch.tensor([self.progress.loss_sum, self.progress.correct], dtype=torch.float64)
        loss_sum, correct = self.ranks.sum(sums).tolist()
        self.progress.loss_sum, self.progress.correct = (loss_sum, int(correct)) if self.ranks.first else (0.0, 0)
        for model in dict.fromkeys((self.model, self.eval_model)):  # in one order on all
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.ranks.sum(buffer.cpu()) / self.ranks.size)


def distributed(model: FaceNet, ranks: Ranks) -> nn.Module:
    """`model`, of several processes with its gradients averaged over them."""
    if ranks.size == 1:
        return model
    wrapper = nn.parallel.DistributedDataParallel
    names = signature(wrapper).parameters
    copying = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before torch 2.12
    # Statistics of batch norm are averaged at the end of an epoch, not copied from the first process at each step
    return wrapper(model, gradient_as_bucket_view=True, **{copying: False})


def is_over(config: Config, epochs: int, stale: int) -> bool:
    """Whether a run ends after `epochs`, the last `stale` of them without a better one."""
    return epochs >= config.epochs or 0 < config.stop_patience <= stale


def describe_machine(machine: Machine, ranks: Ranks) -> str:
    """What a run's bits depend on, besides its settings and torch."""
    return f"{machine}, {ranks.size} processes" if ranks.size > 1 else str(machine)


# --- Resume ---

NEEDED = ("config", "fingerprint", "targets", "progress", "state_dict", "optimizer", "scheduler")  # in every last.pth
RESULTS = ("best.pth", "metrics.jsonl")  # written after the first last.pth
CURVES = ("epoch?", "lr?", "train_loss?", "train_accuracy?", "val_loss?", "val_accuracy?", "val_accuracy_deduplicated?")
ROW = {"best": True, "seconds": 1.0, **dict.fromkeys(CURVES, 1.0)}  # what is used of a row of metrics.jsonl, for `fits`


def read_last(run: Path, flags: dict[str, Any] | None = None) -> tuple[Config, dict[str, Any] | None]:
    """The Config of a run, with `flags` over it, and the content of its last.pth.

    Of places that are written to, the run's own `cache` is not taken: a run may come from anybody. The content is None
    for a run that was killed before its first last.pth, and for one that `has_ended`. Raises UserError where the folder
    holds no run, one of another version, or one whose last.pth was removed too early.
    """
    path, places = run / "last.pth", {"cache": Config().cache, **(flags or {})}
    try:
        if path.exists():
            content = read_checkpoint(path, NEEDED)
            values, notes = current_names(content["config"], str(path))
            print("\n".join(notes), end="\n" if notes else "")
            return from_dict(values | places, str(path)), content
        there = [name for name in RESULTS if (run / name).exists()]
        if there and not has_ended(run):
            raise UserError(
                f"{path} is gone, without which the run can't go on; {' and '.join(there)} untouched. "
                f"Put it back, or start a new run with --config {quoted(run / 'config.json')}"
            )
        path = run / "config.json"
        if path.exists():
            return from_dict(read_config(str(path)) | places, str(path)), None
    except ValueError as error:
        raise UserError(f"{path} does not fit this version of the code: {error}; start a new run") from error
    raise UserError(f"{run} holds no run to go on with; --resume takes a run's folder, such as runs/NAME")


def read_history(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, one per epoch. Raises UserError."""
    path = run / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not fits(rows, [ROW]):
            raise ValueError("its rows are not those of epochs")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): the run's figures are lost") from error
    return rows


def has_ended(run: Path) -> bool:
    """Whether `run` was trained to its end and reported, which removes its last.pth. Raises UserError, ValueError."""
    if (run / "last.pth").exists() or not all((run / name).exists() for name in ("config.json", *RESULTS)):
        return False
    progress = final_progress(run)
    return is_over(from_dict(read_config(str(run)), str(run)), progress.epoch, progress.stale)


def final_progress(run: Path) -> Progress:
    """What metrics.jsonl knows of the Progress of a run that `has_ended`. Raises UserError."""
    history = read_history(run)
    best = max((epoch for epoch, row in enumerate(history, 1) if row["best"]), default=0)
    return Progress(epoch=len(history), stale=len(history) - best, history=history)


def check_fingerprint(fingerprint: str, data: FaceData) -> None:
    """Raise UserError where `data` are not those of a run, which have this `fingerprint`."""
    if fingerprint != data.fingerprint:
        raise UserError(
            f"the run was trained on data with fingerprint {fingerprint}, these have "
            f"{data.fingerprint}: name the run's dataset with --data (the rendered faces are --data demo)"
        )


def check_resume(
    last: dict[str, Any], data: FaceData, teachers: Teachers | None, machine: Machine, ranks: Ranks | None = None
) -> None:
    """Raise UserError where data or makers of targets are not those of the run with `last`; note another machine."""
    check_fingerprint(last["fingerprint"], data)
    sources = target_sources(data, teachers)
    if changed := [name for name, mark in sources.items() if last["targets"][name] != mark]:
        raise UserError(
            f"the run's targets were made with other {' and '.join(changed)} than these: name the files it began with "
            f"by {', '.join(f'--{name}' for name in changed)}"
        )
    here = f"{describe_machine(machine, ranks or Ranks())} with torch {versions()['torch']}"
    made_on = last["progress"].get("made_on", [])
    places = dict.fromkeys(f"{each['machine']} with torch {each['versions']['torch']}" for each in made_on)
    if others := [place for place in places if place != here]:
        print(
            f"note: the run was trained on {plain(' and on '.join(others))}, this is {here}: "
            f"its weights are not bit for bit those of a run on one machine"
        )

"""A run in progress: its fixed parts, and the state that last.pth holds."""

import json
import math
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import Config
from dataset import FaceData
from errors import UserError, write_file
from losses import make_loss
from ranks import Ranks
from training.batches import Feed
from training.distill import Teachers, target_sources
from training.optim import WeightAverage, lay_out_as_weights, make_optimizer, make_scheduler
from utils import Machine, versions, write_checkpoint
from val import Scores
from weights import weight_file


@dataclass
class Trainer:
    """A run in progress: the fixed parts, then the state that last.pth holds."""

    model: nn.Module
    config: Config
    data: FaceData
    run: Path
    machine: Machine
    ranks: Ranks = field(default_factory=Ranks)
    teachers: Teachers | None = None
    # State
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    seconds: float = 0.0  # spent on the epoch under way by processes before this one
    rate: float = 0.0  # learning rate of the last step
    loss_sum: float = 0.0  # over the images that this process saw in the epoch under way, in nats
    correct: int = 0
    best: float | None = None  # of the stop metric; larger is better
    stale: int = 0  # epochs since the best one
    history: list[dict[str, Any]] = field(default_factory=list)
    made_on: list[dict[str, Any]] = field(default_factory=list)  # machines and versions that trained it, each once
    leakage: list[str] = field(default_factory=list)  # notes on weights it began with that may know the validation
    # Not kept
    held: dict[str, Any] | None = None  # the best weights, from their epoch to the next `save`
    stopped: bool = False  # whether Ctrl-C was pressed, be it in the last epoch, which then is done all the same

    def __post_init__(self) -> None:
        train = self.data.split("train")
        self.steps = math.ceil(len(train) / self.config.batch_size)
        self.loss, self.loss_name = make_loss(self.config, train.counts(), self.machine.device)
        self.optimizer = make_optimizer(self.model, self.config, self.machine)
        self.scheduler = make_scheduler(self.optimizer, self.config, self.steps)
        self.scaler = torch.amp.GradScaler(self.machine.device.type, enabled=self.machine.dtype is torch.float16)
        self.ema = WeightAverage(self.model, self.config.ema) if self.config.ema else None
        self.feed = Feed(train, self.config, self.machine)
        self.sources = target_sources(self.data, self.teachers)
        self.network = self.wrapped()

    def wrapped(self) -> nn.Module:
        """The model as a step calls it: of several processes, with gradients averaged over them."""
        if self.ranks.size == 1:
            return self.model
        wrapper = nn.parallel.DistributedDataParallel
        names = signature(wrapper).parameters
        copying = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        # Statistics of batch norm are averaged at the end of an epoch, not copied from the first process at each step
        return wrapper(self.model, gradient_as_bucket_view=True, **{copying: False})

    @property
    def kept(self) -> nn.Module:
        """The network that is scored and saved: the averaged one where there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def done(self) -> bool:
        return is_over(self.config, self.epoch, self.stale)

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

    def hold(self, scores: Scores) -> None:
        """Keep the weights as they are, the best so far, until they are saved."""
        if self.ranks.first:
            self.held = weight_file(self.kept, scores, config=self.config, data=self.data, leakage=bool(self.leakage))
            self.held["made_on"] = self.made_on

    def save(self) -> None:
        """Write best.pth where there is a new one, last.pth, everything needed to go on, and metrics.jsonl."""
        if not self.ranks.first:
            return
        self.save_best()
        write_checkpoint(
            self.run / "last.pth",
            {
                "model": self.config.model,
                "config": asdict(self.config),
                "fingerprint": self.data.fingerprint,
                "targets": self.sources,
                "made_on": self.made_on,
                "leakage": self.leakage,
                "progress": {name: getattr(self, name) for name in PROGRESS},
                **{key: part.state_dict() for key, part in self.parts().items()},
            },
        )
        lines = "".join(f"{json.dumps(row)}\n" for row in self.history)
        write_file(self.run / "metrics.jsonl", lines.encode())

    def save_best(self) -> None:
        """Write best.pth where there is a new one."""
        if self.held:
            write_checkpoint(self.run / "best.pth", self.held)
            self.held = None

    def restore(self, content: dict[str, Any]) -> None:
        """Go back to the state in last.pth's `content`. Raises UserError where this code makes another network."""
        try:
            optimizer = content["optimizer"]
            groups = zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True)
            # This machine's, before loading, which puts the counts of steps where the fused optimizer wants them
            groups = [group | {"fused": own["fused"]} for group, own in groups]
            content = content | {"optimizer": optimizer | {"param_groups": groups}}
            for key, part in self.parts().items():
                part.load_state_dict(content[key])
            lay_out_as_weights(self.optimizer)
            for name in PROGRESS:
                setattr(self, name, content["progress"][name])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.run / 'last.pth'} does not fit the network {self.config.model!r} and the optimizer of this "
                f"code: {str(error).splitlines()[0]}; go on with the code it was begun with, or start a new run"
            ) from error
        self.made_on = list(made_on(content))
        self.leakage = content.get("leakage", [])  # an older last.pth has none
        if not self.ranks.first:
            self.loss_sum, self.correct = 0.0, 0  # the first process holds the sums of all

    def sign(self) -> None:
        """Enter this machine and these versions into what the run was made on."""
        here = {"machine": ranks_on(self.machine, self.ranks), "versions": versions()}
        if here not in self.made_on:
            self.made_on.append(here)

    def combine(self) -> None:
        """Bring together what the processes hold apart: sums to the first, averaged statistics of batch norm to all."""
        ranks = self.ranks
        if ranks.size == 1:
            return
        loss, hits = ranks.sum(torch.tensor([self.loss_sum, self.correct], dtype=torch.float64)).tolist()
        self.loss_sum, self.correct = (loss, int(hits)) if ranks.first else (0.0, 0)
        for model in dict.fromkeys((self.model, self.kept)):  # one and the same where nothing is averaged
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(ranks.sum(buffer.cpu()) / ranks.size)


def is_over(config: Config, epochs: int, stale: int) -> bool:
    """Whether a run has ended after `epochs`, the last `stale` of them without a better one."""
    return epochs >= config.epochs or 0 < config.stop_patience <= stale


LAST = (
    "config",
    "fingerprint",
    "targets",
    "versions",
    "progress",
    "state_dict",
    "optimizer",
    "scheduler",
)  # in every last.pth
PROGRESS = ("epoch", "step", "seconds", "rate", "loss_sum", "correct", "best", "stale", "history")


def made_on(last: dict[str, Any]) -> list[dict[str, Any]]:
    """The machines, in words, and versions that trained the run whose last.pth holds `last`."""
    if "made_on" in last:
        return last["made_on"]
    return [{"machine": last["machine"], "versions": last["versions"]}]  # written before resumed runs kept all


def ranks_on(machine: Machine, ranks: Ranks) -> str:
    """What a run's bits depend on, besides its knobs and torch."""
    return f"{machine}, {ranks.size} processes" if ranks.size > 1 else str(machine)

"""Optimisers, learning-rate schedules and the average of the weights, as config.py names them."""

import math
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from config import Config
from utils import Machine

# The share by which a validation loss must be lower to count as lower. That of averaged weights falls a little in every
# epoch: with torch's 1e-4 the rate was never cut in 40 epochs.
PLATEAU_THRESHOLD = 0.01


def make_optimizer(model: nn.Module, config: Config, machine: Machine) -> torch.optim.Optimizer:
    """The configured update rule over all weights that are not frozen, fused where torch has that.

    Weight decay spares biases and the gains and offsets of norms (arXiv 1812.01187, section 3.1). SGD is not fused in
    float16: where its first step is skipped, for gradients too large, it would go on with momentum never set.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trained if weight.ndim > 1]
    vectors = [weight for weight in trained if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    sound = config.optimizer != "sgd" or machine.dtype is not torch.float16
    # None, not False: torch then still updates many weights at once where it can
    fused = True if sound and machine.device.type in ("cpu", "cuda") else None
    shared: dict[str, Any] = {"lr": config.lr, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **shared)
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return rule(groups, **shared)


def make_scheduler(optimizer: torch.optim.Optimizer, config: Config, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate's schedule over epochs of `steps` steps; plateau steps per epoch, the others per step."""
    if config.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            threshold=PLATEAU_THRESHOLD,
        )
    if config.schedule == "onecycle":
        total = config.epochs * steps
        rise = float(config.warmup)
        total += rise * total == 1  # there torch's rise would end at step 0, and divide by it
        return lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=total, pct_start=rise, cycle_momentum=False)
    if config.schedule == "cosine":
        return lr_scheduler.LambdaLR(optimizer, partial(cosine, total=config.epochs * steps, warmup=config.warmup))
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def cosine(step: int, *, total: int, warmup: float) -> float:
    """The share of the highest rate at `step`, from 0: it rises in a line, then falls to 0 as half a cosine.

    `warmup` is the share of the `total` steps in which it rises (arXiv 1608.03983, 1706.02677).
    """
    rise = round(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * min((step - rise) / max(total - rise, 1), 1.0))) / 2


def warm_up(optimizer: torch.optim.Optimizer, config: Config, *, step: int, steps: int) -> None:
    """Set the rate of the plateau schedule at `step` of the run's `steps`, while it rises in a line to `config.lr`.

    At the full rate Adam's first five steps silence half of TheModel's hidden units for good, with the rise a 25th:
    none of a unit's 18,432 inputs is negative, so all its weights move the same way at once.
    """
    rise = round(config.warmup * steps)
    if config.schedule == "plateau" and step < rise:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (step + 1) / rise


class WeightAverage:
    """The exponential moving average of a network's weights and statistics, in `module`.

    The decay of a step is (1 + steps) / (10 + steps) until that reaches `decay`: so the average leaves the first
    weights soon. Nothing waits for the device, as torch's AveragedModel does at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).requires_grad_(False)
        self.decay, self.steps = decay, 0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self) -> None:
        """Move the average towards the weights as they are now; the first time it becomes them."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        averages, values = zip(*self.averaged, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in self.copied:
            average.copy_(value)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.module.load_state_dict(state["module"])

"""Optimisers and learning-rate schedules, as config.py names them."""

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from config import Config
from utils import Machine


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

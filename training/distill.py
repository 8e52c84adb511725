"""Distillation: trained networks whose averaged probabilities are part of another network's targets."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from config import Config
from dataset import FaceData
from errors import UserError, find_weights
from metrics import describe
from utils import Machine, channels_last
from weights import leakage_notes, load_weights


class Teachers:
    """The networks in the weight files `config.teachers`, a comma between them (arXiv 1503.02531).

    They see the very images that the student sees, augmented and blended (arXiv 2106.05237). `digests` identify them;
    `leakage` are notes on those that may have learned from the validation images of `data`. Raises UserError for a file
    that `load_weights` refuses or that lacks a class, and for a network that takes no windows where those are used.
    """

    def __init__(self, config: Config, data: FaceData, machine: Machine) -> None:
        self.machine = machine
        names = [name.strip() for name in config.teachers.split(",") if name.strip()]
        if not names:
            raise UserError(f"--teachers {config.teachers!r} names no weight file")
        self.models, self.digests, self.leakage, self.columns = [], [], [], []
        for path in [find_weights(name, flag="--teachers") for name in names]:
            model, content = load_weights(path, machine=machine)
            if config.augment and config.window < 48 and not model.any_size:
                raise UserError(f"--teachers {path}: this network takes whole faces only; give --window 48 too")
            print(f"teacher: {describe(path, content)}")
            if lacking := [name for name in data.classes if name not in content["classes"]]:
                raise UserError(f"--teachers {path}: it does not know {', '.join(lacking)}")
            self.columns.append([content["classes"].index(name) for name in data.classes])
            self.models.append(model)
            self.digests.append(digest(content["state_dict"]))
            self.leakage += leakage_notes(path, content, data, config.val_fraction)
        print("\n".join(self.leakage), end="\n" if self.leakage else "")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The networks' mean probabilities (B, C) float32 of the student's classes, for network inputs (B, 1, H, H)."""
        with self.machine.autocast():
            logits = [model(channels_last(images)).float() for model in self.models]
        logits = [each[:, columns] for each, columns in zip(logits, self.columns, strict=True)]
        return torch.stack(logits).softmax(2).mean(0)


def load_teachers(config: Config, data: FaceData, machine: Machine) -> Teachers | None:
    """The Teachers that `config` names; None where it names none."""
    return Teachers(config, data, machine) if config.teachers else None


def digest(state: dict[str, Tensor]) -> str:
    """16 hex digits over the tensors of a weight file: the same wherever it lies and whatever else it has."""
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def target_sources(data: FaceData, teachers: Teachers | None) -> dict[str, Any]:
    """What the targets are made of besides labels, each by its digest; a run goes on with the same only."""
    return {"votes": data.votes, "teachers": teachers.digests if teachers else []}

"""Distillation: trained networks whose averaged probabilities are part of another network's targets."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config
from dataset import FaceData
from errors import UserError
from utils import Machine, channels_last, read_checkpoint
from weights import describe, find_weights, leakage_notes, load_weights


class Teachers:
    """The networks in the weight files that `config.teachers` names, a comma between them (arXiv 1503.02531).

    They look at the very images that the student sees, augmented and blended (arXiv 2106.05237). Raises UserError for
    a file that `load_weights` refuses, and for a network of fixed size where windows of the faces are trained on.
    """

    def __init__(self, config: Config, machine: Machine) -> None:
        self.machine = machine
        self.val_fraction, self.models, self.contents = config.val_fraction, [], {}
        for path in teacher_files(config):
            model, self.contents[path] = load_weights(path, machine=machine)
            if config.augment and config.window < 48 and not model.any_size:
                raise UserError(f"--teachers {path}: this network takes whole faces only; give --window 48 too")
            self.models.append(model)

    def lines(self, data: FaceData) -> tuple[list[str], list[str]]:
        """A line on each teacher, and notes on those that may have learned from the validation images of `data`."""
        about = [f"teacher: {describe(path, content)}" for path, content in self.contents.items()]
        known = [
            note
            for path, content in self.contents.items()
            for note in leakage_notes(path, content, data, self.val_fraction)
        ]
        return about, known

    def __call__(self, images: Tensor) -> Tensor:
        """The networks' mean probabilities (B, 7) float32 of network inputs (B, 1, H, H)."""
        with torch.no_grad(), self.machine.autocast():
            given = channels_last(images)
            votes = [model(given).float().softmax(1) for model in self.models]
        return torch.stack(votes).mean(0)


def teacher_files(config: Config) -> list[Path]:
    """The files that `config.teachers` names. Raises UserError for one that is not there, and where it names none."""
    names = [name.strip() for name in config.teachers.split(",") if name.strip()]
    if config.teachers and not names:
        raise UserError(f"--teachers {config.teachers!r} names no weight file")
    return [find_weights(name, flag="--teachers") for name in names]


def load_teachers(config: Config, machine: Machine) -> Teachers | None:
    """The Teachers that `config` names; None where it names none. Raises UserError as they do."""
    return Teachers(config, machine) if config.teachers else None


def target_sources(data: FaceData, teachers: Teachers | None) -> dict[str, Any]:
    """Digests of what makes the training targets besides the labels: a run goes on with the same only."""
    contents = teachers.contents.values() if teachers else ()
    return {"votes": data.votes, "teachers": [digest(content) for content in contents]}


def digest(content: dict[str, Any]) -> str:
    """16 hex digits over the weights in a file's `content`, wherever it lies and whatever else it says."""
    found = hashlib.sha256()
    for name, value in content["state_dict"].items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def teacher_digests(config: Config) -> list[str]:
    """The digests of the weights in the `teacher_files`. Raises UserError as those do."""
    return [digest(read_checkpoint(path)) for path in teacher_files(config)]

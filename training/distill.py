"""Distillation: trained networks whose averaged probabilities are part of another network's targets."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config
from dataset import FaceData
from errors import UserError
from utils import Machine, channels_last
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


def target_sources(data: FaceData, config: Config) -> dict[str, Any]:
    """Digests of what makes the training targets besides the labels: a run goes on with the same only."""
    return {"votes": data.votes, "teachers": teacher_digests(config)}


def teacher_digests(config: Config) -> list[str]:
    """What tells each of the `teacher_files` from others, wherever it lies. Raises UserError as they do."""
    digests = []
    for path in teacher_files(config):
        try:
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        except OSError as error:
            raise UserError(f"--teachers {path}: can't be read ({error.strerror})") from error
    return digests

"""Distillation: trained networks whose averaged probabilities are part of another network's targets."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from config import Config
from dataset import FaceData
from errors import UserError
from utils import Machine, channels_last
from weights import describe, find_weights, leakage_notes, load_weights


class Teachers:
    """The networks in the weight files `config.teachers`, a comma between them (arXiv 1503.02531).

    They see the very images that the student sees, augmented and blended (arXiv 2106.05237). `digests` identify them.
    Raises UserError for a file that `load_weights` refuses, and for a network that takes no windows where those are
    trained on.
    """

    def __init__(self, config: Config, machine: Machine) -> None:
        self.machine, self.val_fraction = machine, config.val_fraction
        names = [name.strip() for name in config.teachers.split(",") if name.strip()]
        if not names:
            raise UserError(f"--teachers {config.teachers!r} names no weight file")
        self.paths = [find_weights(name, flag="--teachers") for name in names]
        loaded = [load_weights(path, machine=machine) for path in self.paths]
        self.models, self.contents = [model for model, _ in loaded], [content for _, content in loaded]
        self.digests = [digest(content["state_dict"]) for content in self.contents]
        for path, model in zip(self.paths, self.models, strict=True):
            if config.augment and config.window < 48 and not model.any_size:
                raise UserError(f"--teachers {path}: this network takes whole faces only; give --window 48 too")

    def describe(self) -> list[str]:
        """A line on each network."""
        return [f"teacher: {describe(*each)}" for each in zip(self.paths, self.contents, strict=True)]

    def leakage(self, data: FaceData) -> list[str]:
        """Notes on those that may have learned from the validation images of `data`."""
        pairs = zip(self.paths, self.contents, strict=True)
        return [note for path, content in pairs for note in leakage_notes(path, content, data, self.val_fraction)]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The networks' mean probabilities (B, 7) float32 for network inputs (B, 1, H, H)."""
        with self.machine.autocast():
            logits = [model(channels_last(images)).float() for model in self.models]
        return torch.stack(logits).softmax(2).mean(0)


def load_teachers(config: Config, machine: Machine) -> Teachers | None:
    """The Teachers that `config` names; None where it names none."""
    return Teachers(config, machine) if config.teachers else None


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

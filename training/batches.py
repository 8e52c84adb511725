"""The training images where a step takes them from: the GPU's memory where they fit, else the mapped array."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from splits import Split
from utils import Machine

GPU_SHARE = 0.5  # of the GPU's free memory that the images may take; the network needs the rest


class Batch(NamedTuple):
    """Images (B, 48, 48) uint8, labels (B,) int64, and targets, all on the device; `at` (B,) int64 are their rows.

    Targets are the labels, or the share of each class (B, 7) float32.
    """

    at: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor


class TrainingImages:
    """The training split by batches, on the machine's device; targets are shares with `soft`, and where it has votes.

    A GPU with room holds all images, and a batch is an index into them. Else a batch is gathered from the mapped array
    on the CPU.
    """

    def __init__(self, split: Split, machine: Machine, *, soft: bool = False) -> None:
        self.split, self.device = split, machine.device
        self.labels = torch.tensor(np.asarray(split.labels), device=self.device)
        self.targets = self.labels
        if split.votes is not None:
            self.targets = torch.tensor(shares(split.votes, split.labels), device=self.device)
        elif soft:
            self.targets = nn.functional.one_hot(self.labels, len(split.classes)).float()
        self.images: Tensor | None = None
        if fit_on_gpu(split.images.nbytes, self.device):
            self.images = torch.tensor(np.asarray(split.images), device=self.device)
        elif self.device.type == "cuda":
            size = f"{split.images.nbytes / 1e6:,.0f} MB"
            print(
                f"note: training images ({size}) take over {GPU_SHARE:.0%} of the free GPU memory: sent batch by batch"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> Batch:
        """The images at `rows` (B,)."""
        at = self.send(torch.from_numpy(rows))
        images = self.send(torch.from_numpy(self.split.images[rows])) if self.images is None else self.images[at]
        return Batch(at, images, self.labels[at], self.targets[at])

    def send(self, values: Tensor) -> Tensor:
        """`values` on the device. CUDA does not wait for it: torch keeps the pinned memory until it has arrived."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)


def fit_on_gpu(size: int, device: torch.device) -> bool:
    """Whether `device` is a GPU with room for `size` bytes of images beside the network."""
    return device.type == "cuda" and size < GPU_SHARE * torch.cuda.mem_get_info(device)[0]


def shares(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share (N, 7) float32 of each class in an image's votes, all for its label where it has none."""
    total = votes.sum(1, keepdims=True)
    return np.where(total > 0, votes / np.maximum(total, 1e-9), np.eye(votes.shape[1], dtype=np.float32)[labels])

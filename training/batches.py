"""An epoch's batches, in its order, on the device: gathered from the mapped array, or from the GPU's own memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Config
from dataset import Split
from training.augment import Draws, draw
from utils import Machine

CHUNK = 65_536  # images sent to a GPU at a time where the dataset does not fit: 151 MB
DRAWN = 8192  # images whose augmentation is drawn at a time where it does: the first step need not wait for an epoch's
GPU_SHARE = 0.5  # of the GPU's free memory that the dataset may take; the network needs the rest


class Batch(NamedTuple):
    """Training images (B, 48, 48) uint8, labels (B,) int64 and augmentation, all on the device.

    `targets` (B, 7) float32 is the share of each class, where the split has votes.
    """

    images: Tensor
    labels: Tensor
    draws: Draws | None
    targets: Tensor | None = None


class Feed:
    """The batches of a training split for the processor at hand; `place` says where its images are kept.

    "host": each batch is gathered from the mapped array. "device": the GPU holds every image, and a batch is
    an index into them; what is done to DRAWN images is drawn while the ones before are trained on. "chunks": the GPU
    holds CHUNK images of the epoch's order at a time, the next ones are gathered meanwhile. All give the same batches.
    """

    def __init__(self, split: Split, config: Config, machine: Machine, *, place: str = "") -> None:
        self.split, self.config, self.machine = split, config, machine
        self.place = place or where_to_keep(split, machine)
        shares = split.targets()
        self.targets = None if shares is None else torch.from_numpy(shares)
        if self.place == "device":
            self.images = torch.tensor(np.asarray(split.images), device=machine.device)
            self.labels = torch.tensor(np.asarray(split.labels), device=machine.device)
            self.targets = None if shares is None else self.targets.to(machine.device)

    def __str__(self) -> str:
        megabytes = f"{self.split.images.nbytes / 1e6:.0f} MB"
        return {
            "host": f"in memory, or in a mapped file ({megabytes})",
            "device": f"held by the GPU ({megabytes}, under {GPU_SHARE:.0%} of its free memory)",
            "chunks": f"streamed to the GPU ({megabytes}, over {GPU_SHARE:.0%} of its free memory)",
        }[self.place]

    def batches(self, parts: Sequence[np.ndarray], *, epoch: int) -> Iterator[Batch]:
        """A Batch for each of `parts`, rows of the split."""
        if self.place == "host":
            for rows in parts:
                yield self.gather(rows, epoch)
            return
        groups = grouped(parts, DRAWN if self.place == "device" else CHUNK)
        load = self.index if self.place == "device" else self.gather
        device = self.machine.device
        begin = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
        with ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=begin) as pool:
            coming = [pool.submit(load, np.concatenate(group), epoch) for group in groups[:1]]
            for number, group in enumerate(groups):
                held = coming.pop().result()
                if number + 1 < len(groups):
                    coming.append(pool.submit(load, np.concatenate(groups[number + 1]), epoch))
                yield from self.cut(held, group)

    def gather(self, rows: np.ndarray, epoch: int) -> Batch:
        """The images `rows`, copied from the mapped array to the device."""
        return Batch(
            self.send(torch.from_numpy(self.split.images[rows])),
            self.send(torch.from_numpy(self.split.labels[rows])),
            self.send_draws(rows, epoch),
            None if self.targets is None else self.send(self.targets[torch.from_numpy(rows)]),
        )

    def index(self, rows: np.ndarray, epoch: int) -> Batch:
        """In the place of images and labels, where the device has them; the targets are found by the same."""
        at = self.send(torch.from_numpy(rows))
        return Batch(at, at, self.send_draws(rows, epoch))

    def cut(self, held: Batch, group: list[np.ndarray]) -> Iterator[Batch]:
        """The batches of a `group` that is on the device in one piece."""
        end = 0
        for rows in group:
            at = slice(end, end := end + len(rows))
            images, labels, draws = held.images[at], held.labels[at], held.draws and held.draws.each(itemgetter(at))
            targets = None if held.targets is None else held.targets[at]
            if self.place == "device":
                targets = None if self.targets is None else self.targets[images]
                images, labels = self.images[images], self.labels[labels]
            yield Batch(images, labels, draws, targets)

    def send_draws(self, rows: np.ndarray, epoch: int) -> Draws | None:
        draws = draw(self.config, rows, epoch=epoch)
        return draws and draws.each(self.send)

    def send(self, values: Tensor) -> Tensor:
        """`values` on the device; CUDA does not wait for it, from pinned memory that torch keeps until it is there."""
        if self.machine.device.type == "cuda":
            return values.pin_memory().to(self.machine.device, non_blocking=True)
        return values.to(self.machine.device)


def where_to_keep(split: Split, machine: Machine) -> str:
    """The place of the images of `split`, see `Feed`."""
    if machine.device.type != "cuda":
        return "host"
    free, _ = torch.cuda.mem_get_info(machine.device)
    return "device" if split.images.nbytes < GPU_SHARE * free else "chunks"


def grouped(parts: Sequence[np.ndarray], most: int) -> list[list[np.ndarray]]:
    """`parts` in groups of at most `most` rows together; a longer part stands alone."""
    groups: list[list[np.ndarray]] = []
    count = 0
    for part in parts:
        if not groups or count + len(part) > most:
            groups.append([])
            count = 0
        groups[-1].append(part)
        count += len(part)
    return groups

"""Augmentation of whole batches, drawn per (seed, epoch, image): equal on every device and in any batching."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from config import Config


class Draws(NamedTuple):
    """What an epoch does to each of B images: `theta` (B, 2, 3) affine maps, `boxes` (B, 4) erased squares.

    A box is (left, top, right, bottom) in [-1, 1] across the image; None erases nothing.
    """

    theta: Tensor
    boxes: Tensor | None

    def rows(self, at: slice) -> "Draws":
        """Those of the images `at`."""
        return Draws(self.theta[at], None if self.boxes is None else self.boxes[at])


def draw(config: Config, rows: np.ndarray, *, epoch: int, size: int = 48) -> Draws | None:
    """The draws of `epoch` for the training images `rows` (B,), on the CPU; None where augmentation is off.

    An image's draws depend on the seed, the epoch and its row alone, whatever the batch, the device and the
    number of processes. Flips have probability one half; the rest is uniform.
    """
    if not config.augment:
        return None
    drawn = torch.from_numpy(2 * uniform(rows, 7, of=(config.seed, epoch)) - 1)
    flip, angle, zoom, dx, dy, box_x, box_y = drawn
    sign = torch.where(flip < 0, -1.0, 1.0) if config.flip else torch.ones(len(rows))
    angle = angle * math.radians(config.rotation)
    scale = 1 + zoom * config.zoom
    move = 2 * config.shift / size
    theta = [scale * angle.cos() * sign, -scale * angle.sin(), dx * move,
             scale * angle.sin() * sign, scale * angle.cos(), dy * move]  # fmt: skip
    half = config.erase  # of the image's width, 2
    boxes = torch.stack([box_x - half, box_y - half, box_x + half, box_y + half], 1) if half else None
    return Draws(torch.stack(theta, 1).view(len(rows), 2, 3), boxes)


def uniform(rows: np.ndarray, count: int, *, of: tuple[int, ...]) -> np.ndarray:
    """Numbers (count, B) float32 in [0, 1): each is a hash of `of`, its number and its row, so any is drawn alone."""
    keys = np.zeros(1, np.uint64)
    for part in of:
        keys = mix(keys + np.uint64(part))
    keys = mix(keys + np.arange(count, dtype=np.uint64))
    bits = mix(rows.astype(np.uint64) ^ keys[:, None])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that leaves no pattern: splitmix64 (doi 10.1145/2714064.2660195).

    Sums and products are meant modulo 2^64, as numpy's arrays have them.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def augment(images: Tensor, draws: Draws) -> Tensor:
    """`images` (B, 1, H, W) in [-1, 1], flipped, turned, scaled, moved and partly erased by `draws` of B rows.

    Bilinear; beyond the border the edge is repeated. An erased square becomes mid-grey, 0.
    """
    grid = affine_grid(draws.theta, images.shape[-1])
    padding = "border"
    if images.device.type == "mps":  # has no "border" in some versions; at the edge pixel's centre it is the same
        edge = 1 - 1 / images.shape[-1]
        grid, padding = grid.clamp(-edge, edge), "zeros"
    images = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    return images if draws.boxes is None else erase(images, draws.boxes)


def affine_grid(theta: Tensor, size: int) -> Tensor:
    """Where `theta` (B, 2, 3) reads each pixel of square images: (B, size, size, 2), x and y in [-1, 1].

    torch's affine_grid does the same by a product of three columns, which takes many times as long.
    """
    at = (torch.arange(size, device=theta.device, dtype=theta.dtype) + 0.5) * (2 / size) - 1
    along = theta[:, :, :1] * at + theta[:, :, 2:]  # (B, 2, size): the part of x
    down = theta[:, :, 1:2] * at  # the part of y
    return (along[:, None] + down.transpose(1, 2)[..., None]).movedim(2, -1)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """`images` (B, 1, H, W) with the squares `boxes` (B, 4) set to 0."""
    height, width = images.shape[-2:]
    x = (torch.arange(width, device=images.device) + 0.5) * 2 / width - 1
    y = (torch.arange(height, device=images.device) + 0.5) * 2 / height - 1
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    inside = ((y > top) & (y < bottom))[:, :, None] & ((x > left) & (x < right))[:, None, :]
    return images.masked_fill(inside[:, None], 0.0)

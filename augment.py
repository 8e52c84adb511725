"""Augmentation of whole batches, drawn per (seed, epoch, image): equal on every device and in any batching."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from config import Config


class Draws(NamedTuple):
    """What one epoch does to each of N images: `theta` (N, 2, 3) affine maps, `boxes` (N, 4) erased squares.

    A box is (left, top, right, bottom) in [-1, 1] across the image; None erases nothing.
    """

    theta: Tensor
    boxes: Tensor | None

    def rows(self, at: Tensor, device: torch.device) -> "Draws":
        """The draws of the images `at`, on `device`."""
        return Draws(self.theta[at].to(device), None if self.boxes is None else self.boxes[at].to(device))


def draw(config: Config, *, count: int, epoch: int, size: int = 48) -> Draws | None:
    """The draws of `epoch` for `count` images, on the CPU; None where augmentation is off.

    Row i belongs to image i whatever its batch. Flips have probability one half; the rest is uniform.
    """
    if not config.augment:
        return None
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    flip, angle, zoom, dx, dy, box_x, box_y = torch.rand((7, count), generator=generator) * 2 - 1
    sign = torch.where(flip < 0, -1.0, 1.0) if config.flip else torch.ones(count)
    angle = angle * math.radians(config.rotation)
    scale = 1 + zoom * config.zoom
    move = 2 * config.shift / size
    rows = [scale * angle.cos() * sign, -scale * angle.sin(), dx * move,
            scale * angle.sin() * sign, scale * angle.cos(), dy * move]  # fmt: skip
    half = config.erase  # of the image's width, 2
    boxes = torch.stack([box_x - half, box_y - half, box_x + half, box_y + half], 1) if half else None
    return Draws(torch.stack(rows, 1).view(count, 2, 3), boxes)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """`images` (B, 1, H, W) in [-1, 1], flipped, turned, scaled, moved and partly erased by `draws` of B rows.

    Bilinear; beyond the border the edge is repeated. An erased square becomes mid-grey, 0.
    """
    grid = F.affine_grid(draws.theta, list(images.shape), align_corners=False)
    padding = "border"
    if images.device.type == "mps":  # has no "border" in some versions; at the edge pixel's centre it is the same
        edge = 1 - 1 / images.shape[-1]
        grid, padding = grid.clamp(-edge, edge), "zeros"
    images = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    return images if draws.boxes is None else erase(images, draws.boxes)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """`images` (B, 1, H, W) with the squares `boxes` (B, 4) set to 0."""
    height, width = images.shape[-2:]
    x = (torch.arange(width, device=images.device) + 0.5) * 2 / width - 1
    y = (torch.arange(height, device=images.device) + 0.5) * 2 / height - 1
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    inside = ((y > top) & (y < bottom))[:, :, None] & ((x > left) & (x < right))[:, None, :]
    return images.masked_fill(inside[:, None], 0.0)

"""Augmentation of whole batches, drawn per (seed, epoch, image): equal on every device and in any batching."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from config import Config


class Draws(NamedTuple):
    """What an epoch does to each of B images; None is not done.

    `theta` (B, 2, 3) are affine maps, `boxes` (B, 4) erased squares as (left, top, right, bottom) in [-1, 1] across
    what is seen of it, `tones` (B, 2) the factor and the summand of each pixel.
    """

    theta: Tensor
    boxes: Tensor | None = None
    tones: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        """The draws with `change` made to each tensor: some rows of it, or a copy elsewhere."""
        return Draws(*(None if part is None else change(part) for part in self))


def draw(config: Config, rows: np.ndarray, *, epoch: int, size: int = 48) -> Draws | None:
    """The draws of `epoch` for the training images `rows` (B,), on the CPU; None where augmentation is off.

    An image's draws depend on the seed, the epoch and its row alone, whatever the batch, the device and the
    number of processes. Flips have probability one half; the rest is uniform.
    """
    if not config.augment:
        return None
    drawn = torch.from_numpy(2 * uniform(rows, 9, of=(config.seed, epoch)) - 1)
    flip, angle, zoom, dx, dy, box_x, box_y, gain, offset = drawn
    sign = torch.where(flip < 0, -1.0, 1.0) if config.flip else torch.ones(len(rows))
    angle = angle * math.radians(config.rotation)
    scale = 1 + zoom * config.zoom
    move = 2 * config.shift / size
    theta = [
        scale * angle.cos() * sign,
        -scale * angle.sin(),
        dx * move,
        scale * angle.sin() * sign,
        scale * angle.cos(),
        dy * move,
    ]
    half = config.cutout  # of the image's width, 2
    boxes = torch.stack([box_x - half, box_y - half, box_x + half, box_y + half], 1) if half else None
    toned = config.contrast or config.brightness
    tones = torch.stack([1 + gain * config.contrast, 2 * offset * config.brightness], 1) if toned else None
    return Draws(torch.stack(theta, 1).view(len(rows), 2, 3), boxes, tones)


def window_at(config: Config, epoch: int) -> int:
    """How many pixels a side of an augmented image are seen in `epoch`."""
    full = max(1, round(config.full_size_share * config.epochs)) if config.full_size_share else 0
    return config.window if epoch < config.epochs - full else 48


def uniform(rows: np.ndarray, count: int, *, of: tuple[int, ...]) -> np.ndarray:
    """Numbers (count, B) float32 in [0, 1): each is a hash of `of`, its number and its row, so any is drawn alone."""
    keys = np.zeros(1, np.uint64)
    for part in of:
        keys = scramble(keys + np.uint64(part))
    keys = scramble(keys + np.arange(count, dtype=np.uint64))
    bits = scramble(rows.astype(np.uint64) ^ keys[:, None])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def scramble(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that leaves no pattern: splitmix64 (doi 10.1145/2714064.2660195).

    Sums and products are meant modulo 2^64, as numpy's arrays have them.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def augment(images: Tensor, draws: Draws, *, window: int = 0) -> Tensor:
    """`images` (B, 1, H, H) in [-1, 1], flipped, turned, scaled, moved, toned and partly erased by `draws` of B rows.

    The result shows the middle `window` pixels a side, (B, 1, window, window); 0 is all. Bilinear; beyond the border
    the edge is repeated. Tones stay in [-1, 1]. An erased square becomes mid-grey, 0.
    """
    grid = affine_grid(draws.theta, images.shape[-1], window=window)
    padding = "border"
    if images.device.type == "mps":  # has no "border" in some versions; at the edge pixel's centre it is the same
        edge = 1 - 1 / images.shape[-1]
        grid, padding = grid.clamp(-edge, edge), "zeros"
    images = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    if draws.tones is not None:
        gain, offset = draws.tones[:, :, None, None, None].unbind(1)
        images = (images * gain + offset).clamp_(-1, 1)
    return images if draws.boxes is None else erase(images, draws.boxes)


def affine_grid(theta: Tensor, size: int, *, window: int = 0) -> Tensor:
    """Where `theta` (B, 2, 3) reads the middle `window` pixels a side of images of `size`; 0 is all of them.

    The result is (B, window, window, 2), x and y in [-1, 1] across the whole image. torch's affine_grid does the same
    for all of them by a product of three columns, which takes many times as long.
    """
    window = window or size
    at = (torch.arange(window, device=theta.device, dtype=theta.dtype) + (size - window) // 2 + 0.5) * (2 / size) - 1
    along = theta[:, :, :1] * at + theta[:, :, 2:]  # (B, 2, size): the part of x
    down = theta[:, :, 1:2] * at  # the part of y
    return (along[:, None] + down.transpose(1, 2)[..., None]).movedim(2, -1)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """`images` (B, 1, H, W) with the squares `boxes` (B, 4) set to 0."""
    return images.masked_fill(within(boxes, images.shape[-2:]), 0.0)


def within(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels (B, 1, H, W) bool of images of `size` (H, W) that lie inside `boxes` (B, 4); in none for NaN."""
    height, width = size
    x = (torch.arange(width, device=boxes.device) + 0.5) * 2 / width - 1
    y = (torch.arange(height, device=boxes.device) + 0.5) * 2 / height - 1
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    inside = ((y > top) & (y < bottom))[:, :, None] & ((x > left) & (x < right))[:, None, :]
    return inside[:, None]


class Blend(NamedTuple):
    """How each of B images is blended with a partner: `share` (B,) is its own part of the target, at least one half.

    `boxes` (B, 4), as in `Draws`, is what the partner covers: its share of the image, give or take the rounding to
    pixels. An image without one (NaN) is averaged with its partner instead.
    """

    share: Tensor
    boxes: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Blend":
        """The blend with `change` made to each tensor: some rows of it, or a copy elsewhere."""
        return Blend(*map(change, self))


def draw_blend(config: Config, count: int, *, epoch: int, step: int) -> Blend | None:
    """How the `count` images of a step are blended (arXiv 1710.09412, 1905.04899), on the CPU; None is not at all.

    The larger share is the image's own, which changes nothing in all: each image is the partner of another.
    """
    if not (config.mixup or config.cutmix):
        return None
    rng = np.random.default_rng([config.seed, epoch, step, 1])
    pasted = rng.random(count) < 0.5 if config.mixup and config.cutmix else np.full(count, bool(config.cutmix))
    share = rng.beta(*np.where(pasted, config.cutmix, config.mixup)[None].repeat(2, 0).clip(1e-3))
    share = np.maximum(share, 1 - share)
    half = np.sqrt(1 - share)  # of a square that covers the partner's share, in an image of width 2
    x, y = (1 - half) * rng.uniform(-1, 1, (2, count))
    boxes = np.stack([x - half, y - half, x + half, y + half], 1)
    boxes[~pasted] = np.nan
    return Blend(torch.from_numpy(share.astype(np.float32)), torch.from_numpy(boxes.astype(np.float32)))


def blend(images: Tensor, partners: Tensor, how: Blend) -> Tensor:
    """`images` (B, 1, H, W) with their `partners`, averaged or covered in a box by `how`."""
    share = how.share.view(-1, 1, 1, 1)
    averaged = torch.lerp(partners, images, share)
    pasted = torch.where(within(how.boxes, images.shape[-2:]), partners, images)
    return torch.where(how.boxes[:, 0].isnan().view(-1, 1, 1, 1), averaged, pasted)

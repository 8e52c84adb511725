"""What an epoch does to every training image, sampled for all of them at once, and done to one batch at a time.

The tables depend on the seed, the epoch and the number of images only: every process samples the same, and a run that
is resumed goes on with the same.
"""

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from config import Config
from readers.decode import SIZE

Table = TypeVar("Table", bound=tuple[Tensor | None, ...])


class Augmentation(NamedTuple):
    """How each of N images is changed; what is None is not done.

    `theta` (N, 2, 3) are affine maps. `boxes` (N, 4) are cutout squares as (left, top, right, bottom), in [-1, 1]
    across the part of the image that is shown. `tones` (N, 2) are the factor and the summand of each pixel.
    """

    theta: Tensor
    boxes: Tensor | None = None
    tones: Tensor | None = None


class Blending(NamedTuple):
    """How each of N images is blended with a partner: `share` (N,) is its own part, at least one half.

    `boxes` (N, 4), as in `Augmentation`, is what the partner covers: its share of the image, but for the rounding to
    pixels. An image without a box (NaN, or no `boxes` at all) is averaged with its partner instead.
    """

    share: Tensor
    boxes: Tensor | None = None


class Epoch(NamedTuple):
    """All that is random about the images of an epoch: their `order` (N,), and two tables, each a row per image."""

    order: np.ndarray
    augmentation: Augmentation | None
    blending: Blending | None


def sample_epoch(config: Config, count: int, epoch: int, device: torch.device | str = "cpu") -> Epoch:
    """The order of `count` training images in `epoch`, and the tables for them on `device`."""
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(count)
    augmentation, blending = sample_augmentation(config, count, rng), sample_blending(config, count, rng)
    return Epoch(order, augmentation and to(augmentation, device), blending and to(blending, device))


def to(table: Table, device: torch.device | str) -> Table:
    """`table` on `device`."""
    return table._make(None if part is None else part.to(device) for part in table)


def rows(table: Table, at: Tensor) -> Table:
    """The rows `at` (B,) of `table`, for a batch of B images."""
    return table._make(None if part is None else part[at] for part in table)


def sample_augmentation(config: Config, count: int, rng: np.random.Generator) -> Augmentation | None:
    """An Augmentation of `count` images; None where it is off. Flips have probability one half, the rest is uniform."""
    if not config.augment:
        return None
    # Nine numbers each, whatever is in use: a setting changes what it is for and nothing else
    numbers = torch.from_numpy(2 * rng.random((9, count), dtype=np.float32) - 1)
    flip, angle, zoom, dx, dy, box_x, box_y, gain, offset = numbers
    sign = torch.where(flip < 0, -1.0, 1.0) if config.flip else torch.ones(count)
    angle = angle * math.radians(config.rotation)
    scale = 1 + zoom * config.zoom
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), 2 * config.shift / SIZE
    theta = torch.stack([cos * sign, -sin, dx * shift, sin * sign, cos, dy * shift], 1).view(count, 2, 3)
    half = config.cutout  # of the square's side; the image is 2 wide
    boxes = torch.stack([box_x - half, box_y - half, box_x + half, box_y + half], 1) if half else None
    toned = config.contrast or config.brightness
    tones = torch.stack([1 + gain * config.contrast, 2 * offset * config.brightness], 1) if toned else None
    return Augmentation(theta, boxes, tones)


def sample_blending(config: Config, count: int, rng: np.random.Generator) -> Blending | None:
    """The Blending of `count` images by mixup (arXiv 1710.09412) and cutmix (1905.04899); None where both are off.

    The larger share is the image's own. In all that changes nothing: each image is the partner of another one.
    """
    if not (config.mixup or config.cutmix):
        return None
    pasted = rng.random(count) < 0.5 if config.mixup and config.cutmix else np.full(count, bool(config.cutmix))
    a = np.where(pasted, config.cutmix, config.mixup).clip(1e-3)
    share = rng.beta(a, a)
    share = np.maximum(share, 1 - share)
    shares = torch.from_numpy(share.astype(np.float32))
    if not config.cutmix:
        return Blending(shares)
    half = np.sqrt(1 - share)  # of the side of a square that covers the partner's share; the image is 2 wide
    x, y = (1 - half) * rng.uniform(-1, 1, (2, count))
    boxes = np.stack([x - half, y - half, x + half, y + half], 1)
    boxes[~pasted] = np.nan
    return Blending(shares, torch.from_numpy(boxes.astype(np.float32)))


def window_size(config: Config, epoch: int) -> int:
    """The side in pixels of what is shown of an augmented image in `epoch`: `window`, at the end the whole image."""
    full = max(1, round(config.full_size_share * config.epochs)) if config.full_size_share else 0
    return config.window if epoch < config.epochs - full else SIZE


def augment(images: Tensor, how: Augmentation, *, window: int = SIZE) -> Tensor:
    """Network inputs (B, 1, H, H) in [-1, 1], flipped, turned, scaled, moved, toned and partly greyed by `how`.

    Returns the middle `window` pixels a side, (B, 1, window, window). Bilinear; beyond the border the edge is
    repeated. Tones stay in [-1, 1]. A cutout square becomes mid-grey, 0.
    """
    grid = affine_grid(how.theta, images.shape[-1], min(window, images.shape[-1]))
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if how.tones is not None:
        gain, offset = how.tones[:, :, None, None, None].unbind(1)
        images = (images * gain + offset).clamp_(-1, 1)
    return images if how.boxes is None else images.masked_fill(inside(how.boxes, window), 0.0)


def affine_grid(theta: Tensor, size: int, window: int) -> Tensor:
    """Where `theta` (B, 2, 3) reads the middle `window` pixels a side of images of `size`: (B, window, window, 2).

    That is x and y in [-1, 1] across the whole image, as torch's affine_grid gives them. That one has no window, and
    takes many times as long: it multiplies by a matrix of three columns.
    """
    at = (torch.arange(window, device=theta.device, dtype=theta.dtype) + (size - window) // 2 + 0.5) * (2 / size) - 1
    along = theta[:, :, :1] * at + theta[:, :, 2:]  # (B, 2, window): the part of x
    down = theta[:, :, 1:2] * at  # the part of y
    return (along[:, None] + down.transpose(1, 2)[..., None]).movedim(2, -1)


def inside(boxes: Tensor, size: int) -> Tensor:
    """The pixels (B, 1, size, size) bool inside `boxes` (B, 4) of images of `size`; none where a box is NaN."""
    at = (torch.arange(size, device=boxes.device) + 0.5) * 2 / size - 1
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    return (((at > top) & (at < bottom))[:, :, None] & ((at > left) & (at < right))[:, None, :])[:, None]


def blend(images: Tensor, partners: Tensor, how: Blending) -> Tensor:
    """`images` (B, 1, H, H) with their `partners`, averaged or covered in a box by `how`."""
    averaged = torch.lerp(partners, images, how.share.view(-1, 1, 1, 1))
    if how.boxes is None:
        return averaged
    pasted = torch.where(inside(how.boxes, images.shape[-1]), partners, images)
    return torch.where(how.boxes[:, 0].isnan().view(-1, 1, 1, 1), averaged, pasted)

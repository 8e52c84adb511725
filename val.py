"""Scoring: logits of a split, with temperature and test-time augmentation, and the figures made of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dataset import preprocess, tta_views
from errors import UserError
from losses import Loss
from metrics import Metrics, measure, summary, table
from model import FaceNet
from ranks import Ranks
from splits import Split
from utils import Machine, channels_last

BATCH = 256  # images scored at a time
SIZES = (1, 16, 64, BATCH)  # a batch is padded to the next of these
CALIBRATION_IMAGES = 200  # with fewer, a fitted temperature says more of the sample than of the network
TEMPERATURES = (0.25, 4.0)  # a fit beyond these is a sign of odd data, not of a network to trust


class Scores(NamedTuple):
    """A split scored twice: whole ("official"), and without the images that are also in train ("deduplicated")."""

    official: Metrics
    deduplicated: Metrics

    def plain(self) -> dict[str, Any]:
        return {"official": self.official.plain(), "deduplicated": self.deduplicated.plain()}

    def lines(self) -> list[str]:
        """The summary; a second line, deduplicated, only where some images are copies of train images."""
        if self.deduplicated.count == self.official.count:
            return [summary(self.official)]
        return [f"official      {summary(self.official)}", f"deduplicated  {summary(self.deduplicated)}"]

    def tables(self, classes: Sequence[str]) -> list[str]:
        """Recall and confusion, deduplicated; the first line says so where some images are copies of train images."""
        part = "" if self.deduplicated.count == self.official.count else ", deduplicated"
        return [f"recall and confusion{part}:", *table(self.deduplicated, classes)]


class Ensemble(nn.Module):
    """Several networks as one: the mean of their logits, and of their temperatures."""

    def __init__(self, models: Sequence[FaceNet]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.temperature = sum(model.temperature for model in models) / len(models)
        self.num_classes = models[0].num_classes
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([model(images).float() for model in self.models]).mean(0)


def forward(model: FaceNet | Ensemble, images: Tensor, *, machine: Machine, tta: str = "none") -> Tensor:
    """Logits (B, 7) float32 on the CPU of pixels (B, 48, 48) uint8, divided by the model's temperature.

    The only place that does so; B is up to 256, the model in evaluation mode. With test-time augmentation (`tta`) the
    logits of the `tta_views` are averaged first. A batch is padded to 1, 16, 64 or 256 images: in batches of one size
    an image gives the same logits bit for bit, between sizes they differ by rounding.
    Raises UserError where logits are not finite.
    """
    size = next(size for size in (*SIZES, len(images)) if size >= len(images))
    padded = nn.functional.pad(images, (0, 0, 0, 0, 0, size - len(images)))
    with torch.inference_mode(), machine.autocast():
        views = (preprocess(torch.from_numpy(view).to(machine.device)) for view in tta_views(padded.numpy(), tta))
        logits = torch.stack([model(channels_last(view)).float() for view in views]).mean(0)
    logits = logits[: len(images)].cpu() / model.temperature
    if not logits.isfinite().all():
        raise UserError(
            "the network gives numbers that are not finite: its weights are damaged, or training "
            "diverged; use other weights, or train with a smaller --lr"
        )
    return logits


def predict_logits(
    model: FaceNet | Ensemble, split: Split, *, machine: Machine, ranks: Ranks | None = None, tta: str = "none"
) -> Tensor:
    """Logits (N, 7) float32 on the CPU of every image of `split`, as `forward` gives them; processes share the work.

    Leaves the model in the mode it was found in.
    """
    ranks = ranks or Ranks()
    logits = torch.zeros(len(split), model.num_classes)
    training = model.training
    model.eval()
    for start in range(BATCH * ranks.rank, len(split), BATCH * ranks.size):
        rows = slice(start, start + BATCH)
        logits[rows] = forward(model, torch.from_numpy(np.array(split.images[rows])), machine=machine, tta=tta)
    model.train(training)
    return ranks.sum(logits)


def evaluate(
    model: FaceNet | Ensemble, split: Split, *, machine: Machine, loss: Loss | None = None, ranks: Ranks | None = None
) -> Scores:
    """Score `model` on every image of `split` exactly once, with and without the copies of train images.

    `loss` maps (logits, labels) to nats per image; without it, cross-entropy. All processes get the same figures.
    """
    logits = predict_logits(model, split, machine=machine, ranks=ranks)
    return score(logits, split.labels, split.copies, loss=loss)


def score(logits: Tensor, labels: np.ndarray, copies: np.ndarray, *, loss: Loss | None = None) -> Scores:
    """The Scores of logits (N, 7) against labels (N,) int64; -1 is left out, `copies` (N,) bool are as in `Split`."""
    known = labels >= 0
    logits, labels, copies = logits[torch.from_numpy(known)].double(), labels[known], copies[known]
    probabilities = logits.softmax(1).numpy()
    losses = loss(logits, torch.tensor(labels)).numpy() if loss else None
    official = measure(probabilities, labels, losses)
    if not copies.any():
        return Scores(official, official)
    kept = ~copies
    return Scores(official, measure(probabilities[kept], labels[kept], None if losses is None else losses[kept]))


def fit_temperature(logits: Tensor, labels: np.ndarray) -> float:
    """The number to divide logits (N, 7) by so that cross-entropy against labels (N,) is least (arXiv 1706.04599).

    Within 0.25 and 4; 1 with fewer than 200 images. Give validation images that are not in train.
    """
    if len(labels) < CALIBRATION_IMAGES:
        return 1.0
    logits = logits.double()
    true = logits.gather(1, torch.tensor(labels)[:, None])[:, 0]
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]  # of the factor, in which the loss is convex
    for _ in range(50):  # bisection: the slope rises, and is 0 at the least loss
        factor = (low + high) / 2
        expected = ((factor * logits).softmax(1) * logits).sum(1)
        low, high = (factor, high) if expected.mean() < true.mean() else (low, factor)
    return 1 / factor

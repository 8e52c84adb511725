"""Scoring: logits of a split, and the figures made of them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from config import CLASSES
from dataset import Split, preprocess
from errors import UserError
from losses import CrossEntropy, Loss
from ranks import Ranks
from readers.decode import SIZE
from utils import Machine, channels_last

BATCH = 256  # of every scoring path
SIZES = (16, 64, BATCH)  # a batch is padded to the next of these: neighbours then do not change an image's logits
ECE_BINS = 15  # arXiv 1706.04599


class Metrics(NamedTuple):
    """Figures over `count` images. Fractions are in [0, 1]; `loss` is the mean per image, in nats.

    `confusion[t][p]` counts images of true class t predicted as p. `recall` is None for a class without
    images, and `macro_f1` averages over the classes that have some. `ece` is the expected calibration error
    with 15 equal bins (arXiv 1706.04599).
    """

    count: int
    correct: int
    accuracy: float
    loss: float
    macro_f1: float
    ece: float
    recall: list[float | None]
    confusion: list[list[int]]

    def plain(self) -> dict[str, Any]:
        """The figures as a dict of plain types, for weight files and JSON."""
        return self._asdict()


class Scores(NamedTuple):
    """A split scored twice: as it stands ("official"), and without the images that also stand in train."""

    official: Metrics
    deduplicated: Metrics

    def plain(self) -> dict[str, Any]:
        return {"official": self.official.plain(), "deduplicated": self.deduplicated.plain()}


def tta_views(tta: str) -> list[tuple[bool, int, int]]:
    """The variants of an image that are scored: whether it is mirrored, and the pixels it moves down and right.

    "none" is the image alone, "flip" the mirror image too, "crops" both in place and moved by two to each corner.
    """
    moves = [(0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2)] if tta == "crops" else [(0, 0)]
    return [(mirrored, *move) for mirrored in ((False,) if tta == "none" else (False, True)) for move in moves]


def apply_view(images: Tensor, mirrored: bool, down: int, right: int) -> Tensor:
    """Network inputs (B, 1, H, W) as one of `views` shows them; beyond the border the edge is repeated."""
    height, width = images.shape[2:]
    images = images.flip(3) if mirrored else images
    if not (down or right):
        return images
    edge = max(abs(down), abs(right))
    padded = nn.functional.pad(images, (edge,) * 4, mode="replicate")
    return padded[:, :, edge - down : edge - down + height, edge - right : edge - right + width]


def mean_log_probs(each: Sequence[Tensor]) -> Tensor:
    """Logarithms (N, 7) of the mean probabilities of several logits (N, 7): of views of images, or of networks."""
    return torch.stack(tuple(each)).log_softmax(2).logsumexp(0) - math.log(len(each))


def forward(model: nn.Module, images: Tensor, *, machine: Machine, tta: str = "none") -> Tensor:
    """Logits (B, 7) float32 on the CPU of pixels (B, 48, 48) uint8, B up to 256, in inference mode.

    The batch is padded to one of three sizes. In batches of one size the same image gives the same logits, bit for
    bit; between the sizes too on the CPU tried. With test-time augmentation (`tta`, see `views`) they are the
    logarithms of the mean probabilities. Raises UserError where the logits are not finite, and ValueError for images
    of another shape or dtype: the network would take them, and name something else.
    """
    if images.dtype is not torch.uint8 or images.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"images: (B, {SIZE}, {SIZE}) uint8 are needed, not {tuple(images.shape)} {images.dtype}")
    size = next(size for size in (*SIZES, len(images)) if size >= len(images))
    padded = torch.zeros((size, *images.shape[1:]), dtype=torch.uint8)
    padded[: len(images)] = images
    with torch.inference_mode(), machine.autocast():
        inputs = preprocess(padded.to(machine.device))
        each = [model(channels_last(apply_view(inputs, *view)))[: len(images)].float() for view in tta_views(tta)]
        logits = (each[0] if len(each) == 1 else mean_log_probs(each)).cpu()
    if not logits.isfinite().all():
        raise UserError(
            "the network gives numbers that are not finite: its weights are damaged, or training "
            "diverged; use other weights, or train with a smaller --lr"
        )
    return logits


def predict_logits(model: nn.Module, split: Split, *, machine: Machine, ranks: Ranks, tta: str = "none") -> Tensor:
    """Logits (N, 7) float32 on the CPU of every image of `split`; the processes take its batches by turns.

    Leaves the model in the mode it was found in.
    """
    logits = torch.zeros(len(split), len(CLASSES))
    training = model.training
    model.eval()
    try:
        for start in range(BATCH * ranks.rank, len(split), BATCH * ranks.size):
            rows = slice(start, start + BATCH)
            logits[rows] = forward(model, torch.from_numpy(np.array(split.images[rows])), machine=machine, tta=tta)
    finally:
        model.train(training)
    return ranks.sum(logits)


def evaluate(
    model: nn.Module, split: Split, *, machine: Machine, loss: Loss | None = None, ranks: Ranks | None = None
) -> Scores:
    """Score `model` on every image of `split` exactly once, with and without the copies of train images.

    `loss` maps (logits, labels) to nats per image; without it, plain cross-entropy. Of several processes
    (`ranks`) each scores a part, and all get the same figures.
    """
    logits = predict_logits(model, split, machine=machine, ranks=ranks or Ranks())
    return score(logits, split.labels, split.copies, loss=loss)


def score(logits: Tensor, labels: np.ndarray, copies: np.ndarray, *, loss: Loss | None = None) -> Scores:
    """The Scores of logits (N, 7) against labels (N,) int64; -1 is left out, `copies` (N,) bool are as in `Split`."""
    scored, deduplicated = torch.from_numpy(labels >= 0), torch.from_numpy((labels >= 0) & ~copies)
    true = torch.tensor(labels)
    official = measure(logits[scored], true[scored], loss=loss)
    return Scores(official, measure(logits[deduplicated], true[deduplicated], loss=loss) if copies.any() else official)


class Tally:
    """Counts over the images scored so far, from which Metrics are made; its size does not grow with them.

    `loss` maps (logits, labels) to nats per image; without it, plain cross-entropy.
    """

    def __init__(self, *, loss: Loss | None = None) -> None:
        classes = len(CLASSES)
        self.loss = loss or CrossEntropy(reduction="none")
        self.nats = 0.0
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.gaps = torch.zeros(ECE_BINS, dtype=torch.float64)  # confidence less accuracy, summed per bin

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count images by their logits (N, 7) and labels (N,) int64 in 0..6; N may be 0."""
        classes = len(CLASSES)
        confidence, predicted = logits.softmax(1).max(1)
        self.confusion += torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
        bins = (confidence * ECE_BINS).long().clamp(max=ECE_BINS - 1)
        self.gaps.index_add_(0, bins, confidence.double() - (predicted == labels).double())
        self.nats += self.loss(logits, labels).double().sum().item()

    def metrics(self) -> Metrics:
        """The figures over all images so far; without any they are all 0."""
        count, classes = int(self.confusion.sum()), len(CLASSES)
        hits, true = self.confusion.diag().double(), self.confusion.sum(1).double()
        f1 = 2 * hits / (true + self.confusion.sum(0)).clamp(min=1)
        present = true > 0
        n = max(count, 1)
        return Metrics(
            count=count,
            correct=int(hits.sum()),
            accuracy=hits.sum().item() / n,
            loss=self.nats / n,
            macro_f1=f1[present].mean().item() if count else 0.0,
            ece=self.gaps.abs().sum().item() / n,
            recall=[(hits[c] / true[c]).item() if present[c] else None for c in range(classes)],
            confusion=self.confusion.tolist(),
        )


def measure(logits: Tensor, labels: Tensor, *, loss: Loss | None = None) -> Metrics:
    """The Metrics of logits (N, 7) against labels (N,) int64; N may be 0, then all figures are 0."""
    tally = Tally(loss=loss)
    tally.update(logits, labels)
    return tally.metrics()


def summary(metrics: Metrics) -> str:
    """One line: accuracy with its counts, macro-F1, calibration error and loss."""
    return (
        f"accuracy {metrics.accuracy:.4f} ({metrics.correct} of {metrics.count})  "
        f"macro-F1 {metrics.macro_f1:.4f}  ECE {metrics.ece:.4f}  loss {metrics.loss:.4f}"
    )


def table(metrics: Metrics) -> list[str]:
    """Lines with the recall of every class and the confusion matrix in images, a row per true class."""
    width = max(map(len, CLASSES)) + 1
    lines = [f"{'true class':<12}{'recall':>7}  predicted as:" + "".join(f"{name:>{width}}" for name in CLASSES)]
    for name, recall, row in zip(CLASSES, metrics.recall, metrics.confusion, strict=True):
        shown = "-" if recall is None else f"{recall:.3f}"
        lines.append(f"{name:<12}{shown:>7}               " + "".join(f"{count:>{width}}" for count in row))
    return lines

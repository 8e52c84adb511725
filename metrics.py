"""The figures of a classifier, from probabilities and labels, and how a weight file is described: numpy only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import CLASSES
from errors import plain

ANSWERED_RIGHT = 0.8  # of the images whose answer is given; the others are "not sure"
ECE_BINS = 15  # arXiv 1706.04599
# What scripts use of a weight file, by example for `fits`; older files lack what ends in "?"
FIGURES = {"accuracy": 0.0, "count": 0}
DATASET = {"name?": "", "source": "", "fingerprint": "", "demo": False, "limit": 0, "train": [0]}
EXAMPLE = {
    **{"model": "", "arguments": {}, "state_dict": {}},
    "config": {"limit": 0, "val_fraction?": 0.1, "classes?": ""},
    **{"metrics": {"official": FIGURES, "deduplicated": FIGURES}, "dataset": DATASET},
    **dict.fromkeys(("temperature?", "threshold?", "coverage?"), 1.0),
}


class Metrics(NamedTuple):
    """Figures over `count` images of K classes. Fractions are in [0, 1]; `loss` is the mean per image, in nats.

    `confusion[t][p]` counts images of true class t predicted as p. `recall` is None for a class without images, and
    `macro_f1` averages over the classes that have some. `bins` has [images, mean confidence, accuracy] for each of 15
    equal bins of confidence; `ece` is the expected calibration error over them (arXiv 1706.04599).
    """

    count: int
    correct: int
    accuracy: float
    loss: float
    macro_f1: float
    ece: float
    recall: list[float | None]
    confusion: list[list[int]]
    bins: list[list[float]] = []  # noqa: RUF012 (never changed)

    def plain(self) -> dict[str, Any]:
        """The figures as a dict of plain types, for weight files and JSON."""
        return self._asdict()


def measure(probabilities: np.ndarray, labels: np.ndarray, losses: np.ndarray | None = None) -> Metrics:
    """The Metrics of probabilities (N, K) against labels (N,) in 0..K-1; without images all figures are 0.

    `losses` (N,) are nats per image; without them, cross-entropy.
    """
    count, classes = probabilities.shape
    labels = np.asarray(labels, np.int64)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    if losses is None:
        true = probabilities[np.arange(count), labels].astype(np.float64)
        losses = -np.log(np.maximum(true, np.finfo(np.float64).tiny))
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    hits, per_class = confusion.diagonal(), confusion.sum(1)
    present, n = per_class > 0, max(count, 1)
    f1 = 2 * hits / np.maximum(per_class + confusion.sum(0), 1)
    bin_of = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    weights = (np.ones(count), confidence, predicted == labels)
    images, confidences, right = (np.bincount(bin_of, each, minlength=ECE_BINS) for each in weights)
    bins = np.stack([images, confidences / np.maximum(images, 1), right / np.maximum(images, 1)], axis=1)
    return Metrics(
        count=count,
        correct=int(hits.sum()),
        accuracy=float(hits.sum() / n),
        loss=float(losses.sum() / n),
        macro_f1=float(f1[present].mean()) if count else 0.0,
        ece=float((bins[:, 0] * np.abs(bins[:, 1] - bins[:, 2])).sum() / n),
        recall=[float(h / c) if c else None for h, c in zip(hits, per_class, strict=True)],
        confusion=confusion.tolist(),
        bins=bins.tolist(),
    )


def find_threshold(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """The smallest highest probability from which on ANSWERED_RIGHT of the images are right.

    With it, the share of all images that reach it, and the share of these that are right. Probabilities (N, K) and
    labels (N,) are of validation images that are not in train. (1, 0, 0) where no such threshold exists.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(correct[order]) >= ANSWERED_RIGHT * np.arange(1, len(order) + 1)
    if not right.any():
        return 1.0, 0.0, 0.0
    last = np.flatnonzero(right)[-1]
    threshold = float(confidence[order[last]])
    answered = confidence >= threshold
    return threshold, float(answered.mean()), float(correct[answered].mean())


def summary(metrics: Metrics) -> str:
    """One line: accuracy with its counts, macro-F1, calibration error and loss."""
    return (
        f"accuracy {metrics.accuracy:.4f} ({metrics.correct} of {metrics.count})  "
        f"macro-F1 {metrics.macro_f1:.4f}  ECE {metrics.ece:.4f}  loss {metrics.loss:.4f}"
    )


def table(metrics: Metrics, classes: Sequence[str] = CLASSES) -> list[str]:
    """Lines with the recall of every class and the confusion matrix in images, a row per true class."""
    width, first = max(7, *map(len, classes)) + 1, max(11, *map(len, classes)) + 1
    lines = [f"{'true class':<{first}}{'recall':>7}  predicted as:" + "".join(f"{name:>{width}}" for name in classes)]
    for name, recall, row in zip(classes, metrics.recall, metrics.confusion, strict=True):
        shown = "-" if recall is None else f"{recall:.3f}"
        lines.append(f"{name:<{first}}{shown:>7}               " + "".join(f"{count:>{width}}" for count in row))
    return lines


def fits(value: Any, example: Any) -> bool:
    """Whether `value` has the keys and types of `example`; lists are of any length, and numbers are finite."""
    if isinstance(example, dict):
        keys = {name.rstrip("?"): name for name in example}
        return isinstance(value, dict) and all(
            fits(value[key], example[name]) if key in value else key != name for key, name in keys.items()
        )
    if isinstance(example, list):
        return isinstance(value, list) and all(fits(each, example[0]) for each in value)
    if isinstance(example, float):
        return type(value) in (int, float) and abs(value) < 1e15
    return type(value) is type(example)


def describe(path: Path, content: dict[str, Any], *, tta: str = "none") -> str:
    """One line: file, network, dataset and validation accuracy, by a weight file's `content`, and `tta` if used."""
    scores, data = content["metrics"], content["dataset"]
    name = data.get("name") or data["source"]  # older files have no name
    part = f", {sum(data['train'])} images of it" if data["limit"] else ""
    official, deduplicated = scores["official"], scores["deduplicated"]
    second = f" ({deduplicated['accuracy']:.4f} deduplicated)" if deduplicated["count"] != official["count"] else ""
    return plain(
        f"weights {path}: {content['model']}, trained on {'rendered faces' if data['demo'] else name}{part}"
        f"{' with FER+ votes' if data.get('votes') else ''}, validation accuracy {official['accuracy']:.4f}{second}"
        + ("" if tta == "none" else f"; test-time augmentation: {tta}")
    )

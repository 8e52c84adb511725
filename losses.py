"""The losses that config.py offers: callables (logits (B, C), targets) -> nats per image.

Targets are labels (B,) int64, or the share of each class (B, C), by which the losses of the classes are averaged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config import Config

Loss = Callable[[Tensor, Tensor], Tensor]
EFFECTIVE_BETA = 0.999  # arXiv 1901.05555 tries 0.9 to 0.9999; the larger, the closer to inverse frequency


def reduce(values: Tensor, reduction: str) -> Tensor:
    """`values` (B,) as they are ("none"), summed ("sum") or averaged over the images ("mean")."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction: {reduction!r} is not one of none, sum, mean")
    return values if reduction == "none" else getattr(values, reduction)()


def gather_targets(terms: Tensor, targets: Tensor) -> Tensor:
    """The loss (B,) at the targets, from `terms` (B, C): the loss of an image for each class as its true one."""
    return terms.gather(1, targets[:, None])[:, 0] if targets.ndim == 1 else (terms * targets).sum(1)


@dataclass(frozen=True, kw_only=True)
class FocalLoss:
    """Focal loss, -alpha (1 - p)^gamma log p of the true class (arXiv 1708.02002, equation 5).

    `alpha` is one number or a weight per class (C,). "mean" divides by the number of images, not by the sum of weights.
    """

    gamma: float = 2.0
    alpha: Tensor | float = 1.0
    reduction: str = "mean"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        missing = 1 - log_p.exp()
        if 0 < self.gamma < 1:  # the power's slope at 0 is infinite
            missing = missing.clamp(min=1e-7)
        terms = -(missing**self.gamma) * log_p * beside(self.alpha, logits)
        return reduce(gather_targets(terms, targets), self.reduction)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy; the target gives `smoothing` / C to every class and the rest to the true one.

    `weight` is one number or a weight per class (C,), applied to each class's term. "mean" divides by the number of
    images; torch's own divides by the sum of the weights.
    """

    smoothing: float = 0.0
    weight: Tensor | float = 1.0
    reduction: str = "mean"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        terms = -logits.log_softmax(1) * beside(self.weight, logits)
        true = gather_targets(terms, targets)
        return reduce((1 - self.smoothing) * true + self.smoothing * terms.mean(1), self.reduction)


def beside(weights: Tensor | float, logits: Tensor) -> Tensor | float:
    """`weights` on the device of `logits`, which is the CPU in scoring."""
    return weights.to(logits.device) if isinstance(weights, Tensor) else weights


def class_weights(kind: str, counts: Sequence[int]) -> list[float] | None:
    """One weight per class from its number of training images, or None for "none".

    "inverse": 1 / n. "effective": (1 - beta) / (1 - beta^n), arXiv 1901.05555. Both are scaled to average 1 over the
    training images (the paper: over the classes), so the learning rate keeps its meaning. Raises ValueError for a class
    without images.
    """
    if kind == "none":
        return None
    if min(counts) < 1:
        raise ValueError(f"class_weights: {kind!r} needs an image of every class, got {list(counts)}")
    raw = [1 / n if kind == "inverse" else (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**n) for n in counts]
    scale = sum(counts) / sum(w * n for w, n in zip(raw, counts, strict=True))
    return [w * scale for w in raw]


def make_loss(config: Config, counts: Sequence[int], device: torch.device | str = "cpu") -> tuple[Loss, str]:
    """The configured loss per image (reduction "none"), and its name as printed beside every figure.

    `counts` are the training images per class. Training and validation use the same one.
    """
    weights = class_weights(config.class_weights, counts)
    suffix = f", {config.class_weights} class weights" if weights else ""
    weight = torch.tensor(weights, device=device) if weights else 1.0
    if config.loss == "focal":
        loss = FocalLoss(gamma=config.focal_gamma, alpha=weight, reduction="none")
        return loss, f"focal loss (gamma {config.focal_gamma:g}){suffix}"
    loss = CrossEntropy(smoothing=config.label_smoothing, weight=weight, reduction="none")
    return loss, f"cross-entropy (smoothing {config.label_smoothing:g}){suffix}"

"""The losses against their papers and torch's own; class weights."""

import pytest
import torch
from torch.nn import functional as F

from config import Config
from losses import CrossEntropy, FocalLoss, class_weights, make_loss

LOGITS = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(50) % 7
WEIGHT = torch.tensor([0.5, 4.0, 0.7, 0.4, 0.6, 1.0, 0.6], dtype=torch.float64)
COUNTS = [3995, 436, 4097, 7215, 4830, 3171, 4965]


def test_focal_loss_is_the_papers_formula():
    p = LOGITS.softmax(1)[torch.arange(50), LABELS]
    expected = -0.25 * (1 - p) ** 2 * p.log()
    got = FocalLoss(gamma=2, alpha=0.25, reduction="none")(LOGITS, LABELS)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_focal_loss_weights_each_image_by_its_class():
    got, unweighted = (FocalLoss(alpha=alpha, reduction="none")(LOGITS, LABELS) for alpha in (WEIGHT, 1.0))
    torch.testing.assert_close(got, unweighted * WEIGHT[LABELS])


def test_focal_loss_at_gamma_0_is_cross_entropy():
    for reduction in ("none", "sum", "mean"):
        got = FocalLoss(gamma=0, reduction=reduction)(LOGITS, LABELS)
        torch.testing.assert_close(got, F.cross_entropy(LOGITS, LABELS, reduction=reduction))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal_loss_has_a_finite_gradient_for_a_certain_answer(gamma):
    logits = torch.tensor([[200.0, 0, 0, 0, 0, 0, 0]], requires_grad=True)
    for label in (0, 1):
        (gradient,) = torch.autograd.grad(FocalLoss(gamma=gamma)(logits, torch.tensor([label])), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_smoothed_cross_entropy_is_torchs(weight):
    expected = F.cross_entropy(LOGITS, LABELS, weight=weight, label_smoothing=0.1, reduction="none")
    got = CrossEntropy(smoothing=0.1, weight=1.0 if weight is None else weight, reduction="none")(LOGITS, LABELS)
    torch.testing.assert_close(got, expected)


def test_mean_divides_by_images_not_by_weights_and_an_unknown_reduction_is_refused():
    loss = CrossEntropy(weight=torch.full((7,), 5.0))
    assert loss(LOGITS, LABELS).item() == pytest.approx(5 * F.cross_entropy(LOGITS, LABELS).item())
    with pytest.raises(ValueError, match="reduction: 'max' is not one of none, sum, mean"):
        FocalLoss(reduction="max")(LOGITS, LABELS)


@pytest.mark.parametrize("weight", [1.0, WEIGHT])
def test_a_soft_target_averages_the_loss_of_its_classes(weight):
    one, other = LABELS, (LABELS + 3) % 7
    shares = (0.75 * torch.eye(7)[one] + 0.25 * torch.eye(7)[other]).double()
    focal = FocalLoss(alpha=weight, reduction="none")
    for loss in (focal, CrossEntropy(smoothing=0.2, weight=weight, reduction="none")):
        torch.testing.assert_close(loss(LOGITS, shares), 0.75 * loss(LOGITS, one) + 0.25 * loss(LOGITS, other))


def test_class_weights_average_1_over_the_images():
    inverse, effective = class_weights("inverse", COUNTS), class_weights("effective", COUNTS)
    for weights in (inverse, effective):
        assert sum(w * n for w, n in zip(weights, COUNTS, strict=True)) == pytest.approx(sum(COUNTS))
    assert inverse[1] / inverse[3] == pytest.approx(7215 / 436)
    assert effective[1] / effective[3] == pytest.approx((1 - 0.999**7215) / (1 - 0.999**436))
    assert class_weights("none", COUNTS) is None
    with pytest.raises(ValueError, match="class_weights: 'inverse' needs an image of every class"):
        class_weights("inverse", [1, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("loss", ["focal", "cross_entropy"])
def test_the_configured_loss_has_its_class_weights_and_names_them(loss):
    weighted, name = make_loss(Config(loss=loss, class_weights="inverse"), COUNTS)
    plain, plain_name = make_loss(Config(loss=loss), COUNTS)
    weights = torch.tensor(class_weights("inverse", COUNTS))
    torch.testing.assert_close(weighted(LOGITS.float(), LABELS), plain(LOGITS.float(), LABELS) * weights[LABELS])
    assert name == f"{plain_name}, inverse class weights"

import numpy as np
import pytest
import torch

from dataset import Split
from errors import UserError
from helpers import faces
from losses import CrossEntropy, FocalLoss
from model import build_model
from ranks import Ranks
from readers.cache import DIGEST
from utils import pick_machine
from val import Tally, apply_view, evaluate, forward, measure, predict_logits, summary, table, tta_views

MACHINE = pick_machine("cpu", "fp32")


def split_of(count: int, copies: int = 0) -> Split:
    images, labels = faces(count)
    marks = np.arange(count) < copies
    return Split("val", images, labels.astype(np.int64), np.zeros(count, DIGEST), marks)


def logits_for(predictions, confidence=0.9) -> torch.Tensor:
    """Logits (N, 7) whose softmax gives `confidence` to the predicted class."""
    p = torch.full((len(predictions), 7), (1 - confidence) / 6)
    p[torch.arange(len(predictions)), torch.tensor(predictions)] = confidence
    return p.log()


def test_figures_agree_with_a_count_by_hand():
    metrics = measure(logits_for([0, 0, 1, 3, 3, 3]), torch.tensor([0, 1, 1, 3, 3, 4]))
    assert (metrics.count, metrics.correct) == (6, 4) and metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.recall == [1.0, 0.5, None, 1.0, 0.0, None, None]
    # F1: class 0: 2/3, 1: 2/3, 3: 4/5, 4: 0
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 4 / 5 + 0) / 4)
    assert metrics.confusion[1] == [1, 1, 0, 0, 0, 0, 0] and metrics.confusion[4][3] == 1
    assert metrics.loss == pytest.approx((4 * -np.log(0.9) + 2 * -np.log(0.1 / 6)) / 6, rel=1e-5)
    assert metrics.ece == pytest.approx(abs(0.9 - 4 / 6), rel=1e-5)


def test_calibration_is_measured_per_bin():
    logits = torch.cat([logits_for([0] * 10, 0.95), logits_for([0] * 10, 0.5)])
    labels = torch.tensor([0] * 5 + [1] * 5 + [0] * 10)
    assert measure(logits, labels).ece == pytest.approx((10 * abs(0.95 - 0.5) + 10 * abs(0.5 - 1.0)) / 20, rel=1e-4)


def test_the_loss_is_a_mean_over_images_not_over_batches():
    logits, labels = torch.randn(10, 7), torch.arange(10) % 7
    tally = Tally(loss=FocalLoss(reduction="none"))
    for part in (slice(0, 9), slice(9, 10)):
        tally.update(logits[part], labels[part])
    assert tally.metrics().loss == pytest.approx(FocalLoss()(logits, labels).item(), rel=1e-5)


def test_no_images_give_zeros():
    metrics = measure(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert metrics.count == 0 and metrics.accuracy == 0.0 and metrics.recall == [None] * 7


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["TheModel", "ImprovedFER2013Model"])
def test_an_images_logits_do_not_depend_on_its_neighbours(name, precision):
    machine = pick_machine("cpu", precision)
    model = build_model(name).to(memory_format=torch.channels_last).eval()
    images = torch.from_numpy(faces(100)[0])
    whole = forward(model, images, machine=machine)
    assert torch.equal(whole[:70], forward(model, images[:70], machine=machine))
    assert torch.equal(whole.flip(0), forward(model, images.flip(0), machine=machine))
    few = forward(model, images[7:9], machine=machine)
    assert torch.equal(few, forward(model, images[:9], machine=machine)[7:9])
    tolerance = 1e-4 if precision == "fp32" else 0.02  # between the sizes that batches are padded to
    torch.testing.assert_close(few, whole[7:9], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("count", "padded"), [(1, 16), (16, 16), (17, 64), (65, 256), (256, 256), (300, 300)])
def test_a_batch_is_padded_to_one_of_a_few_sizes(count, padded):
    seen = []

    class Tell(torch.nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return torch.zeros(len(images), 7)

    logits = forward(Tell(), torch.zeros(count, 48, 48, dtype=torch.uint8), machine=MACHINE)
    assert seen == [padded] and logits.shape == (count, 7)


def test_every_image_is_scored_once_and_copies_are_left_out_of_the_second_score():
    model, split = build_model("ImprovedFER2013Model").eval(), split_of(300, copies=10)
    scores = evaluate(model, split, machine=MACHINE, loss=CrossEntropy(reduction="none"))
    assert (scores.official.count, scores.deduplicated.count) == (300, 290)
    logits = predict_logits(model, split, machine=MACHINE, ranks=Ranks())
    right = (logits.argmax(1) == torch.from_numpy(split.labels)).numpy()
    assert scores.official.correct == right.sum() and scores.deduplicated.correct == right[10:].sum()


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_mode_and_the_weights(training):
    model = build_model("ImprovedFER2013Model").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, split_of(7), machine=MACHINE)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_logits_that_are_not_finite_are_an_error():
    model = build_model("TheModel").eval()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="numbers that are not finite"):
        forward(model, torch.zeros(1, 48, 48, dtype=torch.uint8), machine=MACHINE)


def test_summary_and_table_print_the_figures():
    metrics = measure(logits_for([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert summary(metrics).startswith("accuracy 0.6667 (2 of 3)  macro-F1 0.6667  ECE ")
    lines = table(metrics)
    assert lines[0].split()[-7:] == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    assert lines[2].split() == ["disgust", "0.500", "1", "1", "0", "0", "0", "0", "0"]
    assert lines[3].split()[:2] == ["fear", "-"]


def test_views_are_the_image_its_mirror_image_and_both_in_five_places():
    assert tta_views("none") == [(False, 0, 0)] and tta_views("flip") == [(False, 0, 0), (True, 0, 0)]
    assert len(set(tta_views("crops"))) == 10 and sum(mirrored for mirrored, *_ in tta_views("crops")) == 5


def test_a_view_is_moved_and_its_edge_repeated():
    image = torch.arange(25.0).view(1, 1, 5, 5)
    assert torch.equal(apply_view(image, False, 0, 0), image) and torch.equal(
        apply_view(image, True, 0, 0), image.flip(3)
    )
    moved = apply_view(image, False, 2, -1)[0, 0]
    assert torch.equal(moved[2:, :4], image[0, 0, :3, 1:]) and torch.equal(moved[0], moved[2])
    assert torch.equal(moved[:, 4], moved[:, 3])


@pytest.mark.parametrize("tta", ["flip", "crops"])
def test_test_time_augmentation_averages_probabilities(tta):
    model, images = build_model("EmotionResNet-nano").eval(), torch.from_numpy(faces(20)[0])
    alone = forward(model, images, machine=MACHINE)
    both = forward(model, images, machine=MACHINE, tta=tta)
    torch.testing.assert_close(both.exp().sum(1), torch.ones(20))
    inputs = images[:, None].float() / 127.5 - 1
    with torch.no_grad():
        mean = torch.stack([model(apply_view(inputs, *view)).softmax(1) for view in tta_views(tta)]).mean(0)
    torch.testing.assert_close(both.exp(), mean, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone.softmax(1), mean, atol=1e-5)
    mirrored = forward(model, images.flip(2), machine=MACHINE, tta="flip")
    torch.testing.assert_close(mirrored, forward(model, images, machine=MACHINE, tta="flip"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 48, 48), torch.float32), ((2, 1, 48, 48), torch.uint8), ((2, 64, 64), torch.uint8), ((2,), torch.uint8)],
)
def test_images_of_another_kind_are_refused(shape, dtype):
    images = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=r"images: \(B, 48, 48\) uint8 are needed, not \(2,"):
        forward(torch.nn.Identity(), images, machine=MACHINE)

import numpy as np
import pytest
import torch

from dataset import Split, tta_views
from errors import UserError
from helpers import faces
from losses import CrossEntropy, FocalLoss
from model import build_model
from readers.cache import DIGEST
from utils import pick_machine
from val import Ensemble, evaluate, fit_temperature, forward, predict_logits

MACHINE = pick_machine("cpu", "fp32")


def split_of(count: int, copies: int = 0) -> Split:
    images, labels = faces(count)
    marks = np.arange(count) < copies
    return Split("val", images, labels.astype(np.int64), np.zeros(count, DIGEST), marks)


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
    alone = torch.cat([forward(model, images[row : row + 1], machine=machine) for row in (7, 8)])
    tolerance = 1e-4 if precision == "fp32" else 0.02  # between the sizes that batches are padded to
    for logits in (few, alone):
        torch.testing.assert_close(logits, whole[7:9], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 16), (16, 16), (17, 64), (65, 256), (256, 256), (300, 300)])
def test_a_batch_is_padded_to_one_of_a_few_sizes(count, padded):
    seen = []

    class Tell(torch.nn.Module):
        temperature = 1.0

        def forward(self, images):
            seen.append(len(images))
            return torch.zeros(len(images), 7)

    logits = forward(Tell(), torch.zeros(count, 48, 48, dtype=torch.uint8), machine=MACHINE)
    assert seen == [padded] and logits.shape == (count, 7)


def test_every_image_is_scored_once_and_copies_are_left_out_of_the_second_score():
    model, split = build_model("ImprovedFER2013Model").eval(), split_of(300, copies=10)
    scores = evaluate(model, split, machine=MACHINE, loss=CrossEntropy(reduction="none"))
    assert (scores.official.count, scores.deduplicated.count) == (300, 290) and len(scores.lines()) == 2
    logits = predict_logits(model, split, machine=MACHINE)
    right = (logits.argmax(1) == torch.from_numpy(split.labels)).numpy()
    assert scores.official.correct == right.sum() and scores.deduplicated.correct == right[10:].sum()


@pytest.mark.parametrize("training", [True, False])
def test_without_copies_there_is_one_figure_and_mode_and_weights_are_left(training):
    model = build_model("ImprovedFER2013Model").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = evaluate(model, split_of(7), machine=MACHINE, loss=FocalLoss(reduction="none"))
    assert scores.official is scores.deduplicated and len(scores.lines()) == 1
    assert "deduplicated" not in scores.lines()[0] and "official" not in scores.lines()[0]
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_logits_that_are_not_finite_are_an_error():
    model = build_model("TheModel").eval()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="numbers that are not finite"):
        forward(model, torch.zeros(1, 48, 48, dtype=torch.uint8), machine=MACHINE)


def test_views_are_the_image_its_mirror_image_and_both_in_five_places():
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    views = [tta_views(image, tta) for tta in ("none", "flip", "crops")]
    none, flip, crops = ([torch.from_numpy(view[0]) for view in each] for each in views)
    assert len(none) == 1 and (none[0].numpy() == image[0]).all()
    assert len(flip) == 2 and torch.equal(flip[0], none[0]) and torch.equal(flip[1], none[0].flip(1))
    assert len({tuple(view.flatten().tolist()) for view in crops}) == len(crops) == 10
    assert all(torch.equal(view.flip(1), crops[5 + row]) for row, view in enumerate(crops[:5]))
    down_right, up_left = crops[1], crops[4]
    assert torch.equal(down_right[2:, 2:], none[0][:3, :3]) and torch.equal(down_right[0], down_right[2])
    assert torch.equal(up_left[:3, :3], none[0][2:, 2:]) and torch.equal(up_left[:, 4], up_left[:, 2])


@pytest.mark.parametrize("tta", ["flip", "crops"])
def test_test_time_augmentation_averages_logits(tta):
    model, images = build_model("EmotionResNet-nano").eval(), torch.from_numpy(faces(20)[0])
    model.temperature = 0.5
    inputs = [torch.from_numpy(view)[:, None].float() / 127.5 - 1 for view in tta_views(images.numpy(), tta)]
    with torch.no_grad():
        mean = torch.stack([model(view) for view in inputs]).mean(0)
    both = forward(model, images, machine=MACHINE, tta=tta)
    torch.testing.assert_close(both, mean / 0.5, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both, forward(model, images, machine=MACHINE), atol=1e-5)
    mirrored = forward(model, images.flip(2), machine=MACHINE, tta="flip")
    torch.testing.assert_close(mirrored, forward(model, images, machine=MACHINE, tta="flip"), atol=1e-5, rtol=1e-4)


# --- Temperature ---


def test_logits_are_divided_by_the_temperature_and_nothing_else_is():
    model, images = build_model("EmotionResNet-nano").eval(), torch.from_numpy(faces(20)[0])
    logits = forward(model, images, machine=MACHINE)
    model.temperature = 2.0
    assert torch.equal(forward(model, images, machine=MACHINE), logits / 2)
    with torch.no_grad():
        alone = model(images[:, None].float() / 127.5 - 1)
    torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-4)
    assert "temperature" not in model.state_dict()


def sampled(count: int, *, temperature: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Logits, and labels sampled from the softmax of these divided by `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 7, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0].numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_behind_the_labels_is_found(temperature):
    logits, labels = sampled(20_000, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_that_of_least_cross_entropy():
    from scipy.optimize import minimize_scalar

    logits, labels = sampled(400, temperature=1.7, seed=3)

    def loss(temperature):
        return torch.nn.functional.cross_entropy(logits.double() / temperature, torch.from_numpy(labels)).item()

    best = minimize_scalar(loss, bounds=(0.25, 4), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-4)


def test_the_temperature_stays_within_bounds():
    logits, _ = sampled(300)
    right = logits.argmax(1).numpy()
    assert fit_temperature(logits, right) == pytest.approx(0.25)
    assert fit_temperature(logits, (right + 1) % 7) == pytest.approx(4.0)


def test_an_ensemble_averages_logits_and_then_divides_by_the_mean_temperature():
    models, images = [build_model("EmotionResNet-nano").eval() for _ in range(3)], torch.from_numpy(faces(20)[0])
    each = torch.stack([forward(model, images, machine=MACHINE) for model in models])
    for model, temperature in zip(models, (0.5, 1.0, 3.0), strict=True):
        model.temperature = temperature
    both = forward(Ensemble(models), images, machine=MACHINE)
    torch.testing.assert_close(both, each.mean(0) / 1.5, atol=1e-6, rtol=1e-5)
    assert not any(model.training for model in models)

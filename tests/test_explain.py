"""Activation maps: as captum computes them, exact where they can be, and gone when the weights are randomised."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

from dataset import preprocess
from demo.faces import demo_faces
from errors import UserError
from explain import activation_maps
from helpers import REPO
from model import build_model
from utils import pick_machine
from weights import load_weights

LAST = {"TheModel": "body", "ImprovedFER2013Model": "stages", "EmotionResNet-nano": "blocks", "ResNet-18": "body"}


@pytest.fixture(scope="module")
def images():
    pixels, _, _ = demo_faces(1, seed=0)
    return preprocess(torch.from_numpy(pixels))


@pytest.fixture(scope="module")
def shipped():
    return load_weights(REPO / "final_weights_new.pth", machine=pick_machine("cpu", "fp32"))[0]


@pytest.mark.parametrize("name", LAST)
def test_the_maps_are_those_of_captums_grad_cam(name, images):
    torch.manual_seed(0)
    model = build_model(name).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    found, oracle = activation_maps(model, images), LayerGradCam(model, getattr(model, LAST[name]))
    places = found[0, 0].numel() if model.averages else 1  # its gradient of a mean is smaller by this
    for number in range(7):
        expected = places * oracle.attribute(images, target=number, relu_attributions=not model.averages)[:, 0]
        torch.testing.assert_close(found[:, number], expected.detach(), atol=1e-5, rtol=1e-4)


def test_their_mean_is_the_logit_less_the_bias(images, shipped):
    with torch.inference_mode():
        logits = (shipped(images) - shipped.classifier.bias) / shipped.temperature
    torch.testing.assert_close(activation_maps(shipped, images).mean((2, 3)), logits, atol=1e-4, rtol=1e-4)


def test_randomised_weights_give_other_maps(images, shipped):
    """The sanity check of arXiv 1810.03292: a map that stays the same would show the face, not the network."""
    torch.manual_seed(0)
    random = build_model(shipped.name, **shipped.arguments).eval()
    maps = [activation_maps(model, images).flatten(2).numpy() for model in (shipped, shipped, random)]
    best = shipped(images).argmax(1)
    same, other = (
        np.mean([np.corrcoef(maps[0][row, c], maps[at][row, c])[0, 1] for row, c in enumerate(best)]) for at in (1, 2)
    )
    assert same > 0.999 and abs(other) < 0.5


def test_a_mixture_is_refused():
    mixture = build_model(
        "MixtureOfExperts", network="EmotionResNet-nano", gate="EmotionResNet-nano", groups=[range(7)], counts=[1] * 7
    )
    with pytest.raises(UserError, match="has no maps of its own"):
        activation_maps(mixture, torch.zeros(1, 1, 48, 48))

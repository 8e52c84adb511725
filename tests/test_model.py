import pytest
import torch

from model import ImprovedFER2013Model, ResidualBlock, TheModel, build_model
from utils import channels_last, count_params

NAMES = ("TheModel", "ImprovedFER2013Model")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels", "classes"), [(48, 1, 7), (32, 3, 5), (50, 1, 2), (64, 1, 7)])
def test_size_channels_and_classes_are_arguments(name, size, channels, classes):
    model = build_model(name, image_size=size, channels=channels, num_classes=classes).eval()
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 1, 40, 40), (2, 3, 48, 48), (1, 48, 48), (2, 1, 48, 40)])
def test_an_input_of_another_shape_is_refused(name, shape):
    with pytest.raises(ValueError, match=rf"{name} takes images of shape \(B, 1, 48, 48\), got"):
        build_model(name)(torch.zeros(shape))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [{"image_size": 31}, {"channels": 0}, {"num_classes": 1}])
def test_arguments_that_make_no_network_are_refused(name, arguments):
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))} \d+.* needed"):
        build_model(name, **arguments)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="model: 'vgg' is not one of TheModel, ImprovedFER2013Model"):
        build_model("vgg")


def test_the_model_has_the_published_layers():
    shapes = [tuple(p.shape) for p in TheModel().parameters() if p.ndim > 1]
    assert shapes == [(64, 1, 3, 3), (128, 64, 3, 3), (512, 128 * 12 * 12), (7, 512)]
    assert TheModel().dropout.p == 0.5


def test_the_deeper_net_fits_10_megabytes_in_half_precision():
    assert count_params(ImprovedFER2013Model()) * 2 < 10e6


@pytest.mark.parametrize(("inputs", "outputs", "halve"), [(8, 8, False), (8, 16, False), (8, 16, True)])
def test_the_shortcut_carries_the_input_when_the_residual_is_silent(inputs, outputs, halve):
    block = ResidualBlock(inputs, outputs, halve=halve).eval()
    torch.nn.init.zeros_(block.residual[-1].weight)
    images = torch.rand(2, inputs, 8, 8)
    expected = torch.nn.functional.max_pool2d(images, 2) if halve else images
    if inputs != outputs:
        assert block.shortcut[0].kernel_size == (1, 1)
        expected = torch.relu(block.shortcut(expected))
    torch.testing.assert_close(block(images), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(name):
    model = build_model(name)
    model(torch.randn(4, 1, 48, 48)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_last_layer_reads(name):
    model = build_model(name).eval()
    images = torch.randn(3, 1, 48, 48)
    torch.testing.assert_close(model.classifier(model.features(images)), model(images))


@pytest.mark.parametrize("name", NAMES)
def test_pooling_before_relu_changes_no_output(name):
    torch.manual_seed(0)
    model, images = build_model(name).eval(), torch.randn(3, 1, 48, 48)
    before = model(images)
    layers = model.body if name == "TheModel" else model.stem
    at = [i for i in range(len(layers)) if isinstance(layers[i], torch.nn.MaxPool2d)]
    assert at and all(isinstance(layers[i + 1], torch.nn.ReLU) for i in at)
    for i in at:
        layers[i], layers[i + 1] = layers[i + 1], layers[i]
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_keep_the_layout_of_the_maps(name):
    model = build_model(name).to(memory_format=torch.channels_last)
    last = (model.body if name == "TheModel" else model.stages)[-1]
    seen = []
    last.register_full_backward_pre_hook(lambda _, gradients: seen.append(gradients[0]))
    model(channels_last(torch.randn(3, 1, 48, 48))).sum().backward()
    assert seen and all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)

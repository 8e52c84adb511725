import pytest
import torch

from config import MODELS
from model import NETWORKS, BasicBlock, ResidualBlock, TheModel, build_model
from utils import channels_last, count_params

NAMES = ("TheModel", "ImprovedFER2013Model", "EmotionResNet-nano", "EmotionResNet-small", "ResNet-18")
FREE = NAMES[2:]  # in the size of their images
POOLED_ONCE = {"TheModel": "body", "ImprovedFER2013Model": "stem", "EmotionResNet-nano": "stem"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels", "classes"), [(48, 1, 7), (32, 3, 5), (50, 1, 2), (64, 1, 7)])
def test_size_channels_and_classes_are_arguments(name, size, channels, classes):
    model = build_model(name, image_size=size, channels=channels, num_classes=classes).eval()
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
def test_an_input_of_another_shape_is_refused_but_windows_by_networks_that_average(name):
    model = build_model(name).eval()
    for shape in [(2, 3, 48, 48), (1, 48, 48), (2, 1, 48, 40), (2, 1, 40, 48), (2, 1, 31, 31)]:
        with pytest.raises(ValueError, match=r"takes images of shape \(B, 1, \d+, \d+\), got"):
            model(torch.zeros(shape))
    if name in FREE:
        assert model(torch.zeros(2, 1, 40, 40)).shape == (2, 7)
    else:
        with pytest.raises(ValueError, match=rf"{name} takes images of shape \(B, 1, 48, 48\), got"):
            model(torch.zeros(2, 1, 40, 40))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [{"image_size": 31}, {"channels": 0}, {"num_classes": 1}])
def test_arguments_that_make_no_network_are_refused(name, arguments):
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))} \d+.* needed"):
        build_model(name, **arguments)


def test_an_unknown_name_lists_the_known_which_the_config_has():
    assert tuple(NETWORKS)[: len(MODELS)] == MODELS
    with pytest.raises(ValueError, match="model: 'vgg' is not one of TheModel, ImprovedFER2013Model"):
        build_model("vgg")


def test_the_model_has_the_published_layers():
    shapes = [tuple(p.shape) for p in TheModel().parameters() if p.ndim > 1]
    assert shapes == [(64, 1, 3, 3), (128, 64, 3, 3), (512, 128 * 12 * 12), (7, 512)]
    assert TheModel().dropout.p == 0.5


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
    for block in model.modules():
        if isinstance(block, BasicBlock):  # which pass nothing on at first
            torch.nn.init.ones_(block.residual[-1].weight)
    model(torch.randn(4, 1, 48, 48)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_last_layer_reads(name):
    model = build_model(name).eval()
    images = torch.randn(3, 1, 48, 48)
    torch.testing.assert_close(model.classifier(model.features(images)), model(images))


@pytest.mark.parametrize("name", POOLED_ONCE)
def test_pooling_before_relu_changes_no_output(name):
    torch.manual_seed(0)
    model, images = build_model(name).eval(), torch.randn(3, 1, 48, 48)
    before = model(images)
    layers = getattr(model, POOLED_ONCE[name])
    at = [i for i in range(len(layers)) if isinstance(layers[i], torch.nn.MaxPool2d)]
    assert at and all(isinstance(layers[i + 1], torch.nn.ReLU) for i in at)
    for i in at:
        layers[i], layers[i + 1] = layers[i + 1], layers[i]
    assert torch.equal(model(images), before)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("TheModel", "body"), ("ImprovedFER2013Model", "stages"), ("EmotionResNet-nano", "blocks"), ("ResNet-18", "body")],
)
def test_gradients_keep_the_layout_of_the_maps(name, layers):
    model = build_model(name).to(memory_format=torch.channels_last)
    last = getattr(model, layers)[-1]
    seen = []
    last.register_full_backward_pre_hook(lambda _, gradients: seen.append(gradients[0]))
    model(channels_last(torch.randn(3, 1, 48, 48))).sum().backward()
    assert seen and all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)


def test_the_sizes_stay_below_6_million_parameters():
    sizes = {"nano": (0.2e6, 0.4e6), "small": (2e6, 3e6), "base": (5e6, 6e6)}
    for size, (least, most) in sizes.items():
        assert least < count_params(build_model(f"EmotionResNet-{size}")) <= most
    assert count_params(build_model("ImprovedFER2013Model")) * 2 < 10e6  # bytes in half precision


def test_resnets_are_torchvisions_but_for_stem_and_head():
    from torchvision.models import resnet18, resnet34

    for name, theirs in (("ResNet-18", resnet18()), ("ResNet-34", resnet34())):
        ours = build_model(name)
        kernels = count_params(theirs.conv1) - count_params(theirs.conv1) // 3
        assert count_params(ours.body) == count_params(theirs) - kernels - count_params(theirs.fc)
        assert ours.body[0].stride == (2, 2) and ours.body[0].in_channels == 1
        theirs.conv1, theirs.fc = ours.body[0], torch.nn.Identity()
        theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.body.state_dict().values(), strict=True)))
        images = torch.randn(2, 1, 48, 48)
        torch.testing.assert_close(ours.eval().features(images), theirs.eval()(images))


@pytest.mark.parametrize(("inputs", "outputs", "halve"), [(8, 8, False), (8, 16, False), (8, 16, True), (8, 8, True)])
def test_a_block_begins_as_its_shortcut(inputs, outputs, halve):
    block = BasicBlock(inputs, outputs, halve=halve).eval()
    images = torch.rand(2, inputs, 9, 9)
    expected = torch.nn.functional.avg_pool2d(images, 2, ceil_mode=True) if halve else images
    if inputs != outputs or halve:
        expected = torch.relu(block.shortcut[1:](expected))
    torch.testing.assert_close(block(images), expected)
    torch.nn.init.ones_(block.residual[-1].weight)
    assert not torch.allclose(block(images), expected)

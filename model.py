"""The networks, by name. Every one maps (B, channels, size, size) floats in [-1, 1] to (B, classes) logits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MIN_SIZE = 32  # below this the deeper network's last stage has fewer than 4x4 places to look at


class FaceNet(nn.Module):
    """What the networks share: the input contract, and `features`, the vector before the last layer.

    A subclass defines `features(images) -> (B, D)` and a linear `classifier` over it. One that averages over all places
    before them, with `any_size`, takes square images of any size from MIN_SIZE.
    """

    any_size = False

    def __init__(self, *, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        if image_size < MIN_SIZE:
            raise ValueError(f"image_size {image_size}: at least {MIN_SIZE} pixels are needed")
        if channels < 1 or num_classes < 2:
            raise ValueError(f"channels {channels}, num_classes {num_classes}: at least 1 and 2 are needed")
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, channels, image_size, image_size).

        Raises ValueError for images of another shape.
        """
        size = self.image_size
        if self.any_size and images.ndim == 4:
            size = max(images.shape[-1], MIN_SIZE)
        wanted = (self.channels, size, size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"{type(self).__name__} takes images of shape (B, {', '.join(map(str, wanted))}), "
                f"got {tuple(images.shape)}"
            )
        return self.classifier(self.features(images))


def with_gradient_alike(maps: Tensor) -> Tensor:
    """`maps` (B, C, H, W), whose gradient comes in the same memory layout.

    Flattening and averaging give it the other one, and each operation further back would read two layouts at once:
    ten times slower than one copy.
    """
    if maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
        maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return maps


class TheModel(FaceNet):
    """Two 3x3 convolutions (64 and 128 channels) and one hidden layer of 512 units: 9.5M parameters at 48x48."""

    def __init__(self, *, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.MaxPool2d(2),  # before ReLU, which then has a quarter of the work: max and ReLU commute
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(128 * (image_size // 4) ** 2, 512)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The 512 hidden units (B, 512), after ReLU and dropout."""
        maps = with_gradient_alike(self.body(images))
        return self.dropout(torch.relu(self.hidden(maps.flatten(1))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (arXiv 1512.03385).

    The shortcut is the identity where the shape stays, else a 1x1 projection. `halve` first halves the
    places on both paths. The convolutions go inputs -> inputs -> outputs: the usual inputs -> outputs ->
    outputs doubles the parameters, to more than half precision can hold in 10 MB.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        )
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        images = self.pool(images)
        return torch.relu(self.residual(images) + self.shortcut(images))


class ImprovedFER2013Model(FaceNet):
    """Four residual stages of 64, 128, 256 and 512 channels and a 256-unit head: 2.7M parameters.

    48x48 faces are seen at 48, then at 24, 12, 6 and 6 places a side. The first convolution is pooled at once: a
    first stage at 48x48 would take four times the multiplications of this one.
    """

    def __init__(self, *, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.MaxPool2d(2), nn.ReLU()
        )
        self.stages = nn.Sequential(
            ResidualBlock(64, 64),
            ResidualBlock(64, 128, halve=True),
            ResidualBlock(128, 256, halve=True),
            ResidualBlock(256, 512),
        )
        self.hidden = nn.Linear(512, 256)
        self.norm = nn.BatchNorm1d(256)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(256, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The 256 units of the head (B, 256), after batch norm, ReLU and dropout."""
        pooled = with_gradient_alike(self.stages(self.stem(images))).mean((2, 3))
        return self.dropout(torch.relu(self.norm(self.hidden(self.dropout(pooled)))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (arXiv 1512.03385), without effect when drawn.

    `halve` halves the places: in the first convolution, and on the shortcut by averaging before the 1x1 projection,
    so that no pixel is skipped (arXiv 1812.01187). The last gain is 0 at first: each block begins as its shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=1 + halve, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        nn.init.zeros_(self.residual[-1].weight)
        self.shortcut = nn.Identity()
        if halve or inputs != outputs:
            pool = nn.AvgPool2d(2, ceil_mode=True) if halve else nn.Identity()
            project = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(pool, project, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.residual(images) + self.shortcut(images))


class EmotionResNet(FaceNet):
    """A residual network for small grey faces: three stages at 24x24, 12x12 and 6x6 places, then their average.

    `widths` and `depths` are the channels and blocks of each stage. The first convolution has stride 1 and is pooled
    once: the 7x7 convolution of stride 2 that ImageNet's networks begin with would leave 12x12 places of a face.
    """

    any_size = True

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        image_size: int = 48,
        channels: int = 1,
        num_classes: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes)
        width = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.ReLU()
        )
        blocks = []
        for stage, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                blocks.append(BasicBlock(width, outputs, halve=stage > 0 and number == 0))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The last stage's channels averaged over the places (B, D), after dropout."""
        return self.dropout(with_gradient_alike(self.blocks(self.stem(images))).mean((2, 3)))


class TorchvisionResNet(FaceNet):
    """torchvision's `resnet18` or `resnet34` as it stands, drawn anew, with a stem for grey images."""

    any_size = True

    def __init__(
        self, *, name: str, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes)
        from torchvision import models  # late: it takes a second, and only these networks need it

        body = getattr(models, name)(weights=None)
        body.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.body = nn.Sequential(*list(body.children())[:-2])  # all but the averaging and the last layer
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The 512 averaged channels of the last stage (B, 512), after dropout."""
        return self.dropout(with_gradient_alike(self.body(images)).mean((2, 3)))


# Widths and depths: 0.3, 2.7 and 5.5 million parameters
SMALL_TO_LARGE = {
    "nano": {"widths": (32, 64, 128), "depths": (1, 1, 1)},
    "small": {"widths": (64, 128, 256), "depths": (1, 2, 2)},
    "base": {"widths": (96, 192, 352), "depths": (2, 2, 2)},
}
NETWORKS: dict[str, Callable[..., FaceNet]] = {
    "TheModel": TheModel,
    "ImprovedFER2013Model": ImprovedFER2013Model,
    **{f"EmotionResNet-{size}": partial(EmotionResNet, **shape) for size, shape in SMALL_TO_LARGE.items()},
    "ResNet-18": partial(TorchvisionResNet, name="resnet18"),
    "ResNet-34": partial(TorchvisionResNet, name="resnet34"),
}


def build_model(name: str, **arguments: Any) -> FaceNet:
    """The network called `name`, freshly drawn from torch's generator, with its constructor's arguments.

    Raises ValueError for an unknown name or argument value.
    """
    if name not in NETWORKS:
        raise ValueError(f"model: {name!r} is not one of {', '.join(NETWORKS)}")
    return NETWORKS[name](**arguments)

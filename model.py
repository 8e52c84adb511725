"""The networks, by name. Every one maps (B, channels, size, size) floats in [-1, 1] to (B, classes) logits."""

import torch
from torch import Tensor, nn

MIN_SIZE = 32  # below this the deeper network's last stage has fewer than 4x4 places to look at


class FaceNet(nn.Module):
    """What the networks share: the input contract, and `features`, the vector before the last layer.

    A subclass defines `features(images) -> (B, D)` and a linear `classifier` over it.
    """

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
        wanted = (self.channels, self.image_size, self.image_size)
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


NETWORKS: dict[str, type[FaceNet]] = {net.__name__: net for net in (TheModel, ImprovedFER2013Model)}


def build_model(name: str, **arguments: float) -> FaceNet:
    """The network called `name`, freshly drawn from torch's generator, with its constructor's arguments.

    Raises ValueError for an unknown name or argument value.
    """
    if name not in NETWORKS:
        raise ValueError(f"model: {name!r} is not one of {', '.join(NETWORKS)}")
    return NETWORKS[name](**arguments)

"""What the networks are built of: the contract that they share, and residual blocks."""

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
    temperature = 1.0  # what `val.forward` divides logits by: fitted after training, kept in the weight file

    def __init__(self, *, image_size: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        if image_size < MIN_SIZE:
            raise ValueError(f"image_size {image_size}: at least {MIN_SIZE} pixels are needed")
        if channels < 1 or num_classes < 2:
            raise ValueError(f"channels {channels}, num_classes {num_classes}: at least 1 and 2 are needed")
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        # What a weight file needs to build the network again, by build_model(name, **arguments)
        self.name = type(self).__name__
        self.arguments: dict[str, Any] = {"dropout": dropout}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, channels, image_size, image_size).

        Raises ValueError for images of another shape.
        """
        self.check(images)
        return self.classifier(self.features(images))

    def check(self, images: Tensor) -> None:
        """Raise ValueError for `images` of a shape that this network does not take."""
        size = self.image_size
        if self.any_size and images.ndim == 4:
            size = max(images.shape[-1], MIN_SIZE)
        wanted = (self.channels, size, size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"{type(self).__name__} takes images of shape (B, {', '.join(map(str, wanted))}), "
                f"got {tuple(images.shape)}"
            )


def channels_last_grad(maps: Tensor) -> Tensor:
    """`maps` (B, C, H, W), whose gradient comes in the same memory layout.

    Flattening and averaging give it the other one, and each operation further back would read two layouts at once:
    ten times slower than one copy.
    """
    if maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
        maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return maps


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

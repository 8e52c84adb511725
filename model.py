"""The networks, by name. Each maps (B, channels, size, size) floats in [-1, 1] to (B, classes) logits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MIN_SIZE = 32  # pixels a side: below this the last stage of the deeper networks has fewer than 4x4 places


class FaceNet(nn.Module):
    """The base of all networks: it checks the input, and `features` gives the vector before the last layer.

    A subclass defines a linear `classifier` over `head(maps(images))`, where maps (B, C, H, W) are what its last
    convolution gives; or, if it has none, over `features(images)`. With `any_size` it takes square images of any size
    from MIN_SIZE, since it averages over all places.
    """

    any_size = False
    temperature: float = 1.0  # `val.forward` divides logits by it; fitted after training, kept in the weight file

    def __init__(self, *, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5) -> None:
        super().__init__()
        if image_size < MIN_SIZE:
            raise ValueError(f"image_size {image_size}: at least {MIN_SIZE} pixels are needed")
        if channels < 1 or num_classes < 2:
            raise ValueError(f"channels {channels}, num_classes {num_classes}: at least 1 and 2 are needed")
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        # A weight file keeps both; build_model(name, **arguments) builds the network again
        self.name = type(self).__name__
        several = {"num_classes": num_classes} if num_classes != 7 else {}  # older files have none
        self.arguments: dict[str, Any] = {"dropout": dropout, **several}
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes). Raises ValueError for images of another shape."""
        self.check(images)
        return self.classifier(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """The vector (B, D) that the classifier takes."""
        return self.head(channels_last_grad(self.maps(images)))

    def head(self, maps: Tensor) -> Tensor:
        """The vector (B, D) of the maps: their average over all places, after dropout."""
        return self.dropout(maps.mean((2, 3)))

    @property
    def averages(self) -> bool:
        """Whether the classifier takes the averaged maps themselves, so that it can be applied to each place too."""
        return type(self).head is FaceNet.head and hasattr(self, "maps")

    def check(self, images: Tensor) -> None:
        """Raise ValueError for `images` of a shape that this network does not take."""
        size = max(images.shape[-1], MIN_SIZE) if self.any_size else self.image_size
        if images.ndim != 4 or images.shape[1:] != (self.channels, size, size):
            shape = f"(B, {self.channels}, {size}, {size})"
            raise ValueError(f"{type(self).__name__} takes images of shape {shape}, got {tuple(images.shape)}")


# --- Single networks ---


def channels_last_grad(maps: Tensor) -> Tensor:
    """`maps` (B, C, H, W), whose gradient keeps their memory layout.

    Flattening and averaging change it, and every operation before them would read two layouts: ten times slower.
    """
    if maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
        maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return maps


class TheModel(FaceNet):
    """Two 3x3 convolutions (64 and 128 channels) and one hidden layer of 512 units: 9.5M parameters at 48x48."""

    def __init__(self, *, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.MaxPool2d(2),  # before ReLU, which then has a quarter of the work: max and ReLU commute
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(128 * (image_size // 4) ** 2, 512)
        self.classifier = nn.Linear(512, num_classes)

    def maps(self, images: Tensor) -> Tensor:
        """The second convolution's channels (B, 128, H, W), after pooling and ReLU."""
        return self.body(images)

    def head(self, maps: Tensor) -> Tensor:
        """The hidden units (B, 512), after ReLU and dropout."""
        return self.dropout(torch.relu(self.hidden(maps.flatten(1))))


def stem(channels: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution of stride 1, pooled once: 48x48 faces become 24x24 places."""
    convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.MaxPool2d(2), nn.ReLU())


def two_convolutions(inputs: int, inner: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """The residual path of a block: two 3x3 convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, inner, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (arXiv 1512.03385).

    The shortcut is the identity, or a 1x1 projection where the channels change. `halve` pools both paths first. The
    convolutions go inputs -> inputs -> outputs: inputs -> outputs -> outputs would double the parameters.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = two_convolutions(inputs, inputs, outputs)

    def forward(self, images: Tensor) -> Tensor:
        images = self.pool(images)
        return torch.relu(self.residual(images) + self.shortcut(images))


class ImprovedFER2013Model(FaceNet):
    """Four residual stages of 64, 128, 256 and 512 channels and a 256-unit head: 2.7M parameters.

    The stages of a 48x48 face have 24, 12, 6 and 6 places a side.
    """

    def __init__(self, *, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
        self.stem = stem(channels, 64)
        self.stages = nn.Sequential(
            ResidualBlock(64, 64),
            ResidualBlock(64, 128, halve=True),
            ResidualBlock(128, 256, halve=True),
            ResidualBlock(256, 512),
        )
        self.hidden = nn.Linear(512, 256)
        self.norm = nn.BatchNorm1d(256)
        self.classifier = nn.Linear(256, num_classes)

    def maps(self, images: Tensor) -> Tensor:
        """The last stage's channels (B, 512, H, W)."""
        return self.stages(self.stem(images))

    def head(self, maps: Tensor) -> Tensor:
        """The units of the head (B, 256), after batch norm, ReLU and dropout."""
        return self.dropout(torch.relu(self.norm(self.hidden(self.dropout(maps.mean((2, 3)))))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (arXiv 1512.03385); initialised as its shortcut.

    `halve` halves the places: the first convolution by its stride, the shortcut by averaging before its 1x1 projection,
    so that no pixel is skipped (arXiv 1812.01187). The last batch norm's gains are 0 at first.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.residual = two_convolutions(inputs, outputs, outputs, stride=1 + halve)
        nn.init.zeros_(self.residual[-1].weight)
        self.shortcut = nn.Identity()
        if halve or inputs != outputs:
            pool = nn.AvgPool2d(2, ceil_mode=True) if halve else nn.Identity()
            project = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(pool, project, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.residual(images) + self.shortcut(images))


class EmotionResNet(FaceNet):
    """A residual network for small grey faces: three stages of 24x24, 12x12 and 6x6 places, then their average.

    `widths` and `depths` are the channels and blocks of each stage. `width` multiplies the channels, rounded to
    multiples of 8.
    """

    any_size = True

    def __init__(
        self, *, widths: Sequence[int], depths: Sequence[int], width: float = 1.0, dropout: float = 0.5, **shape: int
    ) -> None:
        super().__init__(dropout=dropout, **shape)
        self.arguments["width"] = width
        widths = [max(8, 8 * round(width * each / 8)) for each in widths]
        last = widths[0]
        self.stem = stem(self.channels, last)
        blocks = []
        for stage, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                blocks.append(BasicBlock(last, outputs, halve=stage > 0 and number == 0))
                last = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(last, self.num_classes)

    def maps(self, images: Tensor) -> Tensor:
        """The last stage's channels (B, D, H, W)."""
        return self.blocks(self.stem(images))


class TorchvisionResNet(FaceNet):
    """torchvision's `resnet18` or `resnet34`, newly initialised, with a first convolution for grey images."""

    any_size = True

    def __init__(self, *, name: str, dropout: float = 0.5, **shape: int) -> None:
        super().__init__(dropout=dropout, **shape)
        from torchvision import models  # late: it takes a second, and only these networks need it

        body = getattr(models, name)(weights=None)
        body.conv1 = nn.Conv2d(self.channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.body = nn.Sequential(*list(body.children())[:-2])  # all but the averaging and the last layer
        self.classifier = nn.Linear(512, self.num_classes)

    def maps(self, images: Tensor) -> Tensor:
        """The last stage's channels (B, 512, H, W)."""
        return self.body(images)


# --- Mixtures of experts ---


class Expert(FaceNet):
    """A network for a group of classes, with one more output, "none", for all others. Its logits are log-probabilities.

    "none" is shared among the other classes in proportion to their training images, `counts` (C,), so every
    log-probability is finite and the expert is trained on all images by their labels. A group of all classes has no
    "none".

    `network` is a name in NETWORKS, `group` holds indices of classes. Raises ValueError for a group that is empty,
    repeats a class or has an unknown one, and for a class outside it without training images.
    """

    def __init__(self, *, network: str, group: Sequence[int], counts: Sequence[int], **inputs: float) -> None:
        super().__init__(num_classes=len(counts), **inputs)
        group, counts, classes = list(group), list(counts), range(len(counts))
        if not group or len(set(group)) < len(group) or not set(group) <= set(classes):
            raise ValueError(f"group {group}: one or more of the classes 0 to {classes[-1]}, each once, are needed")
        self.arguments |= {"network": network, "group": group, "counts": counts}
        others = [c for c in classes if c not in group]
        if bare := [c for c in others if counts[c] < 1]:
            raise ValueError(f"counts {counts}: the classes {bare}, outside the group, have no training images")
        place = {c: at for at, c in enumerate(sorted(group))}
        rest = sum(counts[c] for c in others)
        shares = torch.tensor([1.0 if c in place else counts[c] / rest for c in classes])
        self.register_buffer("place", torch.tensor([place.get(c, len(group)) for c in classes]))
        self.register_buffer("log_share", shares.log())
        self.net = build_model(network, num_classes=len(group) + bool(others), **inputs)
        self.any_size = self.net.any_size

    @property
    def classifier(self) -> nn.Module:
        return self.net.classifier

    def features(self, images: Tensor) -> Tensor:
        """The network's features (B, D)."""
        return self.net.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, C) float32 of all classes."""
        self.check(images)
        return self.log_probs(self.features(images))

    def log_probs(self, features: Tensor) -> Tensor:
        """Log-probabilities (B, C) float32 of all classes from the network's features (B, D)."""
        return self.classifier(features).float().log_softmax(1)[:, self.place] + self.log_share


class MixtureOfExperts(FaceNet):
    """Experts for groups of classes, weighted for each image by a gating network (doi 10.1162/neco.1991.3.1.79).

    p(class | image) is the sum over the experts of gate(expert | image) p(class | image, expert), in logarithms; the
    logits are log p. `groups` (E of them) hold indices of classes, may overlap, and must cover all.

    `top_k` experts are used for an image, 0 is all (arXiv 1701.06538); train with more than 1, which gives the gate no
    gradient. `balance` weighs `penalty`, which training adds to the loss: the squared coefficient of variation of the
    experts' mean gate weights over a batch (section 4 there, but before top_k and without noise).

    Raises ValueError as `Expert` does, for a class that no group covers, and for a top_k above the experts.
    """

    def __init__(
        self,
        *,
        network: str,
        gate: str,
        groups: Sequence[Sequence[int]],
        counts: Sequence[int],
        top_k: int = 0,
        balance: float = 0.0,
        **inputs: float,
    ) -> None:
        super().__init__(num_classes=len(counts), **inputs)
        groups = [list(group) for group in groups]
        if lacking := sorted(set(range(len(counts))) - {c for group in groups for c in group}):
            raise ValueError(f"groups {groups}: no expert covers the classes {lacking}")
        if not 0 <= top_k <= len(groups) or balance < 0:
            raise ValueError(f"top_k {top_k}, balance {balance}: 0 to {len(groups)}, and 0 or more, are allowed")
        self.arguments |= {"network": network, "gate": gate, "groups": groups, "counts": list(counts)}
        self.arguments |= {"top_k": top_k, "balance": balance}
        self.top_k, self.balance = top_k, balance
        self.experts = nn.ModuleList(Expert(network=network, group=group, counts=counts, **inputs) for group in groups)
        # A single expert needs no gate, and there is no network of one output
        self.gate = build_model(gate, num_classes=len(groups), **inputs) if len(groups) > 1 else None
        self.any_size = all(net.any_size for net in [*self.experts, self.gate] if net)
        self.penalty: Tensor | None = None
        self.frozen: list[nn.Module] = []

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logarithms of the gate's weights (B, E) and of the experts' probabilities (B, E, C), and their features."""
        self.check(images)
        features = [expert.features(images) for expert in self.experts]
        log_p = [expert.log_probs(x) for expert, x in zip(self.experts, features, strict=True)]
        return self.log_gate(images), torch.stack(log_p, 1), features

    def log_gate(self, images: Tensor) -> Tensor:
        """Logarithms of the gate's weights (B, E) float32; -inf for an expert that is not used."""
        if self.gate is None:
            return images.new_zeros((len(images), 1))
        logits = self.gate(images).float()
        if self.training and self.balance:
            load = logits.softmax(1).mean(0)
            self.penalty = self.balance * load.var(correction=0) / load.mean() ** 2
        if 0 < self.top_k < len(self.experts):
            kept = logits.topk(self.top_k, 1)
            logits = torch.full_like(logits, -torch.inf).scatter(1, kept.indices, kept.values)
        return logits.log_softmax(1)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, C) float32 of all classes."""
        log_gate, log_p, _ = self.look(images)
        return torch.logsumexp(log_gate[:, :, None] + log_p, 1)

    def features(self, images: Tensor) -> Tensor:
        """The experts' features side by side, each times its weight (B, E D)."""
        log_gate, _, features = self.look(images)
        return torch.cat([x * weight[:, None] for x, weight in zip(features, log_gate.exp().unbind(1), strict=True)], 1)

    def freeze(self, *parts: nn.Module) -> None:
        """Train none of `parts`, such as `experts`: neither weights nor statistics. Without any, train all again."""
        self.frozen = list(parts)
        self.requires_grad_(True)
        for part in parts:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "MixtureOfExperts":
        super().train(mode)
        for part in getattr(self, "frozen", ()):
            part.eval()
        return self


# --- By name ---

# Channels and blocks of each stage: 0.3, 2.7 and 5.5 million parameters
EMOTION_RESNETS = {
    "nano": {"widths": (32, 64, 128), "depths": (1, 1, 1)},
    "small": {"widths": (64, 128, 256), "depths": (1, 2, 2)},
    "base": {"widths": (96, 192, 352), "depths": (2, 2, 2)},
}
NETWORKS: dict[str, Callable[..., FaceNet]] = {
    "TheModel": TheModel,
    "ImprovedFER2013Model": ImprovedFER2013Model,
    **{f"EmotionResNet-{size}": partial(EmotionResNet, **shape) for size, shape in EMOTION_RESNETS.items()},
    "ResNet-18": partial(TorchvisionResNet, name="resnet18"),
    "ResNet-34": partial(TorchvisionResNet, name="resnet34"),
    # Trained by experiments.py
    "Expert": Expert,
    "MixtureOfExperts": MixtureOfExperts,
}


def build_model(name: str, **arguments: Any) -> FaceNet:
    """The network called `name`, initialised from torch's generator, with its constructor's arguments.

    Raises ValueError for an unknown name or argument value.
    """
    if name not in NETWORKS:
        raise ValueError(f"model: {name!r} is not one of {', '.join(NETWORKS)}")
    model = NETWORKS[name](**arguments)
    model.name = name
    return model

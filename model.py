"""The networks, by name. Every one maps (B, channels, size, size) floats in [-1, 1] to (B, classes) logits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blocks import BasicBlock, FaceNet, ResidualBlock, channels_last_grad


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
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The 512 hidden units (B, 512), after ReLU and dropout."""
        maps = channels_last_grad(self.body(images))
        return self.dropout(torch.relu(self.hidden(maps.flatten(1))))


class ImprovedFER2013Model(FaceNet):
    """Four residual stages of 64, 128, 256 and 512 channels and a 256-unit head: 2.7M parameters.

    48x48 faces are seen at 48, then at 24, 12, 6 and 6 places a side. The first convolution is pooled at once: a
    first stage at 48x48 would take four times the multiplications of this one.
    """

    def __init__(self, *, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
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
        pooled = channels_last_grad(self.stages(self.stem(images))).mean((2, 3))
        return self.dropout(torch.relu(self.norm(self.hidden(self.dropout(pooled)))))


class EmotionResNet(FaceNet):
    """A residual network for small grey faces: three stages at 24x24, 12x12 and 6x6 places, then their average.

    `widths` and `depths` are the channels and blocks of each stage; `width` multiplies the channels, in whole eights.
    The first convolution has stride 1 and is pooled once: the 7x7 convolution of stride 2 that begins ImageNet's
    networks would leave 12x12 places of a face.
    """

    any_size = True

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        width: float = 1.0,
        image_size: int = 48,
        channels: int = 1,
        num_classes: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
        self.arguments["width"] = width
        widths = [max(8, 8 * round(width * each / 8)) for each in widths]
        last = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.MaxPool2d(2), nn.ReLU()
        )
        blocks = []
        for stage, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                blocks.append(BasicBlock(last, outputs, halve=stage > 0 and number == 0))
                last = outputs
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The last stage's channels averaged over the places (B, D), after dropout."""
        return self.dropout(channels_last_grad(self.blocks(self.stem(images))).mean((2, 3)))


class TorchvisionResNet(FaceNet):
    """torchvision's `resnet18` or `resnet34` as it stands, drawn anew, with a stem for grey images."""

    any_size = True

    def __init__(
        self, *, name: str, image_size: int = 48, channels: int = 1, num_classes: int = 7, dropout: float = 0.5
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
        from torchvision import models  # late: it takes a second, and only these networks need it

        body = getattr(models, name)(weights=None)
        body.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.body = nn.Sequential(*list(body.children())[:-2])  # all but the averaging and the last layer
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The 512 averaged channels of the last stage (B, 512), after dropout."""
        return self.dropout(channels_last_grad(self.body(images)).mean((2, 3)))


class Expert(FaceNet):
    """One network for a group of classes, which answers for all: it has an output for "none of mine".

    What it gives to that is shared over the other classes as they share the training images, `counts` (C,), so that
    every log-probability is finite. Its logits are those log-probabilities: trained on all images by their labels, it
    learns its group from its own images, and "none" from the others. A group of all classes has no such output.

    `network` names it in NETWORKS, `group` holds indices of classes. Raises ValueError for a group that is empty or has
    a class twice or one that is not there, and for a class outside it without training images.
    """

    def __init__(
        self,
        *,
        network: str,
        group: Sequence[int],
        counts: Sequence[int],
        image_size: int = 48,
        channels: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=len(counts), dropout=dropout)
        if not group or len(set(group)) < len(group) or not set(group) <= set(range(len(counts))):
            raise ValueError(
                f"group {list(group)}: one or more of the classes 0 to {len(counts) - 1}, each once, are needed"
            )
        self.arguments |= {"network": network, "group": list(group), "counts": list(counts)}
        others = [c for c in range(len(counts)) if c not in group]
        if bare := [c for c in others if counts[c] < 1]:
            raise ValueError(f"counts {list(counts)}: the classes {bare}, outside the group, have no share of training")
        place = {c: at for at, c in enumerate(sorted(group))}
        rest = sum(counts[c] for c in others)
        shares = [1.0 if c in place else counts[c] / rest for c in range(len(counts))]
        self.register_buffer("place", torch.tensor([place.get(c, len(group)) for c in range(len(counts))]))
        self.register_buffer("log_share", torch.tensor(shares).log())
        outputs = len(group) + bool(others)
        self.net = build_model(network, image_size=image_size, channels=channels, num_classes=outputs, dropout=dropout)
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
        return self.spread(self.classifier(self.features(images)))

    def spread(self, logits: Tensor) -> Tensor:
        """Log-probabilities (B, C) of all classes from the network's logits, of its group and "none"."""
        return logits.float().log_softmax(1)[:, self.place] + self.log_share


class MixtureOfExperts(FaceNet):
    """Experts for groups of classes, weighed for each image by a gating network (doi 10.1162/neco.1991.3.1.79).

    The probability of a class is the sum over the experts of gate(expert | image) p(class | image, expert), computed in
    logarithms; the logits are its logarithm, so that they sum to one. `groups` (E of them) hold indices of classes, may
    overlap, and must cover all. `top_k` experts are used for an image, 0 is all (arXiv 1701.06538): with 1 the gate's
    weight is 1, which tells it nothing, so train it with more. `temperature` divides the gate's logits.

    `balance` is the weight of the squared coefficient of variation of the experts' importance over a batch (section 4
    there), which training adds to the loss from `penalty`. Importance is summed here over the gate's whole softmax,
    before top_k: the paper sums what is left after it, from logits with noise, and has a second term for the number of
    images. Here it is smooth without noise, and reaches experts that are not chosen; but even importance is not yet
    even use.

    With `shared_stem` one stem, in `stem`, serves gate and experts: these lack it then, see `ask`.

    Raises ValueError as `Expert` does, for a class that no group covers, for a top_k above the experts, and for a
    `shared_stem` of networks without one, or with different ones.
    """

    def __init__(
        self,
        *,
        network: str,
        gate: str,
        groups: Sequence[Sequence[int]],
        counts: Sequence[int],
        top_k: int = 0,
        temperature: float = 1.0,
        balance: float = 0.0,
        shared_stem: bool = False,
        image_size: int = 48,
        channels: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, num_classes=len(counts), dropout=dropout)
        if lacking := sorted(set(range(len(counts))) - {c for group in groups for c in group}):
            raise ValueError(f"groups {[list(group) for group in groups]}: no expert covers the classes {lacking}")
        if not 0 <= top_k <= len(groups) or temperature <= 0 or balance < 0:
            raise ValueError(
                f"top_k {top_k}, temperature {temperature}, balance {balance}: "
                f"0 to {len(groups)}, above 0 and 0 or more are allowed"
            )
        self.arguments |= {
            "network": network,
            "gate": gate,
            "groups": [list(group) for group in groups],
            "counts": list(counts),
            "top_k": top_k,
            "temperature": temperature,
            "balance": balance,
            "shared_stem": shared_stem,
        }
        self.top_k, self.temperature, self.balance = top_k, temperature, balance
        shared = {"image_size": image_size, "channels": channels, "dropout": dropout}
        self.experts = nn.ModuleList(Expert(network=network, group=group, counts=counts, **shared) for group in groups)
        # A single expert needs no gate, and a network of one output is none
        self.gate = build_model(gate, num_classes=len(groups), **shared) if len(groups) > 1 else None
        self.stem: nn.Module = nn.Identity()
        nets = [expert.net for expert in self.experts] + ([self.gate] if self.gate else [])
        self.any_size = all(net.any_size for net in nets)
        if shared_stem:
            self.stem = shared_stem_of(nets)
            for net in nets:
                net.stem = nn.Identity()
        self.penalty: Tensor | None = None
        self.frozen: list[nn.Module] = []

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logarithms of the gate's weights (B, E) and of the experts' probabilities (B, E, C), and their features."""
        self.check(images)
        maps = self.stem(images)
        features = [expert.net.features(maps) for expert in self.experts]
        log_p = [expert.spread(expert.classifier(x)) for expert, x in zip(self.experts, features, strict=True)]
        return self.log_gate(maps), torch.stack(log_p, 1), features

    def ask(self, number: int, images: Tensor) -> Tensor:
        """Log-probabilities (B, C) float32 of the expert `number` alone, whether it has a stem of its own or not."""
        self.check(images)
        expert = self.experts[number]
        return expert.spread(expert.classifier(expert.features(self.stem(images))))

    def log_gate(self, maps: Tensor) -> Tensor:
        """Logarithms of the gate's weights (B, E) float32 for what the stem gives; -inf for an expert not used."""
        if self.gate is None:
            return maps.new_zeros((len(maps), 1), dtype=torch.float32)
        logits = self.gate.classifier(self.gate.features(maps)).float() / self.temperature
        if self.training and self.balance:
            load = logits.softmax(1).mean(0)
            self.penalty = self.balance * load.var(correction=0) / load.mean() ** 2
        if 0 < self.top_k < len(self.experts):
            least = logits.topk(self.top_k, 1).indices
            used = torch.zeros_like(logits, dtype=torch.bool).scatter(1, least, True)
            logits = logits.masked_fill(~used, -torch.inf)
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
        """Train none of `parts`, such as `experts`: neither weights nor statistics. Without any, train all again.

        A shared stem is frozen with any expert, which would be another one over a stem that goes on learning.
        """
        experts = (self.experts, *self.experts)
        stem = [self.stem] if any(part is expert for part in parts for expert in experts) else []
        parts = (*parts, *stem)
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


def shared_stem_of(nets: Sequence[FaceNet]) -> nn.Module:
    """The stem of the first of `nets`, which can stand for that of each. Raises ValueError where it cannot."""
    stems = [getattr(net, "stem", None) for net in nets]
    if bare := [net.name for net, stem in zip(nets, stems, strict=True) if stem is None]:
        raise ValueError(f"shared_stem: {bare[0]} has no stem that could be shared")
    shapes = [[value.shape for value in stem.state_dict().values()] for stem in stems]
    if other := [net.name for net, shape in zip(nets, shapes, strict=True) if shape != shapes[0]]:
        raise ValueError(f"shared_stem: the stems of {nets[0].name} and {other[0]} are not alike")
    return stems[0]


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
    # Trained by experiments.py
    "Expert": Expert,
    "MixtureOfExperts": MixtureOfExperts,
}


def build_model(name: str, **arguments: Any) -> FaceNet:
    """The network called `name`, freshly drawn from torch's generator, with its constructor's arguments.

    Raises ValueError for an unknown name or argument value.
    """
    if name not in NETWORKS:
        raise ValueError(f"model: {name!r} is not one of {', '.join(NETWORKS)}")
    model = NETWORKS[name](**arguments)
    model.name = name
    return model

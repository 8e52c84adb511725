"""For torch.hub: `torch.hub.load("PATH OF THIS FOLDER", "emotion_net", source="local")`."""

from collections.abc import Sequence

from torch import Tensor, nn

from config import CLASSES
from dataset import preprocess
from errors import SHIPPED, find_weights
from explain import class_activation_maps
from model import FaceNet
from utils import pick_machine
from weights import load_weights

dependencies = ["torch", "numpy", "PIL"]


class EmotionNet(nn.Module):
    """A network with its preprocessing: pixels (B, 48, 48) uint8 to probabilities (B, C) float32 of `classes`.

    With `maps` it returns activation maps (B, C, H, W) float32 too: class activation maps, as explain.py says.
    """

    def __init__(self, network: FaceNet, classes: Sequence[str] = CLASSES, *, maps: bool = False) -> None:
        super().__init__()
        self.network, self.maps, self.classes = network, maps, tuple(classes)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        network, images = self.network, preprocess(pixels)
        if not self.maps:
            return (network(images) / network.temperature).softmax(1)
        maps = network.maps(images)
        probabilities = (network.classifier(network.head(maps)) / network.temperature).softmax(1)
        return probabilities, class_activation_maps(network, maps)


def emotion_net(weights: str = "") -> EmotionNet:
    """The shipped network, or the one in a weight file or run's folder, on the CPU in evaluation mode."""
    network, content = load_weights(find_weights(weights or SHIPPED), machine=pick_machine("cpu", "fp32"))
    return EmotionNet(network, content["classes"]).eval()

"""For torch.hub: `torch.hub.load("PATH OF THIS FOLDER", "emotion_net", source="local")`."""

from pathlib import Path

from torch import Tensor, nn

dependencies = ["torch", "numpy", "PIL"]


class EmotionNet(nn.Module):
    """A trained network with its preprocessing: pixels (B, 48, 48) uint8 in, probabilities (B, 7) float32 out.

    `classes` are the names of the seven, in their order.
    """

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        from config import CLASSES
        from errors import SHIPPED, find_weights
        from utils import pick_machine
        from weights import load_weights

        path = find_weights(weights) if weights else Path(__file__).parent / SHIPPED
        self.network, _ = load_weights(path, machine=pick_machine("cpu", "fp32"))
        self.classes = CLASSES

    def forward(self, pixels: Tensor) -> Tensor:
        from dataset import preprocess

        return (self.network(preprocess(pixels)) / self.network.temperature).softmax(1)


def emotion_net(weights: str = "") -> EmotionNet:
    """The shipped network, or the one in a weight file or run's folder, on the CPU in evaluation mode."""
    return EmotionNet(weights).eval()

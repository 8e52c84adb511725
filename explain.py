"""Why a network answers as it does: what each place of an image adds to each emotion."""

import torch
from torch import Tensor

from errors import UserError
from model import FaceNet


def activation_maps(model: FaceNet, images: Tensor) -> Tensor:
    """How much each place speaks for each class, (B, C, H, W) float32, of network inputs (B, 1, 48, 48).

    Where the network averages its last maps, these are class activation maps (arXiv 1512.04150), which are exact: their
    mean over the places is the logit less the classifier's bias. For other networks it is Grad-CAM (arXiv 1610.02391):
    the maps, each times the mean of the logit's gradient over it; negative sums are cut off at 0.
    Both are divided by the temperature, as the logits are. Raises UserError for a mixture of experts.
    """
    if not hasattr(model, "maps"):
        raise UserError(f"{model.name} has no maps of its own to explain; use the weights of a single network")
    with torch.inference_mode(model.averages):
        maps = model.maps(images)
        if model.averages:
            return class_activation_maps(model, maps)
        maps = maps.detach().requires_grad_()
        logits = model.classifier(model.head(maps)) / model.temperature
        each = []
        for logit in logits.sum(0):  # of a class, over the batch: no image has a part in another's logit
            (gradient,) = torch.autograd.grad(logit, maps, retain_graph=True)
            each.append((gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu())
        return torch.stack(each, 1).detach()


def class_activation_maps(model: FaceNet, maps: Tensor) -> Tensor:
    """The class activation maps (B, C, H, W) of a network that averages its last maps, given these (B, D, H, W)."""
    return torch.einsum("bchw,kc->bkhw", maps, model.classifier.weight / model.temperature)

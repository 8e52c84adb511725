"""Weight files: written from a trained network, read back into one, described and calibrated."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config import CLASSES, Config
from dataset import PREPROCESSING, FaceData
from errors import UserError, find_weights
from metrics import find_threshold
from model import FaceNet, build_model
from utils import Machine, read_checkpoint, write_checkpoint
from val import CALIBRATION_IMAGES, Ensemble, Scores, fit_temperature, predict_logits, score


def save_weights(path: Path, model: FaceNet, scores: Scores, *, config: Config, data: FaceData) -> None:
    """Write the `weight_file` of a network. Raises UserError if it cannot be written."""
    write_checkpoint(path, weight_file(model, scores, config=config, data=data))


def weight_file(
    model: FaceNet, scores: Scores, *, config: Config, data: FaceData, leakage: bool = False
) -> dict[str, Any]:
    """The network with all that is needed to use it, for `write_checkpoint`: plain types and copied tensors only.

    `scores` are its figures on the validation images of `data`. `leakage`: it began with, or learned from, weights
    that may have been trained on these images.
    """
    state = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
    # Of a path the last part only: the folders above it are private
    names = {name: Path(getattr(config, name)).name for name in ("data", "cache", "votes", "runs", "pretrained")}
    teachers = ",".join(Path(name.strip()).name for name in config.teachers.split(","))
    return {
        "classes": list(data.classes),
        "model": model.name,
        "arguments": model.arguments,
        "state_dict": state,
        "preprocessing": PREPROCESSING,
        "temperature": model.temperature,
        "config": asdict(config) | names | {"teachers": teachers},
        "metrics": scores.plain(),
        "dataset": {
            "name": data.name,
            "source": Path(data.source).name,
            "fingerprint": data.fingerprint,
            "demo": data.demo,
            "votes": data.votes,
            "limit": config.limit,
            "leakage": leakage,
            "train": data.split("train").counts(),
        },
    }


def load_weights(path: Path, *, machine: Machine) -> tuple[FaceNet, dict[str, Any]]:
    """The network in `path`, in evaluation mode on the machine's device, and the file's whole content.

    Raises UserError for a file that is missing, damaged, foreign, or of a network this code does not have.
    """
    content = read_checkpoint(
        path, ("model", "arguments", "state_dict", "preprocessing", "config", "metrics", "dataset")
    )
    if content["preprocessing"] != PREPROCESSING:
        raise UserError(
            f"{path} expects other input ({content['preprocessing']!r}) than this code makes "
            f"({PREPROCESSING}); use the version of the code it was trained with"
        )
    try:
        with torch.device("meta"):  # initialising weights takes longer than reading them
            model = build_model(content["model"], **content["arguments"])
        dtypes = {name: value.dtype for name, value in model.state_dict().items()}
        state = {name: value.to(dtypes.get(name, value.dtype)) for name, value in content["state_dict"].items()}
        model.load_state_dict(state, assign=True)
        if model.num_classes != len(content["classes"]):
            raise ValueError(f"it has {model.num_classes} outputs for {len(content['classes'])} classes")
        Config(val_fraction=content["config"].get("val_fraction", Config().val_fraction))  # `test.py` samples by it
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} does not fit the network {content['model']!r} of this code: {reason}") from error
    model.temperature = content.get("temperature", 1.0)  # older files have none
    return model.eval().to(machine.device, memory_format=machine.layout), content


def load_ensemble(names: Sequence[str], *, machine: Machine) -> tuple[FaceNet | Ensemble, dict[Path, dict[str, Any]]]:
    """One network for the weight files or runs called `names`, of several their Ensemble; the content of each file.

    Raises UserError as `find_weights` and `load_weights` do.
    """
    loaded = {path: load_weights(path, machine=machine) for path in map(find_weights, names)}
    models = [model for model, _ in loaded.values()]
    if len({tuple(content["classes"]) for _, content in loaded.values()}) > 1:
        raise UserError("these weights have different classes: they cannot be averaged")
    return models[0] if len(models) == 1 else Ensemble(models), {path: content for path, (_, content) in loaded.items()}


class Calibration(NamedTuple):
    """What `calibrate` finds on the validation images, deduplicated."""

    temperature: float
    threshold: float  # of the highest probability: below it predict.py is not sure
    coverage: float  # the share of the images that reach it
    right: float  # the share of these whose answer is right
    before: Scores  # with temperature 1
    after: Scores
    probabilities: np.ndarray  # (N, 7) float32 of all validation images, calibrated


def calibrate(path: Path, data: FaceData, *, machine: Machine) -> Calibration:
    """Fit temperature and threshold of the network in `path` on the validation images of `data`; rewrite the file.

    The file holds both, and the Scores after, from now on. The loss of the Scores is cross-entropy.
    Raises UserError where the file cannot be read or written.
    """
    (model, content), val = load_weights(path, machine=machine), data.split("val")
    model.temperature = 1.0
    logits = predict_logits(model, val, machine=machine)
    kept = np.flatnonzero(~val.copies)
    temperature = fit_temperature(logits[kept], val.labels[kept])
    before, after = (score(logits / divisor, val.labels, val.copies) for divisor in (1.0, temperature))
    probabilities = (logits / temperature).softmax(1).numpy()
    # Always sure: with few images a threshold says more of them than of the network
    threshold, coverage, right = 0.0, 1.0, after.deduplicated.accuracy
    if len(kept) >= CALIBRATION_IMAGES:
        threshold, coverage, right = find_threshold(probabilities[kept], val.labels[kept])
    found = {"temperature": temperature, "threshold": threshold, "coverage": coverage, "metrics": after.plain()}
    write_checkpoint(path, content | found)
    return Calibration(temperature, threshold, coverage, right, before, after, probabilities)


def load_pretrained(
    model: FaceNet, config: Config, classes: Sequence[str] = CLASSES, *, machine: Machine
) -> tuple[Path, dict[str, Any]]:
    """Give `model`, as `config` builds it, the weights in the file `config.pretrained`; its path and content.

    Where `classes`, those of `model`, are not the file's, the last layer's rows are taken for the classes of both; the
    others stay as they are. Raises UserError for a file that `load_weights` refuses, and for another network.
    """
    path = find_weights(config.pretrained, flag="--pretrained")
    there, content = load_weights(path, machine=machine)
    may_differ = {"dropout": 0, "num_classes": 0}
    if there.name != model.name or there.arguments | may_differ != model.arguments | may_differ:
        width = f" --width {there.arguments['width']:g}" if "width" in there.arguments else ""
        raise UserError(
            f"--pretrained {path}: its network is another one than {model.name}: give --model {there.name}{width}, or "
            f"name other weights"
        )
    state = there.state_dict()
    if content["classes"] != list(classes):
        both = [name for name in classes if name in content["classes"]]
        new, old = ([names.index(name) for name in both] for names in (classes, content["classes"]))
        for name in ("classifier.weight", "classifier.bias"):
            own = model.state_dict()[name].clone()
            own[new] = state[name][old]
            state[name] = own
    model.load_state_dict(state)
    return path, content


def leakage_notes(path: Path, content: dict[str, Any], data: FaceData, val_fraction: float) -> list[str]:
    """A note, where the weights in `path` may have learned from the validation images of `data`."""
    if same_validation(content, data, val_fraction) and not content["dataset"].get("leakage"):
        return []
    return [
        f"note: {path} was trained on other data, or with other images to validate on: it may know these "
        f"validation images, and then the figures of this run are too high"
    ]


def same_validation(content: dict[str, Any], data: FaceData, val_fraction: float) -> bool:
    """Whether the weights in `content` were trained on `data`, with the same images left for validation."""
    same_part = content["config"].get("val_fraction") == val_fraction or not data.sampled_val
    return same_part and same_dataset(content, data)


def same_dataset(content: dict[str, Any], data: FaceData) -> bool:
    """Whether the weights in `content` were trained on `data`; FER2013 is one dataset in all its forms."""
    trained_on = content["dataset"]
    both_fer2013 = data.name == trained_on.get("name") == "fer2013"
    return both_fer2013 or trained_on["fingerprint"] == data.fingerprint

"""Every hyperparameter: edit a default here, or give the flag of the same name.

Later ones win: the defaults here, `--recipe`, `--config run/config.json`, flags.
Standard library only, so that `--help` answers at once.
"""

import math
import re
import reprlib
import unicodedata
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

# The order of the network's outputs everywhere: FER2013's numbering, not the alphabetical order of folders.
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

SIZES = ("nano", "small", "base")  # of EmotionResNet
MODELS = ("TheModel", "ImprovedFER2013Model", *(f"EmotionResNet-{size}" for size in SIZES), "ResNet-18", "ResNet-34")
TTA = ("none", "flip", "crops")
TTA_HELP = "test-time augmentation: flip adds the mirror image (2 times the work), crops takes ten crops (10 times)"
METRICS = ("accuracy", "macro_f1", "loss")
SCHEDULES = ("plateau", "onecycle", "cosine", "constant")
DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def fold(name: str) -> str:
    """`name` without what does not count in names of classes and splits: letter case, blanks, how accents are coded."""
    return unicodedata.normalize("NFC", name.strip().casefold())


def parse_classes(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes in `text`, in order, and what names mean them, folded: "sad,happy,smile=happy,3=happy".

    Raises ValueError for fewer than two classes, and for text that is no such list.
    """
    names, meaning = [], {}
    for part in text.split(","):
        found, equals, name = (each.strip() for each in part.rpartition("="))
        if not name or not name.isprintable() or (equals and not found):
            raise ValueError(f"classes: {text!r} is no list such as happy,sad,smile=happy")
        if fold(name) not in map(fold, names):
            names.append(name)
        if found:
            meaning[fold(found)] = name
    if len(names) < 2:
        raise ValueError(f"classes: {text!r} has fewer than two classes")
    return tuple(names), meaning


class Allowed(NamedTuple):
    """What a setting may be: the smallest and largest number, or the choices. `help` describes it."""

    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


def setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf, choices: tuple = ()) -> Any:
    return field(default=default, metadata={"allowed": Allowed(help, low, high, choices)})


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run. Raises ValueError with the field's name, its value and what is allowed."""

    # Data
    data: str = setting("", "dataset: a folder, zip, csv or tar; demo renders faces; empty searches this folder")
    follow_links: bool = setting(False, "read what links to folders outside of the dataset lead to")
    classes: str = setting(
        "", "classes, in order: happy,sad,smile=happy; auto: as found; empty: FER2013's that are there"
    )
    skip_unknown: bool = setting(False, "leave out what is in folders that are no class")
    cache: str = setting(".cache", "folder for decoded images")
    val_fraction: float = setting(0.1, "share of train used for validation if the data has no such split", 0.01, 0.5)
    limit: int = setting(0, "train on about this many images, classes in proportion; 0 is all", 0, 10**9)
    votes: str = setting("", "FER+ votes as soft targets: fer2013new.csv or ferplus_votes.csv; empty uses labels")
    # Model
    model: str = setting("TheModel", "network", choices=MODELS)
    width: float = setting(1.0, "EmotionResNet: factor on the number of channels", 0.1, 10.0)
    pretrained: str = setting("", "weight file of the same network to start from; empty initialises the weights")
    dropout: float = setting(0.5, "probability of dropping a unit of the head in training", 0.0, 0.95)
    # Loss
    loss: str = setting("focal", "loss function", choices=("focal", "cross_entropy"))
    focal_gamma: float = setting(1.0, "focal loss: exponent that weakens easy images; 0 is cross-entropy", 0.0, 10.0)
    label_smoothing: float = setting(0.0, "cross-entropy: probability spread evenly over all classes", 0.0, 0.9)
    class_weights: str = setting("none", "weight of rare classes", choices=("none", "inverse", "effective"))
    # Optimisation
    epochs: int = setting(40, "passes over the training images, at most", 1, 100_000)
    batch_size: int = setting(128, "images per step", 1, 65_536)
    optimizer: str = setting("adamw", "update rule; sgd has Nesterov momentum 0.9", choices=("adam", "adamw", "sgd"))
    lr: float = setting(1e-3, "learning rate at the start; with onecycle and cosine the highest", 1e-9, 100.0)
    weight_decay: float = setting(0.05, "weight decay, not applied to biases and norms", 0.0, 1.0)
    clip: float = setting(0.0, "largest norm of the gradient; 0 is no limit", 0.0, 1e6)
    schedule: str = setting("plateau", "learning-rate schedule", choices=SCHEDULES)
    warmup: float = setting(0.05, "all but constant: share of the steps in which the rate rises", 0.0, 0.9)
    plateau_factor: float = setting(0.7, "plateau: factor on the rate when the loss stops falling", 0.01, 0.99)
    plateau_patience: int = setting(1, "plateau: epochs without a validation loss 1 % lower before that", 0, 1000)
    stop_metric: str = setting("accuracy", "validation metric that selects the best epoch", choices=METRICS)
    stop_patience: int = setting(8, "stop after this many epochs without a better stop_metric; 0 is never", 0, 100_000)
    ema: float = setting(0.998, "decay of the moving average of the weights, which is scored; 0 is off", 0.0, 0.99999)
    # Augmentation, in training only; mixup and cutmix work without `augment` too
    augment: bool = setting(True, "augment every training image anew in each epoch")
    flip: bool = setting(True, "augment: mirror half of the images")
    shift: float = setting(4.0, "augment: shift by up to this many pixels of 48", 0.0, 24.0)
    rotation: float = setting(12.0, "augment: rotate by up to this many degrees", 0.0, 180.0)
    zoom: float = setting(0.1, "augment: scale by up to this share, up or down", 0.0, 0.5)
    cutout: float = setting(0.0, "augment: side of a grey square, up to this share of the image", 0.0, 1.0)
    contrast: float = setting(0.0, "augment: change contrast by up to this share", 0.0, 1.0)
    brightness: float = setting(0.0, "augment: change brightness by up to this share of the range", 0.0, 1.0)
    window: int = setting(48, "augment: train on windows of this many pixels a side, which is faster", 32, 48)
    full_size_share: float = setting(0.2, "window: share of the epochs, the last ones, on full images", 0.0, 1.0)
    mixup: float = setting(0.0, "blend pairs of images with shares from Beta(a, a), a being this; 0 is off", 0.0, 10.0)
    cutmix: float = setting(0.0, "paste boxes of other images, sized as in mixup; with mixup half each", 0.0, 10.0)
    # Distillation
    teachers: str = setting("", "weight files, separated by commas: their mean probabilities become soft targets")
    distill_weight: float = setting(0.7, "teachers: weight of their soft targets", 0.0, 1.0)
    # Machine
    device: str = setting("auto", "where to compute; auto is cuda if there is one, else cpu", choices=DEVICES)
    precision: str = setting("auto", "number format of products; auto is bf16 if native", choices=PRECISIONS)
    threads: int = setting(0, "CPU threads; 0 is one per core", 0, 4096)
    seed: int = setting(0, "seed of all random numbers", 0, 2**31 - 1)
    deterministic: bool = setting(False, "CUDA: repeat results bit for bit, slower; the CPU always does")
    # Output
    runs: str = setting("runs", "folder of all runs")
    run: str = setting("", "name of the run's folder; empty is model and time")

    def __post_init__(self) -> None:
        for spec in fields(self):
            check_field(spec.name, getattr(self, spec.name), spec.type, spec.metadata["allowed"])
        if self.classes not in ("", "auto"):
            parse_classes(self.classes)
        if self.width != 1 and not self.model.startswith("EmotionResNet"):
            raise ValueError(f"width: {self.width!r} needs an EmotionResNet, not {self.model}")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(f"label_smoothing: {self.label_smoothing!r} needs the loss cross_entropy, not {self.loss}")
        if self.run and (self.run in (".", "..") or set(self.run) & set('/\\:*?"<>|\0')):
            raise ValueError(f"run: {self.run!r} is not a folder name")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of build_model for the network called `model`."""
        return {"dropout": self.dropout} | ({"width": self.width} if self.model.startswith("EmotionResNet") else {})


SMOOTHED = {"loss": "cross_entropy", "label_smoothing": 0.1, "stop_patience": 0}
SGD = {**SMOOTHED, "optimizer": "sgd", "lr": 0.15, "weight_decay": 5e-4, "schedule": "cosine"}
LIGHT = {"shift": 2.0, "rotation": 8.0, "zoom": 0.05}
STRONG = {"rotation": 15.0, "zoom": 0.15, "cutout": 0.3, "contrast": 0.3, "brightness": 0.1, "mixup": 0.4}
# What a recipe changes. Its minutes and accuracy: docs/results.md.
RECIPES: dict[str, dict[str, Any]] = {
    # The rendered demo faces: a run on them uses this recipe unless another one is named.
    "demo": {"epochs": 6, "batch_size": 32, "schedule": "onecycle", "warmup": 0.2},
    # The shipped weights, trained on for other faces or classes: 20 to 200 images of each are enough to begin with.
    "few": {
        **SGD,
        **LIGHT,
        "model": "EmotionResNet-small",
        "pretrained": "final_weights_new.pth",
        "epochs": 30,
        "batch_size": 16,
        "lr": 0.002,
        "stop_metric": "loss",  # the accuracy on a few validation images is chance
    },
    # TheModel, its best recipe so far: AdamW in one cycle (arXiv 1708.07120), weights averaged over two epochs.
    "simple": {**SMOOTHED, "schedule": "onecycle", "warmup": 0.2},
    # EmotionResNet-nano in ten minutes on two cores: too short to overfit, so little augmentation and no smoothing.
    "nano": {
        **SGD,
        **LIGHT,
        "model": "EmotionResNet-nano",
        "dropout": 0.1,
        "label_smoothing": 0.0,
        "epochs": 36,
        "warmup": 0.1,
    },
    # EmotionResNet-small in one and a half to two and a half hours on two cores.
    "small": {
        **SGD,
        **STRONG,
        "model": "EmotionResNet-small",
        "dropout": 0.3,
        "epochs": 110,
        "ema": 0.999,
        "window": 40,
    },
    # EmotionResNet-base, for a GPU: one and a half minutes on an H100.
    "base": {
        **SGD,
        **STRONG,
        "model": "EmotionResNet-base",
        "dropout": 0.3,
        "epochs": 60,
        "batch_size": 256,
        "lr": 0.3,
        "mixup": 0.2,
    },
    # ImprovedFER2013Model, its best recipe so far: SGD in one cycle.
    "improved": {
        **SGD,
        "model": "ImprovedFER2013Model",
        "dropout": 0.3,
        "schedule": "onecycle",
        "warmup": 0.2,
        "cutout": 0.25,
    },
}

# Groups of emotions, one for each expert of a mixture; experiments.py derives more of them from data. They may overlap,
# and must cover all emotions. Three each, the default of --experts, so that all mixtures have one size.
GROUPINGS: dict[str, list[list[str]]] = {
    "valence": [["angry", "disgust", "fear", "sad"], ["happy", "surprise"], ["neutral"]],
    # The pairs that networks confuse most on FER2013, each inside a group
    "confusable": [
        ["angry", "fear", "sad", "neutral"],
        ["angry", "disgust", "sad"],
        ["fear", "happy", "surprise", "neutral"],
    ],
}

# Half of a surrogate pair is no text either; Python has some, \udc80 to \udcff, for bytes of a name that are no UTF-8.
NOT_IN_PATHS = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
# Where a run is made: they do not define it
PLACE_FIELDS = ("data", "follow_links", "cache", "device", "threads", "runs", "run")
# May differ when a run is resumed or scored. For votes and teachers only the place may: their content is checked.
MACHINE_FIELDS = ("data", "follow_links", "cache", "votes", "teachers", "device", "threads")


def check_field(name: str, value: Any, kind: type, allowed: Allowed) -> None:
    """Raise ValueError with the name, the value and what is allowed, unless `value` fits."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{name}: {value!r} is not of type {kind.__name__}")
    if kind is str and NOT_IN_PATHS.search(value):
        raise ValueError(f"{name}: {value!r} contains a zero or half a character, which no path has")
    if allowed.choices and value not in allowed.choices:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed.choices)}")
    if kind in (int, float) and not allowed.low <= value <= allowed.high:
        raise ValueError(f"{name}: {reprlib.repr(value)} is not between {allowed.low:g} and {allowed.high:g}")

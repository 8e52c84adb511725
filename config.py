"""Everything a person tunes: edit a default below, or give the flag of the same name.

Precedence, later wins: the defaults below, `--recipe`, `--config run/config.json`, flags.
It needs the standard library only, so `--help` answers at once.
"""

import math
import reprlib
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

# The order of the seven outputs, everywhere; FER2013's own numbering, not the alphabetical one of folders.
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

SIZES = ("nano", "small", "base")  # of EmotionResNet
MODELS = ("TheModel", "ImprovedFER2013Model", *(f"EmotionResNet-{size}" for size in SIZES), "ResNet-18", "ResNet-34")
TTA = ("none", "flip", "crops")
TTA_HELP = "test-time augmentation: also the mirror image, twice the work, or ten crops, ten times it (default: none)"
METRICS = ("accuracy", "macro_f1", "loss")
SCHEDULES = ("plateau", "onecycle", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Knob(NamedTuple):
    """What is allowed in a field: `help`, the smallest and largest number, or the choices."""

    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


def knob(default: Any, help: str, low: float = -math.inf, high: float = math.inf, choices: tuple = ()) -> Any:
    return field(default=default, metadata={"knob": Knob(help, low, high, choices)})


@dataclass(frozen=True, kw_only=True)
class Config:
    """The knobs of a run. Raises ValueError with the field's name, its value and what is allowed."""

    # Data
    data: str = knob("", "a folder, zip, csv or tar; demo draws faces; empty looks in this folder")
    cache: str = knob(".cache", "folder for decoded images")
    val_fraction: float = knob(0.1, "share of train drawn for validation where the data has none", 0.01, 0.5)
    limit: int = knob(0, "train on about this many images, every class in its share; 0 is all", 0, 10**9)
    votes: str = knob("", "FER+ votes as soft targets: fer2013new.csv or ferplus_votes.csv; empty is the labels")
    # Model
    model: str = knob("TheModel", "network", choices=MODELS)
    width: float = knob(1.0, "EmotionResNet: its channels times this", 0.1, 10.0)
    pretrained: str = knob("", "weight file to begin with, of the same network; empty draws the weights")
    dropout: float = knob(0.5, "share of units dropped in the head, in training", 0.0, 0.95)
    # Loss
    loss: str = knob("focal", "what is minimised", choices=("focal", "cross_entropy"))
    focal_gamma: float = knob(2.0, "focal loss: how much easy images are played down; 0 is cross-entropy", 0.0, 10.0)
    label_smoothing: float = knob(0.0, "cross-entropy: probability spread over all classes", 0.0, 0.9)
    class_weights: str = knob("none", "weight of rare classes", choices=("none", "inverse", "effective"))
    # Optimisation
    epochs: int = knob(40, "passes over the training images, at most", 1, 100_000)
    batch_size: int = knob(128, "images per step", 1, 65_536)
    optimizer: str = knob("adam", "update rule; sgd has Nesterov momentum 0.9", choices=("adam", "adamw", "sgd"))
    lr: float = knob(1e-3, "learning rate: the first, and with onecycle and cosine the highest", 1e-9, 100.0)
    weight_decay: float = knob(1e-5, "pull towards zero, of all weights but biases and norms", 0.0, 1.0)
    clip: float = knob(0.0, "largest norm of the whole gradient; 0 is no limit", 0.0, 1e6)
    schedule: str = knob("plateau", "course of the learning rate", choices=SCHEDULES)
    warmup: float = knob(0.2, "onecycle, cosine: share of the steps in which the rate rises", 0.0, 0.9)
    plateau_factor: float = knob(0.5, "plateau: the rate is multiplied by this", 0.01, 0.99)
    plateau_patience: int = knob(2, "plateau: epochs without a better validation loss before that", 0, 1000)
    stop_metric: str = knob("accuracy", "validation figure that picks the best epoch and ends a run", choices=METRICS)
    stop_patience: int = knob(8, "epochs without a better stop_metric before training ends; 0 is never", 0, 100_000)
    ema: float = knob(0.0, "decay of the moving average of the weights that is kept, warmed up; 0 is off", 0.0, 0.99999)
    # Augmentation, in training only; the last two work without `augment` too
    augment: bool = knob(True, "draw a new variant of every training image each epoch")
    flip: bool = knob(True, "augment: mirror half of the images")
    shift: float = knob(4.0, "augment: move by up to this many pixels of 48", 0.0, 24.0)
    rotation: float = knob(12.0, "augment: turn by up to this many degrees", 0.0, 180.0)
    zoom: float = knob(0.1, "augment: scale by up to this share, smaller or larger", 0.0, 0.5)
    cutout: float = knob(0.0, "augment: side of a grey square, at most this share of what is seen", 0.0, 1.0)
    contrast: float = knob(0.0, "augment: strengthen or weaken by up to this share", 0.0, 1.0)
    brightness: float = knob(0.0, "augment: lighten or darken by up to this share of black to white", 0.0, 1.0)
    window: int = knob(48, "augment: train on a window of this many pixels a side of the 48, which is quicker", 32, 48)
    full_size_share: float = knob(0.2, "window: share of the epochs, the last ones, on full images", 0.0, 1.0)
    mixup: float = knob(0.0, "blend pairs of images and targets, shares from Beta(a, a), a this; 0 is off", 0.0, 10.0)
    cutmix: float = knob(0.0, "paste a box of one image into another, likewise; with mixup, half of each", 0.0, 10.0)
    # Distillation
    teachers: str = knob("", "weight files, a comma between them, whose mean probabilities are part of the targets")
    distill_weight: float = knob(0.7, "teachers: their share of the targets", 0.0, 1.0)
    # Machine
    device: str = knob("auto", "where to compute", choices=("auto", "cuda", "mps", "cpu"))
    precision: str = knob("auto", "format of the heavy products; auto is bf16 where it is native", choices=PRECISIONS)
    threads: int = knob(0, "CPU threads; 0 is one per core", 0, 4096)
    seed: int = knob(0, "start of every random draw", 0, 2**31 - 1)
    deterministic: bool = knob(False, "CUDA: the same result bit for bit, slower; the CPU always is")
    # Output
    runs: str = knob("runs", "folder that holds the runs")
    run: str = knob("", "name of the run's folder; empty is model and time")

    def __post_init__(self) -> None:
        for spec in fields(self):
            check_field(spec.name, getattr(self, spec.name), spec.type, spec.metadata["knob"])
        if self.width != 1 and not self.model.startswith("EmotionResNet"):
            raise ValueError(f"width: {self.width!r} needs an EmotionResNet, not {self.model}")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(f"label_smoothing: {self.label_smoothing!r} needs the loss cross_entropy, not {self.loss}")
        if self.run and (self.run in (".", "..") or set(self.run) & set('/\\:*?"<>|\0')):
            raise ValueError(f"run: {self.run!r} is no folder name")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network called `model` is built with."""
        return {"dropout": self.dropout} | ({"width": self.width} if self.model.startswith("EmotionResNet") else {})


SGD_COSINE: dict[str, Any] = {
    "loss": "cross_entropy",
    "label_smoothing": 0.1,
    "optimizer": "sgd",
    "lr": 0.15,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "stop_patience": 0,
}
MUCH_AUGMENTATION: dict[str, Any] = {
    "rotation": 15.0,
    "zoom": 0.15,
    "cutout": 0.3,
    "contrast": 0.3,
    "brightness": 0.1,
    "mixup": 0.4,
}
# A recipe is what a run changes; the README's results table says what each costs and reaches.
RECIPES: dict[str, dict[str, Any]] = {
    # The rendered demo faces: a run on them uses this recipe unless another one is named.
    "demo": {"epochs": 6, "batch_size": 32, "schedule": "onecycle"},
    # TheModel, at its best so far: AdamW in one cycle (arXiv 1708.07120), weights averaged over two epochs.
    "simple": {
        "loss": "cross_entropy",
        "label_smoothing": 0.1,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "schedule": "onecycle",
        "stop_patience": 0,
        "ema": 0.998,
    },
    # EmotionResNet-nano, in ten minutes on two cores, and the CPU's speed record (bench/speedrun.py): little
    # augmentation and no smoothing, for there is no time to overfit.
    "nano": {
        **SGD_COSINE,
        "label_smoothing": 0.0,
        "model": "EmotionResNet-nano",
        "dropout": 0.1,
        "epochs": 36,
        "warmup": 0.1,
        "ema": 0.998,
        "shift": 2.0,
        "rotation": 8.0,
        "zoom": 0.05,
    },
    # EmotionResNet-small, in one and a half to two and a half hours on two cores.
    "small": {
        **SGD_COSINE,
        **MUCH_AUGMENTATION,
        "model": "EmotionResNet-small",
        "dropout": 0.3,
        "epochs": 110,
        "warmup": 0.05,
        "ema": 0.999,
        "window": 40,
    },
    # EmotionResNet-base, for a GPU: in one and a half minutes on an H100.
    "base": {
        **SGD_COSINE,
        **MUCH_AUGMENTATION,
        "model": "EmotionResNet-base",
        "dropout": 0.3,
        "epochs": 60,
        "batch_size": 256,
        "lr": 0.3,
        "warmup": 0.05,
        "ema": 0.998,
        "mixup": 0.2,
    },
    # ImprovedFER2013Model, at its best so far: SGD in one cycle.
    "improved": {
        "model": "ImprovedFER2013Model",
        "dropout": 0.3,
        "loss": "cross_entropy",
        "label_smoothing": 0.1,
        "optimizer": "sgd",
        "lr": 0.15,
        "weight_decay": 5e-4,
        "schedule": "onecycle",
        "stop_patience": 0,
        "ema": 0.998,
        "cutout": 0.25,
    },
}

# Groups of emotions for the experts of a mixture, by hand (experiments.py); more are made from data there. Groups may
# overlap; together they hold every emotion. Three each, as many as --experts has where nothing else is typed: so all
# mixtures are of one size.
GROUPINGS: dict[str, list[list[str]]] = {
    "valence": [["angry", "disgust", "fear", "sad"], ["happy", "surprise"], ["neutral"]],
    # The pairs that networks confuse most on FER2013, each inside a group
    "confusable": [
        ["angry", "fear", "sad", "neutral"],
        ["angry", "disgust", "sad"],
        ["fear", "happy", "surprise", "neutral"],
    ],
}

SETTING = ("data", "cache", "device", "threads", "runs", "run")  # where a run is made, not what it is
# What may differ when a run goes on or is scored; votes and teachers in their place alone, which is checked
MACHINE_FIELDS = ("data", "cache", "votes", "teachers", "device", "threads")


def check_field(name: str, value: Any, kind: type, allowed: Knob) -> None:
    """Raise ValueError, with the name, the value and what is allowed, unless `value` fits."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{name}: {value!r} is not of type {kind.__name__}")
    if kind is str and "\0" in value:
        raise ValueError(f"{name}: {value!r} holds a zero character, which no path has")
    if allowed.choices and value not in allowed.choices:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed.choices)}")
    if kind in (int, float) and not allowed.low <= value <= allowed.high:
        least = f"{allowed.low:g} or more"
        wanted = least if allowed.high == math.inf else f"between {allowed.low:g} and {allowed.high:g}"
        raise ValueError(f"{name}: {reprlib.repr(value)} is not {wanted}")

"""A finished study, read from its folder and checked, for its report."""

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from config import CLASSES
from errors import UserError

KINDS = ("single", "mixture", "ensemble")
LEAST_ROWS = 10  # images deduplicated whose features are shown
ABOUT = {
    "name": str,
    "conclusive": bool,
    "why": str,
    "command": str,
    "machine": str,
    "versions": dict,
    "minutes": (int, float),
    "data": dict,
    "seeds": list,
    "base": str,
    "configurations": list,
}
DATA = {"source": str, "fingerprint": str, "demo": bool, "train": list, "val": list}
CONFIGURATION = {
    "name": str,
    "title": str,
    "kind": str,
    "control": bool,
    "groups": list,
    "gating": str,
    "parameters": int,
    "macs": int,
    "epochs": int,
    "work": (int, float),
    "note": str,
}
COSTS = ("parameters", "macs", "epochs", "work")
DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Configuration:
    """A kind of network, trained with each of S seeds and scored on N images, M of which show their features."""

    name: str
    title: str
    kind: str  # of KINDS
    control: bool
    groups: list[list[str]]  # of the E experts; with the first seed, where they are drawn
    gating: str
    parameters: int
    macs: int
    epochs: int  # the most that any of its weights went through
    work: float  # of all its training, in epochs of the base
    note: str
    predicted: np.ndarray  # (S, N) indices into CLASSES
    gate: np.ndarray | None  # (S, N, E) weights
    features: np.ndarray  # (M, D) of the first seed
    histories: list[list[dict]]  # stages of each seed

    @property
    def is_control(self) -> bool:
        return self.control or self.kind == "ensemble"

    @property
    def stages(self) -> list[str]:
        """The names of the stages it was trained in."""
        return [stage["stage"] for stage in self.histories[0]]

    @property
    def is_plain(self) -> bool:
        """Whether it is a mixture without groups of its own: each of its experts has all classes."""
        return bool(self.groups) and all(set(group) == set(CLASSES) for group in self.groups)

    @property
    def is_drawn(self) -> bool:
        """Whether it is a mixture for groups drawn at random, which the study calls random, anew with each seed."""
        return self.kind == "mixture" and self.name.partition("-")[0] == "random"

    @property
    def is_clustered(self) -> bool:
        """Whether it is a mixture for the study's clusters: of confusions on the images that are scored."""
        return self.kind == "mixture" and self.name.partition("-")[0] == "clusters"

    @property
    def experts(self) -> list[str]:
        """A name for each expert: its classes, with a number where another has the same."""
        names = ["all classes" if len(group) == len(CLASSES) else " + ".join(group) for group in self.groups]
        return [
            f"{name} ({names[:at].count(name) + 1})" if names.count(name) > 1 else name for at, name in enumerate(names)
        ]


@dataclass(frozen=True)
class Study:
    """What `read_study` found. `about` is study.json; labels (N,), copies (N,) bool, rows (M,) are as in labels.npz."""

    about: dict[str, Any]
    labels: np.ndarray
    copies: np.ndarray
    rows: np.ndarray
    configurations: list[Configuration]

    @property
    def seeds(self) -> list[int]:
        return self.about["seeds"]

    @cached_property
    def base(self) -> Configuration:
        return next(one for one in self.configurations if one.name == self.about["base"])

    @property
    def mixtures(self) -> list[Configuration]:
        """Those that are held to the base; mixtures that serve as controls only where there are no others."""
        mixtures = [one for one in self.configurations if one.kind == "mixture"]
        return [one for one in mixtures if not one.control] or mixtures

    @property
    def deduplicated(self) -> np.ndarray:
        """(N,) bool, the images that do not also stand in train."""
        return ~self.copies

    @property
    def shown(self) -> np.ndarray:
        """(M,) bool, which of the rows whose features are kept are of images that do not also stand in train."""
        return self.deduplicated[self.rows]

    def has_other_groups(self, configuration: Configuration) -> bool:
        """Whether the groups of a mixture are others with each seed, so that only those of the first are known."""
        return configuration.is_drawn and len(self.seeds) > 1

    def hits(self, configuration: Configuration, *, official: bool = False) -> np.ndarray:
        """(S, images) bool, whether each seed's network names an image right."""
        hits = configuration.predicted == self.labels
        return hits if official else hits[:, self.deduplicated]


# --- Reading ---


def read_study(folder: Path) -> Study:
    """The study in `folder`. Raises UserError for a missing or damaged file, or one of another shape than expected."""
    about = _read_json(folder / "study.json")
    _check_keys(about, ABOUT, folder / "study.json", "")
    _check_keys(about["data"], DATA, folder / "study.json", "data: ")
    path = folder / "study.json"
    for name in ("train", "val"):
        counts = about["data"][name]
        _demand(
            len(counts) == len(CLASSES) and all(type(count) is int for count in counts),
            path,
            f"data: {name} is not a list of {len(CLASSES)} counts",
        )
    seeds = about["seeds"]
    _demand(
        bool(seeds) and all(type(seed) is int for seed in seeds) and len(set(seeds)) == len(seeds),
        path,
        f"seeds: {seeds} is not a list of different numbers",
    )
    names = []
    for number, one in enumerate(about["configurations"]):
        _check_keys(one, CONFIGURATION, path, f"configurations[{number}]: ")
        _check_configuration(one, path)
        names.append(one["name"])
    _demand(len(set(names)) == len(names), path, "configurations: a name stands there twice")
    _demand(about["base"] in names, path, f"base: {about['base']!r} is not among the configurations")
    kinds = {one["name"]: one["kind"] for one in about["configurations"]}
    _demand(kinds[about["base"]] != "mixture", path, f"base: {about['base']!r} is a mixture, not what they are held to")
    _demand(
        any(one["kind"] == "mixture" for one in about["configurations"]),
        path,
        "configurations: there is no mixture, so nothing is to be compared with the base",
    )
    labels, copies, rows = _read_labels(folder / "labels.npz")
    made = [_read_configuration(folder, one, seeds, len(labels), len(rows)) for one in about["configurations"]]
    return Study(about, labels, copies, rows, made)


def _check_configuration(one: dict[str, Any], path: Path) -> None:
    name, where = one["name"], f"configuration {one['name']!r}: "
    _demand(name == Path(name).name and name not in ("", ".", ".."), path, f"{where}the name is no folder name")
    _demand(one["kind"] in KINDS, path, f"{where}kind {one['kind']!r} is not one of {', '.join(KINDS)}")
    sizes = [one[name] for name in COSTS]
    _demand(all(size > 0 and math.isfinite(size) for size in sizes), path, f"{where}{', '.join(COSTS)} must be above 0")
    groups = one["groups"]
    known = all(isinstance(group, list) and group and set(group) <= set(CLASSES) for group in groups)
    _demand(known, path, f"{where}groups are not lists of {', '.join(CLASSES)}")
    _demand(bool(groups) or one["kind"] != "mixture", path, f"{where}a mixture needs the groups of its experts")


def _read_labels(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """labels (N,) int64, copies (N,) bool and rows (M,) int64."""
    labels, copies, rows = _read_arrays(path, "labels", "copies", "rows")
    integers = labels.dtype.kind in "iu" and rows.dtype.kind in "iu"
    _demand(labels.ndim == rows.ndim == 1 and integers, path, "labels and rows are not lists of whole numbers")
    fits = len(labels) and labels.min() >= 0 and labels.max() < len(CLASSES)
    _demand(bool(fits), path, f"labels are not between 0 and {len(CLASSES) - 1}")
    _demand(copies.shape == labels.shape and copies.dtype == bool, path, "copies are not true or false for each label")
    _demand(not copies.all(), path, "every image is a copy of one in train, so none is left to score")
    inside = len(rows) >= LEAST_ROWS and rows.min() >= 0 and rows.max() < len(labels)
    _demand(bool(inside), path, f"rows are not {LEAST_ROWS} or more places among the {len(labels)} labels")
    shown = len(rows) - int(copies[rows].sum())
    _demand(shown >= LEAST_ROWS, path, f"rows hold {shown} images deduplicated, {LEAST_ROWS} are needed")
    return labels.astype(np.int64), copies, rows.astype(np.int64)


def _read_configuration(folder: Path, one: dict[str, Any], seeds: list[int], images: int, shown: int) -> Configuration:
    """The Configuration in `folder` that study.json describes as `one`, with `shown` rows of features."""
    predicted, gates, features, histories = [], [], [], []
    for seed in seeds:
        run = folder / one["name"] / str(seed)
        path = run / "predictions.npz"
        log_p, *gate = _read_arrays(path, "log_p", *(["gate"] if one["kind"] == "mixture" else []))
        _check_shares(path, "exp of log_p", np.exp(log_p), (images, len(CLASSES)))
        if gate:
            _check_shares(path, "gate", gate[0], (images, len(one["groups"])))
            gates.append(gate[0])
        predicted.append(log_p.argmax(1))
        (found,) = _read_arrays(run / "features.npz", "features")
        fits = found.ndim == 2 and len(found) == shown and found.shape[1] > 1 and np.isfinite(found).all()
        _demand(bool(fits), run / "features.npz", f"features are not ({shown}, 2 or more) finite numbers")
        features.append(found[:0] if features else found)  # of one seed they are shown
        histories.append(_read_history(run / "history.json"))
    stages = {tuple(stage["stage"] for stage in stages) for stages in histories}
    _demand(len(stages) == 1, folder / one["name"], "the seeds went through other stages")
    fields = {name: one[name] for name in CONFIGURATION}
    return Configuration(
        **fields,
        predicted=np.stack(predicted),
        gate=np.stack(gates) if gates else None,
        features=features[0],
        histories=histories,
    )


def _read_history(path: Path) -> list[dict]:
    stages = _read_json(path)
    keys = ("train_loss", "train_accuracy", "val_loss_deduplicated", "val_accuracy_deduplicated")
    whole = isinstance(stages, list) and stages
    for stage in stages if whole else ():
        named = isinstance(stage, dict) and isinstance(stage.get("stage"), str)
        epochs = stage.get("epochs") if named else None
        whole = whole and isinstance(epochs, list) and epochs and all(isinstance(epoch, dict) for epoch in epochs)
        numbers = [epoch.get(key) for epoch in epochs or () for key in keys] if whole else []
        whole = whole and all(number is None or isinstance(number, int | float) for number in numbers)
    _demand(bool(whole), path, "it is not a list of stages with a name and epochs")
    return stages


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unfinished(path, error.strerror or "cannot be read") from error
    except ValueError as error:
        raise _unfinished(path, f"it is not JSON ({error})") from error


def _read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except OSError as error:
        raise _unfinished(path, error.strerror or "cannot be read") from error
    except KeyError as error:
        raise _unfinished(path, f"it lacks one of {', '.join(names)}") from error
    except (*DAMAGED, AttributeError, TypeError) as error:  # the last two: a bare array, not an npz
        raise _unfinished(path, f"it is damaged, or no npz file ({error})") from error


def _check_keys(values: Any, wanted: dict[str, Any], path: Path, where: str) -> None:
    _demand(isinstance(values, dict), path, f"{where}it is not an object")
    for name, kind in wanted.items():
        _demand(name in values, path, f"{where}{name} is missing")
        fits = isinstance(values[name], kind) and (kind is bool or not isinstance(values[name], bool))
        _demand(fits, path, f"{where}{name}: {values[name]!r} is of a wrong type")


def _check_shares(path: Path, name: str, values: np.ndarray, shape: tuple[int, int]) -> None:
    """Raise UserError unless `values` have the shape, and every row consists of shares that sum to 1."""
    _demand(values.shape == shape, path, f"{name} has the shape {values.shape}, not {shape}")
    sums = values.astype(np.float64).sum(1) if values.dtype.kind == "f" else np.zeros(len(values))
    whole = np.isfinite(sums).all() and (values >= 0).all() and (np.abs(sums - 1) < 0.01).all()
    _demand(bool(whole), path, f"{name} is not made of shares that sum to 1 for each image")


def _demand(holds: bool, path: Path, problem: str) -> None:
    if not holds:
        raise _unfinished(path, problem)


def _unfinished(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path}: {problem}; a report needs the folder of a finished study: run python experiments.py again, "
        f"which goes on where it stopped, or name another folder"
    )

"""The results of a study: what every network predicts, and what is shown of two of them, as one JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import CLASSES
from errors import UserError, write_file

FILE = "results.json"


@dataclass(frozen=True, eq=False)
class Configuration:
    """A kind of network, trained with each of S seeds and scored on N images."""

    name: str
    title: str
    kind: str  # single, ensemble or mixture
    control: bool
    parameters: int
    macs: int  # multiply-adds for one image
    schedule: list[list[float]]  # [epochs, share of the recipe's learning rate] that its weights went through
    work: float  # of all its training, in epochs of the base
    predicted: np.ndarray  # (S, N) indices into CLASSES
    grouping: str = ""  # of a mixture
    variant: str = ""  # of a mixture: "gate alone", "together" or "top-1"
    groups: list[list[list[str]]] = field(default_factory=list)  # of the experts, for each seed
    note: str = ""

    @property
    def experts(self) -> list[str]:
        """A name for each expert of the first seed: its classes, numbered where another has the same."""
        names = ["all classes" if len(group) == len(CLASSES) else " + ".join(group) for group in self.groups[0]]
        return [f"{name} ({at})" if names.count(name) > 1 else name for at, name in enumerate(names, 1)]

    @property
    def same_groups(self) -> bool:
        """Whether all seeds have the same groups."""
        return all(groups == self.groups[0] for groups in self.groups)


@dataclass(frozen=True, eq=False)
class Inside:
    """What is shown of the base and of the best mixture: features of M images with the first seed, curves, the gate."""

    pca: np.ndarray  # (M, 2)
    variance: list[float]  # shares of the two components
    tsne: np.ndarray  # (M, 2)
    neighbours: float  # share of an image's nearest by features that have its class
    curves: list[list[dict[str, Any]]]  # for each seed the stages: {"stage", "epochs": rows}
    chosen: np.ndarray  # (S, N) the expert with the most weight; empty without a gate
    gate: np.ndarray  # (S, C, E) mean weights over the deduplicated images of each class


@dataclass(frozen=True, eq=False)
class Study:
    """A finished study. `about` holds its name, command, data, seeds, learning rate and the like."""

    about: dict[str, Any]
    labels: np.ndarray  # (N,)
    copies: np.ndarray  # (N,) bool: the image is also in train
    rows: np.ndarray  # (M,) deduplicated images whose features are shown
    configurations: list[Configuration]
    inside: dict[str, Inside] = field(default_factory=dict)  # of `base` and `best`

    @property
    def base(self) -> Configuration:
        return self.configurations[0]

    @property
    def mixtures(self) -> list[Configuration]:
        """The mixtures in question; those that are controls only where there are no others."""
        mixtures = [one for one in self.configurations if one.kind == "mixture"]
        return [one for one in mixtures if not one.control] or mixtures

    @property
    def best(self) -> Configuration:
        """The mixture with the highest mean accuracy, deduplicated."""
        return max(self.mixtures, key=lambda one: self.hits(one).mean())

    @property
    def true(self) -> np.ndarray:
        """The labels of the deduplicated images."""
        return self.labels[~self.copies]

    def named(self, one: Configuration) -> np.ndarray:
        """(S, images) what each seed's network predicts for the deduplicated images."""
        return one.predicted[:, ~self.copies]

    def hits(self, one: Configuration) -> np.ndarray:
        """(S, images) bool, whether each seed's network is right, deduplicated."""
        return self.named(one) == self.true


# --- The file ---


def digits(values: np.ndarray) -> list[str]:
    """Rows (S, N) of numbers below ten as strings of digits."""
    return ["".join(map(str, row)) for row in values.astype(int).tolist()]


def from_digits(rows: list[str]) -> np.ndarray:
    return np.array([[int(digit) for digit in row] for row in rows], dtype=np.int64)


def save_results(study: Study, path: Path) -> None:
    """Write the study as JSON: predictions are strings of digits, a seed each. Raises UserError."""
    inside = {
        name: asdict(one)
        | {key: np.round(getattr(one, key), 2).tolist() for key in ("pca", "tsne")}
        | {"gate": np.round(one.gate, 5).tolist(), "chosen": digits(one.chosen)}
        for name, one in study.inside.items()
    }
    values = {
        "about": study.about,
        "labels": digits(study.labels[None]),
        "copies": digits(study.copies[None]),
        "rows": study.rows.tolist(),
        "configurations": [asdict(one) | {"predicted": digits(one.predicted)} for one in study.configurations],
        "inside": inside,
    }
    write_file(path, (json.dumps(values, separators=(",", ":")) + "\n").encode())


def read_results(path: Path) -> Study:
    """The study in a file of `save_results`. Raises UserError where it is missing, damaged or another file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        inside, configurations = values["inside"], values["configurations"]
        for one in inside.values():
            one |= {key: np.array(one[key]) for key in ("pca", "tsne", "gate")} | {"chosen": from_digits(one["chosen"])}
        for one in configurations:
            one["predicted"] = from_digits(one["predicted"])
        return Study(
            about=values["about"],
            labels=from_digits(values["labels"])[0],
            copies=from_digits(values["copies"])[0].astype(bool),
            rows=np.array(values["rows"]),
            configurations=[Configuration(**one) for one in configurations],
            inside={name: Inside(**one) for name, one in inside.items()},
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as the results of a study ({error}); run experiments.py to make it, or name "
            f"the folder of a report that has one"
        ) from error

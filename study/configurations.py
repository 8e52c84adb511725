"""The configurations of the study: trained stage by stage, scored, and put together as results."""

import copy
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from config import CLASSES, Config
from model import Expert, FaceNet, MixtureOfExperts, build_model
from splits import stratified_rows
from study.groupings import Grouping, by_confusion, random_like
from study.results import Configuration, Inside, Study
from study.stages import Stages, extract_features, macs
from utils import count_params, versions
from val import Ensemble, predict_logits

FINE = 1 / 3  # of the recipe's learning rate: for a network that begins with trained weights
FINER = 1 / 15  # of the recipe's learning rate: for a whole mixture
SHOWN = 1000  # validation images in the scatter plots, about
COMPONENTS = 50  # features are reduced to these before t-SNE, against noise (Van der Maaten and Hinton, 2008)
PERPLEXITY = 30  # of t-SNE; its authors' range is 5 to 50
NEIGHBOURS = 10  # of an image, by its features
NOTES = {
    "clusters": "grouped by confusions on the images that are scored",
    "random": "random groups, with the sizes of the clusters; others with each seed",
    "all-classes": "every expert has all emotions",
}
CONTROLS = ("random", "all-classes")  # mixtures whose groups say nothing about emotions
CURVES = ("train_loss", "train_accuracy", "val_loss_deduplicated", "val_accuracy_deduplicated")


class Size(NamedTuple):
    """How large a study is: its networks' Config, seeds, the epochs of each kind of stage, and the number of experts
    in mixtures whose groups are not made by hand."""

    config: Config
    seeds: int
    base: int
    expert: int
    gate: int
    together: int
    experts: int = 3

    @property
    def members(self) -> int:
        """Networks of the ensemble: as many as a mixture has, with its gate."""
        return self.experts + 1

    def at(self, seed: int, epochs: int, *, rate: float = 1.0, width: float = 1.0) -> Config:
        """The Config of a stage, with `rate` times the recipe's learning rate."""
        return replace(self.config, seed=seed, epochs=epochs, lr=self.config.lr * rate, width=width)

    def stages(self, wanted: Mapping[str, Grouping]) -> int:
        """The number of stages that `StudyRun.run` trains."""
        singles = self.members + 5  # two with an expert's schedule, longer, wide, wide-2
        return self.seeds * (singles + sum((len(grouping) or self.experts) + 2 for grouping in wanted.values()))


@dataclass
class Kept:
    """What is kept of a configuration, a list item for each seed; `features` and `fields` are of the first."""

    fields: dict[str, Any] = field(default_factory=dict)  # of results.Configuration
    predicted: list[np.ndarray] = field(default_factory=list)
    groups: list[list[list[str]]] = field(default_factory=list)
    gates: list[np.ndarray] = field(default_factory=list)  # (N, E) weights
    stages: list[list[str]] = field(default_factory=list)
    features: np.ndarray | None = None


class StudyRun:
    """Trains every configuration with each seed, and keeps what it predicts.

    `wanted` are the groupings, as `groupings.resolve` gives them. Stages are named SEED-NAME; a mixture's
    SEED-GROUPING.NAME.
    """

    def __init__(self, size: Size, wanted: Mapping[str, Grouping], stages: Stages) -> None:
        self.size, self.wanted, self.stages = size, wanted, stages
        self.val = stages.data.split("val")
        self.counts = stages.data.split("train").counts()
        rows = stratified_rows(self.val.labels, SHOWN)
        self.rows = rows[~self.val.copies[rows]]  # whose features are shown, the same for every network
        self.clusters: Grouping = []
        self.trained: dict[str, tuple[int, float, float]] = {}  # epochs, rate and work of each stage
        self.kept: dict[str, Kept] = defaultdict(Kept)

    def run(self) -> None:
        """Train and score everything. Raises Stopped after Ctrl-C."""
        for seed in range(self.size.seeds):
            single = self.run_singles(seed)
            for name, grouping in self.groupings(seed, single).items():
                self.run_mixture(name, grouping, seed, single)

    def run_singles(self, seed: int) -> FaceNet:
        """The single network, the ensemble, and the single networks that are controls; returns the first."""
        size, first, begun = self.size, self.size.members * seed, f"{seed}-single-0"
        ensemble = [f"{seed}-single-{number}" for number in range(size.members)]
        members = [self.single(stage, size.at(first + at, size.base)) for at, stage in enumerate(ensemble)]
        self.record("single", seed, members[:1], [begun], title="single network", control=False)
        self.record("ensemble", seed, members, ensemble, [begun], title=f"ensemble of {size.members}", kind="ensemble")
        expert, whole = f"{seed}-schedule-1", f"{seed}-schedule-2"
        model = self.fine_tune(expert, members[0], size.expert, FINE)
        model = self.fine_tune(whole, model, size.together, FINER)
        self.record("schedule", seed, [model], [begun, expert, whole], title="single: an expert's schedule")
        stage = f"{seed}-longer"
        model = self.fine_tune(stage, members[0], size.expert + size.gate + size.together, FINE)
        self.record("longer", seed, [model], [begun, stage], title="single: trained on as long")
        for name, times, title in (
            ("wide", size.members, f"single: as large as a mixture of {size.experts}"),
            ("wide-2", 2, "single: as much work as top-1"),
        ):
            stage = f"{seed}-{name}"
            config = size.at(first, size.base, width=times**0.5)
            wider = macs(build_model(config.model, **config.arguments)) / macs(members[0])
            self.record(name, seed, [self.single(stage, config, work=wider)], [stage], title=title)
        return members[0]

    def run_mixture(self, name: str, grouping: Grouping, seed: int, single: FaceNet) -> None:
        """Train the experts of a grouping, the gate over them, then all together; score each step, and top-1."""
        size, count, begun = self.size, len(grouping), f"{seed}-single-0"
        stages = [f"{seed}-{name}.expert-{number}" for number in range(1, count + 1)]
        experts = [
            self.train(stage, partial(self.expert, group, single), size.expert, FINE)
            for stage, group in zip(stages, grouping, strict=True)
        ]
        gate, whole, ran, path = f"{seed}-{name}.gate", f"{seed}-{name}.together", [begun, *stages], [begun, stages[0]]
        # Work of a step: a frozen expert, forward alone, is a third of one that is trained
        model = self.train(gate, partial(self.gate_over, experts, single), size.gate, FINE, work=1 + count / 3)

        def record(variant: str) -> None:
            own = f"mixture-{name}{'' if variant == 'together' else f'.{variant}'}"
            title = f"mixture: {name}{'' if variant == 'together' else f', {variant}'}"
            about = {"kind": "mixture", "grouping": name, "variant": variant, "note": NOTES.get(name, "")}
            self.kept[own].groups.append([[CLASSES[label] for label in group] for group in grouping])
            self.record(own, seed, [model], ran, path, title=title, control=name in CONTROLS, **about)

        ran = [*ran, gate]
        record("gate alone")
        model = self.fine_tune(whole, model, size.together, FINER, work=1 + count)
        ran, path = [*ran, whole], [*path, whole]
        record("together")
        model.top_k = 1  # it is trained with soft gating
        record("top-1")

    def groupings(self, seed: int, single: FaceNet) -> dict[str, Grouping]:
        """The groupings to compare, by name: the same for all seeds, except `random`.

        The clusters are made of the first single network's probabilities for the deduplicated validation images.
        """
        if not self.clusters and {"clusters", "random"} & set(self.wanted):
            p = predict_logits(single, self.val, machine=self.stages.machine).softmax(1).numpy()
            images = [(self.val.labels == label) & ~self.val.copies for label in range(p.shape[1])]
            shares = np.stack([p[own].mean(0) for own in images])
            self.clusters = by_confusion(shares, self.size.experts)
        made = {"clusters": self.clusters, "random": random_like(self.clusters, seed) if self.clusters else []}
        return {name: grouping or made[name] for name, grouping in self.wanted.items()}

    # --- Stages ---

    def single(self, stage: str, config: Config, *, work: float = 1.0) -> FaceNet:
        """A single network, trained from random weights."""
        self.trained[stage] = config.epochs, 1.0, config.epochs * work
        return self.stages.train(stage, partial(build_model, config.model, **config.arguments), config)

    def train(self, stage: str, make: Callable[[], FaceNet], epochs: int, rate: float, *, work: float = 1.0) -> FaceNet:
        """The network of a stage that begins with trained weights; an epoch is `work` epochs of the single network."""
        self.trained[stage] = epochs, rate, epochs * work
        seed = zlib.crc32(stage.encode()) >> 1  # no two stages see the images in the same order
        return self.stages.train(stage, make, self.size.at(seed, epochs, rate=rate))

    def fine_tune(self, stage: str, model: FaceNet, epochs: int, rate: float, *, work: float = 1.0) -> FaceNet:
        return self.train(stage, partial(copy.deepcopy, model), epochs, rate, work=work)

    def expert(self, group: list[int], single: FaceNet) -> Expert:
        """An expert for `group` that begins with the weights of `single`."""
        config = self.size.config
        expert = Expert(network=config.model, group=group, counts=self.counts, dropout=config.dropout)
        copy_weights(expert.net, single, group)
        return expert

    def gate_over(self, experts: list[Expert], single: FaceNet) -> MixtureOfExperts:
        """A mixture of trained, frozen experts, whose gate begins with the weights of `single`."""
        config = self.size.config
        groups = [expert.arguments["group"] for expert in experts]
        sizes = {"network": config.model, "gate": config.model, "dropout": config.dropout}
        model = MixtureOfExperts(groups=groups, counts=self.counts, **sizes)
        for own, trained in zip(model.experts, experts, strict=True):
            own.load_state_dict(trained.state_dict())
        copy_weights(model.gate, single)
        model.freeze(model.experts)
        return model

    # --- Results ---

    def record(
        self, name: str, seed: int, models: list[FaceNet], stages: list[str], path: Sequence[str] = (), **about: Any
    ) -> None:
        """Keep what a network predicts, or an ensemble of `models`.

        `stages` trained it; `path` are those that its most trained weights went through, where these are fewer.
        """
        machine, kept, products = self.stages.machine, self.kept[name], sum(map(macs, models))
        kept.predicted.append(predict_logits(Ensemble(models), self.val, machine=machine).argmax(1).numpy())
        kept.stages.append(stages)
        if isinstance(model := models[0], MixtureOfExperts):
            gate = extract_features(model, self.val.images, machine=machine, what=lambda x: model.log_gate(x).exp())
            kept.gates.append(gate)
            if model.top_k:  # the chosen expert's multiply-adds alone
                each = [macs(expert) for expert in model.experts]
                products += round(sum(each) * model.top_k / len(each)) - sum(each)
        if seed == 0:
            shown = self.val.images[self.rows]
            features = [extract_features(model, shown, machine=machine, what=model.features) for model in models]
            kept.features = np.concatenate(features, 1)
            kept.fields = {"name": name, "kind": "single", "control": True, "macs": products, **about} | {
                "parameters": sum(map(count_params, models)),
                "schedule": [list(self.trained[stage][:2]) for stage in path or stages],
                "work": round(sum(self.trained[stage][2] for stage in stages), 3),
            }

    def inside(self, kept: Kept) -> Inside:
        """What is shown of a configuration."""
        labels, deduplicated = self.val.labels, ~self.val.copies

        def curve(stage: str) -> dict[str, Any]:
            rows = self.stages.histories[stage]
            return {"stage": stage.partition("-")[2], "epochs": [{key: row[key] for key in CURVES} for row in rows]}

        pca, variance, tsne = project(kept.features)
        gates = np.stack(kept.gates) if kept.gates else np.zeros((0, len(labels), 1))
        means = [[gate[(labels == c) & deduplicated].mean(0) for c in range(len(self.counts))] for gate in gates]
        return Inside(
            pca=pca,
            variance=variance,
            tsne=tsne,
            neighbours=same_class_neighbours(kept.features, labels[self.rows]),
            curves=[list(map(curve, stages)) for stages in kept.stages],
            chosen=gates.argmax(2),
            gate=np.array(means),
        )

    def results(self, name: str, *, command: str, why: str) -> Study:
        """The finished study; `why` says why it is too small to conclude from, or is empty."""
        data, histories = self.stages.data, self.stages.histories.values()
        about = {
            "name": name,
            "why": why,
            "command": command,
            "machine": "; ".join(self.stages.machines),
            "versions": versions(),
            "minutes": round(sum(row["seconds"] for rows in histories for row in rows) / 60, 1),
            "source": Path(data.source).name,
            "fingerprint": data.fingerprint,
            "demo": data.demo,
            "train": self.counts,
            "val": self.val.counts(),
            "seeds": self.size.seeds,
            "rate": self.size.config.lr,
        }
        made = [
            Configuration(predicted=np.stack(kept.predicted), groups=kept.groups, **kept.fields)
            for kept in self.kept.values()
        ]
        study = Study(about, self.val.labels, self.val.copies, self.rows, made)
        for one in (study.base, study.best):
            study.inside[one.name] = self.inside(self.kept[one.name])
        return study


def copy_weights(model: FaceNet, single: FaceNet, group: Sequence[int] | None = None) -> None:
    """Give `model` the weights of `single`, which has an output for each class.

    Without a `group`, as for a gate, the last layer stays as it is. An expert's last layer gets the rows of its
    classes, and "none of mine" the mean of the others' plus the logarithm of their number, which is near their sum:
    every expert begins with what the single network knows.
    """
    given = {name: value for name, value in single.state_dict().items() if not name.startswith("classifier.")}
    if group is not None:
        weight, bias = single.classifier.weight.detach(), single.classifier.bias.detach()
        own, others = sorted(group), [c for c in range(len(bias)) if c not in group]
        if others:
            weight = torch.cat([weight[own], weight[others].mean(0, keepdim=True)])
            bias = torch.cat([bias[own], bias[others].mean(0, keepdim=True) + math.log(len(others))])
        given |= {"classifier.weight": weight, "classifier.bias": bias}
    model.load_state_dict(model.state_dict() | given)


# --- What is shown of the features ---


def project(features: np.ndarray) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Features (M, D) by their two principal components (M, 2), these' shares of the variance, and by t-SNE (M, 2)."""
    pca = PCA(min(COMPONENTS, *features.shape), svd_solver="full")
    parts = pca.fit_transform(features.astype(np.float64))
    perplexity = min(PERPLEXITY, (len(parts) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=0)
    return parts[:, :2], pca.explained_variance_ratio_[:2].tolist(), tsne.fit_transform(parts.astype(np.float32))


def same_class_neighbours(features: np.ndarray, labels: np.ndarray) -> float:
    """The share of an image's NEIGHBOURS nearest by features (M, D) that have its label, mean over the images."""
    found = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(features) - 1)).fit(features.astype(np.float64))
    near = found.kneighbors(return_distance=False)  # of each image, itself left out
    return float((labels[near] == labels[:, None]).mean())

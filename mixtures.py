"""The configurations of the study: trained stage by stage, scored, and written down for the report."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from blocks import FaceNet
from config import CLASSES, GROUPINGS, Config
from dataset import stratified_rows
from groupings import Grouping, by_confusion, by_names, drawn_like, names
from model import Expert, MixtureOfExperts, build_model
from ranks import Ranks
from stages import Stages, looked_at, macs
from utils import count_params, versions, write_file, write_json
from val import evaluate, predict_logits

EXPERTS = 3  # in the mixtures whose groups are made from data, drawn, or of all classes
MEMBERS = EXPERTS + 1  # networks of the ensemble: as many as such a mixture has, its gate among them
FINE = 1 / 3  # of the recipe's learning rate, for what begins with trained weights
FINER = 1 / 15  # the same, for a whole mixture
NOTES = {
    "clusters": "grouped by the confusions on the very images that are scored",
    "random": "drawn, with the sizes of the clusters",
    "all-classes": "every expert answers for all emotions",
}
SHOWN = 1000  # validation images in the scatter plots, about


class Size(NamedTuple):
    """How large a study is: the knobs of its networks, the seeds, and the epochs of each kind of stage."""

    config: Config
    seeds: int
    base: int
    expert: int
    gate: int
    together: int

    def at(self, seed: int, epochs: int, *, rate: float = 1.0, width: float = 1.0) -> Config:
        """The knobs of a stage, with `rate` times the recipe's learning rate."""
        return replace(self.config, seed=seed, epochs=epochs, lr=self.config.lr * rate, width=width)


class Study:
    """Trains the stages of a seed, and writes what each configuration predicts into `results`.

    With `scratch`, experts and gates are drawn anew; else they begin as the single network.
    """

    def __init__(self, size: Size, groupings: Sequence[str], stages: Stages, scratch: bool = False) -> None:
        self.size, self.wanted, self.stages, self.scratch = size, groupings, stages, scratch
        self.val = stages.data.split("val")
        self.counts = stages.data.split("train").counts()
        self.results = stages.folder.parent / "results"
        self.rows = stratified_rows(self.val.labels, SHOWN)  # the same for every network
        self.configurations: dict[str, dict[str, Any]] = {}  # by name, as in study.json
        self.found: dict[str, Grouping] = {}

    def run_seed(self, seed: int) -> None:
        """Train and score every configuration with one seed."""
        size = self.size
        stages = [f"{seed}-single-{number}" for number in range(MEMBERS)]
        members = [self.single(name, size.at(MEMBERS * seed + at, size.base)) for at, name in enumerate(stages)]
        self.record("single", seed, members[0], stages[:1], title="single ResNet")
        self.record_ensemble(seed, members, stages)
        for name, times, title in (("wide", MEMBERS, "single ResNet, as large as a mixture of 3"),
                                   ("wide-2", 2, "single ResNet, as much work as top-1")):  # fmt: skip
            stage = f"{seed}-{name}"
            model = self.single(stage, size.at(MEMBERS * seed, size.base, width=times**0.5))
            self.record(name, seed, model, [stage], title=title, control=True)
        self.found = self.found or self.groupings(members[0])
        for name, grouping in self.found.items():
            self.mixture(name, grouping, seed, members)

    def single(self, stage: str, config: Config) -> FaceNet:
        return self.stages.train(stage, partial(build_model, config.model, **config.arguments), config)

    def groupings(self, single: FaceNet) -> dict[str, Grouping]:
        """The groupings to compare, by name, the same for all seeds.

        The clusters are of the first single network's confusions on the validation images without copies.
        """
        found, clusters = {}, []
        if {"clusters", "random"} & set(self.wanted):
            scores = evaluate(single, self.val, machine=self.stages.machine)
            clusters = by_confusion(np.array(scores.unseen.confusion), EXPERTS)
        for name in self.wanted:
            if name in GROUPINGS:
                found[name] = by_names(GROUPINGS[name], f"config.py, GROUPINGS[{name!r}]")
            elif name == "all-classes":
                found[name] = [list(range(len(CLASSES)))] * EXPERTS
            else:
                found[name] = clusters if name == "clusters" else drawn_like(clusters, 0)
        return found

    def mixture(self, name: str, grouping: Grouping, seed: int, members: list[FaceNet]) -> None:
        """Train the experts of a grouping, the gate over them, then all together; score each step, and top-1."""
        size, first = self.size, MEMBERS * seed
        if name == "all-classes":  # networks of other seeds, so that they differ
            stages = [f"{seed}-single-{at}" for at in range(len(grouping))]
            experts = [self.expert(group, of) for group, of in zip(grouping, members, strict=False)]
        else:
            stages = [f"{seed}-expert-{'+'.join(group)}" for group in names(grouping)]
            config = size.at(first, size.expert, rate=1.0 if self.scratch else FINE)
            experts = [
                self.stages.train(stage, partial(self.expert, group, members[0]), config)
                for stage, group in zip(stages, grouping, strict=True)
            ]
        about = {"kind": "mixture", "groups": names(grouping), "note": NOTES.get(name, ""), "control": name == "random"}
        stages = [*stages, f"{seed}-{name}-gate"]
        model = self.stages.train(
            stages[-1], partial(self.gate_over, experts, members[0]), size.at(first, size.gate, rate=FINE)
        )
        title = f"mixture, {name}"
        self.record(f"{name}-gate", seed, model, stages, title=f"{title}: gate alone", gating="soft", **about)
        stages = [*stages, f"{seed}-{name}-together"]
        model = self.stages.train(stages[-1], lambda: model, size.at(first, size.together, rate=FINER))
        self.record(name, seed, model, stages, title=title, gating="soft", **about)
        model.top_k = 1
        self.record(f"{name}-top-1", seed, model, stages, title=f"{title}: top-1", gating="top-1", **about)

    def expert(self, group: list[int], single: FaceNet) -> Expert:
        """An expert for `group`, drawn anew or with all of `single` that fits."""
        knobs = self.size.config
        expert = Expert(network=knobs.model, group=group, counts=self.counts, dropout=knobs.dropout)
        if not self.scratch or len(group) == len(CLASSES):
            take(expert.net, single)
        return expert

    def gate_over(self, experts: list[Expert], single: FaceNet) -> MixtureOfExperts:
        """A mixture of trained experts, which are frozen, with a gate drawn anew or begun as `single`."""
        knobs = self.size.config
        groups = [expert.arguments["group"] for expert in experts]
        model = MixtureOfExperts(
            network=knobs.model, gate=knobs.model, groups=groups, counts=self.counts, dropout=knobs.dropout
        )
        for own, trained in zip(model.experts, experts, strict=True):
            own.load_state_dict(trained.state_dict())
        if not self.scratch:
            take(model.gate, single)
        model.freeze(model.experts)
        return model

    # --- What is written down ---

    def record(self, name: str, seed: int, model: FaceNet, stages: list[str], **about: Any) -> None:
        """Write what `model` predicts, its features and the course of its `stages`."""
        machine, rows = self.stages.machine, self.rows
        logits = predict_logits(model, self.val, machine=machine, ranks=Ranks())
        arrays = {"log_p": logits.log_softmax(1).numpy()}
        work = macs(model)
        if isinstance(model, MixtureOfExperts):
            arrays["gate"] = looked_at(
                model, self.val.images, machine=machine, what=lambda x: model.log_gate(model.stem(x)).exp()
            )
            if model.top_k:  # the chosen expert's alone
                each = [macs(expert) for expert in model.experts]
                work = work - sum(each) + round(sum(each) * model.top_k / len(each))
        shown = self.val.images[rows]
        features = looked_at(model, shown, machine=machine, what=model.features)
        self.put(name, seed, arrays, features, stages)
        self.configurations[name] = {
            "name": name, "kind": "single", "control": False, "groups": [], "gating": "", "note": "",
            "parameters": count_params(model), "macs": work, **about,
        }  # fmt: skip

    def record_ensemble(self, seed: int, members: list[FaceNet], stages: list[str]) -> None:
        """Write the mean of the members' probabilities; its features are theirs, side by side."""
        machine, shown = self.stages.machine, self.val.images[self.rows]
        each = torch.stack([predict_logits(model, self.val, machine=machine, ranks=Ranks()) for model in members])
        log_p = each.log_softmax(2).logsumexp(0) - np.log(len(members))
        features = [looked_at(model, shown, machine=machine, what=model.features) for model in members]
        self.put("ensemble", seed, {"log_p": log_p.numpy()}, np.concatenate(features, 1), stages)
        self.configurations["ensemble"] = {
            "name": "ensemble", "title": f"ensemble of {len(members)} single ResNets", "kind": "ensemble",
            "control": True, "groups": [], "gating": "", "note": "", "parameters": sum(map(count_params, members)),
            "macs": sum(map(macs, members)),
        }  # fmt: skip

    def put(self, name: str, seed: int, arrays: dict[str, Any], features: Any, stages: list[str]) -> None:
        """Write the files of one configuration and seed."""
        folder = self.results / name / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / "predictions.npz", **arrays)
        save_arrays(folder / "features.npz", features=features.astype(np.float32))
        course = [{"stage": stage.partition("-")[2], "epochs": self.stages.histories[stage]} for stage in stages]
        write_json(folder / "history.json", course)

    def write(self, name: str, *, command: str, why: str) -> None:
        """Write study.json and labels.npz: with them the results are whole."""
        data = self.stages.data
        save_arrays(self.results / "labels.npz", labels=self.val.labels, copies=self.val.copies, rows=self.rows)
        epochs = [row for rows in self.stages.histories.values() for row in rows]
        write_json(self.results / "study.json", {
            "name": name, "conclusive": not why, "why": why, "command": command, "machine": str(self.stages.machine),
            "versions": versions(), "minutes": sum(row["seconds"] for row in epochs) / 60,
            "data": {"source": Path(data.source).name, "fingerprint": data.fingerprint, "demo": data.demo,
                     "train": self.counts, "val": self.val.counts()},
            "seeds": list(range(self.size.seeds)), "base": "single",
            "configurations": list(self.configurations.values()),
        })  # fmt: skip


def take(model: FaceNet, single: FaceNet) -> None:
    """Give `model` the weights of `single` that fit: all but those of the last layer, where its outputs are others."""
    own = model.state_dict()
    model.load_state_dict({k: v for k, v in single.state_dict().items() if own[k].shape == v.shape}, strict=False)


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write a compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(path, buffer.getvalue())

"""The configurations of the study: trained stage by stage, scored, and written down for the report."""

import copy
import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config
from dataset import stratified_rows
from errors import write_file, write_json
from model import Expert, FaceNet, MixtureOfExperts, build_model
from ranks import Ranks
from study.groupings import Grouping, by_confusion, drawn_like, names
from study.plan import Size, expert_stages, gate_work, together_work
from study.stages import Stages, extract_features, macs
from utils import count_params, versions
from val import Ensemble, evaluate, predict_logits

FINE = 1 / 3  # of the recipe's learning rate, for what begins with trained weights
FINER = 1 / 15  # the same, for a whole mixture
NOTES = {
    "clusters": "grouped by the confusions on the very images that are scored",
    "random": "drawn, with the sizes of the clusters; anew with each seed",
    "all-classes": "every expert answers for all emotions",
}
CONTROLS = ("random", "all-classes")  # mixtures whose groups say nothing of emotions
SHOWN = 1000  # validation images in the scatter plots, about


class Study:
    """Trains the stages of a seed, and writes what each configuration predicts into `results`.

    `wanted` are the groupings, as `given`; those without groups are made of the confusions of the first seed's single
    network. The stages are trained in the order of `plan.steps`.
    """

    def __init__(self, size: Size, wanted: Mapping[str, Grouping], stages: Stages) -> None:
        self.size, self.wanted, self.stages = size, wanted, stages
        self.val = stages.data.split("val")
        self.counts = stages.data.split("train").counts()
        self.results = stages.folder.parent / "results"
        self.rows = stratified_rows(self.val.labels, SHOWN)  # the same for every network
        self.configurations: dict[str, dict[str, Any]] = {}  # by name, as in study.json
        self.clusters: Grouping = []
        self.work: dict[str, float] = {}  # of each stage, in epochs of the single network

    def run_seed(self, seed: int) -> None:
        """Train and score every configuration with one seed."""
        size, first = self.size, self.size.members * seed
        stages = [f"{seed}-single-{number}" for number in range(size.members)]
        members = [self.single(stage, size.at(first + at, size.base)) for at, stage in enumerate(stages)]
        single, begins = members[0], called(stages[:1])
        self.record("single", seed, single, begins, size.base, title="single ResNet")
        self.record_ensemble(seed, members, stages)
        stage = f"{seed}-longer"
        model = self.train(stage, partial(copy.deepcopy, single), size.at(draw(stage), size.further, rate=FINE))
        self.record(
            "longer",
            seed,
            model,
            begins | called([stage]),
            size.base + size.further,
            control=True,
            title="single ResNet, trained on as long as a mixture",
        )
        for name, times, title in (
            ("wide", size.members, f"single ResNet, as large as a mixture of {size.experts}"),
            ("wide-2", 2, "single ResNet, as much work as top-1"),
        ):
            stage = f"{seed}-{name}"
            model = self.single(stage, size.at(first, size.base, width=times**0.5))
            self.work[stage] *= macs(model) / macs(single)
            self.record(name, seed, model, called([stage]), size.base, title=title, control=True)
        for name, grouping in self.groupings(seed, single).items():
            self.mixture(name, grouping, seed, single)

    def train(self, stage: str, make: Callable[[], FaceNet], config: Config, work: float = 1.0) -> FaceNet:
        """The network of a stage, an epoch of which is `work` of the single network's."""
        self.work[stage] = config.epochs * work
        return self.stages.train(stage, make, config)

    def single(self, stage: str, config: Config) -> FaceNet:
        return self.train(stage, partial(build_model, config.model, **config.arguments), config)

    def groupings(self, seed: int, single: FaceNet) -> dict[str, Grouping]:
        """The groupings to compare, by name: the same for all seeds, but for `random`.

        The clusters are of the first single network's confusions on the validation images deduplicated.
        """
        if not self.clusters and {"clusters", "random"} & set(self.wanted):
            scores = evaluate(single, self.val, machine=self.stages.machine)
            self.clusters = by_confusion(np.array(scores.deduplicated.confusion), self.size.experts)
        made = {"clusters": self.clusters, "random": drawn_like(self.clusters, seed) if self.clusters else []}
        return {name: grouping or made[name] for name, grouping in self.wanted.items()}

    def mixture(self, name: str, grouping: Grouping, seed: int, single: FaceNet) -> None:
        """Train the experts of a grouping, the gate over them, then all together; score each step, and top-1."""
        size, count = self.size, len(grouping)
        rate = 1.0 if size.scratch else FINE
        experts, trained = [], expert_stages(seed, name, grouping)
        for stage, group in zip(trained, grouping, strict=True):
            config = size.at(draw(stage), size.of_expert, rate=rate)
            experts.append(self.train(stage, partial(self.expert, group, single), config))
        stages = {} if size.scratch else called([f"{seed}-single-0"])
        stages |= called(trained)
        if name == "random":  # its groups differ between the seeds, the names of its stages in the report may not
            stages |= {stage: f"expert-random-{number}" for number, stage in enumerate(trained, 1)}
        about = {"kind": "mixture", "groups": names(grouping), "note": NOTES.get(name, ""), "control": name in CONTROLS}
        title, through = f"mixture, {name}", size.through

        gate = f"{seed}-{name}-gate"
        config = size.at(draw(gate), size.gate, rate=rate)
        model = self.train(gate, partial(self.gate_over, experts, single), config, gate_work(count))
        stages |= called([gate])
        self.record(f"{name}-gate", seed, model, stages, through, title=f"{title}: gate alone", gating="soft", **about)
        together = f"{seed}-{name}-together"
        config = size.at(draw(together), size.together, rate=FINER)
        model = self.train(together, lambda: model, config, together_work(count))
        stages |= called([together])
        through += size.together
        self.record(name, seed, model, stages, through, title=title, gating="soft", **about)
        model.top_k = 1
        title = f"{title}: top-1 in use"  # it is trained with soft gating
        self.record(f"{name}-top-1", seed, model, stages, through, title=title, gating="top-1", **about)

    def expert(self, group: list[int], single: FaceNet) -> Expert:
        """An expert for `group`, drawn anew or begun as `single`."""
        knobs = self.size.config
        expert = Expert(network=knobs.model, group=group, counts=self.counts, dropout=knobs.dropout)
        if not self.size.scratch:
            take(expert.net, single, group)
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
        if not self.size.scratch:
            take(model.gate, single)
        model.freeze(model.experts)
        return model

    # --- What is written down ---

    def record(self, name: str, seed: int, model: FaceNet, stages: dict[str, str], epochs: int, **about: Any) -> None:
        """Write what `model` predicts, its features and the course of its `stages`, by their names in the report.

        `epochs` are the most that any of its weights have gone through.
        """
        machine, rows = self.stages.machine, self.rows
        logits = predict_logits(model, self.val, machine=machine, ranks=Ranks())
        arrays = {"log_p": logits.log_softmax(1).numpy()}
        products = macs(model)
        if isinstance(model, MixtureOfExperts):
            arrays["gate"] = extract_features(
                model, self.val.images, machine=machine, what=lambda x: model.log_gate(x).exp()
            )
            if model.top_k:  # the chosen expert's alone
                each = [macs(expert) for expert in model.experts]
                products += round(sum(each) * model.top_k / len(each)) - sum(each)
        shown = self.val.images[rows]
        features = extract_features(model, shown, machine=machine, what=model.features)
        self.put(name, seed, arrays, features, stages)
        self.configurations.setdefault(
            name,
            {
                "name": name,
                "kind": "single",
                "control": False,
                "groups": [],
                "gating": "",
                "note": "",
                "parameters": count_params(model),
                "macs": products,
                "epochs": epochs,
                "work": round(sum(self.work[stage] for stage in stages), 3),
                **about,
            },
        )

    def record_ensemble(self, seed: int, members: list[FaceNet], stages: list[str]) -> None:
        """Write what the members' mean logits predict; its features are theirs, side by side."""
        machine, shown = self.stages.machine, self.val.images[self.rows]
        log_p = predict_logits(Ensemble(members), self.val, machine=machine).log_softmax(1)
        features = [extract_features(model, shown, machine=machine, what=model.features) for model in members]
        self.put("ensemble", seed, {"log_p": log_p.numpy()}, np.concatenate(features, 1), called(stages))
        self.configurations.setdefault(
            "ensemble",
            {
                "name": "ensemble",
                "title": f"ensemble of {len(members)} single ResNets",
                "kind": "ensemble",
                "control": True,
                "groups": [],
                "gating": "",
                "note": "",
                "parameters": sum(map(count_params, members)),
                "macs": sum(map(macs, members)),
                "epochs": self.size.base,
                "work": sum(self.work[stage] for stage in stages),
            },
        )

    def put(self, name: str, seed: int, arrays: dict[str, Any], features: Any, stages: dict[str, str]) -> None:
        """Write the files of one configuration and seed."""
        folder = self.results / name / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / "predictions.npz", **arrays)
        save_arrays(folder / "features.npz", features=features.astype(np.float32))
        course = [{"stage": known, "epochs": self.stages.histories[stage]} for stage, known in stages.items()]
        write_json(folder / "history.json", course)

    def write(self, name: str, *, command: str, why: str) -> None:
        """Write study.json and labels.npz: with them the results are whole."""
        data = self.stages.data
        save_arrays(self.results / "labels.npz", labels=self.val.labels, copies=self.val.copies, rows=self.rows)
        epochs = [row for rows in self.stages.histories.values() for row in rows]
        write_json(
            self.results / "study.json",
            {
                "name": name,
                "conclusive": not why,
                "why": why,
                "command": command,
                "machine": "; ".join(self.stages.machines),
                "versions": versions(),
                "minutes": sum(row["seconds"] for row in epochs) / 60,
                "data": {
                    "source": Path(data.source).name,
                    "fingerprint": data.fingerprint,
                    "demo": data.demo,
                    "train": self.counts,
                    "val": self.val.counts(),
                },
                "seeds": list(range(self.size.seeds)),
                "base": "single",
                "configurations": list(self.configurations.values()),
            },
        )


def called(stages: list[str]) -> dict[str, str]:
    """The stages by their names in the report, which are those without the seed."""
    return {stage: stage.partition("-")[2] for stage in stages}


def draw(stage: str) -> int:
    """The seed of a stage that goes on with trained weights, by its name: no two see the same images in one order."""
    return zlib.crc32(stage.encode()) >> 1


def take(model: FaceNet, single: FaceNet, group: Sequence[int] | None = None) -> None:
    """Give `model` the weights of `single`, which answers for all classes.

    Without a `group`, as for a gate, its last layer keeps its own. That of an expert begins with the rows of its
    classes, and "none of mine" with the mean of the others' and the logarithm of their number, so that it is near
    their sum: all experts begin with what the single network knows.
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


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write a compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(path, buffer.getvalue())

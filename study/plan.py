"""How large a study is, its stages in the order in which they are trained, and how long they take."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from config import Config
from study.groupings import Grouping, names
from training.augment import window_size

WIDE = 0.63  # of what its multiplications would take is the time of a wider network: measured, nano on two cores
AFTER = 3  # scorings of the validation images once a stage is done: to keep it, and about two for the report
OVERHEAD = 1.1  # of batches, updates and saving: measured, nano on one core, 1.0 to 1.1


class Size(NamedTuple):
    """How large a study is: the knobs of its networks, the seeds, the experts, and the epochs of each kind of stage.

    Experts are trained on from the single network for `expert` epochs; with `scratch` they are drawn anew, and trained
    as long as it.
    """

    config: Config
    seeds: int
    base: int
    expert: int
    gate: int
    together: int
    experts: int = 3  # in the mixtures whose groups are made from data, drawn, or of all classes
    scratch: bool = False

    @property
    def members(self) -> int:
        """Networks of the ensemble: as many as such a mixture has, its gate among them."""
        return self.experts + 1

    @property
    def before(self) -> int:
        """Epochs of the weights that experts and gates begin with."""
        return 0 if self.scratch else self.base

    @property
    def of_expert(self) -> int:
        """Epochs of an expert's own stage."""
        return self.base if self.scratch else self.expert

    @property
    def further(self) -> int:
        """Epochs that a mixture's stages, one after the other, have more than the single network."""
        return self.before + self.of_expert + self.gate + self.together - self.base

    @property
    def through(self) -> int:
        """The most epochs that weights of a mixture have gone through before all are trained together."""
        return self.before + max(self.of_expert, self.gate)

    def at(self, seed: int, epochs: int, *, rate: float = 1.0, width: float = 1.0) -> Config:
        """The knobs of a stage, with `rate` times the recipe's learning rate."""
        return replace(self.config, seed=seed, epochs=epochs, lr=self.config.lr * rate, width=width)


class Step(NamedTuple):
    """A stage to be trained: `work` for an image in training steps of the single network, `nets` in its passes."""

    name: str
    epochs: int
    work: float = 1.0
    nets: float = 1.0


def gate_work(experts: int) -> float:
    """Of a step that trains a gate: a frozen expert's part is a third of a step, forward alone."""
    return 1 + experts / 3


def together_work(experts: int) -> float:
    """Of a step that trains a gate and its experts."""
    return 1.0 + experts


def expert_stages(seed: int, name: str, grouping: Grouping) -> list[str]:
    """The stages of the experts of a grouping. Groupings share those for the same group, but for that of all classes.

    The experts of `all-classes` are to differ, so each has a stage of its own.
    """
    if name == "all-classes":
        return [f"{seed}-expert-all-{number}" for number in range(1, len(grouping) + 1)]
    return [f"{seed}-expert-{'+'.join(group)}" for group in names(grouping)]


def steps(size: Size, wanted: Mapping[str, Grouping]) -> list[Step]:
    """Every stage of a study of the groupings `wanted`, as `given`, in the order in which they are trained.

    One that two mixtures share stands there for each. Experts for groups that are made while the study runs have
    names here that they do not have there.
    """
    found = []
    for seed in range(size.seeds):
        found += [Step(f"{seed}-single-{at}", size.base) for at in range(size.members)]
        found.append(Step(f"{seed}-longer", size.further))
        for name, times in (("wide", size.members), ("wide-2", 2)):
            found.append(Step(f"{seed}-{name}", size.base, WIDE * times, WIDE * times))
        for name, grouping in wanted.items():
            count = len(grouping) or size.experts
            later = [f"{seed}-expert-{name}-{number}" for number in range(1, count + 1)]
            found += [Step(stage, size.of_expert) for stage in expert_stages(seed, name, grouping) or later]
            found.append(Step(f"{seed}-{name}-gate", size.gate, gate_work(count), count + 1))
            found.append(Step(f"{seed}-{name}-together", size.together, together_work(count), count + 1))
    return found


def seconds(step: Step, config: Config, *, train: int, val: int, each: float) -> float:
    """How long `step` takes with `train` and `val` images, where a step of the single network takes `each` an image.

    `each` is for what most epochs show, windows of faces if there are any; the last epochs and all scoring show whole
    faces, with as many more places to look at. A pass without training is a third of a step.
    """
    whole = (48 / config.window) ** 2 if config.augment else 1.0
    own = replace(config, epochs=step.epochs)
    seen = sum(whole if window_size(own, epoch) == 48 else 1.0 for epoch in range(step.epochs))
    passes = val * (step.epochs + AFTER)
    return OVERHEAD * each * (step.work * train * seen + step.nets * whole * passes / 3)

"""The stages of a study: networks trained one after the other through `fit`, each kept under what it was made of."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import PLACE_FIELDS, Config
from dataset import FaceData, preprocess
from errors import UserError, counted, write_json
from model import FaceNet, build_model
from train import fit
from training.state import read_last
from utils import Machine, channels_last, seed_everything
from val import BATCH, evaluate
from weights import load_weights, save_weights


class Stopped(Exception):
    """Ctrl-C ended a stage; what it had reached is kept."""


@dataclass
class Stages:
    """Trains networks into folders below `folder`, or reads those that are there whole.

    `say` gets a line before each stage. `plan` has the name of every stage to come, in order, and the seconds that it
    is to take; a stage whose name is known only later stands under another one.
    """

    folder: Path
    data: FaceData
    machine: Machine
    say: Callable[[str], None] = print
    plan: Sequence[tuple[str, float]] = ()
    done: int = 0
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by name, as in metrics.jsonl
    machines: list[str] = field(default_factory=list)  # that stages were trained on, in words, each once
    # Seconds: of the plan for what this process trained, what that took, and the clock when it began with the last one
    meant: float = 0.0
    took: float = 0.0
    began: float | None = None

    def train(self, name: str, make: Callable[[], FaceNet], config: Config) -> FaceNet:
        """The network that `make` draws, trained by `config`, as it is after the last epoch; in evaluation mode.

        A stage that was stopped goes on. Raises UserError for a folder that holds another stage, and Stopped after
        Ctrl-C: where that came at the very end, the stage is kept as done.
        """
        self.done += 1
        if self.began is not None:
            self.took += time.monotonic() - self.began  # with what was scored and written in between
            self.began = None
        run, config = self.folder / name, replace(config, runs=str(self.folder), run=name)
        seed_everything(config.seed)
        model = make().to(self.machine.device, memory_format=self.machine.layout)
        mark = self.mark(model, config)
        final, note = run / "final.pth", f"stage {self.done} of {len(self.plan)}: {name}"
        here, made_on = str(self.machine), []
        if (run / "stage.json").exists():
            made_on = check_mark(run, mark)
        elif final.exists():
            raise UserError(f"{run / 'stage.json'} is gone, which says what the stage is made of: remove {run}")
        if final.exists():
            self.say(f"{note}: is there")
        else:
            try:
                run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{run} cannot be made ({error.strerror}): what stands there is no stage") from error
            made_on += [here] if here not in made_on else []
            write_json(run / "stage.json", mark | {"machines": made_on})
            last = read_last(run)[1] if (run / "last.pth").exists() else None
            behind = last["progress"]["epoch"] / config.epochs if last else 0.0
            self.say(f"{note}, {counted(config.epochs, 'epoch')}{': goes on' if last else ''}{self.start(behind)}")
            trainer = fit(model, self.data, config, run=run, machine=self.machine, resume=last)
            if trainer.done:
                scores = evaluate(trainer.eval_model, self.data.split("val"), machine=self.machine)
                save_weights(final, trainer.eval_model, scores, config=config, data=self.data)
            if trainer.stopped or not trainer.done:
                raise Stopped
        self.machines += [each for each in made_on if each not in self.machines]
        for name_of in ("last.pth", "best.pth"):  # the last epoch is what counts
            (run / name_of).unlink(missing_ok=True)
        try:
            self.histories[name] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            return load_weights(final, machine=self.machine)[0]
        except (OSError, ValueError, UserError) as error:
            raise UserError(f"{run} is damaged ({error}): remove it, and the stage is trained anew") from error

    def start(self, behind: float) -> str:
        """Start the clock of a stage, of which the share `behind` is done; the words for how long all takes from here.

        That is what the plan has for it and for the stages to come that are not there, times what this process took
        for others against the plan. Without a plan there are no words.
        """
        if not self.plan:
            return ""
        scale = self.took / self.meant if self.took and self.meant else 1.0
        own = self.plan[self.done - 1][1] * (1 - behind)
        rest = dict(self.plan[self.done :])  # a stage that two mixtures share is trained once
        rest.pop(self.plan[self.done - 1][0], None)
        left = own + sum(seconds for name, seconds in rest.items() if not (self.folder / name / "final.pth").exists())
        self.meant, self.began = self.meant + own, time.monotonic()
        return f"; about {in_words(scale * left)} left"

    def mark(self, model: FaceNet, config: Config) -> dict[str, Any]:
        """What a stage is made of: its knobs, its data, its network, the weights it begins with, and its arithmetic."""
        digest = hashlib.blake2b(digest_size=8)
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        knobs = {name: value for name, value in asdict(config).items() if name not in PLACE_FIELDS}
        mark = {
            "config": knobs,
            "fingerprint": self.data.fingerprint,
            "network": model.name,
            "arguments": model.arguments,
            "begins": digest.hexdigest(),
            "arithmetic": f"{self.machine.device.type}, {str(self.machine.dtype).removeprefix('torch.')}",
        }
        return json.loads(json.dumps(mark))  # as it comes back from the file


def check_mark(run: Path, mark: dict[str, Any]) -> list[str]:
    """The machines on which the stage in `run` was made. Raises UserError where that is not of what `mark` says."""
    try:
        there = json.loads((run / "stage.json").read_text(encoding="utf-8"))
        made_on, knobs = there["machines"], there["config"]
        # A knob that the code did not have then stood at what is its default now
        there["config"] = {name: getattr(Config(), name) for name in mark["config"]} | knobs
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{run / 'stage.json'} is damaged ({error}): remove {run}") from error
    other = [key for key in mark if there.get(key) != mark[key]]
    if not other:
        return list(made_on)
    if "config" in other:
        before, now = there["config"], mark["config"]
        other += [f"{key} {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]
        other.remove("config")
    if "arithmetic" in other:
        other[other.index("arithmetic")] = f"arithmetic {there.get('arithmetic')}, now {mark['arithmetic']}"
    raise UserError(
        f"{run} holds a stage of another study ({'; '.join(other)}): name another study with --name, or remove this one"
    )


def in_words(seconds: float) -> str:
    """A length of time, as exact as a guess can be: in minutes, and from two hours in hours."""
    minutes = max(1, round(seconds / 60))
    if minutes < 120:
        return counted(minutes, "minute")
    return f"{minutes / 60:.1f} hours"


# --- Looking at a network ---


def extract_features(
    model: FaceNet, images: np.ndarray, *, machine: Machine, what: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """What `what` makes of the network inputs of `images` (N, 48, 48) uint8, a row for each, as float32."""
    rows = []
    model.eval()
    with torch.inference_mode(), machine.autocast():
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(np.array(images[start : start + BATCH])).to(machine.device)
            rows.append(what(channels_last(preprocess(pixels))).float().cpu())
    return torch.cat(rows).numpy()


def macs(model: FaceNet) -> int:
    """Multiplications of one image of the network's size: of its convolutions and linear layers."""
    counted = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal counted
        each = layer.weight[0].numel()  # for one number of the output
        counted += each * out[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        model(torch.zeros(1, model.channels, model.image_size, model.image_size, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return counted


def seconds_per_image(config: Config, machine: Machine, *, steps: int = 5) -> float:
    """How long an image of a training step of `config` takes here: the median of some steps on blank images."""
    model = build_model(config.model, **config.arguments).to(machine.device, memory_format=machine.layout)
    size = config.window if config.augment and model.any_size else model.image_size
    images = channels_last(torch.zeros(config.batch_size, 1, size, size, device=machine.device))
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        with machine.autocast():
            loss = model(images).float().square().sum()
        loss.backward()
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:])) / config.batch_size

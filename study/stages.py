"""The stages of a study: networks trained one after the other through `fit`, each kept under what it was made of."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from config import PLACE_FIELDS, Config
from dataset import FaceData, preprocess
from errors import UserError, counted, write_json
from model import FaceNet
from train import duration, fit
from training.state import read_history, read_last
from utils import Machine, channels_last, seed_everything
from val import BATCH, evaluate
from weights import load_weights, save_weights


class Stopped(Exception):
    """Ctrl-C ended a stage; what it had reached is kept."""


@dataclass
class Stages:
    """Trains networks into folders below `folder`, or reads those that are finished. There will be `count` of them."""

    folder: Path
    data: FaceData
    machine: Machine
    count: int
    done: int = 0
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by name, the rows of metrics.jsonl
    machines: list[str] = field(default_factory=list)  # that stages were trained on, each once
    seconds: list[float] = field(default_factory=list)  # that each stage trained by this process took

    def train(self, name: str, make: Callable[[], FaceNet], config: Config) -> FaceNet:
        """The network of `make`, trained by `config`, as it is after the last epoch; in evaluation mode.

        A stage that was stopped goes on. Raises UserError for a folder that holds another stage, and Stopped after
        Ctrl-C: if that came at the very end, the stage is kept as finished.
        """
        run, config = self.folder / name, replace(config, runs=str(self.folder), run=name)
        final, note = run / "final.pth", f"stage {self.done + 1} of {self.count}: {name}"
        seed_everything(config.seed)
        model = make().to(self.machine.device, memory_format=self.machine.layout)
        self.begin(run, model, config)
        if final.exists():
            print(f"{note} is finished")
        else:
            last = read_last(run)[1] if (run / "last.pth").exists() else None
            goes_on = ", goes on" if last else ""
            seconds = sum(self.seconds) / max(len(self.seconds), 1) * (self.count - self.done)
            left = f"; about {duration(seconds)} left" if self.seconds else ""
            print(f"{note}, {counted(config.epochs, 'epoch')}{goes_on}{left}", flush=True)
            start = time.monotonic()
            trainer = fit(model, self.data, config, run=run, machine=self.machine, resume=last)
            if trainer.done:
                scores = evaluate(trainer.eval_model, self.data.split("val"), machine=self.machine)
                save_weights(final, trainer.eval_model, scores, config=config, data=self.data)
            if trainer.stopped:
                raise Stopped
            self.seconds.append(time.monotonic() - start)
        self.done += 1
        for other in ("last.pth", "best.pth"):  # the last epoch is what counts
            (run / other).unlink(missing_ok=True)
        self.histories[name] = read_history(run)
        return load_weights(final, machine=self.machine)[0]

    def begin(self, run: Path, model: FaceNet, config: Config) -> None:
        """Write stage.json, what the stage is made of and the machines that trained it, into `run`.

        Raises UserError where `run` is made of something else, such as other hyperparameters or data.
        """
        path, mark, machines = run / "stage.json", self.mark(model, config), []
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            machines = there["machines"]
            # A hyperparameter that the code did not have then had what is its default now
            before = {key: there.get(key, getattr(Config(), key, None)) for key in mark}
            if other := [f"{key} {before[key]}, now {mark[key]}" for key in mark if before[key] != mark[key]]:
                raise UserError(
                    f"{run} holds a stage of another study ({'; '.join(other)}): name this study differently with "
                    f"--name, or remove the folder"
                )
        if not (run / "final.pth").exists():
            machines = list(dict.fromkeys([*machines, str(self.machine)]))
            run.mkdir(parents=True, exist_ok=True)
            write_json(path, mark | {"machines": machines})
        self.machines = list(dict.fromkeys([*self.machines, *machines]))

    def mark(self, model: FaceNet, config: Config) -> dict[str, Any]:
        """What a stage is made of: hyperparameters, data, network, the weights it begins with, and the arithmetic."""
        digest = hashlib.blake2b(digest_size=8)
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        mark = {
            **{name: value for name, value in asdict(config).items() if name not in PLACE_FIELDS},
            "fingerprint": self.data.fingerprint,
            "network": model.name,
            "arguments": model.arguments,
            "begins": digest.hexdigest(),
            "arithmetic": f"{self.machine.device.type}, {str(self.machine.dtype).removeprefix('torch.')}",
        }
        return json.loads(json.dumps(mark))  # as it comes back from the file


def extract_features(
    model: FaceNet, images: np.ndarray, *, machine: Machine, what: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """What `what` computes from the network inputs of `images` (N, 48, 48) uint8: a row each, float32."""
    rows = []
    model.eval()
    with torch.inference_mode(), machine.autocast():
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(np.array(images[start : start + BATCH])).to(machine.device)
            rows.append(what(channels_last(preprocess(pixels))).float().cpu())
    return torch.cat(rows).numpy()


def macs(model: FaceNet) -> int:
    """Multiply-adds for one image of the network's size; torch counts each as two operations."""
    image = torch.zeros(1, model.channels, model.image_size, model.image_size, device=next(model.parameters()).device)
    model.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2

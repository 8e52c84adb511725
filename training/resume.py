"""Going on with a run that was stopped: its last.pth, and whether it fits the data and machine at hand."""

import os
from pathlib import Path
from typing import Any

from cli import current_names, from_dict, read_config
from config import Config
from dataset import FaceData
from errors import UserError, quoted
from ranks import Ranks
from training.distill import target_sources
from training.state import LAST, made_on, ranks_on
from utils import Machine, read_checkpoint, versions

REACHED = ("best.pth", "metrics.jsonl")  # written after the first last.pth


def read_last(run: Path, flags: dict[str, Any] | None = None) -> tuple[Config, dict[str, Any] | None]:
    """The Config of a stopped run, with `flags` over it, and the content of its last.pth.

    The content is None for a run that was killed between making its folder and the first last.pth.
    Raises UserError where the folder holds no run, one of another version, or one whose last.pth was removed.
    """
    path, content = run / "last.pth", None
    try:
        if os.path.exists(path):
            content = read_checkpoint(path, LAST)
            values, notes = current_names(content["config"], str(path))
            print("\n".join(notes), end="\n" if notes else "")
            return from_dict(values | (flags or {}), str(path)), content
        if reached := [name for name in REACHED if os.path.exists(run / name)]:
            raise UserError(
                f"{path} is gone, without which the run can't go on; {' and '.join(reached)} "
                f"{'is' if len(reached) == 1 else 'are'} untouched. Put it back, or start a new run with "
                f"--config {quoted(run / 'config.json')}"
            )
        path = run / "config.json"
        if os.path.exists(path):
            values, _ = current_names(read_config(str(path)), str(path))
            return from_dict(values | (flags or {}), str(path)), None
    except ValueError as error:
        raise UserError(f"{path} does not fit this version of the code: {error}; start a new run") from error
    raise UserError(f"{run} holds no run to go on with; --resume takes a run's folder, such as runs/NAME")


def check_resume(last: dict[str, Any], data: FaceData, config: Config, machine: Machine, ranks: Ranks) -> None:
    """Raise UserError where the data or the makers of targets are not the run's; say where the machine is not."""
    if last["fingerprint"] != data.fingerprint:
        raise UserError(
            f"the run was trained on data with fingerprint {last['fingerprint']}, these have "
            f"{data.fingerprint}: name the run's dataset with --data"
        )
    sources = target_sources(data, config)
    if changed := [name for name, mark in sources.items() if last["targets"][name] != mark]:
        raise UserError(
            f"the run's targets were made with other {' and '.join(changed)} than these: name the files it began with "
            f"by {', '.join(f'--{name}' for name in changed)}"
        )
    here = f"{ranks_on(machine, ranks)} with torch {versions()['torch']}"
    places = dict.fromkeys(f"{each['machine']} with torch {each['versions']['torch']}" for each in made_on(last))
    if others := [place for place in places if place != here]:
        print(
            f"note: the run was trained on {' and on '.join(others)}, this is {here}: "
            f"its weights are not bit for bit those of a run on one machine"
        )

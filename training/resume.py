"""Going on with a run that was stopped: its last.pth, and whether it fits the data and machine at hand."""

import json
import os
from pathlib import Path
from typing import Any

from cli import current_names, from_dict, read_config
from config import Config
from dataset import FaceData
from errors import UserError, quoted
from ranks import Ranks
from training.distill import Teachers, target_sources
from training.state import LAST, is_over, made_on, ranks_on
from utils import Machine, read_checkpoint, versions

REACHED = ("best.pth", "metrics.jsonl")  # written after the first last.pth


def read_last(run: Path, flags: dict[str, Any] | None = None) -> tuple[Config, dict[str, Any] | None]:
    """The Config of a stopped run, with `flags` over it, and the content of its last.pth.

    The content is None for a run that was killed between making its folder and the first last.pth, and for one that
    `has_ended`. Raises UserError where the folder holds no run, one of another version, or one whose last.pth was
    removed too early.
    """
    path, content = run / "last.pth", None
    try:
        if os.path.exists(path):
            content = read_checkpoint(path, LAST)
            values, notes = current_names(content["config"], str(path))
            print("\n".join(notes), end="\n" if notes else "")
            return from_dict(values | (flags or {}), str(path)), content
        reached = [name for name in REACHED if os.path.exists(run / name)]
        if reached and not has_ended(run):
            raise UserError(
                f"{path} is gone, without which the run can't go on; {' and '.join(reached)} "
                f"{'is' if len(reached) == 1 else 'are'} untouched. Put it back, or start a new run with "
                f"--config {quoted(run / 'config.json')}"
            )
        path = run / "config.json"
        if os.path.exists(path):
            return from_dict(read_config(str(path)) | (flags or {}), str(path)), None
    except ValueError as error:
        raise UserError(f"{path} does not fit this version of the code: {error}; start a new run") from error
    raise UserError(f"{run} holds no run to go on with; --resume takes a run's folder, such as runs/NAME")


def read_history(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, one for each epoch. Raises UserError."""
    path = run / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the run's figures are lost") from error


def has_ended(run: Path) -> bool:
    """Whether `run` was trained to its end: its last.pth is removed then. Raises UserError for damaged files."""
    if os.path.exists(run / "last.pth") or not all(os.path.exists(run / name) for name in ("config.json", *REACHED)):
        return False
    config, history = from_dict(read_config(str(run)), str(run / "config.json")), read_history(run)
    best = max((row["epoch"] for row in history if row["best"]), default=0)
    return is_over(config, len(history), len(history) - best)


def check_fingerprint(fingerprint: str, data: FaceData) -> None:
    """Raise UserError where `data` are not those with the `fingerprint` of a run's."""
    if fingerprint != data.fingerprint:
        raise UserError(
            f"the run was trained on data with fingerprint {fingerprint}, these have "
            f"{data.fingerprint}: name the run's dataset with --data"
        )


def check_resume(
    last: dict[str, Any], data: FaceData, teachers: Teachers | None, machine: Machine, ranks: Ranks
) -> None:
    """Raise UserError where the data or the makers of targets are not the run's; say where the machine is not."""
    check_fingerprint(last["fingerprint"], data)
    sources = target_sources(data, teachers)
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

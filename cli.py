"""The flags of the scripts, made from the fields of Config, and what takes precedence over what."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from config import RECIPES, Allowed, Config
from errors import open_file, plain

# Settings of older configs and weight files: the name today, or None if it was removed
OLD_NAMES: dict[str, str | None] = {
    "teaching": "distill_weight",
    "erase": "cutout",
    "whole": "full_size_share",
    "recalibrate": None,
    "compile": None,
}
MAX_CONFIG = 2**20  # bytes
OTHER_FLAGS = {  # of other projects
    "gpu": "device cuda",
    "gpus": "device cuda",
    "cuda": "device cuda",
    "cpu": "device cpu",
    "mps": "device mps",
    "learning-rate": "lr",
}


def interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python calls for an error that nothing has caught: Ctrl-C needs no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# A script imports this module first: Ctrl-C may come while it imports others. Other people's programs keep their hook.
sys.excepthook = interrupted if Path(sys.argv[0]).resolve().parent == Path(__file__).parent else sys.excepthook


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that accepts no abbreviations and ends a wrong call with one line and status 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _, _, unknown = message.partition("unrecognized arguments: ")
        meant = [flag for word in unknown.split() if word.startswith("--") for flag in self.similar(word)]
        hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
        text = f"error: {plain(message)}{hint}; see python {self.prog} --help\n"
        self.exit(2, text if os.environ.get("RANK", "0") == "0" else None)  # of several processes one prints it

    def similar(self, word: str) -> list[str]:
        """The known flag that `word` means, probably: of another project, renamed since, or a close spelling."""
        known = [flag.removeprefix("--") for action in self._actions for flag in action.option_strings]
        name = word.split("=")[0].removeprefix("--").replace("_", "-")
        if OTHER_FLAGS.get(name, "").split(" ")[0] in known:
            return [f"--{OTHER_FLAGS[name]}"]
        name = (OLD_NAMES.get(name.replace("-", "_")) or name).replace("_", "-")
        return [f"--{flag}" for flag in get_close_matches(name, known, 1)]

    def resolve(self, args: argparse.Namespace) -> argparse.Namespace:
        """`args` with `config`, the Config that its settings make, instead of these; a wrong value exits with status 2.

        `flags` holds the settings that were typed, `notes` what a --config file of an older version loses.
        """
        names = {spec.name for spec in fields(Config)}
        own = {name: value for name, value in vars(args).items() if name not in names}
        flags = {name: value for name, value in vars(args).items() if name in names}
        try:
            config, notes = combine(flags, recipe=own.pop("recipe", ""), config_path=own.pop("config", None))
        except ValueError as error:
            self.error(str(error))
        return argparse.Namespace(config=config, flags=flags, notes=notes, **own)


def nonempty(text: str) -> str:
    """A flag's value that is not empty, as an unset variable of a shell would be."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name something, or leave the flag out")
    return text


def positive(text: str) -> int:
    """A flag's value that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A flag's value in seconds, from 0 to an hour."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 to 3600")
    return value


def add_flags(
    parser: argparse.ArgumentParser, names: Sequence[str] = (), *, defaults: Mapping[str, str] | None = None
) -> None:
    """Add a flag for each field of Config, or for `names` only; without the flag the namespace has no such attribute.

    `defaults` are words for the help text, where a script has its own default.
    """
    for spec in fields(Config):
        if names and spec.name not in names:
            continue
        allowed: Allowed = spec.metadata["allowed"]
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": spec.name}
        if spec.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif allowed.choices:
            options["choices"] = allowed.choices
        else:
            options |= {"type": spec.type, "metavar": spec.type.__name__.upper()}
        shown = (defaults or {}).get(spec.name) or f"{spec.default}" or "empty"
        text = f"{allowed.help} (default: {shown})".replace("%", "%%")
        parser.add_argument(f"--{spec.name.replace('_', '-')}", help=text, **options)


def current_names(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """`values` under today's names, and a note for each removed setting that was not off. `where` they are from."""
    removed = [name for name in values if OLD_NAMES.get(name, "") is None]
    notes = [f"note: {where}: {name} {values[name]!r} is ignored: it was removed" for name in removed if values[name]]
    return {OLD_NAMES.get(name) or name: value for name, value in values.items() if name not in removed}, notes


def from_dict(values: Mapping[str, Any], where: str) -> Config:
    """The Config with `values` over the defaults, also under older names.

    Raises ValueError for an unknown name, with `where` it is from, and for a value that is not allowed.
    """
    values, _ = current_names(values, where)
    unknown = sorted(set(values) - {spec.name for spec in fields(Config)})
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(asdict(Config()))}")
    return Config(**values)


def read_config(path: str) -> dict[str, Any]:
    """The values in a config.json, or in that of a run's folder. Raises ValueError if they make no Config."""
    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    try:
        with open_file(Path(path)) as file:
            values = json.loads(file.read(MAX_CONFIG) or b"")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"config: {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path}: it holds no settings")
    from_dict(values, f"config: {path}")
    return values


def combine(flags: dict[str, Any], *, recipe: str = "", config_path: str | None = None) -> tuple[Config, list[str]]:
    """The Config by the precedence of config.py, and notes on settings of an older file that are ignored.

    `flags` holds only what was typed. Raises ValueError for a value, name or file that is not allowed.
    """
    layer, notes = ({}, []) if config_path is None else current_names(read_config(config_path), config_path)
    layer.pop("run", None)  # a new run has a name of its own
    return from_dict((RECIPES[recipe] if recipe else {}) | layer | flags, "flags"), notes


def differences(config: Config) -> dict[str, Any]:
    """The fields of `config` that differ from the defaults."""
    defaults = asdict(Config())
    return {key: value for key, value in asdict(config).items() if value != defaults[key]}

"""The flags of the scripts, made from the fields of Config, and what takes precedence over what."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any, NoReturn

from config import RECIPES, Config, Knob

# The settings of older configs and weight files: each one's name today, or None where it was removed.
OLD_NAMES: dict[str, str | None] = {
    "teaching": "distill_weight",
    "erase": "cutout",
    "whole": "full_size_share",
    "recalibrate": None,
    "compile": None,
}
DEVICES = {"gpu": "cuda", "gpus": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"}  # flags of other projects


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and ends a wrong call with one line and status 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _, _, typed = message.partition("unrecognized arguments: ")
        meant = [flag for word in typed.split() if word.startswith("--") for flag in self.alike(word)]
        hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
        text = f"error: {message}{hint}; see python {self.prog} --help\n"
        self.exit(2, text if os.environ.get("RANK", "0") == "0" else None)  # of several processes one prints it

    def alike(self, word: str) -> list[str]:
        """The flag that was meant by `word`, if one is: a device, a setting's older name, or a typing error."""
        known = {flag.removeprefix("--") for action in self._actions for flag in action.option_strings}
        name = word.split("=")[0].removeprefix("--").replace("_", "-")
        if name in DEVICES and "device" in known:
            return [f"--device {DEVICES[name]}"]
        name = (OLD_NAMES.get(name.replace("-", "_")) or name).replace("_", "-")
        return [f"--{flag}" for flag in get_close_matches(name, known, 1)]

    def resolve(self, args: argparse.Namespace) -> argparse.Namespace:
        """`args` with its settings gathered: `config` is the Config they make, `flags` those that were typed, `notes`
        what an older file has that is ignored. The script's own flags stay; a wrong value ends it with status 2.
        """
        knobs = {spec.name for spec in fields(Config)}
        own = {name: value for name, value in vars(args).items() if name not in knobs}
        flags = {name: value for name, value in vars(args).items() if name in knobs}
        try:
            config, notes = combine(flags, recipe=own.pop("recipe", ""), config_path=own.pop("config", None))
        except ValueError as error:
            self.error(str(error))
        return argparse.Namespace(config=config, flags=flags, notes=notes, **own)


def nonempty(text: str) -> str:
    """A flag's value that names something; an empty one, of a shell's variable that is not set, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name something, or leave the flag out")
    return text


def add_flags(
    parser: argparse.ArgumentParser, names: Sequence[str] = (), *, defaults: Mapping[str, str] | None = None
) -> None:
    """Give `parser` one flag per field of Config, or per name in `names`; what is not typed is not set.

    `defaults` are words for those that the script has a default of its own for.
    """
    for spec in fields(Config):
        if names and spec.name not in names:
            continue
        allowed: Knob = spec.metadata["knob"]
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": spec.name}
        if spec.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": spec.type, "metavar": spec.type.__name__.upper()}
        if allowed.choices:
            options |= {"choices": allowed.choices, "metavar": None}
        shown = (defaults or {}).get(spec.name) or f"{spec.default}" or "empty"
        text = f"{allowed.help} (default: {shown})".replace("%", "%%")
        parser.add_argument(f"--{spec.name.replace('_', '-')}", help=text, **options)


def current_names(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """`values` by the names of today's settings, and a note for each removed setting that was in use."""
    removed = [name for name in values if OLD_NAMES.get(name, "") is None]
    notes = [
        f"note: {where}: {name} {values[name]} is ignored: this version has no such setting"
        for name in removed
        if values[name]
    ]
    return {OLD_NAMES.get(name) or name: value for name, value in values.items() if name not in removed}, notes


def from_dict(values: Mapping[str, Any], where: str) -> Config:
    """The Config with `values` over the defaults; older names are read too.

    Raises ValueError for an unknown key or a value that is not allowed, with `where` they are from.
    """
    values, _ = current_names(values, where)
    unknown = sorted(set(values) - {spec.name for spec in fields(Config)})
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(asdict(Config()))}")
    return Config(**values)


def read_config(path: str) -> dict[str, Any]:
    """The values in a config.json, or in that of a run's folder, checked; ValueError says what is wrong with it."""
    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise ValueError(f"config: {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the latter from brackets in brackets, thousands deep
        raise ValueError(f"config: {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds no JSON object")
    from_dict(values, f"config: {path}")
    return values


def combine(flags: dict[str, Any], *, recipe: str = "", config_path: str | None = None) -> tuple[Config, list[str]]:
    """The Config of a run by the precedence of config.py, and notes on settings of an older file that are ignored.

    `flags` holds only what was typed. Raises ValueError for a value, key or file that is not allowed.
    """
    layer, notes = ({}, []) if config_path is None else current_names(read_config(config_path), config_path)
    layer.pop("run", None)  # a new run has a name of its own
    return from_dict((RECIPES[recipe] if recipe else {}) | layer | flags, "flags"), notes


def differences(config: Config) -> dict[str, Any]:
    """The fields of `config` that differ from the defaults in this file."""
    defaults = asdict(Config())
    return {key: value for key, value in asdict(config).items() if value != defaults[key]}

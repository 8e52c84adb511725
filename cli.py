"""The flags of the scripts, made from the fields of Config, and what takes precedence over what."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any, NoReturn

from config import RECIPES, Config, Knob


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and ends a wrong call with one line and status 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _, _, typed = message.partition("unrecognized arguments: ")
        known = [flag for action in self._actions for flag in action.option_strings]
        near = [found for word in typed.split() for found in get_close_matches(word.split("=")[0], known, 1)]
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        said = f"error: {message}{hint}; see python {self.prog} --help\n"
        self.exit(2, said if os.environ.get("RANK", "0") == "0" else None)  # of several processes one says it

    def resolve(self, args: argparse.Namespace) -> argparse.Namespace:
        """`args` with its knobs gathered: `config` is the Config they make, `flags` the knobs typed, `said` what a
        recipe or file changed. The script's own flags stay; a value that is not allowed ends the script with status 2.
        """
        knobs = {spec.name for spec in fields(Config)}
        own = {name: value for name, value in vars(args).items() if name not in knobs}
        flags = {name: value for name, value in vars(args).items() if name in knobs}
        try:
            config, said = combine(flags, recipe=own.pop("recipe", ""), config_path=own.pop("config", None))
        except ValueError as error:
            self.error(str(error))
        return argparse.Namespace(config=config, flags=flags, said=said, **own)


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


RENAMED = {"teaching": "distill_weight", "erase": "cutout"}  # knobs by the names that older files have for them


def from_dict(values: dict[str, Any], where: str) -> Config:
    """The Config with `values` over the defaults; ValueError names an unknown key and `where` it stands."""
    values = {RENAMED.get(name, name): value for name, value in values.items()}
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
    return {RENAMED.get(name, name): value for name, value in values.items()}


def combine(flags: dict[str, Any], *, recipe: str = "", config_path: str | None = None) -> tuple[Config, list[str]]:
    """The Config of a run by the precedence above, and lines that say what a recipe or file changed.

    `flags` holds only what was typed. Raises ValueError for a value, key or file that is not allowed.
    """
    defaults, said, values = asdict(Config()), [], {}
    for origin, layer in (
        (f"recipe {recipe}", RECIPES[recipe] if recipe else {}),
        (config_path, {} if config_path is None else read_config(config_path)),
    ):
        layer = {key: value for key, value in layer.items() if key != "run"}  # a new run has a name of its own
        changed = [
            f"{key} {value} (config.py: {defaults[key]})" for key, value in layer.items() if value != defaults[key]
        ]
        if changed:
            said.append(f"{origin} sets {', '.join(changed)}")
        values |= layer
    return from_dict(values | flags, "flags"), said


def differences(config: Config) -> dict[str, Any]:
    """The fields of `config` that differ from the defaults in this file."""
    defaults = asdict(Config())
    return {key: value for key, value in asdict(config).items() if value != defaults[key]}

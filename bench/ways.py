"""What benchmarks of several ways share: each way runs in a fresh process, and they take turns.

Nothing heavy is imported here: the fresh processes import this too.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cli import Parser
from errors import exit_status

Measure = Callable[..., dict[str, float]]


def compare(
    script: str, ways: Iterable[str], facts: Callable[[], dict[str, Any]], args: argparse.Namespace, cwd: Path
) -> dict[str, dict[str, float]]:
    """For each of `ways`, medians over the rounds of what the `measure` of bench/script finds, given `facts`.

    The way "fer" runs with the python of --fer, and is left out without it. The processes start in the folder `cwd`.
    """
    from bench import common  # late: it imports torch

    def cell(way: str) -> dict[str, float]:
        python = args.fer if way == "fer" else sys.executable
        return common.run_cell(script, {"way": way, **facts()}, cwd=cwd, python=python)

    cells = {way: partial(cell, way) for way in ways if way != "fer" or args.fer}
    found = common.take_turns(cells, args.rounds, label=script.removesuffix(".py"))
    return {way: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for way, rows in found.items()}


def main(argv: Sequence[str] | None, parser: Parser, measure: Measure, run: Callable[[argparse.Namespace], int]) -> int:
    """Call `run` with the typed flags; or, in a fresh process, print what `measure` finds about one way."""
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (3)")
    parser.add_argument("--fer", metavar="PYTHON", help="the python of an environment with the package fer")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one way in this process
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(**args.one)))
        return 0
    return exit_status(run, args)

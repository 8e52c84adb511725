"""Ctrl-C while training: it asks for a stop after the step, on which all processes agree."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ranks import Ranks


class StopRequest:
    """`asked` is set by Ctrl-C at any moment, `wanted` after a step, in all processes alike."""

    asked = wanted = False


def agreed(ranks: Ranks, stop: StopRequest | None = None, *, bad: bool = False) -> bool:
    """Whether any process found its loss `bad`, or was asked to `stop`, which the others then are too."""
    asked = bool(stop and stop.asked)
    if ranks.size > 1:
        bad, asked = map(bool, ranks.sum(torch.tensor([int(bad), int(asked)])).tolist())
    if stop:
        stop.wanted = asked
    return bad or asked


@contextmanager
def ctrl_c_is_a_request(ranks: Ranks) -> Iterator[StopRequest]:
    """While inside, the first Ctrl-C only sets the request; a second one stops at once. In the main thread only."""
    request = StopRequest()

    def on_signal(*_: object) -> None:
        request.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if ranks.first:
            print("\nstopping after this step; Ctrl-C again stops at once, without saving", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)

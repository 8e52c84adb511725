"""What is timed in a fresh process, in this checkout or in another one.

    PYTHONPATH=CHECKOUT python -P bench/drive.py --one '{"part": "train", ...}'

The other benchmarks call it so. It uses only what commit 1ec3311 has too: the scripts' `main`, metrics.jsonl, and three
functions. Imports come before the clock starts. The last line printed is the result, as JSON.
"""

import contextlib
import io
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGE_CALLS = 30  # of one image, the median counts


class EpochTimes(io.StringIO):
    """Notes when each epoch's line is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.times = []

    def write(self, text: str) -> int:
        if re.match(r"epoch +\d+/", text):
            self.times.append(time.perf_counter())
        return super().write(text)


def train(cell: dict[str, Any]) -> dict[str, float]:
    """Seconds from the command to the first epoch's line; images/s of the later epochs, the median, 0 without any."""
    import torch._dynamo  # noqa: F401 (the first optimizer imports it)

    import interface
    import train  # noqa: F401 (imported late by interface.py)

    lines, start = EpochTimes(), time.perf_counter()
    with contextlib.redirect_stdout(lines):
        status = interface.main(cell["flags"])
    if status:
        raise RuntimeError(f"interface.py ended with status {status}")
    rows = [json.loads(line) for line in Path(cell["run"], "metrics.jsonl").read_text().splitlines()]
    rates = [row["images_per_second"] for row in rows[1:]]
    return {"first": lines.times[0] - start, "later": statistics.median(rates) if rates else 0.0}


def predict(cell: dict[str, Any]) -> dict[str, float]:
    """Seconds of predict.py, from reading the weights to the finished table."""
    import predict
    import ranks  # noqa: F401 (imported late by predict.py, as are the next)
    import val  # noqa: F401
    import weights  # noqa: F401

    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = predict.main(cell["flags"])
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"predict.py ended with status {status}")
    return {"seconds": seconds}


def image(cell: dict[str, Any]) -> dict[str, float]:
    """Seconds of one image's logits, the network being loaded: the median of some calls."""
    import torch

    from utils import pick_machine
    from val import forward
    from weights import load_weights

    machine = pick_machine("auto", "auto")
    model, _ = load_weights(Path(cell["weights"]), machine=machine)
    face, seconds = torch.zeros(1, 48, 48, dtype=torch.uint8), []
    for _ in range(IMAGE_CALLS):
        start = time.perf_counter()
        forward(model, face, machine=machine)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds)}


def main(argv: Sequence[str]) -> int:
    cell = json.loads(argv[1])  # after --one
    print(json.dumps({"train": train, "predict": predict, "image": image}[cell["part"]](cell)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Datasets bigger than memory: time per image of building the cache and of training, and the memory of training.

    python -m bench.scale [--sizes 10000 100000 1000000] [--steps 60] [--folder FOLDER]

For each size random faces go through the project's own cache; then a fresh process opens it and trains `--steps` steps
of TheModel on random images of the set. Memory is the peak of RssAnon, polled every 50 ms: what the process itself
has. Mapped pages of the images are page cache, which the system takes back when it needs to. A million images
take 2.3 GB of disk, twice that while the cache is built. Linux only.
"""

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import common
from cli import Parser
from config import Config
from errors import exit_status

if TYPE_CHECKING:
    from readers.layout import Item
    from readers.sources import Source

VAL_IMAGES = 256  # one batch of scoring
CHUNK = 1024  # random faces made at a time
POLL_SECONDS = 0.05


def random_faces(count: int) -> "Source":
    """The source of `count` images, VAL_IMAGES of them for validation: noise on 7 patterns."""
    import numpy as np

    from readers.decode import Decoded
    from readers.layout import Item
    from readers.sources import Source

    def items() -> "Iterator[Item]":
        rng = np.random.default_rng(0)
        patterns = rng.integers(20, 180, (7, 6, 6)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            images = rng.integers(0, 64, (len(numbers), 48, 48), np.uint8) + patterns[np.array(numbers) % 7]
            for number, image in zip(numbers, images, strict=True):
                split = "val" if number < VAL_IMAGES else "train"
                yield Item(f"face {number}", split, number % 7, load=partial(Decoded, image, 48, 48))

    return Source(Path("random faces"), "random", lambda: f"random-faces-{count:012d}", items, count)


def poll_memory(peak: list[float]) -> None:
    """Keep the most anonymous memory of this process, in MiB, in `peak[0]`."""
    while True:
        status = Path("/proc/self/status").read_text()
        peak[0] = max(peak[0], int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024)
        time.sleep(POLL_SECONDS)


def build(cell: common.Cell) -> dict[str, float]:
    """Seconds of building the cache, about half of them for making the faces."""
    from readers.cache import cached

    start = time.perf_counter()
    cached(random_faces(cell["size"]), Path(cell["folder"]))
    return {"seconds": time.perf_counter() - start}


def train(cell: common.Cell) -> dict[str, float]:
    """Seconds of opening the cache, ms of training an image, and the peak of memory in MiB."""
    import torch._dynamo  # noqa: F401 (the first optimizer imports it: no part of the measured growth)

    from dataset import assemble
    from interface import new_model
    from readers.cache import cached
    from train import StopRequest, Trainer, train_epoch
    from utils import pick_machine

    source, folder, config, peak = random_faces(cell["size"]), Path(cell["folder"]), Config(device="cpu"), [0.0]
    machine = pick_machine(config.device, config.precision)
    threading.Thread(target=poll_memory, args=(peak,), daemon=True).start()
    start = time.perf_counter()
    data = assemble(config, source, cached(source, folder))
    load_seconds = time.perf_counter() - start
    trainer = Trainer(new_model(config, machine), data, config, run=folder, machine=machine)
    request, ticks = StopRequest(), []

    def tick(*_: object) -> None:
        ticks.append(time.perf_counter())
        request.asked = len(ticks) > cell["steps"]

    trainer.optimizer.register_step_post_hook(tick)
    train_epoch(trainer, request)
    images = len(data.split("train")) / trainer.steps * (len(ticks) - 1)  # batches are near-equal parts
    return {"load": load_seconds, "train": 1000 * (ticks[-1] - ticks[0]) / images, "peak": peak[0]}


def run(args: argparse.Namespace) -> int:
    print("\n".join(common.header()))
    print(f"TheModel, batches of {Config().batch_size}, {args.steps} steps on the CPU")
    print("".join(f"{name:>16}" for name in ("images", "build us/image", "load ms", "train ms/image", "peak MiB")))
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="scale-", dir=args.folder) as folder:
            cell = {"size": size, "steps": args.steps, "folder": folder}
            built = common.run_cell("scale.py", {**cell, "part": "build"})["seconds"] / size
            row = common.run_cell("scale.py", {**cell, "part": "train"})
        cells = f"{size:>16,}{1e6 * built:>16.1f}{1e3 * row['load']:>16.0f}{row['train']:>16.3f}{row['peak']:>16.1f}"
        print(cells, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.scale", __doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="images")
    parser.add_argument("--steps", type=int, default=60, help="of training (60)")
    parser.add_argument("--folder", help="where the images are built (default: the temporary folder)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps({"build": build, "train": train}[args.one["part"]](args.one)))
        return 0
    if min(args.sizes) < 512 or args.steps < 2:
        parser.error("--sizes: 512 or more; --steps: 2 or more")
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""Datasets bigger than memory: time per image of building the cache and of training, and the memory of training.

    python -m bench.scale [--sizes 10000 100000 1000000] [--steps 60]

For each size random images go through the project's own cache, in the temporary folder (TMPDIR); then a fresh process
opens it and trains `--steps` steps of TheModel on random ones of the set. Memory is the most RssAnon after a step:
what the process itself has. Mapped pages of the images are page cache, which the system takes back when it needs to.
A million images take 2.3 GB of disk, twice that while the cache is built. Linux only.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bench import common
from cli import Parser
from config import Config
from dataset import assemble
from errors import exit_status
from interface import new_model
from readers.cache import cached
from readers.decode import Decoded
from readers.layout import Item
from readers.sources import Source
from train import StopRequest, Trainer, train_epoch
from utils import pick_machine

VAL_IMAGES = 256  # one batch of scoring


def random_images(count: int) -> Source:
    """The source of `count` images of noise, the first VAL_IMAGES of them for validation."""

    def items() -> Iterator[Item]:
        rng = np.random.default_rng(0)
        for number in range(count):
            split, image = "val" if number < VAL_IMAGES else "train", rng.integers(0, 256, (48, 48), np.uint8)
            yield Item(f"image {number}", split, number % 7, load=partial(Decoded, image, 48, 48))

    return Source(Path("random images"), "random", lambda: f"random-images-{count:012d}", items, count)


def train(cell: common.Cell) -> dict[str, float]:
    """Seconds of opening the cache, ms of training an image, and the peak of memory in MiB."""
    source, folder, config = random_images(cell["size"]), Path(cell["folder"]), Config(device="cpu")
    machine = pick_machine(config.device, config.precision)
    start = time.perf_counter()
    data = assemble(config, source, cached(source, folder))
    load_seconds = time.perf_counter() - start
    trainer = Trainer(new_model(config, machine), data, config, run=folder, machine=machine)
    request, ticks, memory = StopRequest(), [], []

    def tick(*_: object) -> None:
        ticks.append(time.perf_counter())
        request.asked = len(ticks) > cell["steps"]
        status = Path("/proc/self/status").read_text()
        memory.append(int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024)

    trainer.optimizer.register_step_post_hook(tick)
    train_epoch(trainer, request)
    images = len(data.split("train")) / trainer.steps * (len(ticks) - 1)  # batches are near-equal parts
    return {"load": load_seconds, "train": 1000 * (ticks[-1] - ticks[0]) / images, "peak": max(memory)}


def run(args: argparse.Namespace) -> int:
    print(common.header())
    print(f"TheModel, batches of {Config().batch_size}, {args.steps} steps on the CPU")
    print("".join(f"{name:>16}" for name in ("images", "build us/image", "load ms", "train ms/image", "peak MiB")))
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            cached(random_images(size), Path(folder))
            built = (time.perf_counter() - start) / size  # about half of it for making the images
            row = common.run_cell("scale.py", {"size": size, "steps": args.steps, "folder": folder})
        cells = f"{size:>16,}{1e6 * built:>16.1f}{1e3 * row['load']:>16.0f}{row['train']:>16.3f}{row['peak']:>16.1f}"
        print(cells, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.scale", __doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="images")
    parser.add_argument("--steps", type=int, default=60, help="of training (60)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(train(args.one)))
        return 0
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

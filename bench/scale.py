"""Datasets bigger than memory: what building, loading and training cost per image, and in memory.

    python bench/scale.py [--sizes 10000 100000 1000000] [--steps 60] [--memory-limit MIB] [--folder FOLDER]

For each size random faces go through the project's own cache (digests, canonical order, memory map); then a fresh
process opens them with `dataset.load`, trains `--steps` steps of TheModel on random images of the whole set, and scores
256 others. Memory is RssAnon, polled every 50 ms: what the process itself holds. Mapped pages of the images are page
cache, which the system takes back when it needs to. With --memory-limit the training process runs inside that limit:
a systemd scope (pages of the cache count too) where the system has one, else RLIMIT_DATA (private memory, touched or
not). A million images take 2.3 GB of disk, twice that while they are built.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import VAL_FACES, CellError, RandomFaces, header, load_random, new_trainer, run_cell, train_steps
from cli import Parser
from config import Config

POLL_SECONDS = 0.05
DRAWN_ALONE = 20_000  # random faces that are drawn and thrown away, to know what drawing costs
MIB = 2**20


class Peak:
    """The most anonymous memory this process has held, in bytes, polled by a thread while inside."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, anonymous())
            self._over.wait(POLL_SECONDS)
        self.bytes = max(self.bytes, anonymous())


def anonymous() -> int:
    """RssAnon of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")


# --- One cell, in its own process ---


def build(cell: dict[str, Any]) -> dict[str, float]:
    """Build the cache: seconds in all, seconds that drawing the faces takes of it, peak bytes above the start."""
    from readers.cache import cached

    count = cell["size"]
    drawn = min(count, DRAWN_ALONE)
    start = time.perf_counter()
    for _ in RandomFaces(drawn - VAL_FACES).items():
        pass
    drawing = (time.perf_counter() - start) / drawn * (count + VAL_FACES)
    before = anonymous()
    with Peak() as peak:
        start = time.perf_counter()
        cached(RandomFaces(count), Path(cell["cache"]))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "drawing": drawing, "above": peak.bytes - before}


def train(cell: dict[str, Any]) -> dict[str, float]:
    """Load, train and score: seconds of loading, of the median step and of scoring; bytes of memory on the way."""
    if cell["rlimit"]:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (cell["rlimit"] * MIB,) * 2)
    import torch._dynamo  # noqa: F401 (the first optimizer imports it: no part of the measured growth)

    from utils import pick_machine
    from val import evaluate

    config = Config(cache=cell["cache"], device="cpu")
    machine = pick_machine(config.device, config.precision, config.threads)
    before = anonymous()
    with Peak() as loading:
        start = time.perf_counter()
        data = load_random(config, cell["size"])
        load_seconds = time.perf_counter() - start
    held = anonymous()
    with Peak() as training:
        trainer = new_trainer(config, data, machine, Path(cell["cache"]))
        steps, images = train_steps(trainer, cell["steps"]), len(data.split("train"))  # a batch is a near-equal part
        start = time.perf_counter()
        evaluate(trainer.kept, data.split("val"), machine=machine, loss=trainer.loss)
        score_seconds = time.perf_counter() - start
    return {
        "load": load_seconds,
        "step": statistics.median(steps) * trainer.steps / images,
        "score": score_seconds,
        "above": loading.bytes - before,
        "held": held - before,
        "peak": max(loading.bytes, training.bytes),
    }


# --- The limit ---


def find_limit(megabytes: int) -> tuple[list[str], int, str]:
    """How a process is held to `megabytes`: the command before its own, its RLIMIT_DATA in MiB or 0, and in words.

    Control groups are systemd's, or belong to whatever runs this container: they are asked for, never edited.
    """
    if not megabytes:
        return [], 0, "none"
    scope = ["systemd-run", "--scope", "--quiet", "-p", f"MemoryMax={megabytes}M", "-p", "MemorySwapMax=0"]
    for prefix in (scope, [*scope[:1], "--user", *scope[1:]]):
        if shutil.which("systemd-run") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix, 0, f"MemoryMax={megabytes}M of a systemd scope, page cache included"
    return [], megabytes, f"RLIMIT_DATA {megabytes} MiB of private memory (systemd gives no scope here)"


# --- The table ---


def measure(size: int, steps: int, folder: Path, prefix: list[str], rlimit: int) -> dict[str, Any]:
    """The figures of one size; without those of training where that did not fit into the limit."""
    cell = {"size": size, "steps": steps, "cache": str(folder / str(size)), "rlimit": 0}
    built = run_cell(__file__, {**cell, "part": "build"})
    row = {"building": built["seconds"], "drawing": built["drawing"], "build_above": built["above"]}
    try:
        row |= run_cell(__file__, {**cell, "part": "train", "rlimit": rlimit}, prefix=prefix)
    except CellError as error:
        if not (prefix or rlimit):
            raise
        row["failed"] = str(error).splitlines()[-1]
    finally:
        shutil.rmtree(folder / str(size))
    return row


COLUMNS = (
    "images",
    "build us",
    "drawing us",
    "load ms",
    "train ms",
    "score ms",
    "peak MiB",
    "build MiB",
    "load MiB",
    "held MiB",
)


def line(size: int, row: dict[str, Any]) -> str:
    """A row of the table, of the width of COLUMNS."""
    images = size + VAL_FACES
    cells = [f"{size:,}", f"{row['building'] / images * 1e6:.1f}", f"{row['drawing'] / images * 1e6:.1f}"]
    if "peak" in row:
        cells += [
            f"{row['load'] * 1e3:.0f}",
            f"{row['step'] * 1e3:.3f}",
            f"{row['score'] * 1e3:.0f}",
            f"{row['peak'] / MIB:.0f}",
            f"{row['build_above'] / MIB:.1f}",
            f"{row['above'] / MIB:.1f}",
            f"{row['held'] / MIB:.1f}",
        ]
    else:
        cells.append(f"  training did not fit into the limit: {row['failed']}")
    return "".join(f"{cell:>11}" for cell in cells)


def growth(sizes: list[int], rows: list[dict[str, Any]]) -> list[str]:
    """Lines with the bytes of anonymous memory that one more image costs, from each size to the next."""
    lines = []
    names = {"build_above": "building", "above": "loading", "held": "held after loading", "peak": "peak of training"}
    for (low, before), (high, after) in pairwise(zip(sizes, rows, strict=True)):
        each = [
            f"{name} {(after[key] - before[key]) / (high - low):.1f}"
            for key, name in names.items()
            if key in before and key in after
        ]
        lines.append(f"bytes per image from {low:,} to {high:,}: {', '.join(each)}")
    return lines


def run(args: argparse.Namespace) -> int:
    from errors import UserError

    if not os.path.exists("/proc/self/status"):
        raise UserError("there is no /proc/self/status, which tells the memory that is held: this needs Linux")
    prefix, rlimit, words = find_limit(args.memory_limit)
    print("\n".join(header()))
    print(f"TheModel, batch {Config().batch_size}, {args.steps} steps on cpu; memory limit in training: {words}")
    print("per image: build (of which drawing the random faces), train; in all: load, score, memory (build, load and")
    print("held after loading: above what the process had before)\n" + "".join(f"{name:>11}" for name in COLUMNS))
    sizes, rows = sorted(set(args.sizes)), []
    try:
        top = tempfile.TemporaryDirectory(prefix="scale-", dir=args.folder or None)
    except OSError as error:
        raise UserError(f"--folder {args.folder}: {error.strerror}; name a folder that can be written") from error
    with top as folder:
        for size in sizes:
            rows.append(measure(size, args.steps, Path(folder), prefix, rlimit))
            print(line(size, rows[-1]), flush=True)
    print("\n".join(growth(sizes, rows)))
    return 0


def main() -> int:
    parser = Parser("bench/scale.py", __doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="training images")
    parser.add_argument("--steps", type=int, default=60, help="of training (60)")
    parser.add_argument("--memory-limit", type=int, default=0, metavar="MIB", help="hold training to this (no limit)")
    parser.add_argument("--folder", default="", help="where the images are built (default: the temporary folder)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"build": build, "train": train}[args.one["part"]](args.one)))
        return 0
    if min(args.sizes) < 2 * VAL_FACES or args.steps < 2:
        parser.error(f"--sizes: {2 * VAL_FACES} or more; --steps: 2 or more")
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

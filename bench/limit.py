"""What share of the machine's peak a training step reaches, and which operations limit it.

    python bench/limit.py [--models TheModel ImprovedFER2013Model] [--batch 128] [--device auto]

The peaks are measured here: matrix products and 3x3 convolutions in float32 and in the step's own format, and the
bandwidth of a large copy (bytes read plus bytes written). A step is one of `train.train_epoch`, from update to update.
Its operations are recorded as torch dispatches them, with copies of their arguments, and every different one is timed
again alone (torch.profiler would inflate whatever touches fresh memory: its own records disturb the heap). Alone and
repeated, an operation finds its data in the processor's cache, so the sum may fall below the step's time; what is
missing is Python, autograd and cold memory. Run it on an idle machine.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, which has a train.py too

from bench.common import header, load_random, median_seconds, new_trainer, train_steps
from cli import Parser
from config import MODELS, PRECISIONS, Config

WARM_UP, STEPS = 5, 15  # of training
REPEATS = 7  # of a measured peak
SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384), "mps": (2048, 4096)}  # of square matrices
CONVOLUTIONS = ((64, 24), (128, 24), (256, 12), (512, 12))  # channels, places a side: around those of the networks
COPY_BYTES = 2**28  # beyond any cache


# --- What the machine can do ---


class Peaks(NamedTuple):
    """The best measured rates: FLOP/s of products and convolutions by dtype, and bytes/s of a copy."""

    products: dict[Any, float]
    convolutions: dict[Any, float]
    bandwidth: float


def measure_peaks(machine: Any, batch: int, sizes: tuple[int, ...]) -> Peaks:
    """The Peaks of `machine`, in float32 and in its own format."""
    import torch

    device, products, convolutions = machine.device, {}, {}
    for dtype in dict.fromkeys((torch.float32, machine.dtype)):
        rates = []
        for size in sizes:
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            rates.append(2 * size**3 / median_seconds(lambda: left @ right, repeats=REPEATS, device=device))  # noqa: B023
        products[dtype] = max(rates)
        rates = []
        for channels, side in CONVOLUTIONS:
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
            layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)
            images = torch.randn(batch, channels, side, side, device=device).to(dtype)
            images = images.contiguous(memory_format=torch.channels_last)
            flops = 2 * 9 * channels**2 * side**2 * batch
            rates.append(flops / median_seconds(lambda: layer(images), repeats=REPEATS, device=device))  # noqa: B023
        convolutions[dtype] = max(rates)
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    seconds = median_seconds(lambda: target.copy_(source), repeats=REPEATS, device=device)
    return Peaks(products, convolutions, 2 * COPY_BYTES / seconds)


# --- Tables ---


def show_peaks(peaks: Peaks) -> None:
    for dtype, rate in peaks.products.items():
        name = str(dtype).removeprefix("torch.")
        print(
            f"peak, {name}: matrix product {rate / 1e9:.0f} GFLOP/s, 3x3 convolution forward "
            f"{peaks.convolutions[dtype] / 1e9:.0f} GFLOP/s"
        )
    print(f"peak, memory: copy {peaks.bandwidth / 1e9:.1f} GB/s")


def rate_of(row: Any, peaks: Peaks) -> str:
    """What a row reaches, and its share of the peak: GFLOP/s for products, GB/s for the rest."""
    if row.flops:
        rate, peak, unit = row.flops / row.seconds, peaks.products.get(row.dtype, 0.0), "GFLOP/s"
    else:
        rate, peak, unit = row.bytes / row.seconds, peaks.bandwidth, "GB/s"
    return f"{rate / 1e9:>8.0f} {unit:<7}" + (f"{rate / peak:>7.0%}" if peak else "")


def report(model: str, step: float, flops: float, rows: list[Any], peaks: Peaks, *, dtype: Any, top: int) -> None:
    """Print the step's figures, its longest operations and what limits it."""
    rate, total = flops / step, sum(row.seconds for row in rows)
    print(
        f"\n{model}: a step takes {step * 1e3:.1f} ms and {flops / 1e9:.1f} GFLOP: {rate / 1e9:.0f} GFLOP/s, "
        f"{rate / peaks.products[dtype]:.0%} of the matrix product's peak, "
        f"{rate / peaks.convolutions[dtype]:.0%} of the convolution's"
    )
    print(f"{'operation':<36}{'first arguments':<46}{'calls':>6}{'ms':>8}{'share':>7}{'reached':>16}{'of peak':>9}")
    rows = sorted(rows, key=lambda row: -row.seconds)
    for row in rows[:top]:
        print(
            f"{row.name:<36}{row.shapes:<46}{row.count:>6}{row.seconds * 1e3:>8.2f}{row.seconds / total:>7.1%}"
            f"{rate_of(row, peaks)}"
        )
    rest = sum(row.seconds for row in rows[top:])
    print(f"{f'{len(rows[top:])} others':<88}{rest * 1e3:>8.2f}{rest / total:>7.1%}")
    print(f"{'sum; measured step':<88}{total * 1e3:>8.2f}{step * 1e3:>8.2f}")
    products = sum(row.seconds for row in rows if row.flops)
    by_name: dict[str, float] = {}
    for row in rows:
        by_name[row.name] = by_name.get(row.name, 0.0) + row.seconds
    worst = max(by_name, key=lambda name: by_name[name])
    print(
        f"{worst} limits the step: {by_name[worst] * 1e3:.1f} ms of {step * 1e3:.1f}; products take "
        f"{products * 1e3:.1f} ms, at their peak they would take {flops / peaks.products[dtype] * 1e3:.1f}; "
        f"the rest {(total - products) * 1e3:.1f} ms",
        flush=True,
    )


def examine(model: str, args: argparse.Namespace, machine: Any, peaks: Peaks, folder: Path) -> None:
    """Train a few steps of `model`, record one, time its operations, and report."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from bench.ops import Recorder, timed

    config = Config(model=model, batch_size=args.batch, cache=str(folder / "cache"))
    trainer = new_trainer(config, load_random(config, max(8 * args.batch, 14)), machine, folder)
    step = statistics.median(train_steps(trainer, args.warm_up + args.steps + 1)[args.warm_up :])
    with FlopCounterMode(display=False) as counter:
        train_steps(trainer, 1)
    with Recorder() as recorder:
        train_steps(trainer, 1)
    del trainer
    with torch.no_grad():
        rows = [timed(call, machine.device) for call in recorder.calls.values()]
    report(model, step, counter.get_total_flops(), rows, peaks, dtype=machine.dtype, top=args.top)


def run(args: argparse.Namespace) -> int:
    from utils import pick_machine

    machine = pick_machine(args.device, args.precision)
    print("\n".join(header()))
    print(f"{machine}, batch {args.batch}")
    peaks = measure_peaks(machine, args.batch, tuple(args.sizes or SIZES[machine.device.type]))
    show_peaks(peaks)
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            examine(model, args, machine, peaks, Path(folder))
    return 0


def main() -> int:
    parser = Parser("bench/limit.py", __doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["TheModel", "ImprovedFER2013Model"])
    parser.add_argument("--batch", type=int, default=128, help="images per step (128)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the step, as in config.py (auto)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"whose median is taken ({STEPS})")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"steps before that ({WARM_UP})")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the square matrices whose product is the peak")
    parser.add_argument("--top", type=int, default=15, help="operations in the table (15)")
    args = parser.parse_args()
    if min(args.batch - 1, args.steps, args.warm_up + 1, *(args.sizes or [1])) < 1:
        parser.error("--batch: 2 or more; --steps and --sizes: 1 or more; --warm-up: 0 or more")
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

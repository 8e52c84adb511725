"""What each measure brings to one training step: a table of images/s, every row with all above it.

    python bench/step.py [--repeats 3]

Every cell is the median over as many fresh processes of a median of 11 steps after 3 to warm up, on random images,
batch 128, Adam; the variants take turns. Run it on an idle machine and read the ratios.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

BATCH, WARM_UP, STEPS = 128, 3, 11
MODELS = ("TheModel", "ImprovedFER2013Model")
MEASURES = (
    "float32, contiguous",  # ReLU before pooling, as people write it
    "weights channels_last",
    "bfloat16 autocast",
    "freed memory kept",
    "input channels_last too",
    "ReLU after pooling",
)


def measure(name: str, measures: int) -> float:
    """Images per second of training steps in this process, with the first `measures` of MEASURES."""
    import torch

    from bench.common import relu_first
    from model import build_model
    from utils import channels_last, keep_freed_memory

    on = dict(zip(MEASURES, [True] * measures + [False] * len(MEASURES), strict=False))
    if on["freed memory kept"]:
        keep_freed_memory()
    torch.manual_seed(0)
    layout = torch.channels_last if on["weights channels_last"] else torch.contiguous_format
    model = build_model(name).to(memory_format=layout)
    if not on["ReLU after pooling"]:
        relu_first(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.randn(BATCH, 1, 48, 48)
    if on["input channels_last too"]:
        images = channels_last(images)
    labels = torch.randint(0, 7, (BATCH,))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=on["bfloat16 autocast"]):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.median(seconds[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3, help="processes per cell (default: 3)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "ROW"), help="measure one cell in this process")
    args = parser.parse_args()
    if args.one:
        name, row = args.one
        print(measure(name, MEASURES.index(row) + 1))
        return
    cells: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.repeats):
        for name in MODELS:
            for row in MEASURES:
                command = [sys.executable, __file__, "--one", name, row]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                cells.setdefault((name, row), []).append(float(done.stdout))
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'':<24}" + "".join(f"{name:>22}" for name in MODELS))
    for row in MEASURES:
        print(f"{row:<24}" + "".join(f"{statistics.median(cells[name, row]):>22.0f}" for name in MODELS))


if __name__ == "__main__":
    main()

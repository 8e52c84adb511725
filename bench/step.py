"""What memory layout, bfloat16 and the allocator bring to one training step: a table of images/s.

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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BATCH, WARM_UP, STEPS = 128, 3, 11
VARIANTS = {  # channels_last, bfloat16, freed memory kept
    "float32, contiguous": (False, False, False),
    "channels_last": (True, False, False),
    "bfloat16 autocast": (True, True, False),
    "freed memory kept": (True, True, True),
}
MODELS = ("TheModel", "ImprovedFER2013Model")


def measure(name: str, *, channels_last: bool, bfloat16: bool, keep: bool) -> float:
    """Images per second of training steps in this process."""
    import torch

    from model import build_model
    from utils import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(name).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.randn(BATCH, 1, 48, 48).contiguous(memory_format=layout)
    labels = torch.randint(0, 7, (BATCH,))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.median(seconds[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3, help="processes per cell (default: 3)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "VARIANT"), help="measure one cell in this process")
    args = parser.parse_args()
    if args.one:
        name, variant = args.one
        channels_last, bfloat16, keep = VARIANTS[variant]
        print(measure(name, channels_last=channels_last, bfloat16=bfloat16, keep=keep))
        return
    cells: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.repeats):
        for name in MODELS:
            for variant in VARIANTS:
                command = [sys.executable, __file__, "--one", name, variant]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                cells.setdefault((name, variant), []).append(float(done.stdout))
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'':<22}" + "".join(f"{name:>22}" for name in MODELS))
    for variant in VARIANTS:
        print(f"{variant:<22}" + "".join(f"{statistics.median(cells[name, variant]):>22.0f}" for name in MODELS))


if __name__ == "__main__":
    main()

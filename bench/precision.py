"""What bfloat16 costs in accuracy: paired runs, the same seed in both formats, and the interval of their difference.

    python bench/precision.py --data archive.zip --model TheModel -- --epochs 6 --schedule onecycle

What stands after `--` goes to interface.py. Every run is a process of its own; the figure is the validation
accuracy after the last epoch, so nothing is selected. The runs stay in --runs, and one that is there is not run again.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Student's t, two-sided 95 %, by degrees of freedom
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def accuracies(run: Path, command: list[str]) -> tuple[float, float]:
    """Official and unseen validation accuracy in percent after the last epoch of `run`, trained now if need be."""
    if not (run / "confusion.png").exists():  # written at the very end
        go = ["--resume", str(run)] if (run / "last.pth").exists() else [*command, "--run", run.name]
        subprocess.run([sys.executable, str(ROOT / "interface.py"), *go], check=True, stdout=subprocess.DEVNULL)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return 100 * last["val_accuracy"], 100 * last["val_accuracy_unseen"]


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean of paired differences, and half of its 95 % interval by Student's t."""
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), T95[len(differences) - 1] * spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", required=True, help="the dataset, as for interface.py")
    parser.add_argument("--model", default="TheModel")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11), metavar="N")
    parser.add_argument("--runs", default="runs/precision", help="folder of the runs")
    parser.add_argument("rest", nargs="*", help="further flags of interface.py, after --")
    args = parser.parse_args()
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{args.model} {' '.join(args.rest)}: validation accuracy in %, official / without copies")
    gaps: list[tuple[float, float]] = []
    for seed in range(args.seeds):
        row = []
        for precision in ("fp32", "bf16"):
            run = Path(args.runs, f"{args.model}-{precision}-{seed}")
            command = ["--data", args.data, "--model", args.model, "--seed", str(seed), "--precision", precision]
            row.append(accuracies(run, [*command, "--runs", args.runs, *args.rest]))
        (official32, unseen32), (official16, unseen16) = row
        gaps.append((official16 - official32, unseen16 - unseen32))
        print(f"seed {seed}  fp32 {official32:.2f} / {unseen32:.2f}  bf16 {official16:.2f} / {unseen16:.2f}  "
              f"difference {gaps[-1][0]:+.2f} / {gaps[-1][1]:+.2f}", flush=True)  # fmt: skip
    for name, values in zip(("official", "without copies"), zip(*gaps, strict=True), strict=True):
        mean, half = interval(list(values))
        print(f"bf16 - fp32, {name}: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}")


if __name__ == "__main__":
    main()

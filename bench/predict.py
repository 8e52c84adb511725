"""Our prediction of a zip against the usual way, and against another commit: images/s, peak memory, whole commands.

    python -m bench.predict [--data archive.zip] [--rounds 5] [--models TheModel EmotionResNet-small]
    python -m bench.predict --against ../other --data archive.zip

The usual way is what people write in an afternoon: Pillow, torchvision's transforms, batches stacked and run in float32
under no_grad, softmax, a CSV with a row per image; from unpacked files, with the best batch size (a pilot round finds
it). Ours is what `python predict.py ZIP --quiet --csv FILE` does with the same files in a zip. Both count from before
the weights are read to the finished table, imports left out, on the CPU, with the same weights, of one epoch on a few
images. The images are those of --data's validation part (PublicTest), or rendered faces.

--against runs predict.py of another checkout (`git worktree add ../other COMMIT`) and of this one on that zip and on
one image; it also times the logits of one image, the network being loaded.

Every cell is a fresh process; the cells take turns. Shown are medians over the rounds, the ratio of two medians, and
the smallest and largest ratio within a round. Memory is our peak above a bare `import torch`'s (Linux). Run it on an
idle machine.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import common
from cli import Parser
from config import CLASSES, MODELS, Config
from errors import exit_status

TINY = 70  # images that the weights are trained on


def usual_way(cell: common.Cell) -> dict[str, float]:
    """Seconds of the usual way, from the weights to the finished table."""
    import csv

    import torch
    from PIL import Image
    from torchvision import transforms

    from model import build_model

    start = time.perf_counter()
    content = torch.load(cell["weights"], map_location="cpu", weights_only=True)
    model = build_model(content["model"], **content["arguments"])
    model.load_state_dict(content["state_dict"])
    model.eval()
    steps = [transforms.Grayscale(), transforms.Resize((48, 48)), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    transform = transforms.Compose(steps)
    paths = sorted(Path(cell["folder"]).rglob("*.png"))
    size = cell["batch"] or len(paths)
    with open(cell["table"], "w", newline="") as file, torch.no_grad():
        writer = csv.writer(file)
        writer.writerow(["file", "prediction", "probability", *CLASSES])
        for first in range(0, len(paths), size):
            chosen = paths[first : first + size]
            images = torch.stack([transform(Image.open(path)) for path in chosen])
            for path, values in zip(chosen, model(images).softmax(1).tolist(), strict=True):
                best = max(range(7), key=values.__getitem__)
                writer.writerow([path, CLASSES[best], values[best], *values])
    return {"seconds": time.perf_counter() - start}


def command(*arguments: str, folder: Path) -> dict[str, float]:
    """Wall seconds of a whole `python ARGUMENTS` in `folder`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - start}


class Inputs:
    """What is predicted, in `folder`: faces/ and faces.zip of `count` images, one.png; and weights of each checkout."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        from dataset import load

        self.folder = folder
        data = load(Config(data=args.data, cache=args.cache, limit=TINY))
        val, rows = data.split("val"), slice(args.images or None)
        self.count = len(val.labels[rows])
        common.write_dataset(data, folder / "tiny")
        common.write_faces({"faces": (val.images[rows], val.labels[rows])}, folder / "faces")
        shutil.copy(next((folder / "faces").rglob("*.png")), folder / "one.png")

    def weights(self, checkout: Path, model: str) -> str:
        """The path of weights of the network `model`, which `checkout` trains for an epoch unless they are there."""
        run = self.folder / f"{'here' if checkout == common.ROOT else 'there'}-{model}"
        if not run.exists():
            common.train_in(run, checkout, ["--data", str(self.folder / "tiny.zip"), "--model", model], epochs=1)
        return str(run / "run" / "best.pth")

    def zip(self, checkout: Path, model: str) -> dict[str, float]:
        """Images/s and peak memory of predict.py of `checkout` on faces.zip, on the CPU."""
        flags = ["--weights", self.weights(checkout, model), "--device", "cpu", "--quiet"]
        flags += ["--csv", str(self.folder / "table.csv"), str(self.folder / "faces.zip")]
        found = common.run_cell("drive.py", {"part": "predict", "flags": flags}, checkout=checkout, cwd=self.folder)
        return {"rate": self.count / found["seconds"], **found}

    def logits(self, checkout: Path, model: str) -> dict[str, float]:
        """Seconds of the logits of one image, the network being loaded."""
        cell = {"part": "image", "weights": self.weights(checkout, model)}
        return common.run_cell("drive.py", cell, checkout=checkout, cwd=self.folder)

    def one(self, checkout: Path, model: str) -> dict[str, float]:
        """Seconds of the whole command that predicts one image."""
        flags = ["one.png", "--weights", self.weights(checkout, model)]
        return command(str(checkout / "predict.py"), *flags, folder=self.folder)

    def usual(self, batch: int, model: str) -> dict[str, float]:
        """Images/s of the usual way."""
        cell = {"weights": self.weights(common.ROOT, model), "folder": str(self.folder / "faces"), "batch": batch}
        found = common.run_cell("predict.py", {**cell, "table": str(self.folder / "table.csv")})
        return {"rate": self.count / found["seconds"]}


# --- Tables ---


def compare(args: argparse.Namespace, model: str, inputs: Inputs) -> None:
    """Measure both ways with one network, and print the row of their table."""
    usual = {batch: partial(inputs.usual, batch, model) for batch in args.batches}
    pilot = {batch: found[0]["rate"] for batch, found in common.take_turns(usual, 1, label="pilot").items()}
    batch = max(pilot, key=pilot.__getitem__)
    cells = {"usual": usual[batch], "ours": partial(inputs.zip, common.ROOT, model)}
    found = common.take_turns(cells, args.rounds, label=model)
    theirs, mine = ([row["rate"] for row in found[name]] for name in ("usual", "ours"))
    peak, base = (statistics.median(row[name] for row in found["ours"]) for name in ("peak", "torch"))
    medians = "".join(f"{statistics.median(rates):>12.0f}" for rates in (theirs, mine))
    memory = f"{peak - base:.0f} MB above {base:.0f}"
    print(f"{model:<24}{batch or 'all':>8}{medians}{common.ratio(mine, theirs):>22}{memory:>24}", flush=True)


def starts(args: argparse.Namespace, inputs: Inputs) -> None:
    """Print the wall time of whole commands, against that of `import torch`."""
    cells = {
        'python -c "import torch"': partial(command, "-c", "import torch", folder=inputs.folder),
        "python predict.py --help": partial(command, str(common.ROOT / "predict.py"), "--help", folder=inputs.folder),
        "python predict.py one.png": partial(inputs.one, common.ROOT, args.models[0]),
    }
    found = common.take_turns(cells, args.rounds, label="whole commands")
    seconds = {name: [row["seconds"] for row in rows] for name, rows in found.items()}
    print(f"\n{'whole command':<28}{'seconds':>12}{'ratio (min-max)':>22}")
    for name, each in seconds.items():
        shown = common.ratio(each, next(iter(seconds.values())))
        print(f"{name:<28}{statistics.median(each):>12.2f}{shown:>22}", flush=True)


def run(args: argparse.Namespace) -> int:
    print("\n".join(common.header()))
    with common.scratch() as folder:
        inputs = Inputs(args, Path(folder))
        print(f"{inputs.count:,} images of {args.data}, medians over {args.rounds} rounds")
        if args.against:
            versus = common.Against(args.against, args.rounds)
            for model in args.models:
                versus.row(f"{model}, zip", partial(inputs.zip, model=model), "rate", "images/s")
                versus.row(f"{model}, logits of one image", partial(inputs.logits, model=model), "seconds", "s")
                versus.row(f"{model}, command for one image", partial(inputs.one, model=model), "seconds", "s")
            return 0
        columns = f"{'batch':>8}{'usual':>12}{'ours':>12}{'ratio (min-max)':>22}{'memory of ours':>24}"
        print(f"{'images/s':<24}{columns}", flush=True)
        for model in args.models:
            compare(args, model, inputs)
        starts(args, inputs)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.predict", __doc__.splitlines()[0])
    parser.add_argument("--data", default="demo", metavar="PATH", help="the dataset (default: rendered faces)")
    parser.add_argument("--cache", default=Config().cache, help="folder for decoded images")
    parser.add_argument("--rounds", type=int, default=5, help="processes per cell (5)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["TheModel", "EmotionResNet-small"])
    parser.add_argument("--images", type=int, default=0, help="predict the first N (0: all)", metavar="N")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 0], help="of the usual way, to try; 0 is all")
    parser.add_argument("--against", metavar="CHECKOUT", help="compare with the code in this folder")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    args = parser.parse_args(argv)
    if args.rounds < 1 or min(args.images, *args.batches) < 0:
        parser.error("--rounds: 1 or more; --images and --batches: 0 or more")
    if args.one:
        print(json.dumps(usual_way(args.one)))
        return 0
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

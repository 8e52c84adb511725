"""Our prediction of a zip against the usual way, and against another commit: images/s, a whole command.

    python -m bench.predict [--data archive.zip] [--rounds 5] [--models TheModel EmotionResNet-small]
    python -m bench.predict --against ../other --data archive.zip

The usual way is what people write in an afternoon: Pillow, torchvision's transforms, batches of 64 stacked and run in
float32 under no_grad, softmax, a CSV with a row per image; from unpacked files. Ours is what
`python predict.py ZIP --quiet --csv FILE` does with the same files in a zip. Both count from before the weights are
read to the finished table, imports left out, on the CPU, with the same weights, of one epoch on 70 of the images. The
images are those of --data's validation part, as PNG.

--against runs predict.py of another checkout and of this one on that zip and on one image; it also times the logits of
one image, the network being loaded. Cells and ratios are as in bench/train.py. Run it on an idle machine.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from bench import common
from cli import Parser
from config import CLASSES, Config
from dataset import load
from errors import exit_status
from model import build_model

USUAL_BATCH = 64  # of 1, 64 and all at once the fastest


def usual_way(cell: common.Cell) -> dict[str, float]:
    """Images/s of the usual way, from the weights to the finished table."""
    start = time.perf_counter()
    content = torch.load(cell["weights"], map_location="cpu", weights_only=True)
    model = build_model(content["model"], **content["arguments"])
    model.load_state_dict(content["state_dict"])
    model.eval()
    steps = [transforms.Grayscale(), transforms.Resize((48, 48)), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    transform = transforms.Compose(steps)
    paths = sorted(Path("faces").rglob("*.png"))
    with open("usual.csv", "w", newline="") as file, torch.no_grad():
        writer = csv.writer(file)
        writer.writerow(["file", "prediction", "probability", *CLASSES])
        for first in range(0, len(paths), USUAL_BATCH):
            chosen = paths[first : first + USUAL_BATCH]
            images = torch.stack([transform(Image.open(path)) for path in chosen])
            for path, values in zip(chosen, model(images).softmax(1).tolist(), strict=True):
                best = max(range(7), key=values.__getitem__)
                writer.writerow([path, CLASSES[best], values[best], *values])
    return {"rate": len(paths) / (time.perf_counter() - start)}


class Inputs:
    """What is predicted, in `folder`: faces/ and faces.zip of `count` images; and weights of each checkout."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        val, rows = load(Config(data=args.data, cache=args.cache)).split("val"), slice(args.images or None)
        self.folder, self.count = folder, len(val.labels[rows])
        common.write_faces({"train": (val.images[rows], val.labels[rows])}, folder / "faces")

    def weights(self, checkout: Path, model: str) -> str:
        """The path of weights of the network `model`, which `checkout` trains for an epoch unless they are there."""
        run = self.folder / f"{'here' if checkout == common.ROOT else 'there'}-{model}"
        if not run.exists():
            flags = ["--data", str(self.folder / "faces.zip"), "--limit", "70", "--model", model]
            common.train_in(run, checkout, flags, epochs=1)
        return str(run / "run" / "best.pth")

    def usual(self, model: str) -> dict[str, float]:
        """Images/s of the usual way."""
        return common.run_cell("predict.py", {"weights": self.weights(common.ROOT, model)}, cwd=self.folder)

    def zip(self, checkout: Path, model: str) -> dict[str, float]:
        """Images/s of predict.py of `checkout` on faces.zip, on the CPU."""
        weights = ["--weights", self.weights(checkout, model)]
        table = "here.csv" if checkout == common.ROOT else "there.csv"
        flags = ["faces.zip", *weights, "--device", "cpu", "--quiet", "--csv", table]
        cell = {"part": "predict", "flags": flags}
        found = common.run_cell("drive.py", cell, checkout=checkout, cwd=self.folder)
        return {"rate": self.count / found["seconds"]}

    def logits(self, checkout: Path, model: str) -> dict[str, float]:
        """Seconds of the logits of one image, the network being loaded."""
        cell = {"part": "image", "weights": self.weights(checkout, model)}
        return common.run_cell("drive.py", cell, checkout=checkout, cwd=self.folder)

    def command(self, checkout: Path, model: str) -> dict[str, float]:
        """Wall seconds of the whole command that predicts one image."""
        face, weights = next((self.folder / "faces").rglob("*.png")), self.weights(checkout, model)
        command = [sys.executable, str(checkout / "predict.py"), str(face), "--weights", weights]
        start = time.perf_counter()
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - start}


def compare(args: argparse.Namespace, inputs: Inputs) -> None:
    """Print a row for each network, measured both ways."""
    print(f"{'images/s':<24}{'usual':>12}{'ours':>12}{'ratio (min-max)':>22}")
    for model in args.models:
        cells = {"usual": partial(inputs.usual, model), "ours": partial(inputs.zip, common.ROOT, model)}
        found = common.take_turns(cells, args.rounds, label=model)
        usual, ours = ([row["rate"] for row in rows] for rows in found.values())
        medians = "".join(f"{statistics.median(rates):>12.0f}" for rates in (usual, ours))
        print(f"{model:<24}{medians}{common.ratio(ours, usual):>22}", flush=True)


def against(args: argparse.Namespace, inputs: Inputs) -> None:
    """Print how fast another checkout and this one predict."""
    rows = []
    for model in args.models:
        rows += [
            (f"{model}, zip", partial(inputs.zip, model=model), "rate", "images/s"),
            (f"{model}, logits of one image", partial(inputs.logits, model=model), "seconds", "s"),
            (f"{model}, command for one image", partial(inputs.command, model=model), "seconds", "s"),
        ]
    common.compare_checkouts(args.against, args.rounds, rows)


def run(args: argparse.Namespace) -> int:
    print(common.header())
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(args, Path(folder))
        print(f"{inputs.count:,} images of {args.data}, medians over {args.rounds} rounds")
        against(args, inputs) if args.against else compare(args, inputs)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.predict", __doc__.splitlines()[0])
    args = common.parse(parser, argv, models=["TheModel", "EmotionResNet-small"], images=0)
    if args.one:
        print(json.dumps(usual_way(args.one)))
        return 0
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

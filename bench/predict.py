"""Our prediction of a zip against the usual way, and against another commit: images/s, memory, whole commands.

    python -m bench.predict [--data archive.zip] [--rounds 5] [--models TheModel EmotionResNet-small]
    python -m bench.predict --against ../other --data archive.zip

The usual way is what people write in an afternoon: Pillow, torchvision's transforms, batches stacked and run in float32
under no_grad, softmax, a CSV with a row per image; from unpacked files, with the best batch size (a pilot round finds
it). Ours is what `python predict.py ZIP --quiet --csv FILE` does with the same files in a zip. Both count from before
the weights are read to the finished table, imports left out, on the CPU, with the same weights, of one epoch on a few
images. The images are those of --data's validation part (PublicTest), as PNG. Memory is our peak above that of a bare
`import torch` (Linux).

--against runs predict.py of another checkout (`git worktree add ../other COMMIT`) and of this one on that zip and on
one image; it also times the logits of one image, the network being loaded.

Cells and ratios are as in bench/train.py. Run it on an idle machine.
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
from config import CLASSES, Config
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

        self.folder, self.table = folder, str(folder / "table.csv")
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

    def usual(self, batch: int, model: str) -> dict[str, float]:
        """Images/s of the usual way."""
        cell = {"weights": self.weights(common.ROOT, model), "folder": str(self.folder / "faces"), "batch": batch}
        return {"rate": self.count / common.run_cell("predict.py", {**cell, "table": self.table})["seconds"]}

    def zip(self, checkout: Path, model: str) -> dict[str, float]:
        """Images/s and memory of predict.py of `checkout` on faces.zip, on the CPU."""
        flags = [str(self.folder / "faces.zip"), "--weights", self.weights(checkout, model), "--device", "cpu"]
        cell = {"part": "predict", "flags": [*flags, "--quiet", "--csv", self.table]}
        found = common.run_cell("drive.py", cell, checkout=checkout, cwd=self.folder)
        return {"rate": self.count / found["seconds"], **found}

    def logits(self, checkout: Path, model: str) -> dict[str, float]:
        """Seconds of the logits of one image, the network being loaded."""
        cell = {"part": "image", "weights": self.weights(checkout, model)}
        return common.run_cell("drive.py", cell, checkout=checkout, cwd=self.folder)

    def one(self, checkout: Path, model: str) -> dict[str, float]:
        """Seconds of the whole command that predicts one image."""
        weights = ["--weights", self.weights(checkout, model)]
        return command(str(checkout / "predict.py"), "one.png", *weights, folder=self.folder)


def compare(args: argparse.Namespace, model: str, inputs: Inputs) -> None:
    """Measure both ways with one network, and print the row of their table."""
    usual = {batch: partial(inputs.usual, batch, model) for batch in args.batches}
    pilot = {batch: found[0]["rate"] for batch, found in common.take_turns(usual, 1, label="pilot").items()}
    batch = max(pilot, key=pilot.__getitem__)
    cells = {"usual": usual[batch], "ours": partial(inputs.zip, common.ROOT, model)}
    found = common.take_turns(cells, args.rounds, label=model)
    usual, ours = ([row["rate"] for row in rows] for rows in found.values())
    medians = "".join(f"{statistics.median(rates):>12.0f}" for rates in (usual, ours))
    memory = statistics.median(row["peak"] - row["torch"] for row in found["ours"])
    print(f"{model:<24}{batch or 'all':>8}{medians}{common.ratio(ours, usual):>22}{memory:>16.0f}", flush=True)


def whole_commands(args: argparse.Namespace, inputs: Inputs) -> None:
    """Print the wall time of whole commands, against that of `import torch`."""
    cells = {
        'python -c "import torch"': partial(command, "-c", "import torch", folder=inputs.folder),
        "python predict.py --help": partial(command, str(common.ROOT / "predict.py"), "--help", folder=inputs.folder),
        "python predict.py one.png": partial(inputs.one, common.ROOT, args.models[0]),
    }
    found = common.take_turns(cells, args.rounds, label="whole commands")
    seconds = {name: [row["seconds"] for row in rows] for name, rows in found.items()}
    for name, each in seconds.items():
        shown = common.ratio(each, next(iter(seconds.values())))
        print(f"{name:<32}{statistics.median(each):>10.2f} s{shown:>22} of the import's", flush=True)


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
        print(f"{'images/s':<24}{'batch':>8}{'usual':>12}{'ours':>12}{'ratio (min-max)':>22}{'memory, MB':>16}")
        for model in args.models:
            compare(args, model, inputs)
        whole_commands(args, inputs)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.predict", __doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 0], help="of the usual way, to try; 0 is all")
    args = common.parse(parser, argv, models=["TheModel", "EmotionResNet-small"], images=0)
    if args.one:
        print(json.dumps(usual_way(args.one)))
        return 0
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""Our training against the plain PyTorch loop, and against another commit: images/s.

    python -m bench.train [--data PATH] [--rounds 5] [--images 3840] [--models TheModel ImprovedFER2013Model]
    python -m bench.train --against ../other --data archive.zip --models TheModel EmotionResNet-small

The plain loop is what people write in an afternoon: ImageFolder over files, torchvision's transforms with the same
augmentation (flip, rotate, shift, zoom), a DataLoader, the same network, loss and optimizer. Ours is
`python interface.py` on a zip of the same files. The first epoch counts from before the data are opened, and for ours
with the first checkpoint and the scoring; the later epochs count training alone.

--against runs interface.py of another checkout (`git worktree add ../other COMMIT`) and of this one, with the same
settings: the first epoch of the first model on all images with no cache, and later epochs on --images of them.

Every cell is a fresh process, imports left out; the cells take turns. Shown are medians over the rounds, the ratio of
two medians, and the smallest and largest ratio within a round. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from bench import common
from cli import Parser
from config import Config
from dataset import load
from errors import exit_status
from losses import make_loss
from model import build_model

PLAIN = ("plain, float32", "plain, float32, channels_last", "plain, bfloat16 autocast")
LATER_EPOCHS = 2  # of ours
# Flags that give ours the plain loop's work, and two checkouts the same work, whatever their defaults are
WORK = "--batch-size 128 --shift 4 --rotation 12 --zoom 0.1 --cutmix 0"
AS_PLAIN = f"{WORK} --contrast 0 --brightness 0 --mixup 0 --ema 0 --label-smoothing 0 --optimizer adam --lr 0.001"
SAME = f"{WORK} --contrast 0.3 --brightness 0.1 --mixup 0.4 --ema 0.998 --loss cross_entropy --optimizer sgd --lr 0.05"


# --- One cell, in its own process ---


def plain_loop(cell: common.Cell) -> dict[str, float]:
    """Two epochs of the plain loop: seconds of the first, from before the folder is listed, images/s of the second."""
    config = common.config_for(common.settings_after(cell["flags"]))
    layout = torch.channels_last if "channels_last" in cell["variant"] else torch.contiguous_format
    device, workers = torch.device(cell["device"]), cell["workers"]
    torch.manual_seed(0)
    torch.zeros(1, device=device)  # a GPU is initialised before the clock starts
    start = time.perf_counter()
    moves = transforms.RandomAffine(
        config.rotation, translate=(config.shift / 48,) * 2, scale=(1 - config.zoom, 1 + config.zoom)
    )
    steps = [transforms.Grayscale(), transforms.RandomHorizontalFlip(), moves, transforms.ToTensor()]
    folder = datasets.ImageFolder(cell["folder"], transforms.Compose([*steps, transforms.Normalize(0.5, 0.5)]))
    loader = DataLoader(folder, config.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = build_model(config.model, **config.arguments).to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loss_of, _ = make_loss(config, torch.bincount(torch.tensor(folder.targets), minlength=7).tolist())
    seconds = []
    for _ in range(2):
        running_loss = 0.0
        for images, labels in loader:
            images, labels = images.to(device, memory_format=layout), labels.to(device)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled="bfloat16" in cell["variant"]):
                loss = loss_of(model(images), labels).mean()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return {"first": seconds[0], "later": len(folder) / seconds[1]}


# --- Tables ---


def ours(checkout: Path, flags: Sequence[str], epochs: int) -> dict[str, float]:
    """What `common.train_in` gives, in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        return common.train_in(Path(folder, "new"), checkout, flags, epochs=epochs)


def compare(args: argparse.Namespace, model: str, folder: Path, images: int) -> None:
    """Measure ours and the plain loops on one model; print their table."""
    flags = ["--model", model, *AS_PLAIN.split()]
    cell = {"flags": flags, "device": args.device, "folder": f"{folder}/train", "workers": args.workers}
    cells = {loop: partial(common.run_cell, "train.py", {**cell, "variant": loop}) for loop in PLAIN}
    places = ["--data", f"{folder}.zip", "--device", args.device]
    cells["ours"] = partial(ours, common.ROOT, [*flags, *places], 1 + LATER_EPOCHS)
    found = common.take_turns(cells, args.rounds, label=model)
    rates = {
        name: ([images / row["first"] for row in rows], [row["later"] for row in rows]) for name, rows in found.items()
    }
    print(f"\n{model:<44}{'images/s: first, later epochs':>32}{'ours to it: first, later epochs':>44}")
    for name, both in rates.items():
        medians = "".join(f"{statistics.median(values):>16.0f}" for values in both)
        ratios = "".join(f"{common.ratio(mine, its):>22}" for mine, its in zip(rates["ours"], both, strict=True))
        print(f"{name:<44}{medians}{ratios}", flush=True)


def against(args: argparse.Namespace) -> None:
    """Print how fast another checkout and this one train."""
    data = args.data if args.data == "demo" else os.path.abspath(args.data)
    flags = {model: ["--data", data, "--model", model, *SAME.split()] for model in args.models}
    first = partial(ours, flags=flags[args.models[0]], epochs=1)
    rows = [(f"{args.models[0]}, first epoch, all images", first, "first", "s")]
    for model in args.models:
        later = partial(ours, flags=[*flags[model], "--limit", str(args.images)], epochs=1 + LATER_EPOCHS)
        rows.append((f"{model}, later epochs", later, "later", "images/s"))
    common.compare_checkouts(args.against, args.rounds, rows)


def run(args: argparse.Namespace) -> int:
    print(common.header())
    if args.against:
        against(args)
        return 0
    args.device = "cuda" if torch.cuda.is_available() else "cpu"  # of both loops
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "faces")
        images = common.write_dataset(load(Config(data=args.data, cache=args.cache, limit=args.images)), folder)
        print(f"{images} images of {args.data}, batches of 128, {args.device}, medians over {args.rounds} rounds")
        for model in args.models:
            compare(args, model, folder, images)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.train", __doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="of the plain loops (2; try 0 and 1 too)")
    args = common.parse(parser, argv, models=["TheModel", "ImprovedFER2013Model"], images=3840)
    if args.one:
        print(json.dumps(plain_loop(args.one)))
        return 0
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

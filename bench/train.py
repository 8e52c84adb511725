"""Our training loop against the plain PyTorch loop: images/s of the first epoch and of a later one.

    python bench/train.py [--data PATH] [--rounds 5] [--images 3840] [--models TheModel ImprovedFER2013Model]
    python bench/train.py --augment-share

The plain loop is what people write in an afternoon: ImageFolder over unpacked files, torchvision's transforms with the
augmentation of config.py (flip, turn, move, scale), a DataLoader with the best number of workers (a pilot round over
0, 1 and 2 tells), the same network (with ReLU before pooling, as it is written everywhere; ours has it after, which
gives the same numbers), the same loss, Adam. Two more rows have that loop with channels_last, and with bfloat16
autocast. Ours is what `python interface.py --data ZIP` does, on a zip of the same files. The first epoch counts from
before the data are opened: listing and decoding, and building the network. Every cell is a fresh process, imports left
out; the cells take turns. Ratios are taken within a round; the median over the rounds is shown. Without --data the
faces are drawn. Run it on an idle machine.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, where `train` is this file

from bench.common import header, load_random, new_trainer, ratios, relu_first, take_turns, train_steps
from cli import Parser
from config import CLASSES, MODELS, Config

PLAIN = {  # channels_last, bfloat16
    "float32": (False, False),
    "channels_last": (True, False),
    "bfloat16": (False, True),
}
LABELS = {
    "float32": "plain, float32",
    "channels_last": "plain, float32, channels_last",
    "bfloat16": "plain, bfloat16 autocast",
    "ours": "ours",
}
EPOCHS = ("first", "steady")
PILOT_WORKERS = (0, 1, 2)
SHARE_STEPS = 20


# --- One cell, in its own process ---


def plain_loop(cell: dict[str, Any]) -> list[float]:
    """Seconds of two epochs of the loop that everyone writes; the first from before the folder is listed."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from losses import make_loss
    from model import build_model

    knobs = {name: cell[name] for name in ("width", "batch_size") if name in cell}
    config = Config(model=cell["model"], **knobs)
    channels_last, bfloat16 = PLAIN[cell["variant"]]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device, workers = torch.device(cell["device"]), cell["workers"]
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.init()  # as pick_machine has done in our loop before its clock starts
    start = time.perf_counter()
    transform = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(
                config.rotation, translate=(config.shift / 48,) * 2, scale=(1 - config.zoom, 1 + config.zoom)
            ),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )
    folder = datasets.ImageFolder(cell["folder"], transform)
    loader = DataLoader(folder, config.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = relu_first(build_model(config.model, **config.arguments)).to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loss_of, _ = make_loss(config, torch.bincount(torch.tensor(folder.targets), minlength=7).tolist())
    seconds = []
    for _ in EPOCHS:
        running_loss = 0.0
        for images, labels in loader:
            images, labels = images.to(device, memory_format=layout), labels.to(device)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                loss = loss_of(model(images), labels).mean()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds


def our_loop(cell: dict[str, Any]) -> list[float]:
    """Seconds of two epochs of what interface.py does; the first from before the zip is opened, into a new cache."""
    import torch._dynamo  # noqa: F401 (the first optimizer imports it; in the plain loop, torchvision has)

    from dataset import load
    from train import StopRequest, train_epoch
    from utils import pick_machine

    # Windows keeps the cache, which the trainer has open, until this process ends
    with tempfile.TemporaryDirectory(dir=Path(cell["folder"]).parent, ignore_cleanup_errors=True) as folder:
        config = Config(model=cell["model"], data=cell["zip"], cache=f"{folder}/cache", device=cell["device"])
        machine = pick_machine(config.device, config.precision, config.threads)
        start = time.perf_counter()
        trainer = new_trainer(config, load(config), machine, Path(folder))
        if len(trainer.data.split("train")) != cell["images"]:
            raise RuntimeError(f"the loops differ in images: {len(trainer.data.split('train'))} and {cell['images']}")
        seconds = []
        for _ in EPOCHS:
            train_epoch(trainer, StopRequest())
            trainer.epoch, trainer.step = trainer.epoch + 1, 0
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    return seconds


def measure(cell: dict[str, Any]) -> dict[str, float]:
    """Images/s of both epochs."""
    seconds = our_loop(cell) if cell["variant"] == "ours" else plain_loop(cell)
    return {epoch: cell["images"] / each for epoch, each in zip(EPOCHS, seconds, strict=True)}


# --- The same images as a folder and as a zip ---


def write_images(path: str, images: int, folder: Path) -> int:
    """Write about `images` training files of the folder or zip `path`, every class in its share, and a few to
    validate on, as `folder`/train/<class>/*, `folder`/val/<class>/* and `folder`.zip; the number in train.

    Raises UserError where `path` cannot be read as a dataset of files, or has no image left to validate on.
    """
    import numpy as np

    from dataset import stratified_rows
    from errors import UserError
    from readers.sources import open_dataset

    source = open_dataset(Path(path))
    if source.kind not in ("folder", "zip") or source.part is None:  # a table, or a zip of one
        raise UserError(f"--data {path}: the plain loop reads files; name a folder or a zip of images")
    items = [item for item in source.items() if item.label >= 0 and not item.problem]
    train = [item for item in items if item.split in ("", "train")]
    rows = stratified_rows(np.array([item.label for item in train]), min(images, len(train)))
    chosen = {train[row].name: ("train", train[row].label) for row in rows}
    others = {item.label: item.name for item in items if item.name not in chosen}  # one of each class
    if not others:
        raise UserError(f"--images {images}: that leaves {path} no image to validate on; ask for fewer")
    chosen |= {name: ("val", label) for label, name in others.items()}
    opened = zipfile.ZipFile(path) if source.kind == "zip" else None
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for number, (name, (split, label)) in enumerate(chosen.items()):
            data = opened.read(name) if opened else Path(path, name).read_bytes()
            file = folder / split / CLASSES[label] / f"{number:06}-{Path(name).name}"  # two may have one name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            archive.writestr(f"{split}/{CLASSES[label]}/{file.name}", data)
    return len(rows)


def draw_faces(images: int, folder: Path) -> str:
    """A new folder with at least `images` drawn training faces."""
    from demo.faces import write_folder

    write_folder(folder, identities=math.ceil(images / 7 / 0.8) + 2, seed=0)  # a fifth is for validation
    return str(folder)


# --- Tables ---


def pilot(args: argparse.Namespace, cell: dict[str, Any]) -> dict[str, int]:
    """The number of workers that makes each plain loop fastest after its first epoch; prints what was tried."""
    if args.workers is not None:
        return dict.fromkeys(args.loops, args.workers)
    cells = {(name, n): {**cell, "variant": name, "workers": n} for name in args.loops for n in PILOT_WORKERS}
    rates = {key: result[0]["steady"] for key, result in take_turns(__file__, cells, 1, label="pilot").items()}
    workers = {}
    for name in args.loops:
        workers[name] = max(PILOT_WORKERS, key=lambda n: rates[name, n])
        tried = ", ".join(f"{n}: {rates[name, n]:.0f}" for n in PILOT_WORKERS)
        print(
            f"pilot, {cell['model']}, {LABELS[name]}: images/s by workers {tried}; taken: {workers[name]}", flush=True
        )
    return workers


def compare(args: argparse.Namespace, cell: dict[str, Any]) -> None:
    """Measure ours and the plain loops on one model, and print their table."""
    workers = pilot(args, cell)
    cells = {name: {**cell, "variant": name, "workers": n} for name, n in workers.items()}
    results = take_turns(__file__, {**cells, "ours": {**cell, "variant": "ours"}}, args.rounds, label=cell["model"])
    rates = {name: {epoch: [row[epoch] for row in rows] for epoch in EPOCHS} for name, rows in results.items()}
    medians = {name: {epoch: statistics.median(rates[name][epoch]) for epoch in EPOCHS} for name in rates}
    print(f"\n{cell['model'] + ', images/s':<44}" + "".join(f"{epoch:>22}" for epoch in ("first epoch", "steady")))
    for name in rates:
        label = LABELS[name] + (f" ({workers[name]} workers)" if name in workers else "")
        print(f"{label:<44}" + "".join(f"{medians[name][epoch]:>22.0f}" for epoch in EPOCHS))
    for name in workers:
        shown = "".join(f"{ratios(rates['ours'][epoch], rates[name][epoch])!s:>22}" for epoch in EPOCHS)
        print(f"{f'ours / {LABELS[name]} (min-max)':<44}{shown}", flush=True)


def augment_share(models: list[str], images: int, device: str) -> None:
    """Print what share of our step preprocessing and augmentation take: both timed inside the real loop."""
    import inspect

    import train
    from bench.common import wait
    from training import batches as feed
    from utils import pick_machine

    spent = [0.0]

    def timed(function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            wait(machine.device)
            start = time.perf_counter()
            result = function(*args, **named)
            wait(machine.device)
            spent[-1] += time.perf_counter() - start
            return result

        return call

    for module in (feed, train):  # the one draws, the other applies
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and (value.__module__ == "augment" or name == "preprocess"):
                setattr(module, name, timed(value))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # as in our_loop
        for model in models:
            config = Config(model=model, cache=f"{folder}/cache", device=device)
            machine = pick_machine(config.device, config.precision, config.threads)
            trainer = new_trainer(config, load_random(config, images), machine, Path(folder))
            spent[:] = [0.0]
            trainer.optimizer.register_step_post_hook(lambda *_: spent.append(0.0))
            steps = train_steps(trainer, SHARE_STEPS + 1)
            part, whole = statistics.median(spent[1 : len(steps) + 1]), statistics.median(steps)
            print(
                f"{model}: preprocessing and augmentation take {part * 1e3:.1f} ms of a step of {whole * 1e3:.1f} ms: "
                f"{part / whole:.1%}"
            )


def run(args: argparse.Namespace) -> int:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"  # of both loops
    print("\n".join(header()))
    if args.augment_share:
        augment_share(args.models, args.images, device)
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as top:
        folder = Path(top, "faces")
        data = args.data or draw_faces(args.images, Path(top, "drawn"))
        count = write_images(data, args.images, folder)
        origin = args.data or "drawn faces"
        print(f"{count} images of {origin}, batch {Config().batch_size}, {device}, medians over {args.rounds} rounds")
        cell = {"folder": f"{folder}/train", "zip": f"{folder}.zip", "images": count, "device": device}
        for model in args.models:
            compare(args, {**cell, "model": model})
    return 0


def main() -> int:
    parser = Parser("bench/train.py", __doc__.splitlines()[0])
    parser.add_argument("--data", default="", metavar="PATH", help="a folder or zip of images (default: drawn faces)")
    parser.add_argument("--rounds", type=int, default=5, help="processes per cell (5)")
    parser.add_argument("--images", type=int, default=3840, help="training images per epoch, about (3840)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["TheModel", "ImprovedFER2013Model"])
    parser.add_argument("--loops", nargs="+", choices=PLAIN, default=list(PLAIN), help="the plain ones (all)")
    parser.add_argument("--workers", type=int, help="of the plain loops' DataLoader (default: a pilot round tells)")
    parser.add_argument("--augment-share", action="store_true", help="print what share of our step augmentation takes")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    args = parser.parse_args()
    if min(args.rounds, args.images) < 1:
        parser.error("--rounds and --images: 1 or more")
    if args.one:
        print(json.dumps(measure(args.one)))
        return 0
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

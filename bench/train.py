"""Our training against the plain PyTorch loop, step by step, and against another commit: images/s.

    python -m bench.train [--data PATH] [--rounds 5] [--images 3840] [--models TheModel ImprovedFER2013Model]
    python -m bench.train --steps
    python -m bench.train --against ../other --data archive.zip --models TheModel EmotionResNet-small

The plain loop is what people write in an afternoon: ImageFolder over files, torchvision's transforms with the same
augmentation (flip, rotate, shift, zoom), a DataLoader with the best number of workers (found by a pilot round), the
same network (with ReLU before pooling, as it is written everywhere; ours has it after: the same outputs), the same
loss, Adam, float32. Ours is `python interface.py` on a zip of the same files. The first epoch counts from before the
data are opened: decoding, building the network, and for ours the first checkpoint and the scoring. The later epochs
count training alone. --steps takes single steps on random images; each row adds a measure to the rows above it.

--against runs interface.py of another checkout (`git worktree add ../other COMMIT`) and of this one, with the same
settings: the first epoch of the first model on all images with no cache, and later epochs, with a warm cache, on
--images of them.

Every cell is a fresh process, imports left out; the cells take turns. Shown are medians over the rounds, the ratio of
two medians, and the smallest and largest ratio within a round. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import common
from cli import Parser
from config import Config
from errors import exit_status

if TYPE_CHECKING:
    from torch import nn

PLAIN = ("plain, float32", "plain, float32, channels_last", "plain, bfloat16 autocast")
LATER_EPOCHS = 2  # of ours
MEASURES = (
    "float32, contiguous",  # ReLU before pooling, as people write it
    "weights channels_last",
    "bfloat16 autocast",
    "freed memory kept",
    "input channels_last too",
    "ReLU after pooling",
)
WARM_UP_STEPS, STEPS = 3, 11
# Flags that give ours the plain loop's work, and two checkouts the same work, whatever their defaults are
WORK = "--batch-size 128 --shift 4 --rotation 12 --zoom 0.1 --cutmix 0"
AS_PLAIN = f"{WORK} --contrast 0 --brightness 0 --mixup 0 --ema 0 --label-smoothing 0 --optimizer adam --lr 0.001"
SAME = f"{WORK} --contrast 0.3 --brightness 0.1 --mixup 0.4 --ema 0.998 --loss cross_entropy --optimizer sgd --lr 0.05"


# --- One cell, in its own process ---


def relu_first(model: "nn.Module") -> "nn.Module":
    """`model` with every ReLU that follows a pooling put before it; the outputs stay the same."""
    from torch import nn

    for layers in [layers for layers in model.modules() if isinstance(layers, nn.Sequential)]:
        for at in range(len(layers) - 1):
            if isinstance(layers[at], nn.MaxPool2d) and isinstance(layers[at + 1], nn.ReLU):
                layers[at], layers[at + 1] = layers[at + 1], layers[at]
    return model


def plain_loop(cell: common.Cell) -> dict[str, float]:
    """Two epochs of the plain loop: seconds of the first, from before the folder is listed, images/s of the second."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from losses import make_loss
    from model import build_model

    config = common.config_for(common.settings_after(cell["flags"], taken=()))
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
    model = relu_first(build_model(config.model, **config.arguments)).to(device, memory_format=layout).train()
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


def single_steps(cell: common.Cell) -> dict[str, float]:
    """Images/s of training steps on the CPU with the first `measures` of MEASURES; augmentation's share."""
    import torch

    from dataset import preprocess
    from model import build_model
    from training.augment import augment, sample_epoch
    from utils import channels_last, keep_freed_memory

    config, on = Config(model=cell["model"]), dict.fromkeys(MEASURES[: cell["measures"]], True)
    if "freed memory kept" in on:
        keep_freed_memory()
    torch.manual_seed(0)
    layout = torch.channels_last if "weights channels_last" in on else torch.contiguous_format
    model = build_model(config.model).to(memory_format=layout)
    if "ReLU after pooling" not in on:
        relu_first(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    pixels, labels = torch.randint(0, 256, (config.batch_size, 48, 48)).byte(), torch.arange(config.batch_size) % 7
    images = preprocess(pixels)
    if "input channels_last too" in on:
        images = channels_last(images)
    steps, augmentation = [], []
    for _ in range(WARM_UP_STEPS + STEPS):
        start = time.perf_counter()
        augment(preprocess(pixels), sample_epoch(config, config.batch_size, 0).augmentation)
        augmentation.append(time.perf_counter() - start)
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16 autocast" in on):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append(time.perf_counter() - start - augmentation[-1])
    step, part = (statistics.median(seconds[WARM_UP_STEPS:]) for seconds in (steps, augmentation))
    return {"rate": config.batch_size / step, "share": part / (part + step)}


# --- Tables ---


def ours(checkout: Path, flags: Sequence[str], epochs: int) -> dict[str, float]:
    """What `common.train_in` gives, in a folder that is removed."""
    with common.scratch() as folder:
        return common.train_in(Path(folder, "new"), checkout, flags, epochs=epochs)


def compare(args: argparse.Namespace, model: str, folder: Path, images: int) -> None:
    """Measure ours and the plain loops, these with the best number of workers, on one model; print their table."""
    flags = ["--model", model, *AS_PLAIN.split()]
    cell = {"flags": flags, "device": args.device, "folder": f"{folder}/train"}
    plain = {(loop, n): {**cell, "variant": loop, "workers": n} for loop in PLAIN for n in args.workers}
    cells = {key: partial(common.run_cell, "train.py", each) for key, each in plain.items()}
    pilot = {key: found[0]["later"] for key, found in common.take_turns(cells, 1, label="pilot").items()}
    best = {loop: max(args.workers, key=lambda n: pilot[loop, n]) for loop in PLAIN}
    turns = {f"{loop} ({n} workers)": cells[loop, n] for loop, n in best.items()}
    flags += ["--data", f"{folder}.zip", "--device", args.device]
    turns["ours"] = partial(ours, common.ROOT, flags, 1 + LATER_EPOCHS)
    found = common.take_turns(turns, args.rounds, label=model)
    rates = {
        name: ([images / row["first"] for row in each], [row["later"] for row in each]) for name, each in found.items()
    }
    print(f"\n{model + ', images/s':<44}{'first epoch':>22}{'later epochs':>22}")
    for name, columns in rates.items():
        print(f"{name:<44}" + "".join(f"{statistics.median(values):>22.0f}" for values in columns))
    for name in list(rates)[:-1]:
        shown = "".join(f"{common.ratio(mine, its):>22}" for mine, its in zip(rates["ours"], rates[name], strict=True))
        print(f"{'ours / ' + name:<44}{shown}", flush=True)


def step_table(args: argparse.Namespace) -> None:
    """Print what each of MEASURES brings, and what preprocessing and augmentation take beside the last row's step."""
    keys = [(model, row) for row in range(len(MEASURES)) for model in args.models]
    step = {(model, row): {"model": model, "measures": row + 1} for model, row in keys}
    cells = {key: partial(common.run_cell, "train.py", cell) for key, cell in step.items()}
    found = common.take_turns(cells, args.rounds, label="steps")
    print(f"{'images/s, batches of 128':<28}" + "".join(f"{model:>24}" for model in args.models))
    for row, label in enumerate(MEASURES):
        rates = [statistics.median(result["rate"] for result in found[model, row]) for model in args.models]
        print(f"{label:<28}" + "".join(f"{rate:>24.0f}" for rate in rates))
    shares = [statistics.median(result["share"] for result in found[model, row]) for model in args.models]
    print(f"{'augmentation, of that step':<28}" + "".join(f"{share:>24.1%}" for share in shares))


def against(args: argparse.Namespace) -> None:
    """Print how fast another checkout and this one train, in paired turns."""
    data = os.path.abspath(args.data) if os.path.exists(args.data) and args.data != "demo" else args.data
    versus = common.Against(args.against, args.rounds)
    flags = {model: ["--data", data, "--model", model, *SAME.split()] for model in args.models}
    for model in args.models[:1]:
        versus.row(f"{model}, first epoch, all images", partial(ours, flags=flags[model], epochs=1), "first", "s")
    for model, each in flags.items():
        later = partial(ours, flags=[*each, "--limit", str(args.images)], epochs=1 + LATER_EPOCHS)
        versus.row(f"{model}, later epochs", later, "later", "images/s")


def run(args: argparse.Namespace) -> int:
    import torch

    from dataset import load

    print("\n".join(common.header()))
    if args.steps or args.against:
        step_table(args) if args.steps else against(args)
        return 0
    args.device = "cuda" if torch.cuda.is_available() else "cpu"  # of both loops
    with common.scratch() as top:
        folder = Path(top, "faces")
        images = common.write_dataset(load(Config(data=args.data, cache=args.cache, limit=args.images)), folder)
        print(f"{images} images of {args.data}, batches of 128, {args.device}, medians over {args.rounds} rounds")
        for model in args.models:
            compare(args, model, folder, images)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.train", __doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="to try in them (0 1 2)")
    parser.add_argument("--steps", action="store_true", help="what each measure brings to a single step")
    args = common.parse(parser, argv, models=["TheModel", "ImprovedFER2013Model"], images=3840)
    if args.one:
        print(json.dumps(single_steps(args.one) if "measures" in args.one else plain_loop(args.one)))
        return 0
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

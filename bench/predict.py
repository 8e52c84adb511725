"""Our prediction of a zip against the usual way: images/s, decoding alone, peak memory, start of the process.

    python bench/predict.py [--data archive.zip] [--rounds 5] [--models TheModel EmotionResNet-small]

The usual way is what people write in an afternoon: Pillow, torchvision's transforms, batches stacked and run in float32
under no_grad, softmax, a CSV with a row per image; from files unpacked beforehand, with the best batch size (a pilot
round tells). Ours is what `python predict.py ZIP --quiet --csv FILE` does with the same files in a zip. Both count from
before the weights are read to the finished table, imports left out, on the CPU, with the same network and weights
(TheModel's are freshly drawn). Decoding counts from before the zip is opened to batches of (256, 48, 48) uint8. Every
cell is a fresh process; the cells take turns, and ratios are taken within a round. Memory is the process's peak less
that of a bare `import torch`. With --data the PublicTest images of test/ are predicted, without it drawn faces. Run it
on an idle machine.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before bench/, where `predict` is this file

from bench.common import ROOT, header, ratios, take_turns
from cli import Parser
from config import CLASSES, MODELS

SHIPPED = ROOT / "final_weights_new.pth"
BATCHES = (1, 64, 0)  # of the usual way; 0: all at once
FACES = 3589  # drawn, where there is no --data: as many as FER2013 has in PublicTest
LARGE = 32_000  # images of the larger zip, at least
MEMORY_ROUNDS = 3  # processes: the allocator's peak moves by a fifth
DECODING_PASSES = 5  # in one process, the median counts: the first pays for imports


# --- One cell, in its own process ---


def usual_way(cell: dict[str, Any]) -> float:
    """Seconds of the script that everyone writes, from the weights to the finished table."""
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
    transform = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize((48, 48)),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )
    paths = sorted(path for path in Path(cell["folder"]).rglob("*") if path.is_file())
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
    return time.perf_counter() - start


def our_way(cell: dict[str, Any]) -> float:
    """Seconds of predict.py, from the weights to the finished table."""
    import predict
    import ranks  # noqa: F401
    import weights  # noqa: F401

    flags = ["--weights", cell["weights"], "--device", "cpu", "--quiet", "--csv", cell["table"]]
    args = predict.parse([cell["zip"], *flags])
    start = time.perf_counter()
    if predict.predict(args):
        raise RuntimeError("predict.py failed")
    return time.perf_counter() - start


def decoding(cell: dict[str, Any]) -> float:
    """Seconds from before the zip is opened until all its images stand in batches: the median of some passes."""
    from readers.sources import cut, decode_batches, open_inputs
    from val import BATCH

    seconds = []
    for _ in range(DECODING_PASSES):
        start = time.perf_counter()
        count = sum(len(batch.pixels) for batch in decode_batches(cut([open_inputs(Path(cell["zip"])).part], BATCH)))
        seconds.append(time.perf_counter() - start)
        if count != cell["images"]:
            raise RuntimeError(f"{count} of {cell['images']} images were decoded")
    return statistics.median(seconds)


def bare(cell: dict[str, Any]) -> float:
    """Seconds of nothing, after `import torch`: what it takes is the memory to compare with."""
    import torch  # noqa: F401

    return 0.0


def command(cell: dict[str, Any]) -> float:
    """Wall seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *cell["command"]], cwd=cell["cwd"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


WAYS = {"usual": usual_way, "ours": our_way, "decoding": decoding, "bare": bare, "command": command}


def measure(cell: dict[str, Any]) -> dict[str, float]:
    """Seconds of the cell's way, and this process's peak memory in MB."""
    seconds = WAYS[cell["way"]](cell)
    return {"seconds": seconds, "peak": peak_memory() / 1e6}


def peak_memory() -> int:
    """The most memory this process has held, in bytes; 0 on Windows.

    On Linux it is read from /proc: getrusage gives the largest of this process and of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return 1024 * int(peak[1])
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- The same images as a folder, as a zip and as a large zip ---


def files_of(data: str, faces: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the images to predict: PublicTest of the zip `data`, or drawn faces. Raises UserError."""
    from errors import UserError
    from readers.zips import open_zip

    if data:
        with open_zip(Path(data)) as archive:
            names = [name for name in archive.namelist() if Path(name).name.startswith("PublicTest_")]
            if not names:
                raise UserError(f"--data {data}: holds no PublicTest_* images; name FER2013's archive.zip")
            yield from ((name, archive.read(name)) for name in names)
        return
    from io import BytesIO

    from PIL import Image

    from demo.faces import demo_faces

    images, labels, _ = demo_faces(-(-faces // 7), seed=0)
    for number, (image, label) in enumerate(zip(images[:faces], labels, strict=False)):
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield f"test/{CLASSES[label]}/{number:05}.png", buffer.getvalue()


def write_inputs(data: str, faces: int, large: int, top: Path) -> tuple[int, int]:
    """Write the images into `top`/faces/, faces.zip and, in copies, large.zip; the numbers of both zips."""
    files = list(files_of(data, faces))
    copies = -(-large // len(files))
    with zipfile.ZipFile(top / "faces.zip", "w") as archive, zipfile.ZipFile(top / "large.zip", "w") as many:
        for name, content in files:
            (top / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
            (top / "faces" / name).write_bytes(content)
            archive.writestr(name, content)
        for copy in range(copies):
            for name, content in files:
                many.writestr(f"{copy}/{name}", content)
    return len(files), len(files) * copies


def write_weights(name: str, top: Path) -> Path:
    """Weights of the network `name`: the shipped ones if they are of it, else freshly drawn."""
    import torch

    from model import build_model
    from utils import read_checkpoint, write_checkpoint

    content = read_checkpoint(SHIPPED)
    if content["model"] == name:
        return SHIPPED
    torch.manual_seed(0)
    drawn = {"model": name, "arguments": {}, "state_dict": build_model(name).state_dict()}
    write_checkpoint(top / f"{name}.pth", {**content, **drawn})
    return top / f"{name}.pth"


# --- Tables ---


def rates(results: list[dict[str, float]], images: int) -> list[float]:
    return [images / result["seconds"] for result in results]


def compare(args: argparse.Namespace, cell: dict[str, Any]) -> None:
    """Measure both ways with one network, and print the row of their table."""
    model, images = cell["model"], cell["images"]
    tries = {batch: {**cell, "way": "usual", "batch": batch} for batch in BATCHES}
    pilot = {key: rates(found, images)[0] for key, found in take_turns(__file__, tries, 1, label="pilot").items()}
    batch = max(pilot, key=pilot.__getitem__)
    cells = {"usual": tries[batch], "ours": {**cell, "way": "ours"}}
    found = {key: rates(each, images) for key, each in take_turns(__file__, cells, args.rounds, label=model).items()}
    medians = [statistics.median(found[way]) for way in ("usual", "ours")]
    ratio = ratios(found["ours"], found["usual"])
    print(f"{model:<28}" + "".join(f"{median:>12.0f}" for median in medians) + f"{ratio!s:>24}")
    tried = ", ".join(f"{size or 'all'}: {rate:.0f}" for size, rate in pilot.items())
    print(f"    usual way, images/s by batch size (pilot) {tried}; taken: {batch or 'all'}", flush=True)


def decode_alone(args: argparse.Namespace, small: dict[str, Any], large: dict[str, Any]) -> None:
    """Print how many images a second come out of both zips as batches."""
    cells = {each["images"]: {**each, "way": "decoding"} for each in (small, large)}
    for images, results in take_turns(__file__, cells, args.rounds, label="decoding").items():
        label = f"decoding and batching alone, {images} images"
        print(f"{label:<52}{statistics.median(rates(results, images)):>12.0f} images/s", flush=True)


def memory(small: dict[str, Any], large: dict[str, Any]) -> None:
    """Print the peak memory of predicting both zips above that of a bare `import torch`: median, least and most."""
    cells = {each["images"]: {**each, "way": "ours"} for each in (small, large)}
    found = take_turns(__file__, {"bare": {"way": "bare"}, **cells}, MEMORY_ROUNDS, label="memory")
    base = statistics.median(result["peak"] for result in found.pop("bare"))
    for images, results in found.items():
        above = [result["peak"] - base for result in results]
        span = f"({min(above):.0f}-{max(above):.0f})"
        print(
            f"{f'peak memory, {images} images':<52}{statistics.median(above):>12.0f} {span} MB above {base:.0f} MB",
            flush=True,
        )


def starts(args: argparse.Namespace, top: Path) -> None:
    """Print the wall time of whole processes, against that of `import torch`."""
    image = next(path for path in sorted((top / "faces").rglob("*")) if path.is_file())
    from PIL import Image

    Image.open(image).save(top / "one.jpg")
    script = str(ROOT / "predict.py")
    commands = {
        'python -c "import torch"': ["-c", "import torch"],
        "python predict.py --help": [script, "--help"],
        "python predict.py one.jpg": [script, "one.jpg"],
    }
    cells = {name: {"way": "command", "command": each, "cwd": str(top)} for name, each in commands.items()}
    found = take_turns(__file__, cells, args.rounds, label="starts")
    seconds = {name: [result["seconds"] for result in results] for name, results in found.items()}
    base = next(iter(seconds.values()))
    print(f"\n{'whole process':<28}{'seconds':>12}{'ratio (min-max)':>36}")
    for name, each in seconds.items():
        print(f"{name:<28}{statistics.median(each):>12.2f}{ratios(each, base)!s:>36}", flush=True)


def run(args: argparse.Namespace) -> int:
    print("\n".join(header()))
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        small, large = write_inputs(args.data, args.images, args.large, top)
        table = {"folder": str(top / "faces"), "table": str(top / "table.csv")}
        print(f"{small} images of {args.data or 'drawn faces'}, medians over {args.rounds} rounds\n")
        print(f"{'images/s':<28}{'usual':>12}{'ours':>12}{'ratio (min-max)':>24}", flush=True)
        cells = []
        for model in args.models:
            weights = str(write_weights(model, top))
            cells.append({**table, "model": model, "weights": weights, "zip": str(top / "faces.zip"), "images": small})
            compare(args, cells[-1])
        print()
        many = {**cells[0], "zip": str(top / "large.zip"), "images": large}
        decode_alone(args, cells[0], many)
        memory(cells[0], many)
        starts(args, top)
    return 0


def main() -> int:
    parser = Parser("bench/predict.py", __doc__.splitlines()[0])
    parser.add_argument("--data", default="", metavar="ZIP", help="FER2013's archive.zip (default: drawn faces)")
    parser.add_argument("--rounds", type=int, default=5, help="processes per cell (5)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["TheModel", "EmotionResNet-small"])
    parser.add_argument("--images", type=int, default=FACES, help=f"faces to draw without --data ({FACES})")
    parser.add_argument("--large", type=int, default=LARGE, help=f"images of the larger zip, at least ({LARGE})")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # one cell in this process
    args = parser.parse_args()
    if min(args.rounds, args.images, args.large) < 1:
        parser.error("--rounds, --images and --large: 1 or more")
    if args.one:
        with open(os.devnull, "w") as nowhere:  # predict.py prints; the last line here is the result
            stdout, sys.stdout = sys.stdout, nowhere
            result = measure(args.one)
            sys.stdout = stdout
        print(json.dumps(result))
        return 0
    from errors import exit_status

    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())

"""What a worker of the drill does: it reads damaged inputs as the project does, in this checkout or in another one.

    PYTHONPATH=CHECKOUT python -P bench/trial.py HOME

A line of JSON on stdin names an input: {"read": "image", "folder": ..., "file": ..., "way": 0}; a line on stdout says
what became of it. HOME has the good files that go with it. Only what commit 1ec3311 has too is used, there under its
older names.
"""

import contextlib
import csv
import ctypes
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

HOME = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
MACHINE = ("--device", "cpu", "--threads", "1")
FRAMES = 100  # of a video that are read, at most
FACES = np.arange(2 * 48 * 48, dtype=np.uint8).reshape(2, 48, 48)
Rows = tuple[list[str], int]  # what was read, a text for each image; and how many were named and skipped


def module(*names: str) -> ModuleType:
    """The first of `names` that this checkout has; raises ModuleNotFoundError."""
    there = [name for name in names if importlib.util.find_spec(name.partition(".")[0])]
    return importlib.import_module((there or names)[0])


def digest(*values: Any) -> str:
    """16 hex digits over arrays, tensors and plain values, however they are nested."""
    found = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        if isinstance(value, dict):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            found.update(b"[")
            for part in value:
                add(part)
        elif hasattr(value, "detach"):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy())
        elif isinstance(value, np.ndarray):
            found.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode("utf-8", "backslashreplace"))

    add(values)
    return found.hexdigest()


# --- Readers: of the damaged `file` in `folder` ---


def image(file: Path, folder: Path, way: int) -> Rows:
    """The grey pixels of an image, or its colours."""
    code = module("readers.decode", "images")
    data = code.read_file(file)
    found = code.decode_rgb(data) if way and hasattr(code, "decode_rgb") else code.decode(data)
    return [digest(getattr(found, "pixels", found))], 0


def dataset(file: Path, folder: Path, way: int, **settings: str) -> Rows:
    """All images of a dataset with their labels and votes, decoded anew."""
    code = module("dataset")
    places = {"data": str(file), "cache": str(folder / "cache")} | settings
    data = code.load(module("config").Config(**places))
    rows = []
    for name, split in data.splits.items():
        votes = [None] * len(split) if split.votes is None else split.votes
        parts = zip(np.asarray(split.images), split.labels, votes, strict=True)
        rows += [f"{name} {label} {digest(pixels, vote)}" for pixels, label, vote in parts]
    skipped = re.search(r"skipped files: (\d+)", "\n".join(data.describe()))
    return rows, int(skipped[1]) if skipped else 0


def auto(file: Path, folder: Path, way: int) -> Rows:
    return dataset(file, folder, way, classes="auto")


def votes(file: Path, folder: Path, way: int) -> Rows:
    return dataset(
        file, folder, way, data=str(HOME / "csv" / "fer2013.csv"), cache=str(HOME / "caches"), votes=str(file)
    )


def cache(file: Path, folder: Path, way: int) -> Rows:
    return dataset(file, folder, way, data=str(HOME / "zip" / "dataset.zip"), cache=str(folder))


def weights(file: Path, folder: Path, way: int) -> Rows:
    """What a weight file has, and that its network computes."""
    machine = module("utils").pick_machine("cpu", "fp32", 1)
    model, content = module("weights").load_weights(file, machine=machine)
    module("val").forward(model, sys.modules["torch"].from_numpy(FACES), machine=machine)
    return [
        digest(model.state_dict()),
        digest(sorted((key, content[key]) for key in content if key != "state_dict")),
    ], 0


def predicted(file: Path, folder: Path, way: int, *, weights: Path | None = None) -> Rows | int:
    """The table of predict.py of the images in `file`."""
    flags = ["--weights", str(weights or HOME / "weights" / "small.pth"), "--csv", "-", "--quiet", *MACHINE]
    table = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    with contextlib.redirect_stdout(table):
        status = module("predict").main([str(file), *flags, "--precision", "fp32"])
    lines = printed(table).replace(str(folder), "").splitlines()
    rows = [str(row) for row in csv.DictReader(lines) if row["prediction"]]
    return status or (rows, len(re.findall("^skipped ", printed(sys.stderr), re.MULTILINE)))


def predicted_by(file: Path, folder: Path, way: int) -> Rows | int:
    return predicted(HOME / "png" / "grey.png", folder, way, weights=file)


def onnx(file: Path, folder: Path, way: int) -> Rows:
    engine = module("predictor").OnnxEngine(file, threads=1)
    return [digest(engine.probabilities(FACES), sorted(engine.content.items()))], 0


def resumed(file: Path, folder: Path, way: int) -> Rows | int:
    """The state of a run to which `interface.py --resume` goes back; no step is trained."""
    interface, train, rows = module("interface"), module("train"), []

    def capture(trainer: Any, *_: Any) -> None:
        state = [getattr(trainer, name).state_dict() for name in ("model", "optimizer", "scheduler")]
        history = [{key: row[key] for key in row if key != "seconds"} for row in trainer.history]
        rows.append(digest(state, trainer.ema and trainer.ema.state_dict(), history))

    setattr(train, "run_epochs" if hasattr(train, "run_epochs") else "go_on", capture)
    interface.report = lambda *_, **__: None
    places = ["--data", str(HOME / "zip" / "dataset.zip"), "--cache", str(HOME / "caches")]
    status = interface.main(["--resume", str(folder), *places, *MACHINE])
    return (rows, 0) if status in (0, 130) else status


def config(file: Path, folder: Path, way: int) -> Rows:
    return [repr(module("interface").parse(["--config", str(file)]).config)], 0


def video(file: Path, folder: Path, way: int) -> Rows:
    with module("faces.video").Reader(file) as reader:
        return [digest(picture.image) for picture, _ in zip(reader, range(FRAMES), strict=False)], 0


# --- Attempts ---

READERS: dict[str, Callable[[Path, Path, int], Rows | int]] = {
    reader.__name__: reader
    for reader in (image, dataset, auto, votes, cache, weights, predicted, predicted_by, onnx, resumed, config, video)
}


def attempt(read: str, folder: str, file: str, way: int) -> dict[str, Any]:
    """What became of an input: its outcome, "read", "refused" or "uncaught"; what was read; why; the peak in MB."""
    code, found, out, err = module("errors", "utils"), [], *(io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    bad = module("readers.decode", "images").BadImage

    def run() -> int:
        result = READERS[read](Path(folder, file), Path(folder), way)
        found[:] = [] if isinstance(result, int) else result
        return result if isinstance(result, int) else 0

    before, trace = reset_peak(), ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = code.exit_status(run)
    except bad as error:
        status, trace = 2, str(error)
    except SystemExit as error:
        status = error.code
    except BaseException:
        status, trace = 1, traceback.format_exc()
    peak = memory("VmHWM") - before
    said = printed(out) + printed(err)
    if forged := sorted({char for char in said if not char.isprintable() and char not in "\n\r\t"}):
        status, trace = 1, f"{said}\nControlCharacters: {forged} are printed"
    outcome = {0: "read", 2: "refused"}.get(status, "uncaught")
    rows, skipped = found if outcome == "read" else ([], 0)
    return {"outcome": outcome, "rows": rows, "skipped": skipped, "why": (trace or said)[-3000:], "peak": peak}


def printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "replace")


def memory(name: str) -> float:
    """A figure of this process in MB, by its name in /proc; 0 where there is no such file."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def reset_peak() -> float:
    """Let the peak memory begin anew; the memory now, in MB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def main() -> int:
    """Attempt each line of stdin. What is printed, also by libraries in C, goes to the file HOME/../PID.log."""
    replies = os.fdopen(os.dup(1), "w")
    log = os.open(HOME.parent / f"{os.getpid()}.log", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    for name in ("interface", "train", "predict", "val", "weights", "dataset"):
        module(name)
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        os.ftruncate(log, 0)
        print(json.dumps(attempt(**json.loads(line))), file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What everything that computes needs: device, precision and memory; seeds; files of weights."""

import ctypes
import hashlib
import io
import json
import os
import pickle
import platform
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from classes import are_names
from config import CLASSES
from errors import UserError, counted, cpu_quota, open_file, quoted, write_file
from metrics import EXAMPLE, fits

FORMAT = 1  # of weight files; raised when their keys change meaning
TENSORS = ("state_dict", "optimizer", "scheduler", "scaler", "ema")  # the keys under which there may be tensors
# What zipfile, torch and json raise for what is no weight file
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError),
    *(ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# --- Machine ---


class Machine(NamedTuple):
    """Where the work is done: torch device, and dtype of the heavy products (float32: no autocast)."""

    device: torch.device
    dtype: torch.dtype

    @property
    def sum_dtype(self) -> torch.dtype:
        """For sums over an epoch; MPS has no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of weights and images; on MPS channels last gives a wrong backward (pytorch 175189)."""
        return torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine()
        threads = f", {counted(torch.get_num_threads(), 'thread')}" if self.device.type == "cpu" else ""
        return f"{self.device.type} ({name}{threads}), {str(self.dtype).removeprefix('torch.')}"


def pick_machine(device: str, precision: str, threads: int = 0) -> Machine:
    """The Machine for the settings of the same names, with threads and memory set up; "auto" is CUDA, else the CPU.

    Raises UserError if the device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = "cuda" if there["cuda"] else "cpu"
    if not there[device]:
        raise UserError(
            f"--device {device}: torch {torch.__version__} finds no such device here; "
            f"use --device cpu, or install a torch build that fits the driver"
        )
    if device == "cpu":
        keep_freed_memory()
    if device == "cpu" or threads:
        torch.set_num_threads(threads or min(torch.get_num_threads(), cpu_quota()))
    if precision == "fp16" and device == "cpu":
        raise UserError("--precision fp16: small gradients vanish in it on a CPU; use bf16 or fp32")
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    if device == "cuda":  # with its number: torch.cuda.set_device holds for one thread only
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32: by default convolutions keep 10 bits of it
        return Machine(torch.device(device, torch.cuda.current_device()), DTYPES[precision])
    return Machine(torch.device(device), DTYPES[precision])


def has_fast_bf16(device: str) -> bool:
    """Whether the processor multiplies bfloat16 natively; emulated, it is slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: by default each large tensor is page-faulted anew at every step.

    Its gain: docs/speed.md. Other C libraries (musl, macOS, Windows) are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, and M_ARENA_MAX: a thread's own arena gives memory back all the same
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20), (-8, 1)):
        libc.mallopt(option, value)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """`images` (B, C, H, W) with the channels of a pixel side by side in memory, except on MPS (Machine.layout).

    One channel fits both layouts; torch then assumes the other one for the whole network, so the strides are set here.
    """
    if images.device.type == "mps":
        return images.contiguous()
    if images.shape[1] != 1:
        return images.contiguous(memory_format=torch.channels_last)
    return images[:, 0].contiguous().unsqueeze(-1).permute(0, 3, 1, 2)


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch. `deterministic` also makes CUDA repeat itself bit for bit.

    Otherwise CUDA searches for the fastest algorithm at the first batch of each size, which takes seconds.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def count_params(model: torch.nn.Module) -> int:
    """The number of trainable parameters of `model`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def versions() -> dict[str, str]:
    """Versions of Python, torch and numpy, as kept in every weight file."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


# --- Weight files ---


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write plain types and tensors so that `read_checkpoint` returns them. Raises UserError."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "classes": list(CLASSES), "versions": versions(), **content}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        comment = seal(archive)
    buffer.seek(-2, io.SEEK_END)  # where a zip has the length of its comment, 0 until now
    buffer.write(struct.pack("<H", len(comment)) + comment)
    write_file(path, buffer.getvalue())


def seal(archive: zipfile.ZipFile) -> bytes:
    """64 hex digits over the directory of a zip, with all checksums: a file that has them as its comment is ours."""
    archive.fp.seek(archive.start_dir)
    directory = archive.fp.read()
    return hashlib.sha256(directory[: len(directory) - len(archive.comment) - 2]).hexdigest().encode()


def read_checkpoint(path: Path, needed: tuple[str, ...] = ("model", "state_dict")) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU; its checksums are verified, and no code in the file is run.

    Raises UserError if the file is missing, damaged, a pickle with code, larger in memory than on disk, of other types
    than EXAMPLE, of another format or class order, or lacks a `needed` key; and for a last.pth that others changed.
    """
    try:
        opened = open_file(path)
    except OSError as error:
        problem = f"{path}: {error.strerror}; train one with `python interface.py`, or name another file"
        raise UserError(problem) from error
    refused = UserError(
        f"{path} is refused: it is damaged, or not a weight file of this project (loading others could run code); "
        f"copy or train it again"
    )
    try:
        with opened as file, zipfile.ZipFile(file) as archive:
            size, entries = os.fstat(file.fileno()).st_size, archive.infolist()
            # By its attributes an entry may be a folder to torch, which leaves its tensor as memory was
            odd = any(entry.compress_type or entry.external_attr for entry in entries)
            odd = odd or sum(entry.file_size for entry in entries) > size
            if odd or archive.testzip() or archive.comment not in (b"", seal(archive)):
                raise refused
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        sizes = []
        json.dumps({name: value for name, value in content.items() if name not in TENSORS})  # it raises for tensors
        json.dumps(content, default=lambda value: sizes.append(dense_size(value)))
        if sum(sizes) > size:  # tensors that repeat, or claim, what the file does not hold
            raise refused
    except DAMAGE as error:
        raise refused from error
    if "progress" in content and "model" in needed:
        raise UserError(
            f"{path} is the state of a run, to continue with --resume {quoted(path.parent)}; its best weights are in "
            f"best.pth beside it"
        )
    if "progress" in content and not archive.comment:
        raise UserError(
            f"{path} is not of this version of the code, or was changed: go on with that, or start a new run"
        )
    if lacking := [key for key in ("format", "classes", *needed) if key not in content]:
        raise UserError(f"{path} is not a weight file of this version of the project: it lacks {', '.join(lacking)}")
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']!r}, this code reads {FORMAT}: train it again")
    metrics = content.get("metrics")
    if isinstance(metrics, dict) and "unseen" in metrics:  # the name of older files
        metrics["deduplicated"] = metrics.pop("unseen")
    known = {name: each for name, each in EXAMPLE.items() if name.rstrip("?") in content}
    if not fits(content, known) or not are_names(content["classes"]):
        raise refused
    return content


def dense_size(value: Any) -> int:
    """The bytes of a tensor in memory. Raises TypeError for anything else, and for one that is not dense."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise TypeError
    return value.numel() * value.element_size()

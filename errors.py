"""What the user can mend: errors and exit statuses; files written whole; run folders. No torch here."""

import errno
import io
import json
import math
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from PIL import Image

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # torch's words for it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file system's largest file
SHIPPED = "final_weights_new.pth"  # the weights that are used by default
MARK = "Made by emotion-recognition"  # in the pictures that scripts write, by which later runs may replace them


class UserError(Exception):
    """A fault that the user can mend; the message says what, where and what to do."""


def exit_status(run: Callable[..., int], *args: Any) -> int:
    """What `run(*args)` returns, or 2 for a UserError, a full disk or memory, printed as `error: ...` on stderr.

    130 for Ctrl-C. If nobody reads stdout any more (`| head`), it is 141, as in a shell, without a message.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(*args)
        sys.stdout.flush()
        return status
    except UserError as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        message = "out of memory: use a smaller --batch-size, stop other programs, or use --device cpu"
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is not installed: python -m pip install -r requirements.txt"
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, *FULL):
            raise
        with open(os.devnull, "w") as null:  # takes what stdout still holds: Python writes it at exit, and fails again
            os.dup2(null.fileno(), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 141
        message = (
            f"a file or the output could not be written ({error.strerror}): free some space, or choose another place"
        )
    print(f"error: {plain(message)}", file=sys.stderr)
    return 2


def cpu_quota(root: str = "/sys/fs/cgroup") -> int:
    """The number of CPUs a container may use, rounded up; without a limit, the number of CPUs.

    More threads than that only take turns. Reads cpu.max of cgroup v2 and cpu.cfs_*_us of v1.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join(Path(root, name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return max(1, math.ceil(int(quota) / int(period)))
    return os.cpu_count() or 1


def counted(count: int, word: str) -> str:
    """The number with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def plain(name: str) -> str:
    """`name` in one printable line: other characters are escaped, so no name or text of a file can forge output."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def quoted(path: Path | str) -> str:
    """`path` as one word of a shell command."""
    return shlex.quote(str(path))


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError; a pipe or a device, which may never end, is one too."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once: a kill or a full disk leaves the old file whole. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); an older file there is unchanged. "
            f"Free some space, close programs that use the file, or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # after Ctrl-C too
            temporary.unlink()


def sweep(folder: Path, name: str = ".*") -> None:
    """Remove what killed writes of `name`, with a dot in front, left in `folder`; no one else may write there now."""
    for temporary in folder.glob(f"{name}.[0-9]*.tmp"):
        with suppress(OSError):
            temporary.unlink()


def check_replaceable(flag: str, target: Path | str, mark: str) -> None:
    """Raise UserError where there is something at `target`, and no file that `flag` wrote.

    These have `mark` in their first kilobyte. An empty file may be replaced.
    """
    try:
        with open_file(Path(target)) as file:
            begin = file.read(1024)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:  # a folder, a pipe, or nothing that may be read
        begin = b"?"
    if begin and mark.encode() not in begin:
        raise UserError(
            f"{flag} {target}: it is there already, and this version of {flag} did not write it; move it away, or name "
            f"another place"
        )


def write_png(image: "Image.Image", path: Path) -> None:
    """Replace `path` by a Pillow image as PNG, with MARK in it. Raises UserError."""
    from PIL.PngImagePlugin import PngInfo  # late: `--help` needs no Pillow

    text, packed = PngInfo(), io.BytesIO()
    text.add_text("Software", MARK)
    image.save(packed, "PNG", pnginfo=text, optimize=True)
    write_file(path, packed.getvalue())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace `path` by `values` as readable JSON. Raises UserError."""
    write_file(path, (json.dumps(values, indent=2) + "\n").encode())


@contextmanager
def locked(folder: Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Reserve `folder`, or the file in it whose lock has this `name`, for this process; one that ends gives it back.

    What killed writes left there goes. Where another process has it: with `wait` until it is free, else raises
    UserError, as for a folder where nothing can be written.
    """
    try:
        file = open(folder / name, "a")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}): choose another place") from error
    with file:
        if not _lock(file):
            if not wait:
                raise UserError(f"{folder} is in use by another process; wait for it, or choose another name")
            print(f"waiting for another process that works in {folder}", file=sys.stderr)
            while not _lock(file):
                time.sleep(0.2)
        sweep(folder, name.removesuffix(".lock") or ".*")
        yield


def _lock(file: TextIO) -> bool:
    """Lock an open file until it is closed; False where another process has locked it. Raises UserError."""
    try:
        if os.name == "nt":
            import msvcrt  # Windows only

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # everywhere else

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(f"{file.name} cannot be locked ({error.strerror}): choose a place on another disk") from error
    return True


def check_unused(folder: Path) -> None:
    """Raise UserError if `folder` holds a run, or anything else."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists already: choose another name with --run, "
            f"or go on with it: python interface.py --resume {quoted(folder)}"
        )


def new_run_folder(runs: str, name: str, *, number: int = 0) -> Path:
    """The folder runs/name, created now. Raises UserError if it holds a run already or cannot be created.

    With `number` 1 it is always a new one: the first of runs/name, name-2, name-3 ... that is not there.
    """
    folder = Path(runs) / (f"{name}-{number}" if number > 1 else name)
    if not number:
        check_unused(folder)
    try:
        folder.mkdir(parents=True, exist_ok=not number)
    except OSError as error:
        if number and folder.exists():
            return new_run_folder(runs, name, number=number + 1)
        raise UserError(f"{folder} cannot be created: {error.strerror}") from error
    return folder


def run_folder(name: str) -> Path:
    """The folder of a run. Raises UserError if there is none."""
    folder = Path(name)
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise UserError(f"{name}: no such folder; a run's folder is needed, such as runs/NAME")
    return folder


def find_weights(name: str, *, flag: str = "--weights") -> Path:
    """The file `name`, looked for in the current folder and then beside this code; a run's folder is its best.pth.

    Raises UserError, with `flag`.
    """
    for path in (Path(name), Path(__file__).parent / name):
        if os.path.exists(path):  # Path.exists raises for a name that is too long
            found = [file for file in (path, path / "best.pth", path / "best.onnx") if os.path.isfile(file)]
            if not found:
                raise UserError(f"{name}: no file, and no run's folder with a best.pth; name another: {flag} FILE")
            return found[0]
    raise UserError(f"{name}: no such weight file; train one with `python interface.py`, or name another: {flag} FILE")

"""What the user can mend: errors and exit statuses; files that are replaced whole; run folders. No torch here."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO


class UserError(Exception):
    """A fault the user can mend; the message says what, where and what to do."""


def exit_status(run: Callable[..., int], *args: Any) -> int:
    """What `run(*args)` returns; a UserError is printed as `error: ...` on stderr and gives 2, Ctrl-C 130.

    Where the reader of stdout has gone (`| head`), it ends quietly with 141, the shell's number for that.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is escaped, not a crash
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(*args)
        sys.stdout.flush()
        return status
    except UserError as error:
        if str(error):  # without words: another process has said it
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        details = str(error).partition("\n")[0] or type(error).__name__
        print(
            f"error: the memory is full ({details}): use a smaller --batch-size where it is a flag, end what else "
            "uses the device, or use --device cpu",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        discard(sys.stdout)
        return 141


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device's memory, or the machine's, was not enough; torch has no class of its own for the latter."""
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def discard(stream: TextIO) -> None:
    """Send what `stream` still holds to nowhere: Python writes it at exit, and would complain once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def counted(count: int, word: str) -> str:
    """`count` with `word`, an "s" after it unless it is one."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


WAITS = (0.1, 0.3, 1.0, 3.0) if os.name == "nt" else ()  # seconds between tries to replace a file


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once: a kill or a full disk leaves the old file whole. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_file(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"{path} could not be written ({error.strerror}); what stood there is untouched. "
            f"Free some space, close what has it open, or write to another place"
        ) from error


def replace_file(source: Path, target: Path) -> None:
    """Move `source` in the place of `target`. Raises OSError.

    On Windows a file that another program has open, a table or a virus scanner, can't be replaced: it is tried again.
    """
    for seconds in WAITS:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    os.replace(source, target)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace `path` by `values` as readable JSON. Raises UserError."""
    write_file(path, (json.dumps(values, indent=2) + "\n").encode())


def plain(name: str) -> str:
    """`name` in one printable line: other characters are escaped, so that no file name can forge output."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def quoted(path: Path | str) -> str:
    """`path` as one word of a command that is to be pasted into a shell."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; UserError where another one holds it. A kill lets go of it."""
    try:
        file = open(folder / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            if os.name == "nt":
                import msvcrt  # Windows only

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl  # everywhere else

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"{folder} is in use by another process; wait for it or choose another name") from error
        except OSError as error:
            raise UserError(f"{folder} cannot be locked: {error.strerror}; choose another place with --runs") from error
        yield


def new_run_folder(runs: str, name: str) -> Path:
    """The folder runs/name, made now; UserError where it holds a run already or cannot be made."""
    folder = Path(runs) / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        if folder.is_dir() and not any(folder.iterdir()):
            return folder
        raise UserError(
            f"{folder} exists already: choose another name with --run, "
            f"or go on with it: python interface.py --resume {quoted(folder)}"
        ) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


def run_folder(name: str) -> Path:
    """The folder of a run that is there. Raises UserError."""
    folder = Path(name)
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise UserError(f"{name}: no such folder; a run's folder is needed, such as runs/NAME")
    return folder

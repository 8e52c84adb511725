"""Files that once made the scripts hang, take gigabytes or end in a traceback: each ends in one line, and at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from config import Config
from dataset import load
from helpers import REPO, save_face, write_folders

FAULTS = REPO / "tests" / "faults"
IMAGES = ["jpeg-scans-8000-100.jpg", "tiff-complained-accepted.tif", "webp-64mp.webp"]
TARS = ["deep.tar.gz", "sparse.tar", "tar-CRASH_IndexError", "tar-CRASH_OverflowError", "tar-CRASH_ValueError"]
COMMANDS = {
    **{name: ["dataset.py", "--data", "here.tar" + ".gz" * name.endswith("gz")] for name in TARS},
    **{name: ["predict.py", "face.png", "--weights", "here.pth"] for name in ("stride0-12GB", "weights-RuntimeError")},
    "lr-overflow.json": ["interface.py", "--config", "here.json"],
}


def end(cwd: Path, *command: str | Path) -> tuple[int, str]:
    """The status of a script that may take 8 GiB of addresses and 60 seconds, and what it said on stderr."""
    limited = ["bash", "-c", 'ulimit -v 8388608; exec "$@"', "bash", sys.executable, REPO / command[0], *command[1:]]
    done = subprocess.run(limited, cwd=cwd, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_read_is_one_error(tmp_path, name):
    save_face(tmp_path / "face.png", 0)
    (source,) = FAULTS.glob(f"{name}*")
    (tmp_path / COMMANDS[name][-1]).symlink_to(source)
    status, error = end(tmp_path, *COMMANDS[name])
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error


def test_bad_images_are_skipped(tmp_path):
    save_face(tmp_path / "face.png", 0)
    status, error = end(tmp_path, "predict.py", "face.png", *[FAULTS / name for name in IMAGES])
    assert status == 0 and [line.split(": ")[0].split("/")[-1] for line in error.splitlines()] == IMAGES, error


@pytest.mark.parametrize("name", sorted(path.name for path in FAULTS.glob("cache-*")))
def test_a_damaged_cache_is_built_anew(tmp_path, name):
    write_folders(tmp_path / "data")
    config = Config(data=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    before = load(config)
    for part in (tmp_path / "cache").glob("*/*.*"):
        whole = part.read_bytes()
        part.write_bytes((FAULTS / name).read_bytes())
        assert load(config).fingerprint == before.fingerprint and part.read_bytes() == whole, part

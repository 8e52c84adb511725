"""errors.py: exit statuses, files written whole, run folders, the CPUs of a container."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from errors import (
    UserError,
    counted,
    cpu_quota,
    exit_status,
    locked,
    new_run_folder,
    plain,
    quoted,
    run_folder,
    write_file,
)
from helpers import REPO


def fail(error):
    raise error


def test_errors_for_the_user_give_status_2_and_bugs_their_traceback(capsys):
    assert exit_status(fail, UserError("do this")) == 2
    assert capsys.readouterr().err == "error: do this\n"
    assert exit_status(fail, UserError("\x1b[2Ja\nb")) == 2
    assert capsys.readouterr().err == "error: \\x1b[2Ja\\nb\n"
    assert exit_status(fail, KeyboardInterrupt()) == 130
    for bug in (ZeroDivisionError(), RuntimeError("shapes do not fit")):
        with pytest.raises(type(bug)):
            exit_status(fail, bug)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_running_out_of_memory_is_one_line_with_what_to_do(capsys, error):
    assert exit_status(fail, error) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and "a smaller --batch-size" in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("into", "status", "error"),
    [("| head -1", 141, ""), ("> /dev/full", 2, "error: .* could not be written .No space left on device.: free some")],
)
def test_output_that_cannot_be_written_ends_the_script_without_a_traceback(into, status, error):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from errors import exit_status\n"
    code += "sys.exit(exit_status(lambda: [print('x' * 1000) for _ in range(1000)] and 0))"
    command = f"{shlex.join([sys.executable, '-c', code, str(REPO)])} {into}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.endswith(f"{status}\n") and re.fullmatch(f"({error}.*\n)?", done.stderr)


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    write_file(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: fail(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=r"a\.pth could not be written \(No space left on device\)"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("name", ["nowhere", "x" * 300])
def test_a_run_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="no such folder; a run's folder is needed"):
        run_folder(name)


def test_a_run_folder_is_made_once(tmp_path):
    folder = new_run_folder(str(tmp_path / "runs"), "a")
    assert new_run_folder(str(tmp_path / "runs"), "a") == folder  # an empty one is as good as new
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"exists already: choose another name with --run.*--resume"):
        new_run_folder(str(tmp_path / "runs"), "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created: Not a directory"):
        new_run_folder(str(tmp_path / "file"), "a")


def test_run_folders_without_a_typed_name_are_numbered(tmp_path):
    made = [new_run_folder(str(tmp_path / "runs"), "a", number=1).name for _ in range(3)]
    assert made == ["a", "a-2", "a-3"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        new_run_folder(str(tmp_path / "file"), "a", number=1)


def test_whoever_locks_a_folder_removes_what_killed_writes_left(tmp_path):
    names = {".a.pth.5.tmp", ".b.json.77.tmp", ".c.tmp", "a.5.tmp", ".lock"}
    for name in names:
        (tmp_path / name).write_text("text")
    with locked(tmp_path, ".a.pth.lock"):
        assert {path.name for path in tmp_path.iterdir()} == names - {".a.pth.5.tmp"} | {".a.pth.lock"}
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".c.tmp", "a.5.tmp", ".lock", ".a.pth.lock"}
    assert (tmp_path / ".lock").read_text() == "text"  # it may be a link to something else


def test_a_stopped_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.pth", b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import errors\n"
    code += "with errors.locked(Path(sys.argv[2])): pass"
    command = [sys.executable, "-c", code, str(REPO), str(tmp_path)]
    with locked(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True)
    assert "is in use by another process" in done.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_names_and_numbers_in_messages():
    assert (counted(1, "image"), counted(2000, "image")) == ("1 image", "2,000 images")
    assert plain("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert quoted("runs/one") == "runs/one" and quoted(Path("my runs/it's")) == """'my runs/it'"'"'s'"""


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_the_processor_is_read(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(str(tmp_path)) == (cores or os.cpu_count())


@pytest.mark.parametrize("script", ["interface", "predict", "test", "export", "dataset"])
def test_ctrl_c_while_a_script_is_imported_is_no_traceback(tmp_path, script):
    (tmp_path / "numpy.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    command = [sys.executable, str(REPO / f"{script}.py")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    begin = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's "&" ignores it
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, **begin)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "stopped\n")

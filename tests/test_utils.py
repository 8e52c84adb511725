import errno
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import errors
import utils
from errors import UserError, locked, new_run_folder, write_file
from helpers import REPO
from utils import channels_last, cpu_quota, pick_machine, read_checkpoint, write_checkpoint

GOOD = {"model": "TheModel", "state_dict": {"a": torch.arange(3.0)}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    write_checkpoint(tmp_path / "a.pth", GOOD)
    content = read_checkpoint(tmp_path / "a.pth")
    assert content["model"] == "TheModel" and content["versions"]["torch"] == str(torch.__version__)
    assert torch.equal(content["state_dict"]["a"], torch.arange(3.0))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    write_checkpoint(tmp_path / "a.pth", GOOD)
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"a\.pth (cannot be read: truncated|is refused)"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: No such file.*python interface\.py.*name another file"):
        read_checkpoint(tmp_path / "none.pth")


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path):
    marker = tmp_path / "ran"
    torch.save({**GOOD, "format": 1, "bomb": Bomb(marker)}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(UserError, match=r"is refused: .* code on loading"):
            read_checkpoint(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"\x80\x02J\x01", b"\x80\x02}q\x00.", b"text"])
def test_a_damaged_pickle_is_refused(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pth"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_file_of_another_project_is_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match="no weight file of this project, or of another version: it lacks format, model, state_dict"
    ):
        read_checkpoint(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match=r"b\.pth"):
        read_checkpoint(tmp_path / "b.pth")


def test_another_format_or_class_order_is_refused(tmp_path):
    write_checkpoint(tmp_path / "a.pth", {**GOOD, "format": 99})
    with pytest.raises(UserError, match="has format 99, this code reads 1"):
        read_checkpoint(tmp_path / "a.pth")
    write_checkpoint(tmp_path / "b.pth", {**GOOD, "classes": ["happy", "sad"]})
    with pytest.raises(UserError, match=r"was trained on the classes \['happy', 'sad'\], in that order"):
        read_checkpoint(tmp_path / "b.pth")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    write_file(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.pth could not be written \(No space left on device\)"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_a_file_that_another_program_has_open_is_waited_for(tmp_path, monkeypatch):
    replace, tries = os.replace, []

    def busy(source, target):
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(UserError, match=r"The process cannot access the file.*close what has it open"):
        write_file(tmp_path / "a.pth", b"new")  # but on Windows this is no question of waiting
    assert len(tries) == 1 and not list(tmp_path.iterdir())
    monkeypatch.setattr(errors, "WAITS", (0.0, 0.0, 0.0))
    write_file(tmp_path / "a.pth", b"new")
    assert len(tries) == 3 and (tmp_path / "a.pth").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["nowhere", "x" * 300])
def test_a_run_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="no such folder; a run's folder is needed"):
        errors.run_folder(name)


def test_a_run_folder_is_made_once(tmp_path):
    folder = new_run_folder(str(tmp_path / "runs"), "a")
    assert new_run_folder(str(tmp_path / "runs"), "a") == folder  # an empty one is as good as new
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"exists already: choose another name with --run.*--resume"):
        new_run_folder(str(tmp_path / "runs"), "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        new_run_folder(str(tmp_path / "file"), "a")
    assert folder.is_dir()


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import errors\n"
    code += "with errors.locked(Path(sys.argv[2])): pass"
    command = [sys.executable, "-c", code, str(REPO), str(tmp_path)]
    with locked(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True)
    assert "is in use by another process" in done.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_device_that_is_not_there_is_named():
    missing = "cuda" if torch.backends.mps.is_available() else "mps"
    with pytest.raises(UserError, match=rf"--device {missing}: torch .* finds no such device here; use --device cpu"):
        pick_machine(missing, "auto")


def test_auto_takes_cuda_then_the_cpu_and_never_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_machine("auto", "fp32").device.type == "cpu"
    on_a_gpu(monkeypatch)
    assert pick_machine("auto", "fp32").device.type == "cuda"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="--precision fp16: small gradients vanish"):
        pick_machine("cpu", "fp16")


def test_precision_is_as_asked_and_auto_follows_the_processor(monkeypatch):
    assert pick_machine("cpu", "bf16").dtype is torch.bfloat16
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(utils, "has_fast_bf16", lambda device, native=native: native)
        machine = pick_machine("cpu", "auto", 1)
        assert machine.dtype is dtype and str(dtype).removeprefix("torch.") in str(machine)


def test_errors_for_the_user_give_status_2_and_bugs_their_traceback(capsys):
    def fail(error):
        raise error

    assert errors.exit_status(fail, UserError("do this")) == 2
    assert capsys.readouterr().err == "error: do this\n"
    assert errors.exit_status(fail, KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        errors.exit_status(fail, ZeroDivisionError())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_full_memory_is_told_with_what_to_do(capsys, error):
    def fail():
        raise error

    assert errors.exit_status(fail) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: the memory is full (") and "a smaller --batch-size" in text and "more" not in text


def test_another_fault_of_torch_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        errors.exit_status(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))


def test_a_real_allocation_that_is_too_large_is_told(capsys):
    assert errors.exit_status(lambda: torch.empty(2**60, dtype=torch.uint8)) == 2
    assert "the memory is full" in capsys.readouterr().err


def test_the_seed_fixes_every_generator():
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        utils.seed_everything(3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_an_apple_gpu_gets_contiguous_weights_and_images():
    layouts = {name: utils.Machine(torch.device(name), torch.float32).layout for name in ("cpu", "cuda", "mps")}
    assert layouts["cpu"] is layouts["cuda"] is torch.channels_last and layouts["mps"] is torch.contiguous_format
    net = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last).to(memory_format=layouts["mps"])
    assert net.weight.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_kept_by_a_convolution_and_changes_no_value(channels):
    images = torch.rand(4, channels, 48, 48)
    out = channels_last(images)
    assert torch.equal(out, images)
    convolution = torch.nn.Conv2d(channels, 8, 3).to(memory_format=torch.channels_last)
    assert convolution(out).is_contiguous(memory_format=torch.channels_last)
    assert not convolution(out).is_contiguous()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_the_processor_is_read(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(str(tmp_path)) == (cores or os.cpu_count())


def on_a_gpu(monkeypatch):
    """Let torch believe that there is a GPU; its settings are as before after the test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))


def test_threads_are_no_more_than_the_container_may_use(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(utils, "cpu_quota", lambda: 3)
    pick_machine("cpu", "fp32")
    pick_machine("cpu", "fp32", threads=5)  # who asks for a number gets it
    assert set_to == [3, 5]
    on_a_gpu(monkeypatch)
    pick_machine("cuda", "fp32")  # there torch's own number stays, unless another is asked for
    pick_machine("cuda", "fp32", threads=2)
    assert set_to == [3, 5, 2]


@pytest.mark.skipif(os.name == "nt", reason="quotes of a Unix shell")
def test_a_path_in_a_command_is_one_word():
    assert errors.quoted("runs/one") == "runs/one" and errors.quoted(Path("my runs/it's")) == """'my runs/it'"'"'s'"""


def test_float32_on_cuda_is_float32(monkeypatch):
    on_a_gpu(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert pick_machine("cuda", "fp32").dtype is torch.float32 and not torch.backends.cudnn.allow_tf32


def test_training_looks_for_the_quickest_algorithms_unless_it_must_repeat(monkeypatch):
    on_a_gpu(monkeypatch)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    pick_machine("cuda", "fp32")
    assert not torch.backends.cudnn.benchmark  # a prediction is over before the search would pay
    utils.seed_everything(0)
    assert torch.backends.cudnn.benchmark
    try:
        utils.seed_everything(0, deterministic=True)
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)

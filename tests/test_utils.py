"""utils.py: the machine, seeds and memory layout; weight files come back, and damaged or foreign ones are refused."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import utils
from config import CLASSES
from errors import UserError, exit_status
from utils import Machine, channels_last, pick_machine, read_checkpoint, seed_everything, write_checkpoint

# --- Weight files ---

GOOD = {"model": "TheModel", "state_dict": {"a": torch.arange(300.0)}}


@pytest.fixture
def good(tmp_path):
    write_checkpoint(tmp_path / "a.pth", GOOD)
    return tmp_path / "a.pth"


def test_a_checkpoint_comes_back_as_it_was(good):
    content = read_checkpoint(good)
    assert content["model"] == "TheModel" and content["versions"]["torch"] == str(torch.__version__)
    assert torch.equal(content["state_dict"]["a"], torch.arange(300.0))
    assert [file.name for file in good.parent.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_a_checkpoint_that_is_truncated_or_changed_on_the_way_is_refused(good, share):
    data = good.read_bytes().replace(np.float32(7).tobytes(), np.float32(9).tobytes())
    good.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"a\.pth is refused: it is damaged"):
        read_checkpoint(good)


def same(first, second):
    """Whether two contents are equal, tensors too."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_no_flipped_bit_changes_what_is_read(good):
    data, whole, flips, refused = good.read_bytes(), read_checkpoint(good), random.Random(0), 0
    for _ in range(300):
        at = flips.randrange(len(data))
        good.write_bytes(data[:at] + bytes([data[at] ^ 1 << flips.randrange(8)]) + data[at + 1 :])
        try:
            assert same(read_checkpoint(good), whole), at
        except UserError as error:
            assert "is refused" in str(error)
            refused += 1
    assert refused > 150  # the others are in dates and padding


def test_an_entry_that_torch_takes_for_a_folder_is_refused(good):
    torch.save(torch.load(good, weights_only=True), good)  # without the checksum that we add
    data = bytearray(good.read_bytes())
    data[data.rindex(b"PK\1\2") + 38] |= 0x10  # of its attributes
    good.write_bytes(data)
    with pytest.raises(UserError, match="is refused"):
        read_checkpoint(good)


def test_of_a_run_in_progress_only_what_was_written_here_is_read(good):
    content = torch.load(good, weights_only=True)
    torch.save(content, good)
    assert same(read_checkpoint(good), content)
    write_checkpoint(good, content | {"progress": {}})
    assert read_checkpoint(good, ("progress",))["progress"] == {}
    torch.save(content | {"progress": {}}, good)
    with pytest.raises(UserError, match=r"a\.pth is not of this version"):
        read_checkpoint(good, ("progress",))


LARGE = 3 * 10**9  # numbers


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(LARGE),
        torch.zeros(1, device="meta").expand(LARGE),
        torch.zeros(3, 4).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=["repeated", "large and empty", "sparse", "empty"],
)
def test_tensors_that_are_not_in_the_file_are_refused(tmp_path, tensor):
    state = {"a": tensor, "b": torch.zeros(3)}
    torch.save({**GOOD, "format": 1, "classes": list(CLASSES), "state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is refused"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_storage_smaller_than_its_tensor_is_refused(good, tmp_path):
    """The tensor claims 2**28 numbers, the file has 300."""
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(tmp_path / "b.pth", "w") as other:
        for entry in archive.infolist():
            data = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data.count(b"M,\x01") == 2  # 300: of the storage, and of the tensor
                data = data.replace(b"M,\x01", b"J\0\0\0\x10")
            other.writestr(entry.filename, data)
    with pytest.raises(UserError, match=r"b\.pth is refused"):
        read_checkpoint(tmp_path / "b.pth")


def test_a_checkpoint_that_is_compressed_is_refused(good, tmp_path):
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry))
    with pytest.raises(UserError, match=r"b\.pth is refused"):
        read_checkpoint(tmp_path / "b.pth")


DATASET = {"source": "a.zip", "fingerprint": "0", "demo": False, "limit": 0, "train": [1, 2]}
FIGURES = {"accuracy": 0.5, "count": 7}


@pytest.mark.parametrize(
    "values",
    [
        {"model": 3},
        {"model": torch.zeros(3)},
        {"preprocessing": {"size": torch.zeros(3)}},
        {"arguments": [1]},
        {"state_dict": []},
        {"temperature": "1.0"},
        {"threshold": None},
        {"temperature": float("nan")},
        {"coverage": 10**400},
        {"config": {}},
        {"config": {"limit": "0"}},
        {"config": {"limit": 0, "val_fraction": []}},
        {"metrics": []},
        {"metrics": {"official": FIGURES}},
        {"metrics": {"official": FIGURES, "deduplicated": {"accuracy": "high", "count": 7}}},
        {"dataset": DATASET | {"name": 7}},
        {"dataset": DATASET | {"demo": 0}},
        {"dataset": DATASET | {"train": [1, "2"]}},
        {"dataset": DATASET | {"source": {"a": 1}}},
        {"made_on": {(1, 2)}},
        {"made_on": {(1, 2): 3}},
        {"versions": 10**5000},
    ],
)
def test_other_types_than_expected_are_refused(tmp_path, values):
    sound = {"metrics": {"official": FIGURES, "unseen": FIGURES}, "dataset": DATASET, "config": {"limit": 0}}
    write_checkpoint(tmp_path / "a.pth", {**GOOD, **sound, "temperature": 1})
    assert read_checkpoint(tmp_path / "a.pth")["metrics"]["deduplicated"] == FIGURES
    write_checkpoint(tmp_path / "a.pth", {**GOOD, **sound, **values})
    with pytest.raises(UserError, match=r"a\.pth is refused"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [[1], "text", torch.zeros(3), OrderedDict()], ids=type)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is (refused|not a weight file)"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: it is not a regular file.*name another file"):
        read_checkpoint(tmp_path / "a.pth")


def test_text_of_a_file_is_printed_in_one_line(tmp_path, capsys):
    write_checkpoint(tmp_path / "a.pth", {**GOOD, "format": "\x1b[2J\n9"})
    assert exit_status(read_checkpoint, tmp_path / "a.pth") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "\x1b" not in error


def test_a_checkpoint_whose_entries_claim_to_be_compressed_is_refused(good):
    data = bytearray(good.read_bytes())
    for at in range(len(data) - 4):
        if data[at : at + 4] == b"PK\x01\x02":  # an entry of the zip's directory; its method is 10 bytes further
            data[at + 10] = zipfile.ZIP_DEFLATED
    good.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pth is refused: it is damaged"):
        read_checkpoint(good)


def test_a_missing_checkpoint_is_named_with_what_to_do(tmp_path):
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
        with pytest.raises(UserError, match=r"is refused: .* could run code"):
            read_checkpoint(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99, this code reads 1"),
        ({"classes": ["happy"]}, "is refused"),
        ({"classes": ["happy", "happy"]}, "is refused"),
        ({"classes": ["happy", "sad\x1b[31m"]}, "is refused"),
        ({"classes": 3}, "is refused"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_once(tmp_path, change, message):
    write_checkpoint(tmp_path / "a.pth", {**GOOD, **change})
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "a.pth")


def test_a_file_of_another_project_is_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="it lacks format, classes, model, state_dict"):
        read_checkpoint(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match=r"b\.pth is refused: it is damaged"):
        read_checkpoint(tmp_path / "b.pth")


# --- Machine ---


def on_a_gpu(monkeypatch):
    """Let torch believe that there is a GPU; its settings are as before after the test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))


def test_auto_takes_cuda_then_the_cpu_and_never_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_machine("auto", "fp32").device.type == "cpu"
    on_a_gpu(monkeypatch)
    assert pick_machine("auto", "fp32").device.type == "cuda"


def test_a_device_that_is_not_there_and_fp16_on_a_cpu_are_refused():
    with pytest.raises(UserError, match=r"--device cuda: torch .* finds no such device here; use --device cpu"):
        pick_machine("cuda", "auto")
    with pytest.raises(UserError, match="--precision fp16: small gradients vanish"):
        pick_machine("cpu", "fp16")


def test_precision_is_as_asked_and_auto_follows_the_processor(monkeypatch):
    assert pick_machine("cpu", "bf16").dtype is torch.bfloat16
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(utils, "has_fast_bf16", lambda device, native=native: native)
        machine = pick_machine("cpu", "auto", 1)
        assert machine.dtype is dtype and str(dtype).removeprefix("torch.") in str(machine)


def test_threads_are_no_more_than_the_container_may_use(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(utils, "cpu_quota", lambda: 3)
    pick_machine("cpu", "fp32")
    pick_machine("cpu", "fp32", threads=5)  # a number that was asked for is used
    assert set_to == [3, 5]
    on_a_gpu(monkeypatch)
    pick_machine("cuda", "fp32")  # torch's own number stays, unless another is asked for
    pick_machine("cuda", "fp32", threads=2)
    assert set_to == [3, 5, 2]


def test_cuda_is_exact_in_float32_and_searches_for_fast_algorithms_unless_deterministic(monkeypatch):
    on_a_gpu(monkeypatch)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
    assert pick_machine("cuda", "fp32").dtype is torch.float32 and not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark  # a prediction is over before the search would pay
    seed_everything(0)
    assert torch.backends.cudnn.benchmark
    try:
        seed_everything(0, deterministic=True)
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_seed_fixes_every_generator():
    samples = []
    for _ in range(2):
        seed_everything(3)
        samples.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert samples[0] == samples[1]


def test_an_apple_gpu_gets_the_contiguous_layout():
    layouts = {name: Machine(torch.device(name), torch.float32).layout for name in ("cpu", "cuda", "mps")}
    assert layouts == {"cpu": torch.channels_last, "cuda": torch.channels_last, "mps": torch.contiguous_format}


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_kept_by_a_convolution_and_changes_no_value(channels):
    images = torch.rand(4, channels, 48, 48)
    out = channels_last(images)
    assert torch.equal(out, images)
    convolution = torch.nn.Conv2d(channels, 8, 3).to(memory_format=torch.channels_last)
    assert convolution(out).is_contiguous(memory_format=torch.channels_last)
    assert not convolution(out).is_contiguous()

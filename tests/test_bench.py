"""The benchmarks run through their real command line at their smallest, and print their tables; no time is asserted."""

import re

import pytest

from helpers import run_script, write_folders, zip_folder


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs a script of bench/ in an empty folder, and tells what it printed; it must leave no file behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(name, *args, status=0):
        done = run_script(f"bench/{name}", *args, cwd=empty)
        assert done.returncode == status, done.stderr[-2000:]
        assert not list(empty.iterdir()) and not list(temporary.glob("*/*.png")) and not list(temporary.rglob("*.npy"))
        return done.stderr if status else done.stdout

    return run


def rows(text):
    """Lines as their label and the numbers after it."""
    split = (re.match(r"(.*?)  +([-\d.,() %]+)$", line) for line in text.splitlines())
    return {found[1].strip(): found[2].split() for found in split if found}


def check_header(text):
    assert re.search(r"^.+, \d+ cores, .+", text)
    assert re.search(r"^python [\d.]+ torch \S+ torchvision \S+ numpy \S+, 1 threads, commit \S+$", text, re.M)


def test_train_compares_ours_with_plain_loops(bench, tmp_path):
    data = zip_folder(write_folders(tmp_path / "archive"), tmp_path / "archive.zip")
    small = ["--images", 14, "--rounds", 1, "--workers", 0, "--models", "TheModel", "--loops", "float32"]
    text = bench("train.py", "--data", data, *small)
    check_header(text)
    assert f"14 images of {data}, batch 128" in text
    table = rows(text)
    for name in ("plain, float32 (0 workers)", "ours"):
        assert len(table[name]) == 2 and all(value.isdigit() for value in table[name])
    assert len(table["ours / plain, float32 (min-max)"]) == 4  # two of "ratio (low-high)"


def test_train_takes_the_best_workers_and_compares_with_every_loop(monkeypatch, capsys):
    """With made rates; the ratios' median is over the rounds."""
    from argparse import Namespace

    from bench import train

    made = {"float32": (10, 40), "channels_last": (20, 30), "bfloat16": (40, 80), "ours": (60, 240)}

    def take_turns(script, cells, rounds, *, label):
        few = {0: 0.5, 1: 1.0, 2: 0.8}
        return {
            key: [
                {
                    epoch: rate * few[cell.get("workers", 1)] * (1 + (turn == 2))
                    for epoch, rate in zip(train.EPOCHS, made[cell["variant"]], strict=True)
                }
                for turn in range(rounds)
            ]
            for key, cell in cells.items()
        }

    monkeypatch.setattr(train, "take_turns", take_turns)
    args = Namespace(loops=list(train.PLAIN), workers=None, rounds=3)
    train.compare(args, {"model": "TheModel"})
    text = capsys.readouterr().out
    assert "pilot, TheModel, plain, float32: images/s by workers 0: 20, 1: 40, 2: 32; taken: 1\n" in text
    table = rows(text)
    assert table["plain, float32 (1 workers)"] == ["10", "40"] and table["ours"] == ["60", "240"]
    for loop, first, steady in (
        ("plain, float32", "6.00", "6.00"),
        ("plain, float32, channels_last", "3.00", "8.00"),
        ("plain, bfloat16 autocast", "1.50", "3.00"),
    ):
        assert table[f"ours / {loop} (min-max)"] == [first, f"({first}-{first})", steady, f"({steady}-{steady})"]


@pytest.mark.parametrize("variant", ["float32", "channels_last", "bfloat16"])
def test_every_plain_loop_trains(tmp_path, variant):
    from bench.train import plain_loop

    folder = write_folders(tmp_path / "archive", train=14, val=0, test=0)
    cell = {"model": "TheModel", "variant": variant, "device": "cpu", "workers": 0, "folder": str(folder / "train")}
    assert len(plain_loop(cell)) == 2


def test_train_finds_the_same_images_in_a_folder_and_in_a_zip(tmp_path):
    from bench.train import write_images
    from config import Config
    from dataset import load

    folder = write_folders(tmp_path / "archive")
    zip_folder(folder, tmp_path / "archive.zip")
    for data in (folder, tmp_path / "archive.zip"):
        out = tmp_path / f"{data.name}-out"
        assert write_images(str(data), 35, out) == 35
        assert len(list(out.glob("train/*/*.png"))) == 35
        made = [load(Config(data=str(path), cache=str(tmp_path / "cache"))) for path in (out, f"{out}.zip")]
        assert made[0].fingerprint == made[1].fingerprint and made[0].split("train").counts() == [5] * 7


def test_train_prints_the_share_of_augmentation(bench):
    text = bench("train.py", "--augment-share", "--images", 14, "--models", "TheModel")
    assert re.search(
        r"^TheModel: preprocessing and augmentation take [\d.]+ ms of a step of [\d.]+ ms: [\d.]+%$", text, re.M
    )


def test_a_missing_dataset_is_one_line_and_status_2(bench):
    assert bench("train.py", "--data", "nowhere.zip", status=2) == "error: nowhere.zip: no such file or folder.\n"


@pytest.mark.parametrize("name", ["train.py", "limit.py", "scale.py"])
def test_no_flag_may_be_shortened(bench, name):
    assert bench(name, "--mod", "x", status=2).startswith("error: ")


def test_limit_names_what_limits_the_step(bench):
    small = ["--batch", 2, "--steps", 1, "--warm-up", 1, "--sizes", 64, "--top", 3, "--models", "TheModel"]
    text = bench("limit.py", *small, "--device", "cpu", "--precision", "fp32")
    check_header(text)
    assert re.search(r"^peak, float32: matrix product \d+ GFLOP/s, 3x3 convolution forward \d+ GFLOP/s$", text, re.M)
    assert re.search(r"^peak, memory: copy [\d.]+ GB/s$", text, re.M)
    assert re.search(r"^TheModel: a step takes [\d.]+ ms and [\d.]+ GFLOP: \d+ GFLOP/s, \d+% of", text, re.M)
    assert len(re.findall(r"(GFLOP/s|GB/s) +\d+%$", text, re.M)) == 3
    assert re.search(r"^sum; measured step +[\d.]+ +[\d.]+$", text, re.M)
    assert re.search(r"^\w+ limits the step: [\d.]+ ms of [\d.]+; products take", text, re.M)


def test_limit_records_every_operation_and_its_bytes():
    import torch

    from bench.ops import Recorder, moved, timed

    left, right = torch.ones(8, 4), torch.ones(4, 2)
    with Recorder() as recorder:
        for _ in range(3):
            product = left @ right
            product.t().add_(1)
            product.zero_()
    calls = {call.operation.overloadpacket.__name__: call for call in recorder.calls.values()}
    assert {name: call.count for name, call in calls.items()} == {"mm": 3, "add_": 3, "zero_": 3}
    assert [moved(calls[name], calls[name]()) for name in ("mm", "add_", "zero_")] == [4 * (32 + 8 + 16), 128, 64]
    row = timed(calls["mm"], torch.device("cpu"))
    assert (row.flops, row.count, row.shapes) == (3 * 2 * 8 * 4 * 2, 3, "8x4:f32 4x2:f32")
    assert calls["add_"].args[0].stride() == (1, 2)  # a copy lies in memory as the original did


def test_scale_reports_time_and_memory_of_a_size(bench):
    text = bench("scale.py", "--sizes", 600, "--steps", 2)
    check_header(text)
    assert "memory limit in training: none" in text
    table = [line.split() for line in text.splitlines() if re.match(r" +600 ", line)]
    assert [len(row) for row in table] == [10]


def test_scale_says_which_limit_was_in_force_and_that_training_did_not_fit(bench):
    text = bench("scale.py", "--sizes", 600, "--steps", 2, "--memory-limit", 100)
    assert re.search(r"memory limit in training: (RLIMIT_DATA 100 MB|MemoryMax=100M)", text)
    assert "training did not fit into the limit: " in text


def test_scale_divides_memory_by_the_images_between_two_sizes():
    from bench.scale import growth

    built = {"build_above": 1000.0}
    whole = [built | {"above": 50.0 * n, "held": 20.0 * n, "peak": 1e9 + 70.0 * n} for n in (10, 30)]
    line = "bytes per image from 10 to 30: building 0.0, loading 50.0, held after loading 20.0, peak of training 70.0"
    assert growth([10, 30], whole) == [line]
    assert growth([10, 30], [whole[0], built]) == ["bytes per image from 10 to 30: building 0.0"]
    assert growth([10], whole[:1]) == []

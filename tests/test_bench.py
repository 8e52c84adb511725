"""The benchmarks run through their real command line at their smallest, and print their tables; no time is asserted."""

import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import RECIPES, Config
from dataset import load
from errors import UserError
from helpers import REPO, brightness_weights, run_script, write_folders, zip_folder
from ranks import Ranks
from study.stages import macs
from utils import pick_machine, write_checkpoint
from val import predict_logits
from weights import load_weights


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
    assert re.search(r"^python [\d.]+ torch \S+ torchvision \S+ numpy \S+, 1 thread, commit \S+$", text, re.M)


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


def test_train_keeps_images_of_one_name_apart(tmp_path):
    from bench.train import write_images

    folder = write_folders(tmp_path / "archive", train=7, val=7, test=0)
    for file in list(folder.glob("train/*/*.png")):
        (file.parent / "more").mkdir()
        shutil.copy(file, file.parent / "more")
    assert write_images(str(folder), 14, tmp_path / "out") == len(list(tmp_path.glob("out/train/*/*.png"))) == 14


def test_train_prints_the_share_of_augmentation(bench):
    text = bench("train.py", "--augment-share", "--images", 14, "--models", "TheModel")
    assert re.search(
        r"^TheModel: preprocessing and augmentation take [\d.]+ ms of a step of [\d.]+ ms: [\d.]+%$", text, re.M
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere the parent's peak is not told apart")
def test_memory_of_a_process_is_not_its_parents():
    held = np.ones(2**26, np.uint8)
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); from bench.predict import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    from bench.predict import peak_memory

    assert peak_memory() > held.nbytes > int(done.stdout) > 2**20


def test_both_ways_predict_on_the_cpu(monkeypatch, tmp_path):
    import predict as script
    from bench import predict

    asked = []
    monkeypatch.setattr(script, "predict", lambda args: asked.append(args) or 0)
    predict.our_way({"zip": "faces.zip", "weights": "w.pth", "table": "t.csv"})
    assert [args.config.device for args in asked] == ["cpu"]


def test_a_missing_dataset_is_one_line_and_status_2(bench):
    assert bench("train.py", "--data", "nowhere.zip", status=2) == "error: nowhere.zip: no such file or folder.\n"


def test_data_that_the_benchmarks_cannot_use_are_refused(bench, tmp_path):
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n3,{' '.join(['9'] * 48 * 48)},Training\n")
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.write(tmp_path / "fer2013.csv", "fer2013.csv")
    for name in ("fer2013.csv", "table.zip"):
        text = bench("train.py", "--data", tmp_path / name, status=2)
        assert text.endswith(f"/{name}: the plain loop reads files; name a folder or a zip of images\n")
    assert bench("predict.py", "--data", "nowhere.zip", status=2).startswith("error: nowhere.zip: can't be read (")


def test_a_process_that_fails_is_told_in_its_words(tmp_path):
    from bench.common import take_turns

    (tmp_path / "cell.py").write_text("raise SystemExit('the words')")
    with pytest.raises(UserError, match=r"^cell\.py --one \{\"a\": 1\} failed:\nthe words$"):
        take_turns(str(tmp_path / "cell.py"), {"x": {"a": 1}}, 1)


@pytest.mark.parametrize("name", ["train.py", "limit.py", "scale.py"])
def test_no_flag_may_be_shortened(bench, name):
    assert bench(name, "--mod", "x", status=2).startswith("error: ")


@pytest.mark.parametrize(
    "typed",
    [
        "precision.py --data x --seed 2",
        "study.py --data x --recipe small --seed 2",
        "speedrun.py --data x --run 2",
        "results.py x --tt",
    ],
)
def test_no_flag_of_a_study_may_be_shortened(bench, typed):
    name, *args = typed.split()
    assert bench(name, *args, status=2).startswith("error: unrecognized arguments: ")


@pytest.mark.parametrize("typed", ["--epoch 3", "--epochs 0", "--recipe simple"])
def test_a_wrong_flag_after_two_dashes_ends_a_study_before_its_runs(bench, typed):
    text = bench("study.py", "--data", "x", "--recipe", "small", "--", *typed.split(), status=2)
    assert text.startswith("error: ") and typed.split()[0].strip("-") in text


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
    assert re.search(r"memory limit in training: (RLIMIT_DATA 100 MiB|MemoryMax=100M)", text)
    assert "training did not fit into the limit: " in text


def test_scale_divides_memory_by_the_images_between_two_sizes():
    from bench.scale import growth

    built = {"build_above": 1000.0}
    whole = [built | {"above": 50.0 * n, "held": 20.0 * n, "peak": 1e9 + 70.0 * n} for n in (10, 30)]
    line = "bytes per image from 10 to 30: building 0.0, loading 50.0, held after loading 20.0, peak of training 70.0"
    assert growth([10, 30], whole) == [line]
    assert growth([10, 30], [whole[0], built]) == ["bytes per image from 10 to 30: building 0.0"]
    assert growth([10], whole[:1]) == []


# --- Runs that are kept ---


def write_run(run, config, *figures):
    """A finished run as interface.py leaves it, less its weights; (official, deduplicated, seconds) of each epoch."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(asdict(config)))
    best = [
        deduplicated > max([-1.0, *(row[1] for row in figures[:at])]) for at, (_, deduplicated, _) in enumerate(figures)
    ]
    keys = ("val_accuracy", "val_accuracy_deduplicated", "seconds", "best")
    rows = [dict(zip(keys, (*row, new), strict=True)) for row, new in zip(figures, best, strict=True)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run / "confusion.png").touch()
    return run


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls of interface.py, parsed by itself, that `train_once` makes; each leaves a finished run behind."""
    import interface
    from bench import common

    made = []

    def call(command, folder):
        assert command[1].endswith("interface.py") and not list(Path(folder).iterdir())  # weights go nowhere else
        args = interface.parse(command[2:])
        made.append(args)
        run = Path(args.resume) if args.resume else Path(args.config.runs, args.config.run)
        config = common.config_of(run) if args.resume else args.config
        write_run(run, config, (0.5, 0.25, 60.0))
        return 0

    monkeypatch.setattr(common, "call", call)
    monkeypatch.chdir(tmp_path)
    return made


def test_a_run_is_trained_unless_it_is_there(calls, tmp_path):
    from bench.common import train_once

    (tmp_path / "faces.zip").touch()
    knobs = {"data": "faces.zip", "seed": 3, "epochs": 2, "flip": False}
    for _ in range(2):
        rows = train_once(Path("runs/one"), knobs, recipe="small")
        assert rows == [{"val_accuracy": 0.5, "val_accuracy_deduplicated": 0.25, "seconds": 60.0, "best": True}]
    (args,) = calls
    places = {
        name: str(tmp_path / value) for name, value in (("data", "faces.zip"), ("cache", ".cache"), ("runs", "runs"))
    }
    assert args.config == Config(**{**RECIPES["small"], **knobs, **places, "run": "one"})


def test_a_run_that_was_stopped_goes_on(calls, tmp_path):
    from bench.common import train_once

    knobs = {"data": "demo", "epochs": 2, "threads": 1}
    train_once(Path("runs/one"), knobs)
    Path("runs/one/confusion.png").unlink()
    train_once(Path("runs/one"), knobs)
    assert calls[1].resume == str(tmp_path / "runs/one")
    assert calls[1].flags == {"data": "demo", "cache": str(tmp_path / ".cache"), "threads": 1}


def test_a_run_with_other_knobs_is_not_taken_for_this_one(calls):
    from bench.common import train_once
    from errors import UserError

    train_once(Path("runs/one"), {"data": "demo", "epochs": 2})
    train_once(Path("runs/one"), {"data": "elsewhere.zip", "epochs": 2, "device": "cpu"})  # the same run elsewhere
    with pytest.raises(UserError, match=r"holds a run with other knobs .epochs 2, now 3; seed 0, now 1.: name another"):
        train_once(Path("runs/one"), {"data": "demo", "epochs": 3, "seed": 1})
    assert len(calls) == 1


def test_a_taught_run_is_known_by_what_is_in_its_teachers(calls, tmp_path):
    from bench.common import train_once
    from training.distill import teacher_digests

    for name in ("one", "other"):
        Path(f"{name}.pth").write_text(name)
    knobs = {"data": "demo", "teachers": str(tmp_path / "one.pth")}
    train_once(Path("runs/run"), knobs)
    train_once(Path("runs/run"), knobs | {"teachers": "one.pth"})
    targets = {"votes": "", "teachers": teacher_digests(Config(teachers="one.pth"))}
    write_checkpoint(Path("runs/run/last.pth"), {"targets": targets})
    Path("one.pth").rename("moved.pth")
    train_once(Path("runs/run"), knobs | {"teachers": "moved.pth"})
    shutil.copy("other.pth", "moved.pth")
    for teachers in ("moved.pth", ""):
        with pytest.raises(UserError, match=r"holds a run with other knobs .teachers .* name another folder"):
            train_once(Path("runs/run"), knobs | {"teachers": teachers})
    assert len(calls) == 1


def test_runs_say_which_weights_leakage_notes_their_validation_images(tmp_path, monkeypatch):
    from bench.common import notes_on

    monkeypatch.chdir(tmp_path)
    data = load(Config(data=str(write_folders(tmp_path / "archive", train=77))))
    mine, theirs = brightness_weights(Path("mine.pth"), data=data), REPO / "final_weights_new.pth"
    assert notes_on(Config(), data) == notes_on(Config(teachers=str(mine), pretrained=str(mine)), data) == []
    for knobs in ({"teachers": f"{mine},{theirs}"}, {"teachers": str(mine), "pretrained": str(theirs)}):
        (note,) = notes_on(Config(**knobs), data)
        assert note.startswith(f"note: {theirs} was trained on other data")


@pytest.mark.parametrize(("status", "error"), [(2, "UserError"), (130, "KeyboardInterrupt")])
def test_a_run_that_fails_ends_the_study(monkeypatch, tmp_path, status, error):
    from bench import common

    monkeypatch.setattr(common, "call", lambda *_: status)
    with pytest.raises(BaseException) as raised:
        common.train_once(tmp_path / "run", {"data": "demo"})
    assert type(raised.value).__name__ == error


TERMINATED = """
import os, signal, sys
from pathlib import Path
from bench.common import call
from utils import exit_status
saves = f"import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit({sys.argv[2]})); "
sys.exit(exit_status(call, [sys.executable, "-c", saves + "open('ready', 'w'); time.sleep(60)"], sys.argv[1]))
"""


@pytest.mark.parametrize("status", [130, 0])  # a run that was in its last step ends well
def test_a_study_that_is_terminated_stops_its_run_as_ctrl_c_does(tmp_path, status):
    process = subprocess.Popen([sys.executable, "-c", TERMINATED, str(tmp_path), str(status)], cwd=REPO)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 130


def test_flags_set_the_knobs_they_are_made_of():
    from bench.common import flags_of, typed_knobs

    knobs = {"label_smoothing": 0.1, "flip": False, "augment": True, "votes": "", "model": "ResNet-18", "epochs": 7}
    assert typed_knobs(flags_of(knobs)) == knobs


def test_a_knob_that_the_script_sets_itself_is_refused(capsys):
    from bench.common import typed_knobs

    with pytest.raises(SystemExit) as raised:
        typed_knobs(["--epochs", "2", "--seed", "5"], taken=("seed", "data"))
    assert raised.value.code == 2 and "seed after --: this script sets them itself" in capsys.readouterr().err


def test_precision_pairs_runs_of_both_formats(calls, monkeypatch, capsys):
    from bench import precision

    argv = ["precision.py", "--data", "demo", "--seeds", "2", "--runs", "runs", "--", "--epochs", "3"]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr(precision, "machines", lambda folders: [f"{len(folders)} runs on two cores"])
    monkeypatch.setattr(precision, "check_data", lambda *_: None)
    assert precision.main() == 0
    made = [(args.config.precision, args.config.seed, args.config.epochs) for args in calls]
    assert made == [("fp32", 0, 3), ("bf16", 0, 3), ("fp32", 1, 3), ("bf16", 1, 3)]
    text = capsys.readouterr().out
    assert "seed 1  fp32 50.00 / 25.00  bf16 50.00 / 25.00  difference +0.00 / +0.00" in text
    assert "bf16 - fp32, deduplicated: +0.00 points, 95 % interval +0.00 to +0.00" in text
    assert text.splitlines()[-1] == "4 runs on two cores"


@pytest.mark.parametrize(
    "flags",
    [["--recipe", "nano", "--", "--label-smoothing", "0.1"], ["--model", "EmotionResNet-nano", "--", "--width", "1.5"]],
)
def test_precision_takes_knobs_that_its_recipe_or_network_allows(calls, monkeypatch, flags):
    from bench import precision

    monkeypatch.setattr("sys.argv", ["precision.py", "--data", "demo", "--seeds", "2", *flags])
    monkeypatch.setattr(precision, "check_data", lambda *_: None)
    assert precision.main() == 0 and len(calls) == 4


def test_ensemble_holds_the_mean_of_probabilities_against_the_best_network(bench, tmp_path):
    data = zip_folder(write_folders(tmp_path / "archive", val_copies=7), tmp_path / "archive.zip")
    places = ["--data", data, "--cache", tmp_path / "cache"]
    files = [tmp_path / name / "best.pth" for name in ("one", "two")]
    for seed, file in enumerate(files):
        knobs = ["--recipe", "nano", "--epochs", 1, "--seed", seed, "--device", "cpu"]
        run_script("interface.py", *places, *knobs, "--runs", tmp_path, "--run", file.parent.name, cwd=tmp_path)
    text = bench("ensemble.py", *files, *places, "--tta", "flip")
    check_header(text)

    images = load(Config(data=str(data), cache=str(tmp_path / "cache"))).split("val")
    machine = pick_machine("cpu", "auto", 1)
    models = [load_weights(file, machine=machine)[0] for file in files]
    each = [predict_logits(model, images, machine=machine, ranks=Ranks(), tta="flip").softmax(1) for model in models]
    right = [(table.argmax(1).numpy() == images.labels) for table in (*each, sum(each) / 2)]
    new = ~images.copies
    figures = [f"{100 * hits.mean():.2f} / {100 * hits[new].mean():.2f}" for hits in right]
    lines = text.splitlines()[-4:]
    work = macs(models[0]) / 1e6
    for line, figure, times, name in zip(lines, figures, (2, 2, 4), (*files, "mean of all 2"), strict=False):
        assert line == f"{figure}  {times * work:,.0f}M multiply-adds  {name}"
    best = int(right[1][new].mean() > right[0][new].mean())
    gain = 100 * (right[2][new].mean() - right[best][new].mean())
    assert lines[3].startswith(f"mean less {files[best]}, deduplicated: {gain:+.2f} points (")
    assert "name other weight files too" in bench("ensemble.py", files[0], files[0], *places, status=2)
    assert "no such weight file" in bench("ensemble.py", files[0], tmp_path / "none.pth", *places, status=2)
    other = zip_folder(write_folders(tmp_path / "other", val_copies=3), tmp_path / "other.zip")
    assert "was trained on other data" in bench("ensemble.py", *files, "--data", other, *places[2:], status=2)


# --- What a part of a recipe is worth ---


def test_study_prints_paired_gains_and_runs_nothing_twice(bench, tmp_path, monkeypatch, capsys):

    from bench import common, study

    data = zip_folder(write_folders(tmp_path / "archive", val_copies=7), tmp_path / "archive.zip")
    runs = tmp_path / "runs"
    quick = ["--model", "EmotionResNet-nano", "--epochs", 2, "--cache", tmp_path / "cache", "--device", "cpu"]
    args = ["--data", data, "--recipe", "small", "--seeds", 1, "--only", "EMA", "--runs", runs, "--", *quick]
    text = bench("study.py", *args)
    check_header(text)
    assert "2 runs, 2 for each of 1 seeds; 0 of them are there\n" in text and "\nseed 0 done: " in text
    assert re.search(r"^1 runs are left: about [\d.]+ hours$", text, re.M)
    last = {}
    for name in ("small-all-0", "small-without-ema-0"):
        last[name] = json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[-1])
        hits = np.load(runs / name / "hits.npy")
        assert hits.shape == (28,) and hits.mean() == pytest.approx(last[name]["val_accuracy"])
    whole, without = (100 * row["val_accuracy"] for row in last.values())
    assert rows(text)["all"][0] == f"{whole:.2f}"
    assert re.search(rf"^without EMA +{without:.2f} +{re.escape(f'{whole - without:+.2f}')} ", text, re.M)
    written = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    monkeypatch.setattr(common, "call", lambda *_: pytest.fail("a run that is there is run again"))
    monkeypatch.setattr("sys.argv", ["study.py", *map(str, args)])
    assert study.main() == 0
    again = capsys.readouterr().out
    assert "2 of them are there\n" in again and again.split("seed 0 done")[1] == text.split("seed 0 done")[1]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == written
    averaged, _ = study.last_network(runs / "small-all-0")
    content = torch.load(runs / "small-all-0/last.pth", weights_only=True)
    assert torch.equal(averaged.classifier.weight, content["ema"]["module"]["classifier.weight"])
    assert not torch.equal(averaged.classifier.weight, content["state_dict"]["classifier.weight"])


def test_teach_trains_students_of_all_teachers_and_nothing_twice(bench, tmp_path):
    data = zip_folder(write_folders(tmp_path / "archive", val_copies=7), tmp_path / "archive.zip")
    shipped, runs = shutil.copy(REPO / "final_weights_new.pth", tmp_path / "mine.pth"), tmp_path / "runs"
    quick = ["--epochs", 2, "--limit", 35, "--cache", tmp_path / "cache", "--device", "cpu"]
    how = ["--recipe", "nano", "--teachers", 2, "--students", 2, "--epochs", 1, "--also", shipped, "--runs", runs]
    text = bench("teach.py", "--data", data, *how, "--", *quick)
    check_header(text)
    (copy,) = runs.glob("also-*.pth")
    assert ": 2 teachers and 1 more, then 2 students; accuracy in %" in text
    figures = r"best epoch [\d.]+ / [\d.]+  last [\d.]+ / [\d.]+  "
    lengths = {"teacher-0": "2 epochs", "teacher-1": "2 epochs", "student-2": "1 epoch", "student-3": "1 epoch"}
    for name, epochs in lengths.items():
        assert re.search(rf"^{name} +{figures}{epochs} in [\d.]+ minutes$", text, re.M)
        config = json.loads((runs / name / "config.json").read_text())
        taught_by = [str(runs / name) for name in ("teacher-0/best.pth", "teacher-1/best.pth", copy.name)]
        assert config["teachers"] == (",".join(taught_by) if name.startswith("student") else "")
        assert config["seed"] == int(name[-1]) and config["model"] == "EmotionResNet-nano"
    assert re.search(r"^mean of the logits of all teachers: [\d.]+ / [\d.]+$", text, re.M)
    assert re.search(r"^students, best epochs: [\d.]+ ± [\d.]+ / [\d.]+ ± [\d.]+$", text, re.M)
    assert "is left as it is: the run was made with --limit 35" in text
    known = f"note: {copy} was trained on other data, or with other images to validate on"
    assert text.splitlines()[2].startswith(known)
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*.pth")}
    shutil.copy(runs / "teacher-0" / "best.pth", shipped)  # as a run does that is promoted
    note, *again = bench("teach.py", "--data", data, *how, "--", *quick).splitlines()[2:]
    assert note.startswith(f"note: {shipped} is not what it was when these runs were begun")
    assert again == text.splitlines()[2:]
    other = write_folders(tmp_path / "other", train=77)
    text = bench("teach.py", "--data", other, *how, "--", *quick, status=2)
    assert f"{runs / 'teacher-0'} was trained on other data than {other}: name another folder with --runs" in text
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*.pth")} == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--teachers", 0], "--teachers: invalid choice"),
        (["--epochs", 0], "epochs: 0 is not"),
        (["--epochs", 100_001], "epochs: 100001 is not"),
        (["--data", ""], "--data: it is empty"),
        (["--also", "none.pth"], "error: none.pth: no such weight file"),
        (["--also", REPO / "README.md"], "README.md is refused: it is no weight file"),
        (["--also", "one,two.pth"], "one,two.pth: a comma in a path"),
        (["--runs", "one,two"], "one,two: a comma in a path"),
        (["--", "--seed", 3], "seed after --: this script sets them itself"),
    ],
)
def test_teach_refuses_what_it_cannot_do(bench, args, message):
    assert message in bench("teach.py", "--data", "demo", *args, status=2)


def test_study_takes_the_parts_that_change_something():
    from bench.study import LESS, MORE, parts_of

    config = Config(loss="cross_entropy", label_smoothing=0.1, window=40, mixup=0.4, optimizer="sgd")
    parts, idle = parts_of(config, [])
    names, unchanged = [str(part) for part in parts], [str(part) for part in idle]
    assert {"without label smoothing", "without window", "without mixup", "without SGD", "with cutmix"} <= {*names}
    assert {"without EMA", "without cutmix", "with mixup"} <= {*unchanged}
    assert len(names) + len(unchanged) == len(LESS) + len(MORE)
    for part in parts:
        Config(**{**asdict(config), **part.knobs})  # its knobs are there and allowed
    for optimizer in ("adam", "adamw"):
        names = {str(part) for part in parts_of(Config(optimizer=optimizer, lr=0.001, shift=0.0), [])[0]}
        assert "without SGD" not in names and "without moves" in names
    names = {str(part) for part in parts_of(replace(config, augment=False), [])[0]}
    assert "without mixup" in names and not {"without window", "without flip", "without moves"} & names
    parts, idle = parts_of(config, ["mixup"])
    assert [str(part) for part in (*parts, *idle)] == ["without mixup", "with mixup"]
    assert parts[0].folder("small", 2) == "small-without-mixup-2"


def test_study_table_has_the_gain_of_a_part_and_both_intervals():
    from bench.study import ALL, Part, Result, table

    less, more = Part("EMA", {"ema": 0.0}), Part("mixup", {"mixup": 0.2}, True)
    deduplicated = np.arange(10) < 8
    full, few = np.arange(10) < 6, np.arange(10) >= 8  # 6 and 0 of 8 right deduplicated
    results = {}
    for seed, shift in enumerate((0.0, 1.0)):
        results[str(ALL), seed] = Result(70.0 + shift, 60.0, 10.0, full)
        results[str(less), seed] = Result(68.0 + 2 * shift, 61.0, 20.0, few)
        results[str(more), seed] = Result(71.0 + shift, 62.0, 30.0, full)
    _, whole, without, added, spread = (
        " ".join(line.split()) for line in table([less, more], results, 2, deduplicated)
    )
    assert whole == "all 70.50 60.00 10.0"
    # Gains 2 and 1: mean 1.5, standard error 0.5; of 8 images 6 are lost
    assert without.startswith("without EMA 69.00 +1.50 (-4.85 to +7.85) 61.00 -1.00 (-1.00 to -1.00) +75.00 (")
    assert added == "with mixup 71.50 +1.00 (+1.00 to +1.00) 62.00 +2.00 (+2.00 to +2.00) +0.00 (+0.00 to +0.00) 30.0"
    assert spread == "all: standard deviation 0.71 official, 0.00 deduplicated"
    alone = table([less], results, 1, deduplicated)
    assert len(alone) == 3 and "+2.00  " in alone[2] and "nan" not in alone[2]


# --- The speed record ---


def test_a_speedrun_that_cannot_begin_leaves_nothing_behind(bench, tmp_path):
    kept = tmp_path / "record"
    text = bench("speedrun.py", "--data", "nowhere.zip", "--keep", kept, "--", "--device", "cpu", status=2)
    assert "nowhere.zip: no such file or folder" in text and not kept.exists()
    text = bench("speedrun.py", "--data", "x", "--", "--device", "cuda", "--loss", "focal", status=2)
    assert "error: label_smoothing" in text and "the schedule for cuda sets the others" in text
    for args, message in {
        ("--keep", ""): "--keep: it is empty",
        ("--workers", "0", "-1"): "--workers: 0 or more",
        ("--", "--seed", "7"): "seed after --: this script sets them itself",
        ("--", "--runs", "1"): "runs after --: this script sets them itself",
    }.items():
        assert message in bench("speedrun.py", "--data", "x", *args, status=2)


def test_speedrun_times_a_fixed_schedule(bench, tmp_path):
    data = zip_folder(write_folders(tmp_path / "archive"), tmp_path / "archive.zip")
    quick = ["--epochs", 2, "--cache", tmp_path / "cache", "--device", "cpu"]
    kept = tmp_path / "record"
    call = ["speedrun.py", "--data", data, "--runs", 2, "--images", 14, "--workers", 0, "--keep", kept, "--", *quick]
    text = bench(*call)
    check_header(text)
    assert "no record: 2 runs, 5 are needed; the schedule is changed: epochs\n" in text
    assert "EmotionResNet-nano, 2 epochs of 70 images in steps of 128\n" in text
    assert "two epochs of 140 random faces" in text
    runs = re.findall(r"^seed (\d)  ([\d.]+) s  ([\d.]+) / ([\d.]+) %$", text, re.M)
    assert [seed for seed, *_ in runs] == ["0", "1"]
    official = [float(each[2]) for each in runs]
    assert float(rows(text)["official"][0]) == pytest.approx(sum(official) / 2, abs=0.02)
    assert re.search(r"^target 65.0 % (reached|missed): [\d.]+ % official in [\d.]+ s, mean of 2 runs$", text, re.M)
    line = r"^plain loop, float32, 0 workers .the best of 0.: \d+ images/s; 140 images would take it \d+ s .computed, "
    assert re.search(line, text, re.M)
    table = bench("results.py", kept / "0", kept / "1", "--data", data)
    cells = next(line.split(" | ") for line in table.splitlines() if line.endswith(" | 2 (0, 1) |"))
    assert float(cells[3].split(" ± ")[0]) == pytest.approx(sum(official) / 2, abs=0.06)  # of the last epoch
    assert "not there yet" in bench(*call, status=2)  # nothing is overwritten


@pytest.mark.parametrize(("last", "verdict"), [(70.5, "missed"), (72.0, "reached")])
def test_speedrun_compares_the_mean_with_the_target(last, verdict):
    from bench.speedrun import Timed, plain_line, summary

    runs = [Timed(10.0, 70.0, 60.0), Timed(14.0, last, 62.0)]
    lines = summary(runs, 71.0)
    assert lines[-1] == f"target 71.0 % {verdict}: {(70 + last) / 2:.2f} % official in 12.00 s, mean of 2 runs"
    assert lines[1].split() == ["seconds", "12.00", "2.83", "10.00", "14.00"]
    assert rows("\n".join(lines))["deduplicated"] == ["61.00", "1.41", "60.00", "62.00"]
    text = (
        "plain loop, float32, x: 100 images/s; 6,000 images would take it 60 s (computed, without scoring), 5.0 times"
    )
    assert plain_line(100.0, "x", 6000, 12.0) == f"{text} the mean"


def test_speedrun_takes_the_best_workers_of_the_plain_loop(monkeypatch):
    from argparse import Namespace

    from bench import speedrun

    def run_cell(script, cell):
        assert Path(script).name == "train.py" and cell["model"] == "EmotionResNet-nano" and cell["images"] == 9
        assert cell["width"] == 1.5
        return {"first": 1.0, "steady": {0: 50.0, 1: 80.0, 4: 70.0}[cell["workers"]]}

    monkeypatch.setattr(speedrun, "run_cell", run_cell)
    monkeypatch.setattr(speedrun, "write_images", lambda data, images, folder: 9)
    args = Namespace(data="archive.zip", images=9, workers=[0, 1, 4])
    config = Config(model="EmotionResNet-nano", width=1.5)
    assert speedrun.plain_rate(args, config, "cpu") == (80.0, "1 workers (the best of 0, 1, 4)")


@pytest.mark.parametrize("name", ["CPU", "GPU"])
def test_schedules_of_the_speedrun_are_fixed(name):
    from bench import speedrun

    config = Config(**getattr(speedrun, name))
    assert config.stop_patience == 0 and config.schedule != "plateau"


# --- The table of results ---


def test_results_are_a_row_for_each_set_of_knobs(bench, tmp_path):
    small = {**RECIPES["small"], "data": "here.zip"}
    names = [
        write_run(tmp_path / "a", Config(**small), (0.7, 0.6, 60.0), (0.5, 0.5, 60.0)),
        write_run(tmp_path / "b", Config(seed=1, flip=False, epochs=9), (0.25, 0.25, 60.0)),
        write_run(tmp_path / "c", Config(**small, seed=5, threads=2), (0.6, 0.4, 120.0), (0.7, 0.5, 120.0)),
        tmp_path / "unfinished",
    ]
    text = bench("results.py", *names)
    assert f"left out: {names[3]} is no finished run\n" in text
    head, dashes, first, second = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len(head) == len(dashes) == len(first) == len(second)
    assert first == [
        *("`EmotionResNet-small`, 2.7M", "`python interface.py --recipe small`"),
        *("70.0 ± 0.0 / 55.0 ± 7.1", "60.0 ± 14.1 / 50.0 ± 0.0", "3", "2 (0, 5)"),
    ]
    assert second[:2] == ["`TheModel`, 9.5M", "`python interface.py --epochs 9 --no-flip`"]
    assert second[2:] == ["25.0 / 25.0"] * 2 + ["1", "1 (1)"]


def test_results_name_the_shortest_command():
    from bench.results import command_of

    assert command_of(Config(seed=4, data="x.zip", run="y", device="cpu")) == "python interface.py"
    config = Config(**{**RECIPES["small"], "epochs": 12})
    assert command_of(config) == "python interface.py --recipe small --epochs 12"
    files = {"teachers": f"{Path.cwd()}/a.pth, b.pth,/c.pth", "pretrained": f"{Path.cwd()}/d.pth"}
    assert command_of(Config(**files)) == "python interface.py --pretrained d.pth --teachers a.pth,b.pth,/c.pth"


def test_results_score_with_test_time_augmentation(bench, tmp_path):
    data = zip_folder(write_folders(tmp_path / "archive"), tmp_path / "archive.zip")
    run = write_run(tmp_path / "run", Config(data=str(data)), (0.5, 0.25, 60.0))
    brightness_weights(run / "best.pth", data=load(Config(data=str(data), cache=str(tmp_path / "cache"))))
    text = bench("results.py", run, "--tta", "flip", "crops", "--cache", tmp_path / "cache")
    head, cells = [line.split(" | ") for line in text.splitlines() if " | " in line and "---" not in line]
    assert head[4:6] == ["best, `--tta flip`", "best, `--tta crops`"]
    assert cells[2:6] == ["50.0 / 25.0"] * 2 + ["100.0 / 100.0"] * 2


def test_runs_on_other_data_are_no_seeds_of_one_row(bench, tmp_path, weights):
    names = [write_run(tmp_path / str(seed), Config(seed=seed), (0.5, 0.25, 60.0)) for seed in range(3)]
    for name in names[:2]:
        shutil.copy(weights, name / "best.pth")
    data = zip_folder(write_folders(tmp_path / "archive"), tmp_path / "archive.zip")
    brightness_weights(names[2] / "best.pth", data=load(Config(data=str(data), cache=str(tmp_path / "cache"))))
    rows = [line for line in bench("results.py", *names).splitlines() if "`TheModel`" in line]
    assert [row.split(" | ")[-1] for row in rows] == ["2 (0, 1) |", "1 (2) |"]
    text = bench("results.py", names[0], "--tta", "flip", "--data", data, "--cache", tmp_path / "cache", status=2)
    assert "was trained on other data than" in text


def test_results_say_every_machine_that_a_run_was_made_on(bench, tmp_path):
    first, second = ({"machine": name, "versions": {"torch": torch}} for name, torch in (("a", "2.4"), ("b", "2.5")))
    each = {"0": {"made_on": [first, second]}, "1": {"made_on": [first, second]}, "2": first}  # the last one is older
    for seed, content in each.items():
        write_run(tmp_path / seed, Config(seed=int(seed)), (0.5, 0.25, 60.0))
        write_checkpoint(tmp_path / seed / "last.pth", content)
    text = bench("results.py", *(tmp_path / seed for seed in each))
    assert "\n2 runs on a; torch 2.4, then on b; torch 2.5\n1 run on a; torch 2.4\n" in text


def test_a_study_of_runs_from_several_machines_says_so(tmp_path):
    from bench import study

    for seed, machine in enumerate(("cpu, float32", "cpu, bfloat16")):
        (tmp_path / str(seed)).mkdir()
        write_checkpoint(tmp_path / str(seed) / "last.pth", {"machine": machine, "versions": {"torch": "2.5"}})
    runs = [tmp_path / "0", tmp_path / "1"]
    assert study.places(runs[:1]) == ["1 run on cpu, float32; torch 2.5"]
    assert len(study.places(runs)) == 3 and study.places(runs)[2].startswith("note: runs of several machines")


def test_results_need_a_finished_run(bench):
    text = bench("results.py", "nowhere", status=2)
    assert text == "error: none of these folders holds a finished run; name some, such as runs/NAME\n"

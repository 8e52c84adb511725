"""The benchmarks run once each at their smallest and print their tables; their arithmetic is checked; no time is."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from bench import ablate, common, drive, predict, results, scale, speedrun, train
from bench.common import config_for, flags_of, mean_sd, ratio, settings_after, take_turns
from config import RECIPES, Config
from dataset import load
from errors import UserError
from helpers import REPO, brightness_weights, write_folders, zip_folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The flags that name a small dataset and a cache; the current folder is an empty one."""
    archive = zip_folder(write_folders(tmp_path / "archive"), tmp_path / "archive.zip")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return ["--data", str(archive), "--cache", str(tmp_path / "cache")]


@pytest.fixture
def bench(capsys):
    """Runs a benchmark's main and returns what it printed; it must leave no file in the current folder."""

    def run(module, *args, status=0):
        assert module.main([*map(str, args)]) == status
        out, err = capsys.readouterr()
        assert not list(Path().iterdir())
        return err if status else out

    return run


@pytest.fixture
def here(monkeypatch):
    """What would be a fresh process runs in this one: importing torch takes longer than the smallest benchmark."""
    scripts = {"drive.py": drive, "predict.py": predict, "scale.py": scale, "train.py": train}

    def run_cell(script, cell, **_):
        with redirect_stdout(io.StringIO()) as printed:
            assert scripts[script].main(["--one", json.dumps(cell)]) == 0
        return json.loads(printed.getvalue().splitlines()[-1])

    for module in (common, predict, scale, speedrun, train):
        monkeypatch.setattr(module, "run_cell", run_cell)
    monkeypatch.setattr(predict, "command", lambda *arguments, folder: {"seconds": 2.0})


def rows(text):
    """Lines as their label and the words after it."""
    split = (re.split(r"  +", line) for line in text.splitlines())
    return {label: cells for label, *cells in split if cells}


# --- Training and prediction ---


def test_train_compares_ours_with_the_plain_loop(bench, here, data):
    small = ["--images", 14, "--rounds", 1, "--workers", 0, "--models", "TheModel", "--loops", "plain, float32"]
    text = bench(train, *data, *small)
    assert re.search(r"^python [\d.]+ torch \S+ torchvision \S+ numpy \S+, 1 thread, commit \S+$", text, re.M)
    table = rows(text)
    for name in ("plain, float32 (0 workers)", "ours"):
        assert all(int(rate) > 0 for rate in table[name]) and len(table[name]) == 2
    assert len(table["ours / plain, float32 (0 workers)"]) == 2


def test_train_and_predict_compare_two_checkouts(bench, here, data):
    text = bench(train, *data, "--against", REPO, "--images", 14, "--rounds", 1, "--models", "EmotionResNet-nano")
    text += bench(predict, *data, "--against", REPO, "--images", 7, "--rounds", 1, "--models", "EmotionResNet-nano")
    there_and_here = [cells for label, cells in rows(text).items() if re.match("decoding|EmotionResNet-nano, ", label)]
    assert len(there_and_here) == 6
    assert all(
        float(there) > 0 and float(here) > 0 and unit in ("s", "images/s") for there, here, unit, _ in there_and_here
    )


def test_predict_compares_ours_with_the_usual_way(bench, here, data):
    text = bench(predict, *data, "--images", 7, "--rounds", 1, "--batches", 0, "--models", "EmotionResNet-nano")
    batch, usual, ours, *_ = rows(text)["EmotionResNet-nano"]
    assert batch == "all" and int(usual) > 0 and int(ours) > 0
    assert {'python -c "import torch"', "python predict.py --help", "python predict.py one.png"} <= set(rows(text))


def test_another_folder_than_a_checkout_is_refused(bench, data, tmp_path):
    assert "git worktree add" in bench(train, *data, "--against", tmp_path, status=2)
    assert "no such file" in bench(predict, "--data", "nowhere.zip", status=2)


@pytest.mark.parametrize("variant", train.PLAIN)
def test_every_plain_loop_trains(tmp_path, variant):
    folder = write_folders(tmp_path / "archive", train=14, val=0, test=0)
    cell = {"settings": {"model": "EmotionResNet-nano"}, "variant": variant, "device": "cpu", "workers": 0}
    assert train.plain_loop({**cell, "folder": str(folder / "train")})["later"] > 0


def test_a_step_with_all_measures_is_timed(monkeypatch):
    monkeypatch.setattr(train, "STEPS", 2)
    found = train.single_steps({"model": "EmotionResNet-nano", "measures": len(train.MEASURES)})
    assert found["rate"] > 0 and 0 < found["share"] < 1


def test_scale_measures_time_and_memory(bench, here, data):
    _, *figures = rows(bench(scale, "--sizes", 600, "--steps", 2))[""]
    assert len(figures) == 4 and all(float(figure) > 0 for figure in figures)


# --- Arithmetic ---


def test_cells_take_turns_in_alternating_order():
    calls = []
    cells = {name: lambda name=name: calls.append(name) or {"at": len(calls)} for name in "ab"}
    assert take_turns(cells, 3, label="x") == {
        "a": [{"at": 1}, {"at": 4}, {"at": 5}],
        "b": [{"at": 2}, {"at": 3}, {"at": 6}],
    }
    assert calls == [*"abbaab"]


def test_a_ratio_is_of_medians_with_the_range_over_rounds():
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == "1.33 (1.00-3.00)"
    assert mean_sd([1.0, 2.0], 1) == "1.5 ± 0.7" and mean_sd([1.0]) == "1.00"


def test_a_cell_is_a_process_with_the_code_of_a_checkout(tmp_path):
    assert set(common.run_cell("drive.py", {"part": "bare"})) <= {"peak"}
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        common.run_cell("drive.py", {"part": "load"}, checkout=tmp_path)
    assert predict.command("-c", "pass", folder=tmp_path)["seconds"] > 0


def test_flags_give_their_settings_back(capsys):
    settings = {"epochs": 3, "flip": False, "augment": True, "lr": 0.5, "data": "a b"}
    assert settings_after(flags_of(settings), taken=["seed"]) == settings
    assert config_for(settings, recipe="nano") == Config(**RECIPES["nano"] | settings)
    for wrong in (["--seed", "1"], ["--epoch", "3"]):
        with pytest.raises(SystemExit):
            settings_after(wrong, taken=["seed"])
    with pytest.raises(UserError, match="epochs"):
        config_for({"epochs": 0})


# --- Ablation ---


def test_ablate_trains_every_part_once_and_goes_on(bench, data, tmp_path):
    quick = ["--recipe", "nano", "--only", "EMA", "--seeds", 2, "--runs", tmp_path / "runs"]
    flags = ["--", "--epochs", 1, "--device", "cpu", *data[2:]]
    shipped = (REPO / "final_weights_new.pth").read_bytes()
    text = bench(ablate, *data[:2], *quick, *flags)
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["nano-all-0", "nano-all-1", "nano-without-ema-0", "nano-without-ema-1"]
    accuracy = [json.loads((run / "metrics.jsonl").read_text())["val_accuracy"] for run in runs]
    assert [np.load(run / "hits.npy").mean() for run in runs] == pytest.approx(accuracy)
    assert "4 runs on cpu" in text and (REPO / "final_weights_new.pth").read_bytes() == shipped
    (runs[0] / "hits.npy").unlink()  # as if it was stopped before
    made = {file: file.stat().st_mtime_ns for run in runs[1:] for file in run.iterdir()}
    assert bench(ablate, *data[:2], *quick, *flags).splitlines()[2:] == text.splitlines()[2:]
    assert made == {file: file.stat().st_mtime_ns for run in runs[1:] for file in run.iterdir()}
    other = bench(ablate, *data[:2], *quick, *flags, "--lr", "0.01", status=2)
    assert "nano-all-0" in other and "lr 0.15, now 0.01" in other


def test_ablate_finds_the_parts_that_change_something():
    config = Config(loss="cross_entropy", label_smoothing=0.1, mixup=0.4, optimizer="sgd", precision="bf16")
    parts, idle = ablate.parts_of(config, [])
    names, unchanged = [str(part) for part in parts], [str(part) for part in idle]
    assert {"without label smoothing", "without mixup", "without SGD", "with cutmix", "without bfloat16"} <= {*names}
    assert {"without EMA", "without cutmix", "with mixup"} <= {*unchanged}
    assert len(names) + len(unchanged) == len(ablate.LESS) + len(ablate.MORE)
    for part in parts:
        Config(**{**asdict(config), **part.settings})  # its settings are there and allowed
    names = {str(part) for part in ablate.parts_of(replace(config, augment=False, precision="auto"), [])[0]}
    assert "without mixup" in names and not {"without flip", "without moves", "without bfloat16"} & names


def test_an_ablation_has_the_gain_of_a_part_and_both_intervals():
    less, more = ablate.Part("EMA", {"ema": 0.0}), ablate.Part("mixup", {"mixup": 0.2}, True)
    deduplicated = np.arange(10) < 8
    full, few = np.arange(10) < 6, np.arange(10) >= 8  # 6 and 0 of 8 correct, deduplicated
    found = {}
    for seed, shift in enumerate((0.0, 1.0)):
        found[str(ablate.ALL), seed] = ablate.Result(70.0 + shift, 60.0, 10.0, full)
        found[str(less), seed] = ablate.Result(68.0 + 2 * shift, 61.0, 20.0, few)
        found[str(more), seed] = ablate.Result(71.0 + shift, 62.0, 30.0, full)
    _, whole, without, added, spread = ablate.table([less, more], found, 2, deduplicated)
    assert whole.split() == ["all", "70.50", "60.00", "10.0"]
    # Gains 2 and 1: mean 1.5, standard error 0.5; of 8 images 6 are lost
    assert " ".join(without.split()).startswith(
        "without EMA 69.00 +1.50 (-4.85 to +7.85) 61.00 -1.00 (-1.00 to -1.00) +75.00 ("
    )
    assert added.split()[-5:] == ["+0.00", "(+0.00", "to", "+0.00)", "30.0"]
    assert "0.71 official, 0.00" in spread


# --- The speed record and the table of results ---


def test_speedrun_times_a_fixed_schedule_that_results_reads(bench, here, data, tmp_path):
    kept = tmp_path / "record"
    flags = ["--", "--epochs", 2, "--device", "cpu", *data[2:]]
    call = [*data[:2], "--runs", 2, "--images", 14, "--workers", 0, "--keep", kept, *flags]
    text = bench(speedrun, *call)
    official = [float(each) for each in re.findall(r"^seed \d  [\d.]+ s  ([\d.]+) /", text, re.M)]
    assert len(official) == 2 and "no record" in text and "plain loop, float32: " in text
    table = bench(results, kept / "0", kept / "1", tmp_path / "nowhere", "--tta", "flip", *data)
    assert "nowhere is no finished run" in table
    cells = next(line.split(" | ") for line in table.splitlines() if line.endswith(" | 2 (0, 1) |"))
    assert cells[1].startswith("`python interface.py --recipe nano --epochs 2")
    assert float(cells[3].split(" ± ")[0]) == pytest.approx(sum(official) / 2, abs=0.06)  # of the last epoch
    assert "2 runs on cpu" in table and "it exists" in bench(speedrun, *call, status=2)


@pytest.mark.parametrize(("last", "verdict"), [(70.5, "missed"), (72.0, "reached")])
def test_speedrun_compares_the_mean_with_the_target(last, verdict):
    runs = [speedrun.Timed(10.0, 70.0, 60.0), speedrun.Timed(14.0, last, 62.0)]
    lines = speedrun.summary(runs, 71.0)
    assert lines[1].split() == ["seconds", "12.00", "±", "2.83", "10.00", "14.00"]
    assert f"71.0 % {verdict}: {(70 + last) / 2:.2f} % official in 12.00 s" in lines[-1]


def write_run(run, config, *figures):
    """A finished run's config.json and metrics.jsonl, with (official, deduplicated, seconds) of every epoch."""
    run.mkdir()
    (run / "config.json").write_text(json.dumps(asdict(config)))
    keys = ("val_accuracy", "val_accuracy_deduplicated", "seconds", "best")
    best = max(range(len(figures)), key=lambda at: figures[at][1])
    lines = [dict(zip(keys, (*row, at <= best), strict=True)) for at, row in enumerate(figures)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def test_results_are_a_row_for_each_set_of_settings(bench, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    small = {**RECIPES["small"], "epochs": 2, "data": "here.zip"}
    names = [
        write_run(tmp_path / "a", Config(**small), (0.7, 0.6, 60.0), (0.5, 0.5, 60.0)),
        write_run(tmp_path / "b", Config(seed=1, flip=False, epochs=1), (0.25, 0.25, 60.0)),
        write_run(tmp_path / "c", Config(**small, seed=5, threads=2), (0.6, 0.4, 120.0), (0.7, 0.5, 120.0)),
        write_run(tmp_path / "d", Config(**small), (0.7, 0.6, 60.0)),  # of two epochs
    ]
    text = bench(results, *names)
    first, second = [line.strip("| ").split(" | ") for line in text.splitlines() if "`python" in line]
    assert first == [
        *("`EmotionResNet-small`, 2.7M", "`python interface.py --recipe small --epochs 2`"),
        *("70.0 ± 0.0 / 55.0 ± 7.1", "60.0 ± 14.1 / 50.0 ± 0.0", "3", "2 (0, 5)"),
    ]
    assert second[1:] == ["`python interface.py --epochs 1 --no-flip`", *["25.0 / 25.0"] * 2, "1", "1 (1)"]
    assert "d is no finished run" in text and "no run" not in bench(results, *names[:1])
    bench(results, "nowhere", status=2)


def test_runs_on_other_data_are_no_seeds_of_one_row(bench, data, tmp_path, weights):
    names = [write_run(tmp_path / str(seed), Config(seed=seed, epochs=1), (0.5, 0.25, 60.0)) for seed in range(3)]
    for name in names[:2]:
        shutil.copy(weights, name / "best.pth")
    brightness_weights(names[2] / "best.pth", data=load(Config(data=data[1], cache=data[3])))
    text = bench(results, *names)
    assert [line.split(" | ")[-1] for line in text.splitlines() if "`TheModel`" in line] == ["2 (0, 1) |", "1 (2) |"]
    assert "other data" in bench(results, names[0], "--tta", "flip", *data, status=2)
    table = bench(results, names[2], "--tta", "flip", "crops", *data)
    assert next(line for line in table.splitlines() if "`TheModel`" in line).split(" | ")[4:6] == ["100.0 / 100.0"] * 2

"""The study at its smallest: what it trains and writes, that it goes on where it was, and what it refuses."""

import json
import re

import numpy as np
import pytest
import torch

import experiments
import stages
from config import Config
from dataset import load
from helpers import REPO, run_script, write_folders
from model import build_model
from stages import Stages, macs
from utils import UserError, pick_machine, read_checkpoint

EPOCHS = ("--epochs", "1", "1", "1", "1")
SMALL = ("--quick", "--limit", "0", "--precision", "fp32", "--threads", "1", "--groupings", "valence", "clusters")
WHOLE = (*SMALL, "all-classes", *EPOCHS)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a finished study of three groupings, and what its first run printed."""
    folder = tmp_path_factory.mktemp("study")
    write_folders(folder / "archive", train=42, val=28, test=0, val_copies=3)
    done = run_script("experiments.py", *WHOLE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def results(folder):
    return folder / "runs" / "study-quick" / "results"


def test_every_configuration_is_written_with_its_figures(study):
    folder, out = study
    about = json.loads((results(folder) / "study.json").read_text())
    found = {each["name"]: each for each in about["configurations"]}
    mixtures = [f"{name}{way}" for name in ("valence", "clusters", "all-classes") for way in ("-gate", "", "-top-1")]
    assert list(found) == ["single", "ensemble", "wide", "wide-2", *mixtures]
    assert not about["conclusive"] and "9,000 images" in about["why"] and about["data"]["demo"] is False
    assert about["command"].startswith("python experiments.py --quick --limit 0")
    labels = np.load(results(folder) / "labels.npz")
    assert len(labels["labels"]) == 28 and int(labels["copies"].sum()) == 3
    for name, each in found.items():
        saved = np.load(results(folder) / name / "0" / "predictions.npz")
        assert np.allclose(np.exp(saved["log_p"]).sum(1), 1, atol=1e-5)
        if each["kind"] == "mixture":
            used = 1 if each["gating"] == "top-1" else len(each["groups"])
            assert saved["gate"].shape == (28, len(each["groups"])) and np.allclose(saved["gate"].sum(1), 1, atol=1e-5)
            assert set(np.count_nonzero(saved["gate"], axis=1)) == {used}
        features = np.load(results(folder) / name / "0" / "features.npz")["features"]
        assert len(features) == len(labels["rows"]) and np.isfinite(features).all()
    assert "report.md" in out and (folder / "reports/quick/report.html").stat().st_size > 1000


def test_controls_have_the_size_they_are_named_for(study):
    folder, _ = study
    found = {each["name"]: each for each in json.loads((results(folder) / "study.json").read_text())["configurations"]}
    mixture, top = found["all-classes"], found["all-classes-top-1"]
    assert found["wide"]["parameters"] == pytest.approx(mixture["parameters"], rel=0.05)
    assert found["wide"]["macs"] == pytest.approx(mixture["macs"], rel=0.1)
    assert found["wide-2"]["macs"] == pytest.approx(top["macs"], rel=0.1)
    assert found["ensemble"]["parameters"] == 4 * found["single"]["parameters"]
    assert found["ensemble"]["macs"] == 4 * found["single"]["macs"]


def test_the_ensemble_is_the_mean_of_its_members(study):
    folder, _ = study
    saved = results(folder)
    single = np.exp(np.load(saved / "single/0/predictions.npz")["log_p"])
    ensemble = np.exp(np.load(saved / "ensemble/0/predictions.npz")["log_p"])
    others = 4 * ensemble - single
    assert others.min() > -1e-5 and np.allclose(others.sum(1), 3, atol=1e-4)


def test_a_finished_study_trains_nothing_again(study):
    folder, out = study
    planned = int(re.search(r"^(\d+) stages, kept in runs/study-quick; about \d+ minutes", out, re.M)[1])
    assert len(re.findall(r"^stage \d+ of \d+: .*, 1 epochs$", out, re.M)) == planned
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs/study-quick/stages").rglob("final.pth")}
    done = run_script("experiments.py", *WHOLE, cwd=folder)
    assert done.returncode == 0 and len(re.findall("is there$", done.stdout, re.M)) == planned == len(before)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_study_folder_of_other_knobs_is_refused(study):
    folder, _ = study
    done = run_script("experiments.py", *SMALL, "--epochs", "2", "1", "1", "1", cwd=folder)
    assert done.returncode == 2 and "holds a stage of another study (epochs 1, now 2): name another" in done.stderr


def test_experts_begin_as_the_single_network_and_the_gate_leaves_them(study):
    folder, _ = study
    top = folder / "runs/study-quick/stages"
    gate = read_checkpoint(top / "0-valence-gate" / "final.pth")["state_dict"]
    expert = read_checkpoint(top / "0-expert-happy+surprise+neutral" / "final.pth")["state_dict"]
    own = {name.removeprefix("experts.1."): value for name, value in gate.items() if name.startswith("experts.1.")}
    assert own.keys() == expert.keys() and all(torch.equal(value, expert[name]) for name, value in own.items())
    together = read_checkpoint(top / "0-valence-together" / "final.pth")["state_dict"]
    assert not torch.equal(together["experts.1.net.stem.0.weight"], expert["net.stem.0.weight"])


def test_the_scripts_take_a_mixture_unchanged(study):
    folder, _ = study
    weights = folder / "runs/study-quick/stages/0-valence-together/final.pth"
    done = run_script("test.py", "--split", "val", "--weights", weights, cwd=folder)
    assert done.returncode == 0 and "MixtureOfExperts, trained on archive" in done.stdout


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "one of the arguments --quick --medium --full is required"),
        (["--quick", "--groupings", "mood"], "invalid choice: 'mood'"),
        (["--quick", "--epochs", "0", "1", "1", "1"], "--seeds and --epochs: 1 or more"),
    ],
)
def test_a_wrong_call_ends_with_status_2(capsys, typed, message):
    with pytest.raises(SystemExit) as raised:
        experiments.main(typed)
    assert raised.value.code == 2 and message in capsys.readouterr().err


def test_a_class_without_validation_images_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=6, test=0)
    assert experiments.main([*SMALL]) == 2
    assert "the validation part has no image of " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_stage_that_was_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=14, test=0)
    knobs = {"model": "EmotionResNet-nano", "batch_size": 16, "precision": "fp32", "stop_patience": 0}
    config = Config(data="archive", epochs=3, **knobs)
    data, machine = load(config), pick_machine("cpu", "fp32")

    def make():
        return build_model(config.model, **config.arguments)

    whole = Stages(tmp_path / "whole", data, machine).train("one", make, config)
    fit = stages.fit

    def killed(*args, **named):
        fit(*args, **named)
        raise KeyError("killed")

    monkeypatch.setattr(stages, "fit", killed)
    with pytest.raises(KeyError):
        Stages(tmp_path / "cut", data, machine).train("one", make, config)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    cut = Stages(tmp_path / "cut", data, machine)
    again = cut.train("one", make, config)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert len(cut.histories["one"]) == 3 and not (tmp_path / "cut/one/last.pth").exists()
    with pytest.raises(
        UserError, match=r"holds a stage of another study \(arguments\): name another study with --name"
    ):
        Stages(tmp_path / "cut", data, machine).train("one", lambda: build_model(config.model, dropout=0.1), config)


def test_multiplications_are_counted():
    # 48x48 places, 64 channels of 9 numbers; 24x24 places, 128 channels of 576; 18432 x 512; 512 x 7
    assert macs(build_model("TheModel")) == 48**2 * 64 * 9 + 24**2 * 128 * 576 + 18432 * 512 + 512 * 7


def test_the_help_names_sizes_and_groupings():
    done = run_script("experiments.py", "--help", cwd=REPO)
    assert done.returncode == 0 and all(word in done.stdout for word in ("--quick", "--medium", "--full", "confusable"))

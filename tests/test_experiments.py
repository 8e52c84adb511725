"""The study at its smallest: what it trains and writes, that it goes on where it was, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import experiments
import train
from config import CLASSES, GROUPINGS, RECIPES, Config
from dataset import load
from errors import UserError
from helpers import REPO, run_script, write_folders
from model import Expert, MixtureOfExperts, build_model
from study import stages
from study.configurations import take
from study.plan import Size
from study.stages import Stages, Stopped, in_words, macs
from utils import pick_machine, read_checkpoint

EPOCHS = ("--epochs", "1", "1", "1", "1")
TINY = ("--quick", "--limit", "0", "--precision", "fp32", "--threads", "1", "--experts", "2", "--groupings")
DRAWN = (*TINY, "random", "all-classes", "--seeds", "2", *EPOCHS)
SCRATCH = (*TINY, "confusable", "confusable", "--scratch", "--epochs", "2", "1", "1", "1")
SMALL = ("--quick", "--limit", "0", "--precision", "fp32", "--threads", "1", "--groupings", "valence", "clusters")
WHOLE = (*SMALL, "all-classes", *EPOCHS)


def finished(folder, *typed):
    """`folder` with the study that `typed` makes of 42 images, and what it printed."""
    write_folders(folder / "archive", train=42, val=28, test=0, val_copies=3)
    done = run_script("experiments.py", *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A folder with a finished study of three groupings, and what its first run printed."""
    return finished(tmp_path_factory.mktemp("study"), *WHOLE)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The same with two seeds, of mixtures of two experts that serve as controls."""
    return finished(tmp_path_factory.mktemp("drawn"), *DRAWN)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """The same with experts and gate that begin anew."""
    return finished(tmp_path_factory.mktemp("scratch"), *SCRATCH)


def results(folder):
    return folder / "runs" / "study-quick" / "results"


def configurations(folder):
    return {each["name"]: each for each in json.loads((results(folder) / "study.json").read_text())["configurations"]}


def courses(folder, name, seed=0):
    """The stages that a configuration went through, with their epochs."""
    found = json.loads((results(folder) / name / str(seed) / "history.json").read_text())
    return {stage["stage"]: len(stage["epochs"]) for stage in found}


def marks(folder):
    """What every stage is made of."""
    top = folder / "runs/study-quick/stages"
    return {path.parent.name: json.loads(path.read_text()) for path in top.glob("*/stage.json")}


def test_every_configuration_is_written_with_its_figures(study):
    folder, out = study
    about = json.loads((results(folder) / "study.json").read_text())
    found = {each["name"]: each for each in about["configurations"]}
    mixtures = [f"{name}{way}" for name in ("valence", "clusters", "all-classes") for way in ("-gate", "", "-top-1")]
    assert list(found) == ["single", "ensemble", "longer", "wide", "wide-2", *mixtures]
    assert not about["conclusive"] and about["data"]["demo"] is False
    assert about["why"] == (
        "its networks are small, it learns from 42 images, it scores 25 images, it has a single seed and its stages "
        "are short (1 + 1 + 1 + 1 epochs)"
    )
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
    found = configurations(folder)
    mixture, top = found["all-classes"], found["all-classes-top-1"]
    assert found["wide"]["parameters"] == pytest.approx(mixture["parameters"], rel=0.05)
    assert found["wide"]["macs"] == pytest.approx(mixture["macs"], rel=0.1)
    assert found["wide-2"]["macs"] == pytest.approx(top["macs"], rel=0.1)
    assert found["ensemble"]["parameters"] == 4 * found["single"]["parameters"]
    assert found["ensemble"]["macs"] == 4 * found["single"]["macs"]
    assert found["longer"]["macs"] == found["single"]["macs"]
    controls = {name for name, each in found.items() if each["control"]}
    plain = {f"all-classes{way}" for way in ("-gate", "", "-top-1")}
    assert controls == {"ensemble", "longer", "wide", "wide-2", *plain}
    assert found["wide"]["title"] == "single ResNet, as large as a mixture of 3"
    assert found["valence-top-1"]["title"] == "mixture, valence: top-1 in use"  # trained with soft gating
    assert found["longer"]["title"] == "single ResNet, trained on as long as a mixture"


def test_epochs_and_work_are_those_of_all_stages_that_have_a_part_in_it(study):
    folder, _ = study
    found = configurations(folder)
    told = {name: (each["epochs"], each["work"]) for name, each in found.items()}
    ratio = {name: found[name]["macs"] / found["single"]["macs"] for name in ("wide", "wide-2")}
    assert told["single"] == (1, 1) and told["longer"] == (4, 4) and told["ensemble"] == (1, 4)
    assert told["wide"] == (1, pytest.approx(ratio["wide"], abs=1e-3)) and 3.5 < ratio["wide"] < 4.5
    assert told["wide-2"] == (1, pytest.approx(ratio["wide-2"], abs=1e-3)) and 1.8 < ratio["wide-2"] < 2.2
    for name in ("valence", "clusters", "all-classes"):  # 1 alone, 3 experts, a gate over them, and 4 together
        assert told[f"{name}-gate"] == (2, 1 + 3 + 2)
        assert told[name] == told[f"{name}-top-1"] == (3, 1 + 3 + 2 + 4)


def test_the_course_of_a_mixture_begins_with_the_single_network(study):
    folder, _ = study
    experts = ["expert-angry+disgust+fear+sad", "expert-happy+surprise", "expert-neutral"]
    assert list(courses(folder, "valence")) == ["single-0", *experts, "valence-gate", "valence-together"]
    assert list(courses(folder, "valence-gate")) == ["single-0", *experts, "valence-gate"]
    plain = [f"expert-all-{number}" for number in (1, 2, 3)]
    assert list(courses(folder, "all-classes-gate")) == ["single-0", *plain, "all-classes-gate"]
    assert courses(folder, "longer") == {"single-0": 1, "longer": 3}


def test_the_plain_mixture_differs_in_its_groups_alone(study):
    folder, _ = study
    made = marks(folder)
    plain = [made[f"0-expert-all-{number}"] for number in (1, 2, 3)]
    grouped = made["0-expert-neutral"]
    seeds = [each["config"]["seed"] for each in (*plain, grouped)]
    assert len({0, *seeds}) == 5  # another order of the images than the single network's, and than each other's
    for each in plain:
        kept = {"run": "", "seed": 0}
        assert each["config"] | kept == grouped["config"] | kept
        assert each["network"] == "Expert" and each["arguments"]["group"] == list(range(7))
    assert len({each["begins"] for each in plain}) == 1
    top = folder / "runs/study-quick/stages"
    single, *experts = [
        read_checkpoint(top / name / "final.pth")["state_dict"]
        for name in ("0-single-0", "0-expert-all-1", "0-expert-all-2")
    ]
    assert not torch.equal(experts[0]["net.stem.0.weight"], experts[1]["net.stem.0.weight"])
    began = Stages(top, load(Config(data=str(folder / "archive"))), pick_machine("cpu", "fp32"))
    expert = Expert(**plain[0]["arguments"])
    expert.net.load_state_dict(single)
    assert began.mark(expert, Config())["begins"] == plain[0]["begins"]


def test_the_ensemble_is_the_mean_of_its_members(study):
    folder, _ = study
    saved = results(folder)
    single = np.exp(np.load(saved / "single/0/predictions.npz")["log_p"])
    ensemble = np.exp(np.load(saved / "ensemble/0/predictions.npz")["log_p"])
    others = 4 * ensemble - single
    assert others.min() > -1e-5 and np.allclose(others.sum(1), 3, atol=1e-4)


def test_a_finished_study_trains_nothing_again(study):
    folder, out = study
    planned = int(re.search(r"^(\d+) stages, kept in runs/study-quick; about \d+ minutes? if all", out, re.M)[1])
    told = re.findall(r"^stage (\d+) of (\d+): .*, [13] epochs?; about \d+ minutes? left$", out, re.M)
    assert told == [(str(number), str(planned)) for number in range(1, planned + 1)]
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
    expert = read_checkpoint(top / "0-expert-happy+surprise" / "final.pth")["state_dict"]
    own = {name.removeprefix("experts.1."): value for name, value in gate.items() if name.startswith("experts.1.")}
    assert own.keys() == expert.keys() and all(torch.equal(value, expert[name]) for name, value in own.items())
    together = read_checkpoint(top / "0-valence-together" / "final.pth")["state_dict"]
    assert not torch.equal(together["experts.1.net.stem.0.weight"], expert["net.stem.0.weight"])


def test_the_scripts_take_a_mixture_unchanged(study):
    folder, _ = study
    weights = folder / "runs/study-quick/stages/0-valence-together/final.pth"
    done = run_script("test.py", "--split", "val", "--weights", weights, cwd=folder)
    assert done.returncode == 0 and "MixtureOfExperts, trained on archive" in done.stdout


def test_drawn_groups_are_others_with_each_seed(drawn):
    folder, out = drawn
    found, made = configurations(folder), marks(folder)
    groups = [
        [[CLASSES[c] for c in made[f"{seed}-random-gate"]["arguments"]["groups"][at]] for at in (0, 1)]
        for seed in (0, 1)
    ]
    assert groups[0] != groups[1] and sorted(map(len, groups[0])) == sorted(map(len, groups[1]))
    assert found["random"]["groups"] == groups[0]
    assert found["random"]["note"] == "drawn, with the sizes of the clusters; anew with each seed"
    assert all(each["control"] for name, each in found.items() if name != "single")
    stages = ["single-0", "expert-random-1", "expert-random-2", "random-gate", "random-together"]
    assert list(courses(folder, "random", 0)) == list(courses(folder, "random", 1)) == stages
    planned = int(re.search(r"^(\d+) stages, kept", out, re.M)[1])
    assert planned == 2 * (3 + 3 + 4 + 4) and f"\nstage {planned} of {planned}: 1-all-classes-together" in out
    assert (folder / "reports/quick/report.html").exists()


def test_the_number_of_experts_is_that_of_the_controls_too(drawn):
    folder, _ = drawn
    found, made = configurations(folder), marks(folder)
    assert {len(found[f"{name}{way}"]["groups"]) for name in ("random", "all-classes") for way in ("", "-gate")} == {2}
    assert found["ensemble"]["title"] == "ensemble of 3 single ResNets"
    assert found["wide"]["title"] == "single ResNet, as large as a mixture of 2"
    assert found["wide"]["parameters"] == pytest.approx(found["all-classes"]["parameters"], rel=0.05)
    assert (found["ensemble"]["work"], found["random"]["work"]) == (3, pytest.approx(1 + 2 + 5 / 3 + 3, abs=1e-3))
    seeds = [mark["config"]["seed"] for name, mark in made.items() if re.fullmatch(r"\d-single-\d", name)]
    assert sorted(seeds) == list(range(6))  # no single network stands there twice


def test_scratch_begins_nothing_with_the_single_network(scratch):
    folder, out = scratch
    found, made = configurations(folder), marks(folder)
    assert re.search("^11 stages, kept", out, re.M)  # a grouping that is typed twice counts once
    experts = [name for name in made if "-expert-" in name]
    assert len(experts) == 3 and len({made[name]["begins"] for name in experts}) == 3
    rate = made["0-single-0"]["config"]["lr"]
    for name in (*experts, "0-confusable-gate"):
        assert made[name]["config"]["lr"] == rate
    assert made["0-confusable-together"]["config"]["lr"] == pytest.approx(rate / 15)
    assert list(courses(folder, "confusable").values()) == [2, 2, 2, 1, 1]  # as long as the single network
    assert not any(name.startswith("single") for name in courses(folder, "confusable"))
    told = {name: (each["epochs"], each["work"]) for name, each in found.items()}
    assert told["confusable-gate"] == (2, 3 * 2 + 2) and told["confusable"] == (3, 3 * 2 + 2 + 4)
    assert told["longer"] == (4, 4) and courses(folder, "longer") == {"single-0": 2, "longer": 2}


def test_a_study_that_is_killed_twice_ends_as_if_it_was_not(scratch, tmp_path):
    folder, _ = scratch
    shutil.copytree(folder / "archive", tmp_path / "archive")
    command = [sys.executable, str(REPO / "experiments.py"), *SCRATCH]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    # In the second epoch of a single network, and in the first of the gate, or soon after
    for stage, then in (("0-single-1", "epoch   1/2"), ("0-confusable-gate", "stage 10")):
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
            reached = False
            for line in process.stdout:
                reached = reached or f": {stage}, " in line
                if reached and line.startswith(then):
                    process.kill()
                    break
        assert process.returncode == -signal.SIGKILL
        assert reached and not (tmp_path / "runs/study-quick/results/study.json").exists()
    done = run_script("experiments.py", *SCRATCH, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("is there$", done.stdout, re.M)) >= 9
    files = sorted(path.relative_to(results(folder)) for path in results(folder).rglob("predictions.npz"))
    assert len(files) == 8
    for file in files:
        one, other = np.load(results(folder) / file), np.load(results(tmp_path) / file)
        assert sorted(one) == sorted(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "one of the arguments --quick --medium --full is required"),
        (["--quick", "--groupings", "mood"], "invalid choice: 'mood'"),
        (["--quick", "--epochs", "0", "1", "1", "1"], "--seeds and --epochs: 1 or more"),
        (["--quick", "--seeds", "0"], "--seeds and --epochs: 1 or more"),
        (["--quick", "--experts", "1"], "--experts 1: 2 to 7 are allowed"),
        (["--quick", "--experts", "8"], "--experts 8: 2 to 7 are allowed"),
        (["--quick", "--experts", "7"], "--experts 7: with one emotion each there is nothing to draw for `random`"),
        (["--quick", "--name", "../up"], "--name '../up': it names folders: letters, digits, . _ and - only"),
        (["--quick", "--name", ".hidden"], "--name '.hidden': it names folders"),
        (["--quick", "--name", ""], "--name '': it names folders"),
        (["--quick", "--name", "two words"], "--name 'two words': it names folders"),
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


def test_a_class_whose_validation_images_are_all_copies_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=7, test=0, val_copies=1)
    assert experiments.main([*SMALL]) == 2
    assert "the validation part, copies of train images left out, has no image of angry" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_too_few_validation_images_for_a_report_are_refused_beforehand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=9, test=0)
    assert experiments.main([*SMALL]) == 2
    assert "has 9 images to show that are no copies of train images, a report needs 10; add" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["--runs", "--out"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=70, test=0)
    (tmp_path / "a-file").touch()
    assert experiments.main([*SMALL, flag, "a-file/folder"]) == 2
    assert re.search(rf"cannot be made \(.*\); name another folder with {flag}$", capsys.readouterr().err, re.M)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_study_says_what_it_does_before_it_reads_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert experiments.main(["--quick", "--data", "missing.zip"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("study quick: ") and out[-1].startswith("reading missing.zip")


def test_the_help_names_a_default_of_its_own(capsys):
    with pytest.raises(SystemExit):
        experiments.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0 is all (default: the size's)" in said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda stage: (stage / "metrics.jsonl").unlink(), "is damaged (.*metrics.jsonl.*): remove it, and the stage"),
        (lambda stage: (stage / "metrics.jsonl").write_text("{"), "is damaged (.*): remove it, and the stage"),
        (lambda stage: (stage / "final.pth").write_bytes(b"PK"), "is damaged (.*final.pth .*): remove it, and the sta"),
        (lambda stage: (stage / "stage.json").write_text("{"), "stage.json is damaged (.*): remove "),
        (lambda stage: (stage / "stage.json").write_text("{}"), "stage.json is damaged ('machines'): remove "),
        (lambda stage: (stage / "stage.json").write_text("[]"), "stage.json is damaged (.*): remove "),
        (lambda stage: (stage / "stage.json").unlink(), "stage.json is gone, which says what the stage is made of"),
    ],
)
def test_a_damaged_stage_is_named(study, tmp_path, monkeypatch, capsys, damage, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(study[0], tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "runs/study-quick/stages/0-single-0")
    assert experiments.main([*WHOLE]) == 2
    said = capsys.readouterr().err
    pattern = re.escape(message).replace(r"\.\*", ".*")
    assert re.search(f"^error: .*0-single-0.*{pattern}", said, re.M), said


def test_a_file_in_the_place_of_the_stages_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=70, test=0)
    (tmp_path / "runs/study-quick").mkdir(parents=True)
    (tmp_path / "runs/study-quick/stages").touch()
    assert experiments.main([*SMALL]) == 2
    assert "what stands there is no stage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "groups", "message"),
    [
        ("valence", [list(CLASSES)], "config.py, GROUPINGS['valence']: a single group"),
        ("valence", [["angry", "joy"], list(CLASSES)], "config.py, GROUPINGS['valence']: unknown joy"),
        ("valence", [list(CLASSES), []], "config.py, GROUPINGS['valence']: group 2 is empty"),
        ("valence", [["angry"], ["sad"]], "config.py, GROUPINGS['valence']: no group has disgust"),
        ("random", [["angry"], ["sad"]], "config.py, GROUPINGS: the name 'random' is taken"),
        ("random-two", [["angry"], ["sad"]], "config.py, GROUPINGS: the name 'random-two' is taken"),
    ],
)
def test_what_is_no_grouping_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, name, groups, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(GROUPINGS, name, groups)
    assert experiments.main(["--quick", "--groupings", "clusters", "valence"]) == 2
    out, err = capsys.readouterr()
    assert message in err and not out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "seeds", "lengths", "told", "said"),
    [
        ("small", 3, (110, 40, 20, 20), (28709, 28709, 3309, False), ""),
        ("small", 5, (200, 40, 20, 20), (28709, 28709, 3309, False), ""),
        (
            "small",
            3,
            (110, 40, 20, 20),
            (5600, 5600, 1400, True),
            "its faces are drawn and it learns from 5,600 images",
        ),
        ("small", 3, (110, 40, 20, 20), (9000, 28709, 3309, False), "it sees 9,000 of the 28,709 images"),
        ("small", 3, (110, 40, 20, 20), (10000, 10000, 1000, False), ""),
        ("small", 3, (110, 40, 20, 20), (10000, 10000, 999, False), "it scores 999 images"),
        ("small", 2, (110, 40, 20, 20), (28709, 28709, 3309, False), "it has 2 seeds"),
        (
            "small",
            3,
            (110, 40, 19, 20),
            (28709, 28709, 3309, False),
            "its stages are short (110 + 40 + 19 + 20 epochs)",
        ),
        ("nano", 3, (110, 40, 20, 20), (28709, 28709, 3309, False), "its networks are small"),
        ("nano", 1, (110, 40, 20, 20), (28709, 28709, 3309, False), "its networks are small and it has a single seed"),
        (
            "nano",
            1,
            (10, 5, 3, 2),
            (8997, 28709, 3309, True),
            "its faces are drawn, its networks are small, it sees 8,997 of the 28,709 images, it has a single seed and "
            "its stages are short (10 + 5 + 3 + 2 epochs)",
        ),
    ],
)
def test_why_a_study_is_too_small_comes_from_its_size(recipe, seeds, lengths, told, said):
    seen, whole, scored, is_drawn = told
    size = Size(Config(**RECIPES[recipe]), seeds, *lengths)
    assert experiments.why(size, seen=seen, whole=whole, scored=scored, drawn=is_drawn) == said


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("--quick --data /home/me/fer/archive.zip", "--quick --data archive.zip"),
        ("--data=/home/me/archive.zip --runs ../runs/", "--data=archive.zip --runs runs"),
        ("--out ~/reports --cache=a/b --name data", "--out reports --cache=b --name data"),
        ("--quick --groupings valence random", "--quick --groupings valence random"),
    ],
)
def test_the_command_is_kept_without_folders(typed, kept):
    assert experiments.command(typed.split()) == f"python experiments.py {kept}"


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
    assert cut.machines == [str(machine)]
    mark = tmp_path / "cut/one/stage.json"  # a knob that the code did not have when the stage was made
    content = json.loads(mark.read_text())
    del content["config"]["pretrained"]
    mark.write_text(json.dumps(content))
    Stages(tmp_path / "cut", data, machine).train("one", make, config)
    bf16 = Stages(tmp_path / "cut", data, pick_machine("cpu", "bf16"))
    with pytest.raises(UserError, match=r"another study \(arithmetic cpu, float32, now cpu, bfloat16\): name another"):
        bf16.train("one", make, config)
    with pytest.raises(
        UserError, match=r"holds a stage of another study \(arguments\): name another study with --name"
    ):
        Stages(tmp_path / "cut", data, machine).train("one", lambda: build_model(config.model, dropout=0.1), config)


@pytest.mark.parametrize("where", ["train_step", "evaluate"])
def test_ctrl_c_at_the_very_end_of_a_stage_is_heard(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=14, test=0)
    config = Config(data="archive", epochs=1, model="EmotionResNet-nano", precision="fp32")  # a single step
    data, machine = load(config), pick_machine("cpu", "fp32")
    work = getattr(train, where)

    def pressed(*args, **named):
        os.kill(os.getpid(), signal.SIGINT)
        return work(*args, **named)

    monkeypatch.setattr(train, where, pressed)
    made = Stages(tmp_path / "stages", data, machine)
    with pytest.raises(Stopped):
        made.train("one", lambda: build_model(config.model), config)
    monkeypatch.setattr(train, where, work)
    assert (tmp_path / "stages/one/final.pth").exists()
    said = []
    again = Stages(tmp_path / "stages", data, machine, say=said.append)
    again.train("one", lambda: build_model(config.model), config)
    assert said == ["stage 1 of 0: one: is there"] and len(again.histories["one"]) == 1
    assert not (tmp_path / "stages/one/last.pth").exists()


def test_the_time_left_is_that_of_the_rest_as_fast_as_it_went_so_far(tmp_path, monkeypatch):
    clock = iter([0.0, 500.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    made = Stages(tmp_path, None, None, plan=[(name, 600.0) for name in ("a", "b", "c", "d", "c")])
    made.done = 1
    assert made.start(0) == "; about 40 minutes left"  # c is trained once
    made.done, made.took = 2, 300.0  # twice as fast as planned
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "final.pth").touch()
    assert made.start(0.5) == "; about 8 minutes left"
    assert made.meant == 900 and made.began == 500
    assert Stages(tmp_path, None, None).start(0) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "1 minute"), (89, "1 minute"), (7140, "119 minutes"), (7200, "2.0 hours"), (90000, "25.0 hours")],
)
def test_times_are_told_in_words(seconds, words):
    assert in_words(seconds) == words


def test_experts_load_pretrained_what_the_single_network_knows_of_their_classes():
    torch.manual_seed(0)
    single = build_model("EmotionResNet-nano").eval()
    faces = torch.rand(20, 1, 48, 48)
    known = single(faces).log_softmax(1)
    for group in (range(7), [0, 1, 2, 4, 5, 6]):  # "none of mine" is the seventh class
        expert = Expert(network="EmotionResNet-nano", counts=[10] * 7, group=group)
        take(expert.net, single, group)
        torch.testing.assert_close(expert.eval()(faces), known)
    group, others = [1, 4], [0, 2, 3, 5, 6]
    expert = Expert(network="EmotionResNet-nano", counts=[10] * 7, group=group)
    take(expert.net, single, group)
    answers = expert.eval()(faces)
    torch.testing.assert_close(answers[:, 1] - answers[:, 4], known[:, 1] - known[:, 4])
    torch.testing.assert_close(answers[:, others].exp().sum(1), known[:, others].exp().sum(1), atol=0.02, rtol=0.1)


def test_a_gate_begins_with_all_of_the_single_network_but_its_last_layer():
    torch.manual_seed(0)
    single = build_model("EmotionResNet-nano")
    gate = MixtureOfExperts(
        network="EmotionResNet-nano", gate="EmotionResNet-nano", groups=[[c] for c in range(7)], counts=[10] * 7
    ).gate
    take(gate, single)
    assert gate.classifier.weight.shape == single.classifier.weight.shape  # so shapes tell nothing
    own, given = gate.state_dict(), single.state_dict()
    same = {name for name in given if torch.equal(own[name], given[name])}
    assert same == {name for name in given if "classifier" not in name}


def test_multiplications_are_counted():
    # 48x48 places, 64 channels of 9 numbers; 24x24 places, 128 channels of 576; 18432 x 512; 512 x 7
    assert macs(build_model("TheModel")) == 48**2 * 64 * 9 + 24**2 * 128 * 576 + 18432 * 512 + 512 * 7


def test_the_help_names_sizes_and_groupings():
    done = run_script("experiments.py", "--help", cwd=REPO)
    assert done.returncode == 0 and all(word in done.stdout for word in ("--quick", "--medium", "--full", "confusable"))

"""The study at its smallest: what it trains and writes, that it goes on where it was, and what it refuses."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch

import experiments
from config import CLASSES, GROUPINGS, RECIPES, Config
from dataset import FaceData, Split
from helpers import write_folders
from readers.cache import DIGEST
from study.configurations import Size
from study.results import read_results
from utils import read_checkpoint

FAST = ("--quick", "--limit", "0", "--precision", "fp32", "--device", "cpu", "--threads", "1", "--epochs", *"1111")
WHOLE = (*FAST, "--experts", "2", "--groupings", "confusable", "random", "all-classes")
STAGES = 3 + 5 + (3 + 2) + 2 * (2 + 2)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A folder with a finished study of 21 images, and what the command printed."""
    folder, printed = tmp_path_factory.mktemp("study"), io.StringIO()
    write_folders(folder / "archive", train=21, val=21, test=0, val_copies=3)
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        assert experiments.main([*WHOLE]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="session")
def results(study):
    return read_results(study[0] / "reports/quick/results.json")


@pytest.fixture
def copied(study, tmp_path, monkeypatch):
    """A copy of the finished study, in which the test is."""
    shutil.copytree(study[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def marks(folder):
    """What every stage is made of."""
    paths = (folder / "runs/study-quick/stages").glob("*/stage.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def by_name(results):
    return {one.name: one for one in results.configurations}


# --- What is trained ---


def test_every_configuration_is_in_the_results(study, results):
    found, groupings = by_name(results), ("confusable", "random", "all-classes")
    mixtures = [f"mixture-{name}{variant}" for name in groupings for variant in (".gate alone", "", ".top-1")]
    assert [*found] == ["single", "ensemble", "schedule", "longer", "wide", "wide-2", *mixtures]
    assert all(one.predicted.shape == (1, 21) for one in results.configurations)
    assert results.copies.sum() == 3 and len(results.rows) == 18
    assert set(results.inside) == {"single", results.best.name}
    given = [[name for name in CLASSES if name in group] for group in GROUPINGS["confusable"]]
    assert found["mixture-confusable"].groups == [given]
    assert {name for group in found["mixture-random"].groups[0] for name in group} == set(CLASSES)
    assert found["mixture-all-classes"].experts == ["all classes (1)", "all classes (2)"]
    assert results.about["why"].startswith("its networks are small, it trains on 21 images, it scores 18 images")
    assert results.about["command"].startswith("python experiments.py --quick --limit 0")
    names = {path.name for path in (study[0] / "reports/quick").iterdir()}
    figures = {f"{name}.png" for name in ("gains", "confusion", "curves", "features", "gate")}
    assert names == {"report.md", "results.json", *figures}


def test_controls_have_the_size_and_the_schedule_they_are_named_for(results):
    found = by_name(results)
    single, mixture, top = found["single"], found["mixture-all-classes"], found["mixture-all-classes.top-1"]
    assert found["wide"].parameters == pytest.approx(mixture.parameters, rel=0.05)
    assert found["wide"].macs == pytest.approx(mixture.macs, rel=0.1)
    assert found["wide-2"].macs == pytest.approx(top.macs, rel=0.1)
    assert (found["ensemble"].parameters, found["ensemble"].macs) == (3 * single.parameters, 3 * single.macs)
    third, fifteenth = 1 / 3, 1 / 15
    assert mixture.schedule == found["schedule"].schedule == [[1, 1], [1, third], [1, fifteenth]]
    assert found["longer"].schedule == [[1, 1], [3, third]]
    assert found["mixture-all-classes.gate alone"].schedule == [[1, 1], [1, third]]
    assert [found[name].work for name in ("single", "ensemble", "schedule", "longer")] == [1, 3, 3, 4]
    assert found["wide"].work == pytest.approx(found["wide"].macs / single.macs, abs=1e-3)
    assert found["mixture-random.gate alone"].work == pytest.approx(1 + 2 + (1 + 2 / 3), abs=1e-3)
    assert found["mixture-random"].work == found["mixture-random.top-1"].work == pytest.approx(7 + 2 / 3, abs=1e-3)
    others = {one.name for one in results.configurations if not one.control}
    assert others == {"single", "mixture-confusable", "mixture-confusable.gate alone", "mixture-confusable.top-1"}


def test_stages_have_the_rates_of_the_schedule_and_see_the_images_in_different_orders(study):
    made = marks(study[0])
    rates, base = {name: mark["lr"] for name, mark in made.items()}, made["0-single-0"]["lr"]
    assert rates["0-wide"] == rates["0-single-2"] == base
    for name in ("0-schedule-1", "0-longer", "0-random.expert-2", "0-random.gate"):
        assert rates[name] == pytest.approx(base / 3)
    assert rates["0-schedule-2"] == rates["0-random.together"] == pytest.approx(base / 15)
    seeds = [mark["seed"] for name, mark in made.items() if "wide" not in name]  # these are the first network, wider
    assert len(made) == STAGES and len(set(seeds)) == len(seeds)
    plain = [made[f"0-all-classes.expert-{number}"] for number in (1, 2)]
    assert plain[0]["begins"] == plain[1]["begins"] and plain[0]["arguments"]["group"] == list(range(7))


def test_a_mixture_is_made_of_its_trained_experts(study):
    top = study[0] / "runs/study-quick/stages"
    gate, expert, together = (
        read_checkpoint(top / f"0-confusable.{name}" / "final.pth")["state_dict"]
        for name in ("gate", "expert-2", "together")
    )
    own = {name.removeprefix("experts.1."): value for name, value in gate.items() if name.startswith("experts.1.")}
    assert own.keys() == expert.keys() and all(torch.equal(value, expert[name]) for name, value in own.items())
    assert not torch.equal(together["experts.1.net.stem.0.weight"], expert["net.stem.0.weight"])


def test_the_scripts_take_a_mixture_unchanged(copied, capsys):
    import test as scoring

    weights = "runs/study-quick/stages/0-confusable.together/final.pth"
    assert scoring.main(["--split", "val", "--weights", weights, "--device", "cpu", "--precision", "fp32"]) == 0
    assert "MixtureOfExperts" in capsys.readouterr().out


# --- Again, and after a kill ---


def test_progress_and_the_time_left_are_printed(study):
    found = re.findall(r"^stage (\d+) of (\d+): \S+, [13] epochs?(; about \d+ s left)?$", study[1], re.M)
    assert [each[:2] for each in found] == [(str(number), str(STAGES)) for number in range(1, STAGES + 1)]
    assert not found[0][2] and all(left for _, _, left in found[1:])


def test_a_stopped_study_goes_on_and_ends_as_if_it_was_not(study, copied, capsys):
    stages = copied / "runs/study-quick/stages"
    for name in ("0-all-classes.gate", "0-all-classes.together"):
        shutil.rmtree(stages / name)
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("final.pth")}
    assert experiments.main([*WHOLE]) == 0
    assert capsys.readouterr().out.count(" is finished\n") == len(before) == STAGES - 2
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing is trained again
    one, other = (json.loads((at / "reports/quick/results.json").read_text()) for at in (study[0], copied))
    assert one["configurations"] == other["configurations"] and one["inside"] == other["inside"]


def test_a_report_is_rendered_again_from_its_results(study, tmp_path, capsys):
    shutil.copy(study[0] / "reports/quick/results.json", tmp_path)
    assert experiments.main(["--render", str(tmp_path)]) == 0 and "report.md" in capsys.readouterr().out
    for path in (study[0] / "reports/quick").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


# --- What is refused ---


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "--quick --medium --full --render is required"),
        (["--quick", "--groupings", "mood"], "invalid choice: 'mood'"),
        (["--quick", "--epochs", "0", "1", "1", "1"], "--seeds and --epochs: 1 or more"),
        (["--quick", "--seeds", "0"], "--seeds and --epochs: 1 or more"),
        (["--quick", "--experts", "1"], "invalid choice: 1"),
    ],
)
def test_a_wrong_call_ends_with_status_2(capsys, typed, message):
    with pytest.raises(SystemExit) as raised:
        experiments.main(typed)
    assert raised.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("val", "copies", "message"), [(6, 0, "no image of neutral"), (7, 1, "no image of angry")])
def test_a_class_without_validation_images_is_refused(tmp_path, monkeypatch, capsys, val, copies, message):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=val, test=0, val_copies=copies)
    assert experiments.main([*WHOLE]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["--runs", "--out"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=42, val=28, test=0)
    (tmp_path / "a-file").touch()
    assert experiments.main([*WHOLE, flag, "a-file/folder"]) == 2
    assert re.search(rf"cannot be made \(.*\): .*{flag}", capsys.readouterr().err, re.M)
    assert not list(tmp_path.glob("runs/*/*"))


# --- Words of the report that depend on the call ---


@pytest.mark.parametrize(
    ("recipe", "limit", "seeds", "lengths", "images", "reasons"),
    [
        ("small", 0, 3, (110, 40, 20, 20), (28709, 3309), 0),
        ("small", 0, 2, (110, 40, 19, 20), (9999, 999), 4),
        ("nano", 9000, 1, (10, 5, 3, 2), (8999, 3309), 4),
    ],
)
def test_why_a_study_is_too_small_comes_from_its_size(recipe, limit, seeds, lengths, images, reasons):
    def split(name, count):
        none = np.zeros(count, bool)
        return Split(name, np.zeros((count, 48, 48), np.uint8), np.zeros(count, int), np.zeros(count, DIGEST), none)

    splits = {name: split(name, count) for name, count in zip(("train", "val"), images, strict=True)}
    data = FaceData(splits, "fer2013", "archive.zip", "0" * 16)
    size = Size(Config(**RECIPES[recipe], limit=limit), seeds, *lengths)
    assert experiments.why(size, data).count("it") == reasons

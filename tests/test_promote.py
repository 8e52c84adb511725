"""Which runs replace the shipped weights, and that nothing is lost when they do."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from dataset import load
from errors import SHIPPED
from helpers import REPO, write_folders
from model import build_model
from training import promote as module
from training.promote import promote
from utils import pick_machine
from val import evaluate
from weights import load_weights, save_weights

MACHINE = pick_machine("cpu", "fp32")
MODEL = {"model": "EmotionResNet-nano", "width": 0.2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("promote")
    write_folders(place / "archive", train=35, val=30, test=0)  # five of the first two classes, four of the others
    for file in sorted((place / "archive" / "test" / "neutral").iterdir())[:2]:  # but two of the last one
        file.unlink()
    return load(Config(data=str(place / "archive"), cache=str(place / "cache")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and no weights beside the code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "CODE", tmp_path / "code")
    return tmp_path


def write_run(folder, data, *, always=0, **settings):
    """A run's folder with the best.pth of a network that always says the class `always`: of 0 there are most."""
    folder.mkdir()
    config = Config(**MODEL, **settings)
    model = build_model(config.model, **config.arguments).eval()
    with torch.no_grad():
        model.classifier.bias[always] = 100.0
    scores = evaluate(model, data.split("val"), machine=MACHINE)
    save_weights(folder / "best.pth", model, scores, config=config, data=data)
    return folder


def change_dataset(path, **values):
    """Rewrite the weight file with other values for what it says of its dataset."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, "dataset": {**content["dataset"], **values}}, path)


def promoted(run, data, **named) -> str:
    return promote(run, data, machine=MACHINE, **named)


def test_the_better_weights_are_shipped_and_the_old_ones_kept(here, data):
    worse, better, as_good = (
        write_run(here / name, data, always=always) for name, always in (("worse", 6), ("better", 0), ("as-good", 1))
    )
    assert "there was none" in promoted(worse, data)
    old = (here / SHIPPED).read_bytes()
    assert "is replaced" in promoted(better, data)
    assert (better / "replaced_weights.pth").read_bytes() == old
    new = (here / SHIPPED).read_bytes()
    for run in (worse, as_good, better):
        assert "is left as it is: the shipped weights reach" in promoted(run, data)
        assert (here / SHIPPED).read_bytes() == new


def test_a_run_elsewhere_competes_with_the_weights_beside_the_code(here, data):
    worse, better = write_run(here / "worse", data, always=6), write_run(here / "better", data)
    beside = here / "code" / SHIPPED
    beside.parent.mkdir()
    old = shutil.copy(worse / "best.pth", beside).read_bytes()
    assert promoted(worse, data).startswith(f"{beside} is left as it is: ") and not (here / SHIPPED).exists()
    assert promoted(better, data).startswith(f"{SHIPPED} is written: ")
    assert (here / SHIPPED).exists() and beside.read_bytes() == old
    assert not (better / "replaced_weights.pth").exists()


# Two processes promote a run each, at the same moment, again and again; what is shipped in the end is kept.
AT_ONCE = """
import os, shutil, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from config import Config
from dataset import load
from training.promote import promote
from utils import pick_machine
data, machine = load(Config(data=sys.argv[2], cache=sys.argv[3])), pick_machine("cpu", "fp32", 1)
for number in range(6):
    shutil.copy("first/best.pth", "final_weights_new.pth")
    children = []
    waiting, start = os.pipe()
    for name in ("good", "better"):
        children.append(os.fork())
        if not children[-1]:
            os.close(start)
            os.read(waiting, 1)
            promote(Path(name), data, machine=machine)
            os._exit(0)
    os.close(start)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    os.rename("final_weights_new.pth", f"{number}.pth")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_two_runs_that_end_at_once_the_better_is_shipped(here, data):
    for name, always in (("first", 6), ("good", 4), ("better", 0)):
        write_run(here / name, data, always=always)
    promoted(here / "better", data)
    best = load_weights(here / SHIPPED, machine=MACHINE)[1]["metrics"]
    command = [sys.executable, "-c", AT_ONCE, str(REPO), data.source, str(Path(data.source).parent / "cache")]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for number in range(6):
        assert load_weights(here / f"{number}.pth", machine=MACHINE)[1]["metrics"] == best


def test_what_killed_writes_left_is_removed(here, data):
    mine = here / ".mine.5.tmp"
    for path in (here / f".{SHIPPED}.5.tmp", mine):
        path.write_bytes(b"half")
    promoted(write_run(here / "run", data), data)
    assert list(here.glob(".*.tmp")) == [mine]


def test_kept_weights_are_never_overwritten(here, data):
    run = write_run(here / "run", data)
    for number in range(1, 4):
        old = shutil.copy(write_run(here / str(number), data, always=7 - number) / "best.pth", SHIPPED)
        name = run / f"replaced_weights{'' if number == 1 else f'-{number}'}.pth"
        content = (here / old).read_bytes()
        assert str(name) in promoted(run, data) and name.read_bytes() == content
    assert len(list(run.glob("replaced_weights*.pth"))) == 3


def test_shipped_weights_are_rounded_and_carry_the_score_of_that(here, data):
    promoted(write_run(here / "run", data), data)
    assert {value.dtype for value in torch.load(SHIPPED, weights_only=True)["state_dict"].values()} == {
        torch.float16,
        torch.int64,
    }
    model, content = load_weights(here / SHIPPED, machine=MACHINE)
    assert content["metrics"] == evaluate(model, data.split("val"), machine=MACHINE).plain()


def test_limited_and_demo_runs_are_never_shipped(here, data):
    assert "--limit 35" in promoted(write_run(here / "limited", data, limit=35), data)
    assert "is left as it is" in promoted(write_run(here / "demo", data), replace(data, name="demo"))
    assert not (here / SHIPPED).exists()


@pytest.mark.parametrize("what", ["another dataset", "another sampled part", "damaged", "not finite"])
def test_weights_that_cannot_be_compared_stay_unless_asked(here, data, what):
    sampled = replace(data, sampled_val=what == "another sampled part")
    promoted(write_run(here / "worse", data, always=6), sampled)
    if what == "another dataset":
        change_dataset(SHIPPED, fingerprint="other")
    if what == "damaged":
        (here / SHIPPED).write_bytes(b"damaged")
    if what == "not finite":
        content = torch.load(SHIPPED, weights_only=True)
        content["state_dict"] = {name: value * np.nan for name, value in content["state_dict"].items()}
        torch.save(content, SHIPPED)
    before = (here / SHIPPED).read_bytes()
    run = write_run(here / "run", data, val_fraction=0.3)
    assert "is left as it is" in promoted(run, sampled) and (here / SHIPPED).read_bytes() == before
    assert "is replaced" in promoted(run, sampled, asked=True)
    assert (run / "replaced_weights.pth").read_bytes() == before


def test_weights_that_may_know_the_validation_images_are_never_shipped(here, data):
    run = write_run(here / "run", data)
    change_dataset(run / "best.pth", leakage=True)
    assert "may know its validation images" in promoted(run, data) and not (here / SHIPPED).exists()

"""Stages of a study: kept under what they are made of, resumed, refused; and what experts begin with."""

import json
import os
import signal

import pytest
import torch

import train
from config import Config
from dataset import load
from errors import UserError
from helpers import write_folders
from model import Expert, MixtureOfExperts, build_model
from study.configurations import copy_weights
from study.stages import Stages, Stopped, macs
from utils import pick_machine

NANO = {"model": "EmotionResNet-nano", "batch_size": 16, "precision": "fp32", "stop_patience": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_folders(tmp_path_factory.mktemp("data") / "archive", train=42, val=14, test=0)
    return load(Config(data=str(folder), cache=str(folder.parent / "cache")))


@pytest.fixture
def make(data, tmp_path):
    """Makes the Stages in a folder of the test's own."""

    def stages_in(name="stages", precision="fp32"):
        return Stages(tmp_path / name, data, pick_machine("cpu", precision), count=3)

    return stages_in


def nano():
    return build_model("EmotionResNet-nano")


def test_a_killed_stage_goes_on_and_ends_with_the_same_weights(make, tmp_path, monkeypatch, capsys):
    config = Config(epochs=3, **NANO)
    whole = make("whole").train("one", nano, config)
    step, steps = train.train_step, []

    def killed(*args):
        steps.append(1)
        if len(steps) == 5:  # in the second epoch of three steps each
            raise KeyError("killed")
        return step(*args)

    monkeypatch.setattr(train, "train_step", killed)
    with pytest.raises(KeyError):
        make("cut").train("one", nano, config)
    monkeypatch.undo()
    capsys.readouterr()
    again = make("cut")
    cut = again.train("one", nano, config)
    assert "goes on" in capsys.readouterr().out and len(again.histories["one"]) == 3
    assert all(torch.equal(value, cut.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not list((tmp_path / "cut/one").glob("*st.pth")), "last.pth and best.pth are of no use any more"


@pytest.fixture
def finished(make):
    """Stages with one that is finished."""
    made = make()
    made.train("one", nano, Config(epochs=1, **NANO))
    return made


@pytest.mark.parametrize(
    ("changes", "network", "message"),
    [
        ({"epochs": 2}, {}, r"another study \(epochs 1, now 2\)"),
        ({}, {"dropout": 0.1}, r"another study \(arguments"),
        ({"precision": "bf16"}, {}, r"arithmetic cpu, float32, now cpu, bfloat16"),
    ],
)
def test_a_stage_made_of_something_else_is_refused(finished, make, changes, network, message):
    settings = {"epochs": 1, **NANO, **changes}
    with pytest.raises(UserError, match=f"{message}.*--name"):
        stages = make(precision=settings["precision"])
        stages.train("one", lambda: build_model(NANO["model"], **network), Config(**settings))


def test_a_hyperparameter_that_an_older_stage_does_not_have_had_its_default(finished, make, capsys):
    path = finished.folder / "one/stage.json"
    content = json.loads(path.read_text())
    del content["cutout"]
    path.write_text(json.dumps(content | {"a_setting_that_went": 1}))
    make().train("one", nano, Config(epochs=1, **NANO))
    assert "stage 1 of 3: one is finished\n" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["train_step", "evaluate"])
def test_ctrl_c_at_the_very_end_of_a_stage_stops_the_study_and_keeps_the_stage(make, monkeypatch, capsys, where):
    config = Config(epochs=1, **NANO | {"batch_size": 64})  # a single step
    work = getattr(train, where)

    def pressed(*args, **named):
        os.kill(os.getpid(), signal.SIGINT)
        return work(*args, **named)

    monkeypatch.setattr(train, where, pressed)
    with pytest.raises(Stopped):
        make().train("one", nano, config)
    monkeypatch.setattr(train, where, work)
    make().train("one", nano, config)
    assert "stage 1 of 3: one is finished\n" in capsys.readouterr().out


# --- What experts and gates begin with ---


def test_experts_begin_with_what_the_single_network_knows_of_their_classes():
    torch.manual_seed(0)
    single = nano().eval()
    faces = torch.rand(20, 1, 48, 48)
    known = single(faces).log_softmax(1)
    for group in (range(7), [0, 1, 2, 4, 5, 6]):  # "none of mine" is the seventh class
        expert = Expert(network="EmotionResNet-nano", counts=[10] * 7, group=group)
        copy_weights(expert.net, single, group)
        torch.testing.assert_close(expert.eval()(faces), known)
    group, others = [1, 4], [0, 2, 3, 5, 6]
    expert = Expert(network="EmotionResNet-nano", counts=[10] * 7, group=group)
    copy_weights(expert.net, single, group)
    answers = expert.eval()(faces)
    torch.testing.assert_close(answers[:, 1] - answers[:, 4], known[:, 1] - known[:, 4])
    torch.testing.assert_close(answers[:, others].exp().sum(1), known[:, others].exp().sum(1), atol=0.02, rtol=0.1)


def test_a_gate_begins_with_all_of_the_single_network_but_its_last_layer():
    torch.manual_seed(0)
    single, groups = nano(), [[c] for c in range(7)]
    sizes = {"network": "EmotionResNet-nano", "gate": "EmotionResNet-nano"}
    gate = MixtureOfExperts(groups=groups, counts=[10] * 7, **sizes).gate
    copy_weights(gate, single)
    own, given = gate.state_dict(), single.state_dict()
    same = {name for name in given if torch.equal(own[name], given[name])}
    assert same == {name for name in given if "classifier" not in name}


def test_multiplications_are_counted():
    # 48x48 places, 64 channels of 9 numbers; 24x24 places, 128 channels of 576; 18432 x 512; 512 x 7
    assert macs(build_model("TheModel")) == 48**2 * 64 * 9 + 24**2 * 128 * 576 + 18432 * 512 + 512 * 7

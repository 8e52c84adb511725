"""The loop by itself: bits after a stop, what is kept and written, what is refused. Processes are in test_ranks."""

import errno
import json
import math
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import errors
import train
from config import CLASSES, Config
from dataset import load, preprocess
from errors import UserError
from helpers import same_weights, write_folders
from metrics import measure
from model import build_model
from ranks import Ranks
from train import fit, inputs_and_targets
from training import state
from training.augment import sample_epoch
from training.distill import load_teachers
from training.state import Trainer, check_resume, has_ended, read_history, read_last
from utils import pick_machine, read_checkpoint, seed_everything, write_checkpoint
from val import Scores
from weights import load_weights

QUICK = {"model": "EmotionResNet-nano", "width": 0.2, "epochs": 2, "batch_size": 16, "precision": "fp32"}
MACHINE = pick_machine("cpu", "fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with archive/, 35 faces to train on and 14 to validate on, and a cache of it."""
    place = tmp_path_factory.mktemp("train")
    write_folders(place / "archive", train=35, val=14, test=0)
    return place


@pytest.fixture(scope="module")
def data(place):
    return load(Config(data=str(place / "archive"), cache=str(place / "cache")))


@pytest.fixture
def run_fit(place, data, tmp_path):
    """Calls fit() as interface.py does, with quick settings, in the folder of this name."""

    def run_fit(name, *, resume=None, **settings):
        config = Config(**{**QUICK, "data": str(place / "archive"), "cache": str(place / "cache"), **settings})
        run, own = tmp_path / name, load(config) if config.votes or "data" in settings else data
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(vars(config)))
        return fit(new_model(config), own, config, run=run, machine=MACHINE, resume=resume)

    return run_fit


def new_model(config):
    seed_everything(config.seed)
    return build_model(config.model, **config.arguments).to(memory_format=torch.channels_last)


def new_trainer(data, tmp_path, **settings):
    config = Config(**{**QUICK, **settings})
    teachers = load_teachers(config, data, MACHINE)
    return Trainer(new_model(config), data, config, run=tmp_path, machine=MACHINE, teachers=teachers)


def figures(run) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in read_history(run)]


@pytest.fixture
def ctrl_c_in_mid_epoch(monkeypatch):
    """Ctrl-C comes in the second step of the second epoch, once."""
    step, sent = train.train_step, []

    def step_then_ctrl_c(trainer, *rest):
        if (trainer.progress.epoch, trainer.progress.step) == (1, 1) and not sent:
            sent.append(signal.raise_signal(signal.SIGINT))
        return step(trainer, *rest)

    return lambda: monkeypatch.setattr(train, "train_step", step_then_ctrl_c)


# --- Bits ---

VARIANTS = {
    "adam, plateau": {"precision": "bf16"},
    "sgd, onecycle, averaged": {"optimizer": "sgd", "schedule": "onecycle", "ema": 0.9, "cutout": 0.2},
    "blended, toned, clipped, in windows": {
        **{"mixup": 0.4, "cutmix": 1.0, "contrast": 0.3, "clip": 1.0, "window": 40, "full_size_share": 0.5},
        **{"schedule": "cosine", "ema": 0.9, "loss": "cross_entropy"},
    },
    "the simple net": {"model": "TheModel", "width": 1.0, "optimizer": "adamw", "schedule": "constant"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_run_cut_in_mid_epoch_ends_with_the_same_weights(run_fit, tmp_path, ctrl_c_in_mid_epoch, settings):
    whole = run_fit("whole", **settings)
    ctrl_c_in_mid_epoch()
    cut = run_fit("cut", **settings)
    assert cut.stopped and not cut.done and (cut.progress.epoch, cut.progress.step) == (1, 2)
    rest = run_fit("cut", resume=read_last(tmp_path / "cut")[1], **settings)
    assert rest.done and same_weights(whole.model.state_dict(), rest.model.state_dict())
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut")
    best = [read_checkpoint(tmp_path / name / "best.pth")["state_dict"] for name in ("whole", "cut")]
    assert same_weights(*best)


def test_the_seed_decides_the_weights(run_fit):
    first, again, other = (run_fit(f"run{i}", seed=seed, epochs=1) for i, seed in enumerate((1, 1, 2)))
    assert same_weights(first.model.state_dict(), again.model.state_dict())
    assert not same_weights(first.model.state_dict(), other.model.state_dict())


# --- Steps ---


def test_batches_are_near_equal_every_image_comes_once_and_the_averaged_weights_are_kept(
    run_fit, tmp_path, monkeypatch
):
    seen, step = [], train.train_step
    monkeypatch.setattr(train, "train_step", lambda *args: seen.append(args[2]) or step(*args))
    trainer = run_fit("run", ema=0.5, epochs=1)
    assert [len(batch) for batch in seen] == [12, 12, 11] and sorted(np.concatenate(seen)) == list(range(35))
    assert not same_weights(trainer.eval_model.state_dict(), trainer.model.state_dict())
    assert same_weights(read_checkpoint(tmp_path / "run" / "best.pth")["state_dict"], trainer.eval_model.state_dict())


def test_an_image_is_blended_with_the_one_before_it(data, tmp_path):
    trainer = new_trainer(data, tmp_path, mixup=1.0, augment=False)
    epoch, batch, split = sample_epoch(trainer.config, 35, 0), np.array([3, 20, 8, 33]), data.split("train")
    images, labels, targets = inputs_and_targets(trainer, epoch, batch)
    share, before = epoch.blending.share[torch.from_numpy(batch)], np.roll(batch, 1)
    mean = share.view(-1, 1, 1, 1)
    own, other = (preprocess(torch.from_numpy(split.images[rows])) for rows in (batch, before))
    assert torch.equal(labels, torch.from_numpy(split.labels[batch])) and bool((share >= 0.5).all())
    torch.testing.assert_close(images, mean * own + (1 - mean) * other)
    classes = [torch.eye(7)[split.labels[rows]] for rows in (batch, before)]
    torch.testing.assert_close(targets, share[:, None] * classes[0] + (1 - share[:, None]) * classes[1])


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_a_batch_without_changing_it(data, tmp_path, size):
    trainer = new_trainer(data, tmp_path, mixup=0.4, cutmix=1.0)
    epoch, batch = sample_epoch(trainer.config, 35, 0), np.array([3, 20, 8, 33, 1])
    whole, parts = inputs_and_targets(trainer, epoch, batch), []
    for rank in range(size):
        trainer.ranks = Ranks(rank, size)
        parts.append(inputs_and_targets(trainer, epoch, batch))
    for together, each in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(together, torch.cat(each))


def test_the_gradient_is_clipped_to_its_norm(run_fit, monkeypatch):
    norms, step = [], torch.optim.SGD.step

    def tell(self, *rest):
        grads = [weight.grad for group in self.param_groups for weight in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", tell)
    run_fit("free", epochs=1, optimizer="sgd")
    run_fit("clipped", epochs=1, optimizer="sgd", clip=0.01)
    assert min(norms[:3]) > 0.02 and norms[3:] == pytest.approx([0.01] * 3, rel=1e-3)


def test_training_learns(run_fit):
    trainer = run_fit("run", model="ImprovedFER2013Model", width=1.0, epochs=8, augment=False, dropout=0.0)
    first, last = trainer.history[0], trainer.history[-1]
    assert trainer.progress.best > 0.5 and last["train_loss"] < first["train_loss"] / 2


# --- Epochs ---


@pytest.fixture
def fake_scores(monkeypatch):
    """Lets validation read the given (accuracy, loss) pairs, and training do nothing."""

    def fake(values):
        values, blank = iter(values), measure(np.full((7, 7), 1 / 7), np.arange(7))

        def scores(*_, **__):
            accuracy, loss = next(values)
            metrics = blank._replace(accuracy=accuracy, loss=loss, macro_f1=accuracy)
            return Scores(metrics, metrics)

        monkeypatch.setattr(train, "evaluate", scores)
        monkeypatch.setattr(train, "train_step", lambda *_: (torch.tensor(1.0), torch.tensor(1)))

    return fake


def test_on_a_plateau_the_rate_is_cut_three_times_before_the_stop_unless_patience_is_0(run_fit, fake_scores):
    fake_scores([(0.5, 1.0)] * 40)
    rates = [row["lr"] for row in run_fit("run", epochs=40).history]
    assert len(rates) == 9  # the first epoch is the best one, then 8 without a better
    assert rates[2] == 1e-3 and sum(now < before for before, now in pairwise(rates)) == 3
    assert len(run_fit("patient", epochs=12, stop_patience=0).history) == 12


@pytest.mark.parametrize(("metric", "best_epoch"), [("accuracy", 2), ("loss", 3), ("macro_f1", 2)])
def test_the_best_epoch_goes_by_the_chosen_metric(run_fit, tmp_path, fake_scores, metric, best_epoch):
    fake_scores([(0.4, 1.5), (0.6, 1.2), (0.5, 1.1), (0.6, 1.3)])
    trainer = run_fit("run", epochs=4, stop_metric=metric)
    assert [row["epoch"] for row in trainer.history if row["best"]][-1] == best_epoch
    kept = read_checkpoint(tmp_path / "run" / "best.pth")["metrics"]["official"]
    assert kept["accuracy"] == {2: 0.6, 3: 0.5}[best_epoch]


@pytest.mark.parametrize("pause", [0.0, 1e9])  # between saves: on a CPU, and on a GPU whose epochs are short
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_state(run_fit, tmp_path, monkeypatch, pause):
    step = train.train_step
    monkeypatch.setattr(train, "save_pause", lambda _: pause)

    def break_later(trainer, *rest):
        losses, hits = step(trainer, *rest)
        at = (trainer.progress.epoch, trainer.progress.step)
        return (losses * math.nan if at == (1, 1) else losses), hits

    monkeypatch.setattr(train, "train_step", break_later)
    with pytest.raises(UserError, match=r"no longer finite at epoch 2, step 2: lower --lr \(now 0\.001\)"):
        run_fit("run")
    assert read_last(tmp_path / "run")[1]["progress"]["epoch"] == (0 if pause else 1)
    load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)  # the first epoch's


# --- Files ---


def test_where_epochs_are_short_the_best_weights_wait_for_the_next_save(run_fit, tmp_path, monkeypatch):
    run_fit("usual", epochs=3, stop_metric="loss")
    written, write = [], state.write_checkpoint
    monkeypatch.setattr(train, "save_pause", lambda machine: math.inf)
    monkeypatch.setattr(state, "write_checkpoint", lambda path, *rest: written.append(path.name) or write(path, *rest))
    run_fit("rare", epochs=3, stop_metric="loss")
    assert written == ["last.pth", "best.pth", "last.pth"]
    kept = [read_checkpoint(tmp_path / name / "best.pth") for name in ("usual", "rare")]
    assert same_weights(kept[0]["state_dict"], kept[1]["state_dict"]) and kept[0]["metrics"] == kept[1]["metrics"]


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(run_fit, tmp_path, monkeypatch):
    real, calls = errors.os.fsync, []

    def full_later(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(errors.os, "fsync", full_later)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
        run_fit("run", epochs=9)
    assert read_last(tmp_path / "run")[1]["progress"]["epoch"] == 1
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_the_first_state_is_saved_before_the_first_step_and_leftovers_are_removed(run_fit, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.pth.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(train, "train_step", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
    with pytest.raises(KeyError):
        run_fit("run")
    assert read_last(tmp_path / "run")[1]["progress"]["epoch"] == 0
    assert not list((tmp_path / "run").glob(".*.tmp"))


# --- Refused before the first step ---


def test_settings_that_the_network_cannot_train_with_are_refused(run_fit):
    fixed = {"model": "ImprovedFER2013Model", "width": 1.0, "window": 40}
    with pytest.raises(UserError, match=r"--window 40: ImprovedFER2013Model takes whole faces only; give --window 48"):
        run_fit("run", **fixed)
    assert run_fit("run", **fixed, augment=False, epochs=1).done  # where nothing is augmented it is unused
    with pytest.raises(UserError, match=r"--batch-size 1 over 35 images makes batches of one image"):
        run_fit("run", batch_size=1)


# --- Resume ---


def test_a_run_killed_before_its_first_state_begins_anew_and_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run to go on with; --resume takes a run's folder"):
        read_last(tmp_path)
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    config, content = read_last(tmp_path, {"threads": 2})
    assert (config.epochs, config.threads, content) == (3, 2, None) and not has_ended(tmp_path)


@pytest.mark.parametrize("settings", [{"epochs": 2}, {"epochs": 9, "stop_patience": 1}])
def test_without_its_state_an_ended_run_is_read_and_another_is_not_begun_anew_over_its_weights(
    run_fit, tmp_path, fake_scores, settings
):
    fake_scores([(0.5, 1.0)] * 9)
    run_fit("my run", **settings)
    run, best, metrics = (tmp_path / "my run" / name for name in ("", "best.pth", "metrics.jsonl"))
    assert not has_ended(run)
    (run / "last.pth").unlink()
    config, last = read_last(run, {"threads": 2})
    assert has_ended(run) and last is None and config.threads == 2 and len(read_history(run)) == 2
    row = metrics.read_text().splitlines()[0]
    for kept in ((best, metrics), (best,), (metrics,)):
        metrics.write_text(row)
        for path in {best, metrics} - set(kept):
            path.rename(tmp_path / path.name)
        with pytest.raises(UserError, match=r"last\.pth is gone") as raised:
            read_last(run)
        assert all(path.name in str(raised.value) for path in kept)
        assert str(raised.value).endswith(f"--config '{run}/config.json'")


def test_a_run_at_its_end_trains_nothing_and_one_of_other_code_is_refused(run_fit, tmp_path, monkeypatch):
    trainer = run_fit("run", epochs=1, optimizer="adam")
    content = read_last(tmp_path / "run")[1]
    monkeypatch.setattr(train, "train_step", lambda *_: pytest.fail("trained on"))
    assert run_fit("run", epochs=1, optimizer="adam", resume=content).done
    for change in (
        {"state_dict": content["state_dict"] | {next(iter(content["state_dict"])): torch.zeros(3)}},
        {"optimizer": content["optimizer"] | {"param_groups": content["optimizer"]["param_groups"][:1]}},
        {"progress": {}},
    ):
        with pytest.raises(UserError, match=r"last\.pth does not fit the network .* of this code: .* start a new run"):
            run_fit("run", resume=content | change, epochs=2, optimizer="adam")
    own = trainer.optimizer.param_groups[0]["fused"]  # the optimizer goes on as this machine has it
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = not group["fused"]
    trainer.restore(content)
    assert [group["fused"] for group in trainer.optimizer.param_groups] == [own] * 2
    write_checkpoint(tmp_path / "run" / "last.pth", content | {"config": content["config"] | {"momentum": 0.9}})
    with pytest.raises(UserError, match=r"does not fit this version of the code: .* unknown momentum"):
        read_last(tmp_path / "run")
    torch.save(content, tmp_path / "run" / "last.pth")
    with pytest.raises(UserError, match=r"last\.pth is not of this version"):  # only the code itself writes one
        read_last(tmp_path / "run")


ROWS = ("[]", '"a"', "{}", '{"epoch": 1, "best": true}', "[" * 99_999, "{", "1e999", "\x1b[2J")


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_figures_of_another_form_are_refused(run_fit, tmp_path, row):
    run_fit("run", epochs=1)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write(row)
    (tmp_path / "run" / "last.pth").unlink()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read .*: the run's figures are lost"):
        read_last(tmp_path / "run")


def test_a_run_keeps_all_that_it_was_trained_on(run_fit, tmp_path, data, ctrl_c_in_mid_epoch, capsys):
    ctrl_c_in_mid_epoch()
    run_fit("run")
    content = read_last(tmp_path / "run")[1]
    (here,) = content["progress"]["made_on"]
    content["progress"]["made_on"] = [{**here, "machine": "a laptop"}]
    run_fit("run", resume=content)
    both = [{**here, "machine": "a laptop"}, here]
    content = read_last(tmp_path / "run")[1]
    assert content["progress"]["made_on"] == both
    assert read_checkpoint(tmp_path / "run" / "best.pth")["made_on"] == [here]  # the first epoch is the best one

    def noted(made_on, *ranks) -> str:
        capsys.readouterr()
        content["progress"]["made_on"] = made_on
        check_resume(content, data, None, MACHINE, *ranks)
        return capsys.readouterr().out

    assert "was trained on a laptop with torch" in noted(both) and not noted([here])
    assert f"this is {MACHINE}, 2 processes with torch" in noted([here], Ranks(0, 2))
    older = {**here, "versions": {"torch": "2.0"}}
    assert f"trained on {MACHINE} with torch 2.0, this is {MACHINE}" in noted([older])
    with pytest.raises(UserError, match="trained on data with fingerprint 0123, these have"):
        check_resume(content | {"fingerprint": "0123"}, data, None, MACHINE)


def test_a_ctrl_c_while_the_processes_talk_is_not_lost():
    class Interrupted(Ranks):
        def sum(self, values):
            signal.raise_signal(signal.SIGINT)
            return values

    with train.ctrl_c_is_a_request(Ranks()) as request:
        assert not train.agreed(Interrupted(0, 2), request) and not request.wanted
        assert request.asked
        assert train.agreed(Ranks(), request) and request.wanted


# --- Votes and teachers ---


def write_votes(folder, path, *, other=0):
    """FER+ votes for every file: six for its class, four for the next one; `other` files have all ten for theirs."""
    lines = ["file,anger,disgust,fear,happiness,sadness,surprise,neutral"]
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        votes, label = [0] * 7, CLASSES.index(file.parent.name)
        votes[label], votes[(label + 1) % 7] = (10, 0) if number < other else (6, 4)
        lines.append(f"{file.relative_to(folder).as_posix()},{','.join(map(str, votes))}")
    path.write_text("\n".join(lines))
    return str(path)


def test_votes_are_the_targets_and_a_run_goes_on_with_its_own_only(run_fit, place, tmp_path):
    votes, changed = (write_votes(place / "archive", tmp_path / f"{other}.csv", other=other) for other in (0, 5))
    trainer = run_fit("run", epochs=1, votes=votes)
    _, labels, targets = inputs_and_targets(trainer, sample_epoch(trainer.config, 35, 0), np.arange(9))
    torch.testing.assert_close(targets, 0.6 * torch.eye(7)[labels] + 0.4 * torch.eye(7)[(labels + 1) % 7])
    for file in (changed, ""):
        config, last = read_last(tmp_path / "run", {"votes": file})
        with pytest.raises(UserError, match=r"made with other votes than these: name the files .* by --votes"):
            check_resume(last, load(config), None, MACHINE)
    moved = shutil.move(votes, tmp_path / "moved.csv")
    config, last = read_last(tmp_path / "run", {"votes": str(moved)})
    check_resume(last, load(config), None, MACHINE)


@pytest.fixture
def teacher(run_fit, tmp_path):
    """Trains a network in a folder of this name; its weight file."""
    return lambda name, **settings: str(run_fit(name, epochs=1, **settings).run / "best.pth")


def test_teachers_give_their_share_of_the_targets(data, teacher, tmp_path):
    files = [teacher(f"teacher{seed}", seed=seed) for seed in (1, 2)]
    trainer = new_trainer(data, tmp_path, teachers=", ".join(files), distill_weight=0.6)
    images, labels, targets = inputs_and_targets(trainer, sample_epoch(trainer.config, 35, 0), np.arange(9))
    models = [load_weights(Path(file), machine=MACHINE)[0] for file in files]
    with torch.no_grad():
        mean = sum(model(images).softmax(1) for model in models) / 2
    torch.testing.assert_close(targets, 0.4 * torch.eye(7)[labels] + 0.6 * mean, atol=1e-5, rtol=1e-4)


def test_a_taught_run_goes_on_with_its_teachers_wherever_they_are(
    run_fit, teacher, data, tmp_path, ctrl_c_in_mid_epoch
):
    first, other = (teacher(f"teacher{seed}", seed=seed) for seed in (1, 2))
    whole = run_fit("whole", teachers=first)
    ctrl_c_in_mid_epoch()
    assert not run_fit("cut", teachers=first).done
    moved = str(shutil.move(first, tmp_path / "moved.pth"))
    torch.save(read_checkpoint(moved) | {"temperature": 2.0}, moved)  # calibrated meanwhile: the weights are the same
    config, last = read_last(tmp_path / "cut", {"teachers": other})
    with pytest.raises(UserError, match=r"made with other teachers than these: name the files .* by --teachers"):
        check_resume(last, data, load_teachers(config, data, MACHINE), MACHINE)
    check_resume(last, data, load_teachers(Config(teachers=moved), data, MACHINE), MACHINE)
    rest = run_fit("cut", resume=last, teachers=moved)
    assert rest.done and same_weights(whole.model.state_dict(), rest.model.state_dict())


def test_a_teacher_that_may_know_the_validation_images_is_noted(run_fit, teacher, tmp_path, capsys):
    mine = teacher("mine")
    theirs = teacher("theirs", data=str(write_folders(tmp_path / "other", train=36, val=14, test=0)))
    capsys.readouterr()
    trainer = run_fit("run", epochs=1, teachers=f"{mine},{theirs}")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("teacher: ", "note: "))]
    assert len(lines) == 3 and mine in lines[0] and theirs in lines[1] and theirs in lines[2]
    content = read_checkpoint(trainer.run / "best.pth")
    assert content["dataset"]["leakage"] and content["config"]["teachers"] == "best.pth,best.pth"  # no folders


def test_a_teacher_of_no_use_is_refused(run_fit, teacher, place):
    for named, message in {
        "nowhere.pth": r"nowhere.pth: no such weight file; .*, or name another: --teachers FILE",
        " , ": "--teachers ' , ' names no weight file",
        str(place): "no file, and no run's folder",
    }.items():
        with pytest.raises(UserError, match=message):
            run_fit("run", teachers=named)
    fixed = teacher("teacher", model="ImprovedFER2013Model", width=1.0)
    with pytest.raises(UserError, match=r"best.pth: this network takes whole faces only; give --window 48 too"):
        run_fit("run", window=40, teachers=fixed)

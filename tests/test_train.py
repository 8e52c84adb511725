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

import train
import utils
from config import CLASSES, MACHINE_FIELDS, Config
from dataset import load
from errors import UserError
from helpers import write_folders
from model import build_model
from ranks import Ranks
from train import fit
from training import state as trainer_module
from training.distill import load_teachers
from training.resume import check_resume, read_last
from training.state import made_on
from utils import pick_machine, seed_everything
from val import Metrics, Scores
from weights import load_weights

LABELS_ALONE = {"votes": "", "teachers": []}
QUICK = {"model": "ImprovedFER2013Model", "epochs": 2, "batch_size": 16, "cache": "cache"}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_folders(tmp_path / "archive", train=35, val=14, test=0)


def run_fit(folder, *, resume=None, **knobs):
    """fit() in the folder `folder` with quick knobs, as interface.py calls it."""
    config = Config(**{**QUICK, "data": "archive", **knobs})
    folder.mkdir(exist_ok=True)
    seed_everything(config.seed)
    model = build_model(config.model, **config.arguments).to(memory_format=torch.channels_last)
    machine = pick_machine("cpu", config.precision)
    return fit(model, load(config), config, run=folder, machine=machine, resume=resume)


def same(first, second) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def history(folder) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def cut_in_mid_epoch(monkeypatch):
    """Let Ctrl-C come in the second step of the second epoch."""
    step = train.train_step

    def step_then_ctrl_c(trainer, *rest):
        if (trainer.epoch, trainer.step) == (1, 1):
            signal.raise_signal(signal.SIGINT)
        return step(trainer, *rest)

    monkeypatch.setattr(train, "train_step", step_then_ctrl_c)


VARIANTS = {
    "plain": {},
    "sgd, onecycle, averaged": {"optimizer": "sgd", "schedule": "onecycle", "ema": 0.9, "cutout": 0.2},
    "blended, toned, clipped, in windows": {
        **{"model": "EmotionResNet-nano", "mixup": 0.4, "cutmix": 1.0, "contrast": 0.3, "clip": 1.0, "window": 40},
        **{"full_size_share": 0.5, "schedule": "cosine", "ema": 0.9, "loss": "cross_entropy"},
    },
    "the simple net": {"model": "TheModel", "precision": "fp32", "optimizer": "adamw", "schedule": "constant"},
}


@pytest.mark.parametrize("knobs", VARIANTS.values(), ids=VARIANTS)
def test_a_run_cut_in_mid_epoch_ends_with_the_same_weights(archive, tmp_path, monkeypatch, knobs):
    whole = run_fit(tmp_path / "whole", **knobs)
    cut_in_mid_epoch(monkeypatch)
    cut = run_fit(tmp_path / "cut", **knobs)
    assert not cut.done and (cut.epoch, cut.step) == (1, 2)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    rest = run_fit(tmp_path / "cut", resume=read_last(tmp_path / "cut")[1], **knobs)
    assert rest.done and same(whole.model.state_dict(), rest.model.state_dict())
    assert history(tmp_path / "whole") == history(tmp_path / "cut")
    best = [torch.load(tmp_path / name / "best.pth", weights_only=True) for name in ("whole", "cut")]
    assert same(best[0]["state_dict"], best[1]["state_dict"])


def test_every_batch_has_about_the_same_size_and_every_image_comes_once(archive, tmp_path, monkeypatch):
    seen = []
    step = train.train_step
    monkeypatch.setattr(
        train, "train_step", lambda trainer, batch, count: seen.append((batch, count)) or step(trainer, batch, count)
    )
    trainer = run_fit(tmp_path / "run", epochs=1)
    assert [(len(batch.images), count) for batch, count in seen] == [(12, 12), (12, 12), (11, 11)]
    trained_on = {image.numpy().tobytes() for batch, _ in seen for image in batch.images}
    assert trained_on == {image.tobytes() for image in trainer.data.split("train").images} and len(trained_on) == 35


def test_a_blended_batch_brings_each_image_and_its_neighbour(archive, tmp_path, monkeypatch):
    seen = []
    make = train.inputs_and_targets

    def tell(trainer, batch, count):
        images, targets = make(trainer, batch, count)
        seen.append((batch, images, targets))
        return images, targets

    monkeypatch.setattr(train, "inputs_and_targets", tell)
    trainer = run_fit(tmp_path / "run", epochs=1, mixup=1.0, augment=False)
    assert [len(images) for _, images, _ in seen] == [12, 12, 11]
    for batch, images, targets in seen:
        own, partners = batch.labels[1:], batch.labels[:-1]
        assert torch.equal(batch.images[0], batch.images[-1])  # the first one's partner is the last
        share = targets.gather(1, own[:, None])[:, 0]
        assert bool((share >= 0.5).all()) and targets.sum(1).allclose(torch.ones(len(own)))
        pixels, mean = train.preprocess(batch.images), share.view(-1, 1, 1, 1)
        other = own != partners
        expected = mean * pixels[1:] + (1 - mean) * pixels[:-1]
        torch.testing.assert_close(images[other], expected[other])
    assert trainer.done


@pytest.mark.parametrize("count", [1, 2, 11])
@pytest.mark.parametrize("size", [2, 3])
def test_partners_do_not_depend_on_the_number_of_processes(count, size):
    rows, config = np.arange(count) * 3, Config(mixup=0.4)
    pairs = []
    for rank in range(size):
        part = train.rank_rows(rows, config, Ranks(rank, size))
        pairs += zip(part[1:].tolist(), part[:-1].tolist(), strict=True)
    assert pairs == list(zip(rows.tolist(), np.roll(rows, 1).tolist(), strict=True))
    whole = [train.rank_rows(rows, Config(), Ranks(rank, size)) for rank in range(size)]
    assert np.array_equal(np.concatenate(whole), rows)


def test_the_gradient_is_clipped_to_its_norm(archive, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def tell(self, *rest):
        grads = [weight.grad for group in self.param_groups for weight in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", tell)
    run_fit(tmp_path / "free", epochs=1, optimizer="sgd")
    run_fit(tmp_path / "held", epochs=1, optimizer="sgd", clip=0.01)
    assert min(norms[:3]) > 0.02 and norms[3:] == pytest.approx([0.01] * 3, rel=1e-3)


def test_a_window_needs_a_network_that_takes_it(archive, tmp_path):
    with pytest.raises(UserError, match=r"--window 40: ImprovedFER2013Model takes whole faces only; give --window 48"):
        run_fit(tmp_path / "run", window=40)
    assert run_fit(tmp_path / "run", window=40, augment=False, epochs=1).done  # where nothing is augmented it is unused


def test_the_seed_decides_the_weights(archive, tmp_path):
    first, again, other = (run_fit(tmp_path / f"run{i}", seed=seed, epochs=1) for i, seed in enumerate((1, 1, 2)))
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not same(first.model.state_dict(), other.model.state_dict())


def metrics(accuracy: float, loss: float) -> Metrics:
    return Metrics(10, 5, accuracy, loss, accuracy, 0.0, [accuracy] * 7, [[0] * 7] * 7)


def fake_scores(monkeypatch, values):
    """Let validation read the given (accuracy, loss) pairs, and training do nothing."""
    values = iter(values)

    def scores(*_, **__):
        figures = metrics(*next(values))
        return Scores(figures, figures)

    monkeypatch.setattr(train, "evaluate", scores)
    monkeypatch.setattr(train, "train_step", lambda *_: (torch.tensor(1.0), torch.tensor(1)))


def test_on_a_plateau_the_rate_is_cut_twice_before_the_stop(archive, tmp_path, monkeypatch):
    fake_scores(monkeypatch, [(0.5, 1.0)] * 40)
    trainer = run_fit(tmp_path / "run", epochs=40)
    rates = [row["lr"] for row in trainer.history]
    assert len(rates) == 9  # the first epoch is the best one, then 8 without a better
    assert rates[0] == 1e-3 and sum(now < before for before, now in pairwise(rates)) == 2


@pytest.mark.parametrize(("metric", "best_epoch"), [("accuracy", 2), ("loss", 3), ("macro_f1", 2)])
def test_the_best_epoch_goes_by_the_chosen_metric(archive, tmp_path, monkeypatch, metric, best_epoch):
    fake_scores(monkeypatch, [(0.4, 1.5), (0.6, 1.2), (0.5, 1.1), (0.6, 1.3)])
    trainer = run_fit(tmp_path / "run", epochs=4, stop_metric=metric)
    assert [row["epoch"] for row in trainer.history if row["best"]][-1] == best_epoch
    kept = torch.load(tmp_path / "run" / "best.pth", weights_only=True)["metrics"]["official"]
    assert kept["accuracy"] == {2: 0.6, 3: 0.5}[best_epoch]


@pytest.mark.parametrize("epochs", range(1, 11))
def test_one_cycle_fits_any_number_of_steps(archive, tmp_path, monkeypatch, epochs):
    fake_scores(monkeypatch, [(0.5, 1.0)] * epochs)
    trainer = run_fit(tmp_path / "run", epochs=epochs, batch_size=35, schedule="onecycle", stop_patience=0)
    for _ in range(epochs):
        trainer.optimizer.step()
        trainer.scheduler.step()


def test_stop_patience_0_never_stops_early(archive, tmp_path, monkeypatch):
    fake_scores(monkeypatch, [(0.5, 1.0)] * 12)
    assert len(run_fit(tmp_path / "run", epochs=12, stop_patience=0).history) == 12


def test_a_finished_run_resumed_trains_nothing(archive, tmp_path, monkeypatch):
    run_fit(tmp_path / "run", epochs=1)
    monkeypatch.setattr(train, "train_step", lambda *_: pytest.fail("trained on"))
    assert run_fit(tmp_path / "run", epochs=1, resume=read_last(tmp_path / "run")[1]).done


@pytest.mark.parametrize("seconds", [0.0, 1e9])  # between saves: on a CPU, and on a GPU whose epochs are short
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_state(archive, tmp_path, monkeypatch, seconds):
    step = train.train_step
    monkeypatch.setattr(train, "save_seconds", lambda _: seconds)

    def break_later(trainer, *rest):
        losses, hits = step(trainer, *rest)
        return (losses * math.nan if trainer.epoch == 1 else losses), hits

    monkeypatch.setattr(train, "train_step", break_later)
    with pytest.raises(UserError, match=r"no longer finite at epoch 2, step 1: lower --lr \(now 0\.001\)"):
        run_fit(tmp_path / "run")
    assert read_last(tmp_path / "run")[1]["progress"]["epoch"] == (0 if seconds else 1)
    load_weights(tmp_path / "run" / "best.pth", machine=pick_machine("cpu", "fp32"))  # the first epoch's


def test_a_rate_that_explodes_is_caught(archive, tmp_path):
    with pytest.raises(UserError, match=r"the training loss is no longer finite|gives numbers that are not finite"):
        run_fit(tmp_path / "run", model="TheModel", optimizer="sgd", lr=100.0, epochs=30, precision="fp32")


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(archive, tmp_path, monkeypatch):
    real, calls = utils.os.fsync, []

    def full_later(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(utils.os, "fsync", full_later)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
        run_fit(tmp_path / "run", epochs=9)
    monkeypatch.undo()
    assert read_last(tmp_path / "run")[1]["progress"]["epoch"] == 1
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_the_first_state_is_saved_before_the_first_step(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
    with pytest.raises(KeyError):
        run_fit(tmp_path / "run")
    assert read_last(tmp_path / "run")[1]["progress"]["epoch"] == 0


def test_a_batch_of_one_image_is_refused_for_batch_norm(archive, tmp_path):
    with pytest.raises(UserError, match=r"--batch-size 1 over 35 images makes batches of one image"):
        run_fit(tmp_path / "run", batch_size=1)


def test_leftovers_of_a_killed_write_are_removed(archive, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.pth.1.tmp").write_bytes(b"half")
    run_fit(tmp_path / "run", epochs=1)
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(UserError, match=r"holds no run to go on with; --resume takes a run's folder"):
        read_last(tmp_path)


def test_a_run_killed_before_its_first_state_begins_anew(tmp_path):
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    config, content = read_last(tmp_path, {"threads": 2})
    assert (config.epochs, config.threads, content) == (3, 2, None)


@pytest.mark.parametrize("kept", [("best.pth",), ("metrics.jsonl",), ("best.pth", "metrics.jsonl")])
def test_a_run_whose_state_was_removed_is_not_begun_anew_over_its_weights(archive, tmp_path, kept):
    run_fit(tmp_path / "my run", epochs=1)
    for name in {"last.pth", "best.pth", "metrics.jsonl"} - set(kept):
        (tmp_path / "my run" / name).unlink()
    verb = "is" if len(kept) == 1 else "are"
    with pytest.raises(UserError) as raised:
        read_last(tmp_path / "my run")
    said = str(raised.value)
    assert "last.pth is gone" in said and f"{' and '.join(kept)} {verb} untouched" in said
    assert said.endswith(f"--config '{tmp_path}/my run/config.json'")


def test_a_run_of_another_version_is_refused_by_the_knob_it_has(archive, tmp_path):
    run_fit(tmp_path / "run", epochs=1)
    content = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    content["config"]["momentum"] = 0.9
    torch.save(content, tmp_path / "run" / "last.pth")
    with pytest.raises(UserError, match=r"does not fit this version of the code: .* unknown momentum"):
        read_last(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("state_dict", lambda state: state | {next(iter(state)): torch.zeros(3)}),
        ("optimizer", lambda state: state | {"param_groups": state["param_groups"][:1]}),
        ("progress", lambda state: {}),
    ],
)
def test_a_run_of_another_network_is_refused(archive, tmp_path, key, change):
    run_fit(tmp_path / "run", epochs=1)
    content = read_last(tmp_path / "run")[1]
    with pytest.raises(UserError, match=r"last\.pth does not fit the network .* of this code: .* start a new run"):
        run_fit(tmp_path / "run", resume={**content, key: change(content[key])}, epochs=2)


def test_the_optimizer_goes_on_as_this_machine_has_it(archive, tmp_path):
    trainer = run_fit(tmp_path / "run", epochs=1, optimizer="adam")
    content = read_last(tmp_path / "run")[1]
    own, loaded = trainer.optimizer.param_groups[0]["fused"], []
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = not group["fused"]
    trainer.optimizer.register_load_state_dict_pre_hook(lambda _, state: loaded.append(state["param_groups"]))
    trainer.restore(content)
    assert [group["fused"] for group in (*loaded[0], *trainer.optimizer.param_groups)] == [own] * 4


def test_a_run_keeps_all_that_it_was_trained_on(archive, tmp_path, monkeypatch, capsys):
    cut_in_mid_epoch(monkeypatch)
    run_fit(tmp_path / "run", epochs=2)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    content = read_last(tmp_path / "run")[1]
    (here,) = made_on(content)
    content["made_on"] = [{**here, "machine": "a laptop"}]
    run_fit(tmp_path / "run", resume=content, epochs=2)
    content = read_last(tmp_path / "run")[1]
    assert made_on(content) == [{**here, "machine": "a laptop"}, here]
    content["made_on"][1]["machine"] = "a server"
    run_fit(tmp_path / "run", resume=content, epochs=2)  # nothing is left to train
    content = read_last(tmp_path / "run")[1]
    assert [each["machine"] for each in made_on(content)] == ["a laptop", "a server"]
    data, machine = load(Config(data="archive", cache="cache")), pick_machine("cpu", "fp32")
    check_resume(content, data, None, machine, Ranks())
    assert "was trained on a laptop with torch" in (said := capsys.readouterr().out) and "and on a server" in said


def test_other_data_are_refused_and_another_machine_is_said(archive, capsys):
    data, machine = load(Config(data="archive", cache="cache")), pick_machine("cpu", "fp32")
    last = {"fingerprint": "0123", "machine": str(machine), "versions": {"torch": "2.0"}, "targets": LABELS_ALONE}
    with pytest.raises(UserError, match="trained on data with fingerprint 0123, these have"):
        check_resume(last, data, None, machine, Ranks())
    last["fingerprint"] = data.fingerprint
    check_resume(last, data, None, machine, Ranks())
    said = f"trained on {machine} with torch 2.0, this is {machine} with torch {torch.__version__}"
    assert said in capsys.readouterr().out
    check_resume({**last, "versions": {"torch": str(torch.__version__)}}, data, None, machine, Ranks())
    assert not capsys.readouterr().out


def test_the_average_follows_the_weights(archive, tmp_path):
    trainer = run_fit(tmp_path / "run", ema=0.5, epochs=1)
    assert not same(trainer.kept.state_dict(), trainer.model.state_dict())
    kept = torch.load(tmp_path / "run" / "best.pth", weights_only=True)["state_dict"]
    assert same(kept, trainer.kept.state_dict())


def test_training_learns(archive, tmp_path):
    trainer = run_fit(tmp_path / "run", epochs=8, augment=False, dropout=0.0)
    first, last = trainer.history[0], trainer.history[-1]
    assert trainer.best > 0.5 and last["train_loss"] < first["train_loss"] / 2


def test_a_ctrl_c_while_the_processes_talk_is_not_lost():
    class Interrupted(Ranks):
        def sum(self, values):
            signal.raise_signal(signal.SIGINT)
            return values

    with train.ctrl_c_is_a_request(Ranks()) as request:
        assert not train.agreed(Interrupted(0, 2), bad=False, stop=request) and not request.wanted
        assert request.asked
        assert train.agreed(Ranks(), bad=False, stop=request) and request.wanted


def test_a_run_that_goes_on_with_other_processes_says_that_bits_differ(archive, capsys):
    data, machine = load(Config(data="archive", cache="cache")), pick_machine("cpu", "fp32")
    last = {"fingerprint": data.fingerprint, "machine": str(machine), "versions": {"torch": str(torch.__version__)}}
    check_resume({**last, "targets": LABELS_ALONE}, data, None, machine, Ranks(0, 2))
    assert f"this is {machine}, 2 processes with torch" in capsys.readouterr().out


def write_votes(folder, path, *, other=0):
    """FER+ votes for every file: six for its class, four for the next one; `other` files have all ten for theirs."""
    lines = ["file,anger,disgust,fear,happiness,sadness,surprise,neutral"]
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        votes, label = [0] * 7, CLASSES.index(file.parent.name)
        votes[label], votes[(label + 1) % 7] = (10, 0) if number < other else (6, 4)
        lines.append(f"{file.relative_to(folder).as_posix()},{','.join(map(str, votes))}")
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_votes_are_the_targets(archive, tmp_path, monkeypatch, mixup):
    votes = write_votes(archive, tmp_path / "votes.csv")
    seen = []
    make = train.inputs_and_targets
    monkeypatch.setattr(train, "inputs_and_targets", lambda *args: seen.append((args[1], *make(*args))) or seen[-1][1:])
    run_fit(tmp_path / "run", epochs=1, votes=votes, mixup=mixup)
    assert len(seen) == 3
    for batch, images, targets in seen:
        own = 0.6 * torch.eye(7)[batch.labels] + 0.4 * torch.eye(7)[(batch.labels + 1) % 7]
        if not mixup:
            torch.testing.assert_close(targets, own)
            continue
        gap = own[1:] - own[:-1]
        other = gap.abs().sum(1) > 0
        share = ((targets - own[:-1]) * gap).sum(1)[other] / (gap * gap).sum(1)[other]
        assert bool((share > 0.499).all()) and bool((share < 1.001).all()) and len(images) == len(targets)
        torch.testing.assert_close(targets[other], torch.lerp(own[:-1][other], own[1:][other], share[:, None]))


def test_a_voted_run_goes_on_with_its_votes_only(archive, tmp_path):
    votes, changed = (write_votes(archive, tmp_path / f"votes{other}.csv", other=other) for other in (0, 5))
    run_fit(tmp_path / "run", epochs=1, votes=votes)
    machine = pick_machine("cpu", "fp32")
    for file in (changed, ""):
        config, last = read_last(tmp_path / "run", {"votes": file})
        with pytest.raises(UserError, match=r"made with other votes than these: name the files .* by --votes"):
            check_resume(last, load(config), load_teachers(config, machine), machine, Ranks())
    moved = shutil.move(votes, tmp_path / "moved.csv")
    config, last = read_last(tmp_path / "run", {"votes": str(moved)})
    check_resume(last, load(config), load_teachers(config, machine), machine, Ranks())


def teacher(tmp_path, name, **knobs):
    run_fit(tmp_path / name, epochs=1, **knobs)
    return str(tmp_path / name / "best.pth")


def test_teachers_give_their_share_of_the_targets(archive, tmp_path, monkeypatch):
    files = [teacher(tmp_path, f"teacher{seed}", seed=seed) for seed in (1, 2)]
    models = [load_weights(Path(file), machine=pick_machine("cpu", "fp32"))[0] for file in files]
    seen = []
    make = train.inputs_and_targets
    monkeypatch.setattr(train, "inputs_and_targets", lambda *args: seen.append((args[1], *make(*args))) or seen[-1][1:])
    run_fit(tmp_path / "run", epochs=1, teachers=", ".join(files), distill_weight=0.6, precision="fp32")
    for batch, images, targets in seen:
        with torch.no_grad():
            mean = sum(model(images).softmax(1) for model in models) / 2
        torch.testing.assert_close(targets, 0.4 * torch.eye(7)[batch.labels] + 0.6 * mean, atol=1e-5, rtol=1e-4)
    assert len(seen) == 3


def test_a_taught_run_goes_on_with_its_teachers_wherever_they_are(archive, tmp_path, monkeypatch):
    first, other = (teacher(tmp_path, f"teacher{seed}", seed=seed) for seed in (1, 2))
    whole = run_fit(tmp_path / "whole", teachers=first)
    cut_in_mid_epoch(monkeypatch)
    assert not run_fit(tmp_path / "cut", teachers=first).done
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    moved = str(shutil.move(first, tmp_path / "moved.pth"))
    machine = pick_machine("cpu", "fp32")
    config, last = read_last(tmp_path / "cut", {"teachers": other})
    with pytest.raises(UserError, match=r"made with other teachers than these: name the files .* by --teachers"):
        check_resume(last, load(config), load_teachers(config, machine), machine, Ranks())
    with pytest.raises(UserError, match=r"best.pth: no such weight file; .* with --teachers"):
        load_teachers(Config(teachers=first), machine)
    assert "teachers" in MACHINE_FIELDS and "votes" in MACHINE_FIELDS  # so that --resume takes the new place
    rest = run_fit(tmp_path / "cut", resume=last, teachers=moved)
    assert rest.done and same(whole.model.state_dict(), rest.model.state_dict())


def test_a_teacher_that_knows_the_validation_images_is_said(archive, tmp_path, capsys):
    mine = teacher(tmp_path, "mine")
    theirs = teacher(tmp_path, "theirs", data=str(write_folders(tmp_path / "other", train=36, val=14, test=0)))
    capsys.readouterr()
    run_fit(tmp_path / "run", epochs=1, teachers=f"{mine},{theirs}")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("teacher: ", "note: "))]
    assert len(lines) == 3 and mine in lines[0] and theirs in lines[1] and theirs in lines[2]
    assert "it may know these validation images" in lines[2]


def test_a_teacher_of_no_use_is_refused(archive, tmp_path):
    for named, message in {
        "nowhere.pth": r"nowhere.pth: no such weight file; .*, or name another with --teachers",
        " , ": "--teachers ' , ' names no weight file",
        "archive": "archive: Is a directory",
    }.items():
        with pytest.raises(UserError, match=message):
            run_fit(tmp_path / "run", teachers=named)
    fixed = teacher(tmp_path, "teacher")
    with pytest.raises(UserError, match=r"best.pth: this network takes whole faces only; give --window 48 too"):
        run_fit(tmp_path / "run", model="EmotionResNet-nano", window=40, teachers=fixed)


def test_weight_files_do_not_tell_the_folders_of_teachers(archive, tmp_path):
    files = ",".join(teacher(tmp_path, f"teacher{seed}", seed=seed) for seed in (1, 2))
    run_fit(tmp_path / "run", epochs=1, teachers=files)
    config = torch.load(tmp_path / "run" / "best.pth", weights_only=True)["config"]
    assert config["teachers"] == "best.pth,best.pth"


def test_a_state_of_another_layout_goes_on_as_if_it_had_this_one(archive, tmp_path, monkeypatch):
    """As a run of an Apple GPU has it: fused rules walk weights and momentum side by side as they lie in memory."""
    knobs = {"model": "EmotionResNet-nano", "optimizer": "adam", "schedule": "constant", "precision": "fp32"}
    whole = run_fit(tmp_path / "whole", **knobs)
    cut_in_mid_epoch(monkeypatch)
    run_fit(tmp_path / "cut", **knobs)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    last = read_last(tmp_path / "cut")[1]
    for state in last["optimizer"]["state"].values():
        for name, value in state.items():
            state[name] = value.contiguous()
    assert same(whole.model.state_dict(), run_fit(tmp_path / "cut", resume=last, **knobs).model.state_dict())


@pytest.mark.parametrize(("metric", "best"), [("accuracy", [True, False, False]), ("loss", [True, True, True])])
def test_where_epochs_are_short_the_best_weights_wait_for_the_next_save(archive, tmp_path, monkeypatch, metric, best):
    knobs = {"epochs": 3, "stop_metric": metric, "precision": "fp32"}
    usual = run_fit(tmp_path / "usual", **knobs)
    assert [row["best"] for row in usual.history] == best
    written = []
    write = trainer_module.write_checkpoint
    monkeypatch.setattr(train, "save_seconds", lambda machine: math.inf)
    monkeypatch.setattr(
        trainer_module, "write_checkpoint", lambda path, content: written.append(path.name) or write(path, content)
    )
    rare = run_fit(tmp_path / "rare", **knobs)
    assert written == ["last.pth", "best.pth", "last.pth"] and rare.held is None
    kept = [torch.load(tmp_path / name / "best.pth", weights_only=True) for name in ("usual", "rare")]
    assert same(kept[0]["state_dict"], kept[1]["state_dict"]) and kept[0]["metrics"] == kept[1]["metrics"]


def test_best_weights_that_wait_are_not_moved_by_training(archive, tmp_path):
    trainer = run_fit(tmp_path / "run", epochs=1)
    scores = train.evaluate(trainer.kept, trainer.data.split("val"), machine=trainer.machine)
    trainer.hold(scores)
    before = {name: value.clone() for name, value in trainer.held["state_dict"].items()}
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 1
    assert same(before, trainer.held["state_dict"])


@pytest.mark.parametrize(("device", "seconds"), [("cpu", 0.0), ("cuda", train.SAVE_SECONDS)])
def test_every_epoch_is_saved_on_a_cpu_and_some_on_a_gpu(device, seconds):
    assert train.save_seconds(utils.Machine(torch.device(device), torch.float32)) == seconds

"""The training script: what it prints, writes and refuses, kills and Ctrl-C, resume, and the weights it promotes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

import pytest
import torch

import errors
import interface
from helpers import REPO, run_script, same_weights, write_folders
from train import duration, epoch_line
from utils import read_checkpoint

QUICK = ("--model", "EmotionResNet-nano", "--width", "0.2", "--threads", "1", "--device", "cpu")


class Done(NamedTuple):
    status: int
    out: str
    err: str


def call(cwd, *args) -> Done:
    """interface.py in the folder `cwd`, in this process."""
    out, err = StringIO(), StringIO()
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            status = interface.main([*map(str, args)])
        except SystemExit as error:
            status = error.code
    return Done(status, out.getvalue(), err.getvalue())


def trained(cwd, *args) -> str:
    """The output of interface.py that ends well."""
    done = call(cwd, *args)
    assert done.status == 0, done.err
    return done.out


def refused(cwd, *args) -> str:
    """The one line of an error."""
    done = call(cwd, *args)
    assert done.status == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done
    return done.err


def state(run) -> dict:
    return read_checkpoint(run / "best.pth")["state_dict"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with a dataset and runs/first, a finished run of two epochs; and its output."""
    cwd = tmp_path_factory.mktemp("first")
    write_folders(cwd / "archive", train=35, val=14, test=0)
    return cwd, trained(cwd, *QUICK, "--epochs", 2, "--run", "first")


@pytest.fixture
def cwd(first):
    return first[0]


# --- Kills ---

# A process that forks one of interface.py for each line of its input, [arguments, code to run in it first]: what a
# training imports is imported once. `pid N` comes first, `ended STATUS` last, each in one write: the pipe is shared.
FORK_EACH = f"""
import json, os, sys
sys.path.insert(0, {str(REPO)!r})
import torch._dynamo, interface, plots, train, training.promote
for line in sys.stdin:
    given, code = json.loads(line)
    pid = os.fork()
    if not pid:
        exec(code)
        os._exit(interface.main(given))
    sys.stdout.write(f"pid {{pid}}\\n")
    sys.stdout.write(f"ended {{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}}\\n")
"""
# It dies inside the n-th write of last.pth, the temporary file cut in half.
DIE_IN_WRITE = """
import os, signal, errors
real, count = os.fsync, 0
def fsync(descriptor):
    global count
    real(descriptor)
    if ".last.pth." in os.readlink(f"/proc/self/fd/{descriptor}"):
        count += 1
        if count == %d:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
errors.os.fsync = fsync
"""
# It reports when its first step begins that is not among the last of its epoch.
TELL_FIRST_STEP = """
import os, signal, sys, train
step, began = train.train_step, False
def tell(trainer, *rest):
    global began
    if not began and trainer.progress.step < trainer.steps - 2:
        began = True
        sys.stdout.write("first step\\n")
        %s
    return step(trainer, *rest)
train.train_step = tell
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    """Ten SIGKILLs (one before the first epoch ends, two inside a checkpoint's write, seven at random moments) and one
    Ctrl-C in mid-epoch.
    """
    write_folders(tmp_path / "archive", train=140, val=14, test=0)
    settings = (*QUICK, "--epochs", "12", "--batch-size", "16", "--ema", "0.9", "--mixup", "0.4")
    resume, cut, whole = ("--resume", "runs/cut"), tmp_path / "runs/cut", tmp_path / "runs/whole"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORK_EACH], cwd=tmp_path, env=environment, text=True, **pipes
    ) as forks:

        def wait_for(text):
            return next(line for line in forks.stdout if line.startswith(text))

        def run(*args, code="", after=None) -> int:
            """The exit status of interface.py, that dies by its own `code`, or `after` some seconds from a step on."""
            forks.stdin.write(json.dumps([args, code]) + "\n")
            forks.stdin.flush()
            pid = int(wait_for("pid").split()[1])
            if after is not None:
                wait_for("first step")
                time.sleep(after)
                os.kill(pid, signal.SIGKILL)
            return int(wait_for("ended").split()[1])

        assert run(*settings, "--run", "whole") == 0
        seconds = sum(json.loads(row)["seconds"] for row in (whole / "metrics.jsonl").read_text().splitlines()) / 12
        tell, killed = TELL_FIRST_STEP % "", -signal.SIGKILL
        assert run(*settings, "--run", "cut", code=tell, after=0.3 * seconds) == killed
        assert (cut / "last.pth").exists() and not (cut / "best.pth").exists()
        for nth in (1, 2):
            assert run(*resume, code=DIE_IN_WRITE % nth) == killed
            assert list(cut.glob(".last.pth.*.tmp"))
        moments = random.Random(0)
        for _ in range(7):
            assert run(*resume, code=tell, after=moments.uniform(0, 1.2) * seconds) == killed
        assert run(*resume, code=TELL_FIRST_STEP % "os.kill(os.getpid(), signal.SIGINT)") == 130
        assert run(*resume) == 0
        forks.stdin.close()
    assert (
        same_weights(state(whole), state(cut))
        and read_checkpoint(whole / "best.pth")["metrics"] == read_checkpoint(cut / "best.pth")["metrics"]
    )
    timed = re.compile(r'"seconds.*')
    rows = [timed.sub("", (run / "metrics.jsonl").read_text()) for run in (whole, cut)]
    assert rows[0] == rows[1] and rows[0].count("\n") == 12


# --- A run ---


def test_a_run_writes_what_the_readme_names_and_says_what_to_do_next(first):
    cwd, out = first
    names = {file.name for file in (cwd / "runs" / "first").iterdir()} - {".lock"}
    figures = {"curves.png", "confusion.png", "reliability.png", "mistakes.png"}
    assert names == {"config.json", "metrics.jsonl", "best.pth"} | figures and all(name in out for name in names)
    assert "last.pth (0 MB)" in out and "loss is focal loss (gamma 1)" in out and "angry " in out
    assert "fewer than 200 validation images" in out and "(ECE)" not in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and lines[0].startswith("epoch   1/2  lr 0.001 ") and lines[0].endswith(" left")
    command = out.splitlines()[-1].partition(": ")[2]
    assert command == "python predict.py PHOTO --weights runs/first"
    photo = next((cwd / "archive").rglob("*.png"))
    done = run_script(*command.replace("PHOTO", str(photo)).split()[1:], cwd=cwd)
    assert done.returncode == 0 and str(photo.name) in done.stdout, done.stderr


def test_training_writes_nothing_elsewhere_but_matplotlibs_list_of_fonts(cwd, tmp_path, monkeypatch):
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    done = run_script("interface.py", *QUICK, "--epochs", "1", "--run", "elsewhere", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert all("matplotlib" in str(path) for path in tmp_path.rglob("*")), list(tmp_path.rglob("*"))


def test_a_line_of_an_epoch_has_one_width_and_the_time_left():
    row = {"epoch": 9, "lr": 2.5e-6, "train_loss": 1.0414, "train_accuracy": 0.6212, "val_loss": 1.1021}
    row |= {"val_accuracy": 0.6038, "val_accuracy_deduplicated": 0.6, "best": True, "seconds": 18.3}
    row |= {"images_per_second": 1570.0}
    line = epoch_line([row], 60, copies=False)
    assert line == "epoch   9/60  lr 2.5e-06   train 1.041  62.1%  val 1.102  60.4% *   18.3s   1570 img/s  18 min left"
    later = epoch_line([{**row, "epoch": 10, "lr": 0.0712, "val_accuracy": 1.0, "best": False}] * 10, 60, copies=False)
    assert len(later) == len(line) and "lr 0.0712 " in later
    assert "60.4% /  60.0% *" in epoch_line([row], 60, copies=True)
    assert "left" not in epoch_line([row], 1, copies=True)
    assert [duration(seconds) for seconds in (0, 45, 200, 4000, 9000)] == ["0 s", "45 s", "3 min", "67 min", "2.5 h"]


def test_notes_on_the_data_are_printed_and_a_second_figure_where_there_are_copies(first, tmp_path):
    assert "deduplicated  accuracy" not in first[1] and "official" not in first[1]
    write_folders(tmp_path / "archive", train=35, val=14, test=0, val_copies=2)
    (tmp_path / "archive" / "train" / "happy").rename(tmp_path / "archive" / "train" / "Happiness")
    out = trained(tmp_path, *QUICK, "--epochs", 1)
    assert "'Happiness' as happy" in out
    assert "official / deduplicated" in out and re.search(r"val [\d.]+ +[\d.]+% / +[\d.]+% ", out)
    assert re.search(r"official .* of 14\)", out) and re.search(r"deduplicated .* of 12\)", out)


def test_the_figures_of_a_run_are_those_that_scoring_its_file_gives(cwd, capsys, monkeypatch):
    """Those of shipped weights are their own: rounded to 16 bits, they may name a few images otherwise."""
    import test as script

    shutil.copytree(cwd / "runs" / "first", cwd / "runs" / "ships")
    out = trained(cwd, "--resume", "runs/ships", "--promote")
    monkeypatch.chdir(cwd)
    for file, own in (("runs/ships", r"\n  (accuracy .*?\))"), ("final_weights_new.pth", r"written: ([\d.]+) dedup")):
        assert script.main(["--split", "val", "--weights", file, "--threads", "1"]) == 0
        assert re.search(own, out)[1] in capsys.readouterr().out
    os.remove("final_weights_new.pth")


def test_the_demo_says_that_its_faces_are_rendered_and_has_a_recipe(tmp_path):
    out = trained(tmp_path, *QUICK, "--epochs", 1, "--limit", 70, "--run", "demo", "--cache", REPO / ".cache")
    assert out.count("\nnote: these faces are ") == 2 and "archive.zip" in out
    assert out.splitlines()[-1].startswith("predict with this run: ")
    config = json.loads((tmp_path / "runs" / "demo" / "config.json").read_text())
    assert (config["schedule"], config["epochs"]) == ("onecycle", 1)
    assert not (tmp_path / "final_weights_new.pth").exists()


def test_an_edited_config_py_is_what_runs(cwd, tmp_path):
    text = (REPO / "config.py").read_text()
    for file in [file for room in (".", "faces", "readers", "training") for file in (REPO / room).glob("*.py")]:
        place = tmp_path / file.relative_to(REPO)
        place.parent.mkdir(exist_ok=True)
        place.write_text(file.read_text())
    edited = re.sub(r"(epochs: int = \w+\()40,", r"\g<1>1,", text)
    assert edited != text
    (tmp_path / "config.py").write_text(edited)
    command = [sys.executable, "interface.py", *QUICK, "--data", str(cwd / "archive")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "epoch   1/1 " in done.stdout, done.stderr


# --- Resume and promotion ---


def test_an_ended_run_reports_again_and_is_promoted_when_asked(cwd):
    run, shipped = cwd / "runs" / "first", cwd / "final_weights_new.pth"
    shutil.copy(REPO / shipped.name, shipped)
    before, weights = shipped.read_bytes(), state(run)
    (run / "curves.png").unlink()
    out = trained(cwd, "--resume", "runs/first")
    assert "is left as it is" in out and shipped.read_bytes() == before and "epoch   1/2" not in out
    assert (run / "curves.png").exists() and same_weights(state(run), weights)
    out = trained(cwd, "--resume", "runs/first", "--promote")
    assert "final_weights_new.pth is replaced" in out and (run / "replaced_weights.pth").read_bytes() == before
    content = read_checkpoint(shipped)
    assert content["config"]["data"] == "" and content["dataset"]["source"] == "archive"
    shipped.unlink()


def test_a_run_on_other_data_or_a_part_of_it_leaves_the_shipped_weights_and_reads_a_teacher_once(first, monkeypatch):
    cwd, out = first
    assert "final_weights_new.pth is left as it is: it was trained on another dataset" in out
    teacher, files, load = cwd / "runs" / "first" / "best.pth", [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **named: files.append(str(file.name)) or load(file, **named))
    out = trained(cwd, *QUICK, "--epochs", 1, "--limit", 28, "--run", "limited", "--teachers", teacher)
    assert "is left as it is: the run was made with --limit 28" in out
    assert not (cwd / "final_weights_new.pth").exists() and files.count(str(teacher)) == 1


def test_a_run_from_anothers_config_is_the_same_and_what_makes_it_longer_is_named(cwd):
    trained(cwd, "--config", "runs/first", "--run", "again")
    assert same_weights(state(cwd / "runs" / "first"), state(cwd / "runs" / "again"))
    message = refused(cwd, "--resume", "runs/first", "--epochs", 3)
    command = re.search(r"python interface.py (--config .* --epochs 3)", message)
    out = trained(cwd, *command[1].split(), "--run", "longer")
    assert "begins with weights runs/first/best.pth" in out and "epoch   3/3" in out


def test_two_runs_without_a_name_begin_in_the_same_second(cwd, monkeypatch):
    monkeypatch.setattr(interface.time, "strftime", lambda _: "now")
    for name in ("nano-now", "nano-now-2"):
        assert f"predict.py PHOTO --weights runs/EmotionResNet-{name}\n" in trained(cwd, *QUICK, "--epochs", 1)
    assert (cwd / "runs" / "EmotionResNet-nano-now-2" / "best.pth").exists()


def test_resume_writes_into_no_place_that_only_the_run_names(cwd, tmp_path):
    copy = shutil.copytree(cwd / "runs" / "first", tmp_path / "runs" / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {"cache": str(tmp_path / "elsewhere"), "runs": str(tmp_path / "other"), "data": str(cwd / "archive")}
    (copy / "config.json").write_text(json.dumps(config))
    trained(tmp_path, "--resume", copy)
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "other").exists()
    trained(tmp_path, "--resume", copy, "--cache", tmp_path / "typed")
    assert (tmp_path / "typed").exists()


def test_resume_refuses_other_data_other_settings_and_a_run_in_use(cwd, tmp_path):
    other = write_folders(tmp_path / "other", train=42, val=14, test=0)
    assert "name the run's dataset with --data" in refused(cwd, "--resume", "runs/first", "--data", other)
    for flags in (["--recipe", "nano"], ["--lr", "0.1"], ["--config", "runs/first"]):
        assert call(cwd, "--resume", "runs/first", *flags).status == 2
    with errors.locked(cwd / "runs" / "first"):
        assert "is in use by another process" in refused(cwd, "--resume", "runs/first")


# --- Pretrained ---


def test_a_pretrained_run_begins_with_the_weights_of_another_once(cwd):
    still = ("--optimizer", "sgd", "--lr", "1e-9", "--epochs", 2, "--ema", "0.9", "--run", "from-first")
    out = trained(cwd, *QUICK, "--pretrained", "runs/first", *still)
    assert "begins with weights runs/first/best.pth: EmotionResNet-nano, trained on archive" in out
    assert "may know these validation images" not in out
    before, after = state(cwd / "runs" / "first"), state(cwd / "runs" / "from-first")
    for name, value in before.items():
        if "running" not in name and "batches" not in name:  # statistics of batch norm follow the images
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)
    assert read_checkpoint(cwd / "runs/from-first/best.pth")["config"]["pretrained"] == "first"
    bare = cwd / "runs" / "bare"  # killed before its first last.pth
    bare.mkdir()
    shutil.copy(cwd / "runs" / "from-first" / "config.json", bare)
    assert "begins with weights runs/first/best.pth" in trained(cwd, "--resume", "runs/bare")
    assert same_weights(state(bare), after)


def test_a_stopped_run_needs_its_pretrained_weights_no_more(cwd, tmp_path, monkeypatch):
    import train

    step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda *args: signal.raise_signal(signal.SIGINT) or step(*args))
    moved = shutil.copy(cwd / "runs" / "first" / "best.pth", tmp_path / "gone.pth")
    flags = ("--pretrained", moved, "--batch-size", 16, "--epochs", 1, "--run", "stopped")
    done = call(cwd, *QUICK, *flags)
    assert done.status == 130 and "go on with: python interface.py --resume runs/stopped" in done.out
    monkeypatch.undo()
    moved.unlink()
    out = trained(cwd, "--resume", "runs/stopped")
    assert "begins with" not in out and "goes on in epoch 1, after 1 of 3 steps" in out


def test_pretrained_weights_of_other_data_or_of_another_network(cwd, tmp_path):
    weights, other = str(cwd / "runs" / "first"), str(write_folders(tmp_path / "other", train=42, val=14, test=0))
    out = trained(tmp_path, *QUICK, "--pretrained", weights, "--data", other, "--epochs", 1)
    assert f"note: {weights}/best.pth was trained on other data" in out
    wrong = ("--pretrained", weights, "--data", other, "--run", "not")
    for flags in (["--model", "TheModel"], ["--recipe", "small"]):
        assert "give --model EmotionResNet-nano --width 0.2" in refused(tmp_path, *flags, *wrong)
    assert "error: none: no such weight file" in refused(tmp_path, "--pretrained", "none", "--data", other)
    assert not (tmp_path / "runs" / "not").exists()


# --- Refused ---


def test_a_run_that_is_refused_leaves_no_folder_and_changes_none(cwd, tmp_path):
    before = (cwd / "runs" / "first" / "best.pth").read_bytes()
    assert "runs/first exists already" in refused(cwd, *QUICK, "--run", "first")
    assert (cwd / "runs" / "first" / "best.pth").read_bytes() == before
    assert "--batch-size 1 over 35 images" in refused(cwd, *QUICK, "--batch-size", 1, "--run", "refused")
    for data, message in ((tmp_path / "nowhere", "nowhere: no such"), (tmp_path, "expected")):
        assert message in refused(cwd, "--data", data, "--run", "refused").lower()
    assert not (cwd / "runs" / "refused").exists()
    assert "runs/none: no such folder" in refused(cwd, "--resume", "runs/none")

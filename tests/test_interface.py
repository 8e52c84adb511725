"""The training script through its real command line: kills, Ctrl-C, resume, and the weights it promotes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import interface
from helpers import REPO, csv_of_folders, run_script, write_folders, zip_folder
from train import duration, epoch_line

QUICK = ("--model", "ImprovedFER2013Model", "--threads", "1", "--device", "cpu")


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def start(cwd, *args, code=""):
    """A running interface.py; `code` is run in its process first."""
    script = f"import sys; sys.path.insert(0, {str(REPO)!r})\n{code}\nimport interface\nsys.exit(interface.main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, text):
    """Read the output up to the line that holds `text`, and return it."""
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"no line with {text!r}: {process.stderr.read()}")


# Run in a process to be killed: it dies inside the n-th write of last.pth, the temporary file cut in half.
DIE_IN_WRITE = """
import os, signal, utils
real, count = os.fsync, 0
def fsync(descriptor):
    global count
    real(descriptor)
    if ".last.pth." in os.readlink(f"/proc/self/fd/{descriptor}"):
        count += 1
        if count == %d:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
utils.os.fsync = fsync
"""


# Run in a process that is about to be killed or stopped: it tells when its first step begins.
TELL_FIRST_STEP = """
import train
step, told = train.train_step, False
def tell(trainer, *rest):
    global told
    if not told and trainer.step < trainer.steps - 2:
        told = True
        print("first step", trainer.epoch, trainer.step, flush=True)
        %s
    return step(trainer, *rest)
train.train_step = tell
"""
CTRL_C = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


# Instead of interface.py itself: a process of it for each line of the input, [arguments, code to run in it first]. They
# are forked, so that what a training imports is imported once; `pid N` comes first, `ended STATUS` last.
FORK_EACH = """
import json, os
import torch._dynamo, interface, plots, train
for line in sys.stdin:
    given, code = json.loads(line)
    pid = os.fork()
    if not pid:
        exec(code)
        os._exit(interface.main(given))
    print("pid", pid, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
sys.exit()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    """Ten SIGKILLs (one before the first epoch ends, two inside a checkpoint write, seven at random
    moments) and one Ctrl-C in mid-epoch."""
    write_folders(tmp_path / "archive", train=140, val=14, test=0)
    knobs = ("--model", "EmotionResNet-nano", "--threads", "1", "--epochs", "12", "--batch-size", "16", "--ema", "0.9")
    whole = run_script("interface.py", *knobs, "--run", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    epoch_seconds = sum(map(float, re.findall(r"([\d.]+)s +\d+ img/s", whole.stdout))) / 12
    cut = tmp_path / "runs" / "cut"
    resume = ("--resume", "runs/cut")

    with start(tmp_path, code=FORK_EACH) as forks:

        def killed(*args, code, after=None):
            """Whether interface.py was killed: by its own `code`, or `after` some seconds from its first step on."""
            forks.stdin.write(json.dumps([args, code]) + "\n")
            forks.stdin.flush()
            pid = int(wait_for(forks, "pid").split()[1])
            if after is not None:
                wait_for(forks, "first step")
                time.sleep(after)
                os.kill(pid, signal.SIGKILL)
            return int(wait_for(forks, "ended").split()[1]) == -signal.SIGKILL

        tell = TELL_FIRST_STEP % ""
        assert killed(*knobs, "--run", "cut", code=tell, after=0.3 * epoch_seconds)
        assert (cut / "last.pth").exists() and not (cut / "best.pth").exists()
        for nth in (1, 2):
            assert killed(*resume, code=DIE_IN_WRITE % nth)
            assert list(cut.glob(".last.pth.*.tmp"))
        draws = random.Random(0)
        for _ in range(7):
            assert killed(*resume, code=tell, after=draws.uniform(0, 1.2) * epoch_seconds)
        forks.stdin.close()
        assert forks.wait(timeout=120) == 0
    process = start(tmp_path, *resume, code=TELL_FIRST_STEP % CTRL_C)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped in epoch" in out and "go on with: python interface.py --resume runs/cut" in out
    last = run_script("interface.py", *resume, cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    runs = tmp_path / "runs"
    assert same(state(runs / "whole" / "best.pth"), state(cut / "best.pth"))
    rows = [(run / "metrics.jsonl").read_text().splitlines() for run in (runs / "whole", cut)]
    timed = re.compile(r'"seconds.*')
    assert [timed.sub("", row) for row in rows[0]] == [timed.sub("", row) for row in rows[1]] and len(rows[0]) == 12
    figures = [re.findall(r"accuracy .*", out) for out in (whole.stdout, last.stdout)]
    assert figures[0] == figures[1] and figures[0]


def test_folders_zip_and_shuffled_csv_give_the_same_weights(tmp_path):
    folder = write_folders(tmp_path / "faces", val_copies=2)
    forms = [folder, zip_folder(folder, tmp_path / "a.zip"), csv_of_folders(folder, tmp_path / "fer2013.csv")]
    prints, states = set(), []
    for number, form in enumerate(forms):
        done = run_script("interface.py", *QUICK, "--epochs", "1", "--data", form, "--run", str(number), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        prints.add(re.search(r"fingerprint (\w+)", done.stdout)[1])
        states.append(state(tmp_path / "runs" / str(number) / "best.pth"))
    assert len(prints) == 1 and all(same(states[0], other) for other in states[1:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset, one finished run of two epochs, and its output."""
    cwd = tmp_path_factory.mktemp("trained")
    write_folders(cwd / "archive")
    done = run_script("interface.py", *QUICK, "--epochs", "2", "--run", "first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done.stdout


def test_a_run_writes_what_the_readme_names(trained):
    cwd, out = trained
    names = {file.name for file in (cwd / "runs" / "first").iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "best.pth", "curves.png", "confusion.png"}
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    figures = r"train \d\.\d{3} +[\d.]+%  val \d\.\d{3} +[\d.]+% [* ] +[\d.]+s +\d+ img/s"
    assert len(lines) == 2 and re.fullmatch(r"epoch   1/2  lr 0\.001     " + figures + r" +\d+ s left", lines[0])
    assert "loss is focal loss (gamma 2)" in out and "angry " in out
    assert out.splitlines()[-1] == "predict with this run: python predict.py PHOTO --weights runs/first"


def test_a_run_on_other_data_leaves_the_shipped_weights_unless_asked(trained):
    cwd, out = trained
    assert "final_weights_new.pth is left as it is: it was trained on another dataset" in out
    shipped = cwd / "final_weights_new.pth"
    shutil.copy(REPO / shipped.name, shipped)
    before = shipped.read_bytes()
    done = run_script("interface.py", "--resume", "runs/first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "final_weights_new.pth is left as it is" in done.stdout and shipped.read_bytes() == before
    done = run_script("interface.py", "--resume", "runs/first", "--promote", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "final_weights_new.pth is replaced" in done.stdout
    assert (cwd / "runs" / "first" / "replaced_weights.pth").read_bytes() == before
    content = torch.load(shipped, weights_only=True)
    floats = [value for value in content["state_dict"].values() if value.is_floating_point()]
    assert floats and all(value.dtype is torch.float16 for value in floats)
    assert content["config"]["data"] == "" and content["dataset"]["source"] == "archive"
    shipped.unlink()


def test_a_second_run_into_the_same_folder_is_refused(trained):
    cwd, _ = trained
    before = (cwd / "runs" / "first" / "best.pth").read_bytes()
    done = run_script("interface.py", *QUICK, "--run", "first", cwd=cwd)
    assert done.returncode == 2 and "error: runs/first exists already" in done.stderr
    assert (cwd / "runs" / "first" / "best.pth").read_bytes() == before


def test_two_processes_cannot_resume_one_run(trained):
    import errors

    cwd, _ = trained
    with errors.locked(cwd / "runs" / "first"):
        done = run_script("interface.py", "--resume", "runs/first", cwd=cwd)
    assert done.returncode == 2 and "is in use by another process" in done.stderr


def test_a_finished_run_resumed_reports_again_and_promotes_nothing(trained):
    cwd, out = trained
    done = run_script("interface.py", "--resume", "runs/first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "final_weights_new.pth is left as it is" in done.stdout
    assert re.findall(r"deduplicated    .*", done.stdout) == re.findall(r"deduplicated    .*", out)


def test_resume_refuses_other_data(trained, tmp_path):
    cwd, _ = trained
    other = write_folders(tmp_path / "other", train=77)
    done = run_script("interface.py", "--resume", "runs/first", "--data", other, cwd=cwd)
    assert done.returncode == 2 and "name the run's dataset with --data" in done.stderr


def test_a_run_refused_for_its_batches_leaves_no_folder(trained):
    cwd, _ = trained
    done = run_script("interface.py", *QUICK, "--batch-size", "1", "--run", "refused", cwd=cwd)
    assert done.returncode == 2 and "error: --batch-size 1 over 70 images" in done.stderr
    assert not (cwd / "runs" / "refused").exists()


def test_half_of_torchruns_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run_script("interface.py", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: the processes cannot find each other")
    assert done.stderr.rstrip().endswith("start them with torchrun")


def test_resume_of_no_folder_says_so(tmp_path):
    done = run_script("interface.py", "--resume", "runs/none", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: runs/none: no such folder")


def test_a_limited_run_never_replaces_the_weights(trained):
    cwd, _ = trained
    done = run_script("interface.py", *QUICK, "--epochs", "1", "--limit", "35", "--run", "limited", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "is left as it is: the run was made with --limit 35" in done.stdout
    assert not (cwd / "final_weights_new.pth").exists()


def test_a_run_made_from_another_runs_config_is_the_same(trained):
    cwd, _ = trained
    args = ("--config", "runs/first/config.json", "--run", "again")
    done = run_script("interface.py", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert same(state(cwd / "runs" / "first" / "best.pth"), state(cwd / "runs" / "again" / "best.pth"))


def test_a_pretrained_run_begins_with_the_weights_of_another(trained):
    cwd, _ = trained
    still = ("--optimizer", "sgd", "--lr", "1e-9", "--epochs", "1", "--ema", "0.9", "--run", "from-first")
    done = run_script("interface.py", *QUICK, "--pretrained", "runs/first", *still, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "begins with weights runs/first/best.pth: ImprovedFER2013Model, trained on archive" in done.stdout
    assert "may know these validation images" not in done.stdout
    before, after = state(cwd / "runs" / "first" / "best.pth"), state(cwd / "runs" / "from-first" / "best.pth")
    for name, value in before.items():
        if "running" not in name and "batches" not in name:  # statistics of batch norm follow the images
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)
    assert torch.load(cwd / "runs/from-first/best.pth", weights_only=True)["config"]["pretrained"] == "first"
    hidden = (cwd / "runs" / "first").rename(cwd / "hidden")  # what goes on needs them no more
    again = run_script("interface.py", "--resume", "runs/from-first", cwd=cwd)
    hidden.rename(cwd / "runs" / "first")
    assert again.returncode == 0 and "begins with" not in again.stdout, again.stderr
    bare = cwd / "runs" / "bare"  # killed before its first last.pth
    bare.mkdir()
    shutil.copy(cwd / "runs" / "from-first" / "config.json", bare)
    again = run_script("interface.py", "--resume", "runs/bare", cwd=cwd)
    assert again.returncode == 0 and "begins with weights runs/first/best.pth" in again.stdout, again.stderr
    assert same(state(bare / "best.pth"), after)


def test_pretrained_weights_of_other_data_or_of_another_network(trained, tmp_path):
    cwd, _ = trained
    first, other = str(cwd / "runs" / "first"), str(write_folders(tmp_path / "other", train=77))
    done = run_script("interface.py", *QUICK, "--pretrained", first, "--data", other, "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"note: {first}/best.pth was trained on other data" in done.stdout
    for flags in (["--model", "TheModel"], ["--recipe", "nano"]):
        done = run_script("interface.py", *flags, "--pretrained", first, "--data", other, "--run", "not", cwd=tmp_path)
        assert done.returncode == 2 and "is another one: give --model ImprovedFER2013Model" in done.stderr
    done = run_script("interface.py", "--pretrained", "none", "--data", other, "--run", "not", cwd=tmp_path)
    assert done.returncode == 2 and "error: none: no such weight file" in done.stderr and "--pretrained" in done.stderr
    assert not (tmp_path / "runs" / "not").exists()


def test_an_edited_config_py_is_what_runs(trained, tmp_path):
    cwd, _ = trained
    text = (REPO / "config.py").read_text().replace("epochs: int = setting(40,", "epochs: int = setting(1,")
    for file in [*REPO.glob("*.py"), *REPO.glob("readers/*.py"), *REPO.glob("training/*.py")]:
        (tmp_path / file.relative_to(REPO)).parent.mkdir(exist_ok=True)
        (tmp_path / file.relative_to(REPO)).write_text(file.read_text())
    (tmp_path / "config.py").write_text(text)
    command = [sys.executable, "interface.py", *QUICK, "--data", str(cwd / "archive")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch   1/1 " in done.stdout


def test_the_demo_says_that_its_faces_are_drawn(tmp_path):
    done = run_script("interface.py", *QUICK, "--epochs", "1", "--limit", "70", cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DRAWN") == 2 and "archive.zip" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("predict with this run: ")
    assert not (tmp_path / "final_weights_new.pth").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere: no such"),
        (lambda folder: folder, "expected"),
    ],
)
def test_a_dataset_that_cannot_be_read_leaves_no_run(tmp_path, make, message):
    (tmp_path / "empty").mkdir()
    done = run_script("interface.py", "--data", make(tmp_path / "empty"), "--run", "a", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr.lower() and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# --- In this process ---


@pytest.fixture
def interface_runner(tmp_path, monkeypatch, capsys):
    """Makes of interface.main a call in an empty folder with a dataset; it returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", train=35, val=14, test=0)

    def run(*args):
        try:
            status = interface.main([*map(str, args)])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_one_teacher_file_is_read_once(interface_runner, tmp_path, monkeypatch):
    assert interface_runner(*QUICK, "--epochs", "1", "--run", "teacher")[0] == 0
    teacher, read = tmp_path / "runs" / "teacher" / "best.pth", []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **named: read.append(str(file)) or real(file, **named))
    status, _, err = interface_runner(*QUICK, "--epochs", "1", "--teachers", teacher, "--run", "student")
    assert status == 0, err
    assert read.count(str(teacher)) == 1


def test_an_ended_run_keeps_no_state_and_reports_and_promotes_all_the_same(interface_runner, tmp_path):
    status, first, err = interface_runner(*QUICK, "--epochs", "1", "--run", "a")
    assert status == 0, err
    assert not (tmp_path / "runs" / "a" / "last.pth").exists() and "last.pth" in first
    (tmp_path / "runs" / "a" / "curves.png").unlink()
    status, again, err = interface_runner("--resume", "runs/a", "--promote")
    assert status == 0, err
    assert re.findall(r"official .*", again) == re.findall(r"official  .*", first)
    assert (tmp_path / "runs" / "a" / "curves.png").exists() and (tmp_path / "final_weights_new.pth").exists()
    other = write_folders(tmp_path / "other", train=42, val=14, test=0)
    status, _, err = interface_runner("--resume", "runs/a", "--data", other)
    assert status == 2 and "--data" in err


def test_what_makes_a_run_longer_is_named_and_works(interface_runner, tmp_path):
    assert interface_runner(*QUICK, "--epochs", "1", "--run", "a")[0] == 0
    status, _, err = interface_runner("--resume", "runs/a", "--epochs", "2")
    assert status == 2
    command = re.search(r"python interface.py (--config .* --epochs 2)", err)[1]
    status, out, err = interface_runner(*command.split(), "--run", "b")
    assert status == 0 and "begins with weights runs/a/best.pth" in out, err


def test_a_line_of_an_epoch_has_one_width_and_the_time_left():
    row = {"epoch": 9, "lr": 2.5e-6, "train_loss": 1.0414, "train_accuracy": 0.6212, "val_loss": 1.1021}
    row |= {"val_accuracy": 0.6038, "val_accuracy_deduplicated": 0.6, "best": True, "seconds": 18.3}
    row |= {"images_per_second": 1570.0}
    line = epoch_line([row], 60, copies=False)
    assert line == (
        "epoch   9/60  lr 2.5e-06   train 1.041  62.1%  val 1.102  60.4% *   18.3s   1570 img/s  18 min left"
    )
    later = epoch_line([{**row, "epoch": 10, "lr": 0.0712, "val_accuracy": 1.0, "best": False}] * 10, 60, copies=False)
    assert len(later) == len(line) and "lr 0.0712 " in later
    assert "60.4% /  60.0% *" in epoch_line([row], 60, copies=True)
    assert "left" not in epoch_line([row], 1, copies=True)
    assert [duration(seconds) for seconds in (0, 45, 200, 4000, 9000)] == ["0 s", "45 s", "3 min", "67 min", "2.5 h"]


def test_a_runs_final_figures_are_those_that_scoring_its_file_gives(interface_runner, tmp_path, capsys):
    """And those of weights in the shipped place are theirs: rounded to 16 bits, they may name a few images else."""
    import test as script

    status, out, err = interface_runner(*QUICK, "--epochs", "1", "--run", "a", "--promote")
    assert status == 0, err
    run_says, promoted = (
        re.search(r"official +(accuracy .*?\))", out)[1],
        re.search(r"replaced: (.*)|written: (.*)", out),
    )
    for file in ("runs/a", "final_weights_new.pth"):
        assert script.main(["--split", "val", "--weights", file]) == 0
        says = re.search(r"official +(accuracy .*?\))", capsys.readouterr().out)[1]
        assert says == run_says or file == "final_weights_new.pth", promoted

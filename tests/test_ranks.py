"""Several processes: what they train, score and say is what one does, and the loss of one ends all."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from errors import UserError
from helpers import REPO, write_folders
from ranks import Ranks, joined, rank_of_environment

# What one process and several must agree on: nothing that is drawn or averaged per process
EXACT = (
    "--model",
    "TheModel",
    "--dropout",
    "0",
    "--precision",
    "fp32",
    "--batch-size",
    "16",
    "--threads",
    "1",
    "--device",
    "cpu",
)


def free_port() -> int:
    """A port below those that the system hands out itself: another test's connection cannot take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def start(size, script, *args, cwd, code=""):
    """`size` running processes of a script as torchrun starts them; `code` is run in each first."""
    port = free_port()
    name = script.removesuffix(".py")
    program = f"import os, sys; sys.path.insert(0, {str(REPO)!r})\n{code}\nimport {name}\nsys.exit({name}.main())"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, args)],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes):
    """Each process's (exit status, stdout, stderr)."""
    done = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        done.append((process.returncode, out, err))
    return done


def together(size, script, *args, cwd, code="", status=0):
    """What the first of `size` processes printed; all must end with `status`, and the others in silence."""
    done = finish(start(size, script, *args, cwd=cwd, code=code))
    assert [one[0] for one in done] == [status] * size, done
    assert not any(out for _, out, _ in done[1:])
    return done[0][1]


def weights(run):
    return torch.load(run / "best.pth", weights_only=True)["state_dict"]


def distance(first, second) -> float:
    """The largest relative difference of a layer's weights, by their norms."""
    return max(float((value - second[name]).norm() / second[name].norm()) for name, value in first.items())


def history(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with archive/ in it, and runs/one: two epochs of one process over 35 images, 12, 12 and 11 a batch."""
    place = tmp_path_factory.mktemp("ranks")
    write_folders(place / "archive", train=35, val=300, test=0)
    together(1, "interface.py", *EXACT, "--epochs", 2, "--run", "one", cwd=place)
    return place


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_give_the_weights_and_figures_of_one(place, size):
    out = together(size, "interface.py", *EXACT, "--epochs", 2, "--run", f"by{size}", cwd=place)
    assert f", {size} processes" in out
    assert distance(weights(place / f"runs/by{size}"), weights(place / "runs/one")) < 1e-4
    for ours, theirs in zip(history(place / f"runs/by{size}"), history(place / "runs/one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1_deduplicated"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


# In process 1 alone: Ctrl-C in the first step of the first epoch. The others must stop with it.
STOP = """
import signal, train
step = train.train_step
def stop(*args):
    if os.environ.get("RANK") == "1":
        signal.raise_signal(signal.SIGINT)
    return step(*args)
train.train_step = stop
"""


@pytest.mark.parametrize("later", [1, 3])
def test_a_run_of_two_goes_on_with_another_number_of_processes(place, later):
    run = f"runs/cut{later}"
    out = together(2, "interface.py", *EXACT, "--epochs", 2, "--run", f"cut{later}", cwd=place, code=STOP, status=130)
    assert "stopped in epoch 1" in out
    assert torch.load(place / run / "last.pth", weights_only=True)["progress"]["step"] == 1
    together(later, "interface.py", "--resume", run, cwd=place)
    assert distance(weights(place / run), weights(place / "runs/one")) < 1e-4
    for name in ("train_loss", "train_accuracy"):
        assert history(place / run)[0][name] == pytest.approx(history(place / "runs/one")[0][name], rel=1e-4)


def test_batch_norm_and_averaged_weights_are_the_same_in_all_processes(place):
    knobs = ("--model", "ImprovedFER2013Model", "--batch-size", 16, "--ema", 0.5, "--epochs", 1, "--threads", 1)
    tell = (
        "import hashlib, train\nfit = train.fit\n"
        "def tell(*args, **named):\n"
        "    trainer = fit(*args, **named)\n"
        "    states = [trainer.model.state_dict(), trainer.eval_model.state_dict()]\n"
        "    seen = b''.join(value.numpy().tobytes() for state in states for value in state.values())\n"
        "    print(hashlib.sha1(seen).hexdigest(), file=sys.stderr)\n"
        "    return trainer\n"
        "train.fit = tell\n"
    )
    done = finish(start(2, "interface.py", *knobs, "--run", "norm", cwd=place, code=tell))
    assert [status for status, _, _ in done] == [0, 0], done
    digests = [re.findall(r"^[0-9a-f]{40}$", err, re.M) for _, _, err in done]
    assert digests[0] == digests[1] and len(digests[0]) == 1


def test_scoring_by_two_processes_prints_what_one_prints(place):
    args = ("test.py", "--split", "val", "--weights", "runs/one/best.pth", "--threads", "1")
    alone, two = (together(size, *args, "--json", f"{size}.json", cwd=place) for size in (1, 2))
    assert "of 300)" in alone and two == alone
    assert (place / "1.json").read_bytes() == (place / "2.json").read_bytes()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_process_ends_the_others_with_a_clear_error(place, victim):
    die = (
        "import signal, train\nstep, count = train.train_step, 0\n"
        "def die(*args):\n"
        "    global count\n"
        "    count += 1\n"
        f"    if count == 3 and os.environ['RANK'] == '{victim}':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(*args)\n"
        "train.train_step = die\n"
    )
    processes = start(2, "interface.py", *EXACT, "--epochs", 30, "--run", f"lost{victim}", cwd=place, code=die)
    processes[victim].wait(timeout=120)
    dead = time.monotonic()
    status, _, err = finish(processes)[1 - victim]
    assert processes[victim].returncode == -signal.SIGKILL
    assert status == 2 and time.monotonic() - dead < 20
    assert f"error: process {1 - victim} of 2 has lost another one" in err and "Traceback" not in err
    together(1, "interface.py", "--resume", f"runs/lost{victim}", cwd=place)


def test_a_process_that_is_told_to_stop_says_so_and_ends(place):
    wait = "import train, time\ntrain.train_step = lambda *_: print('waiting', flush=True) or time.sleep(60)"
    processes = start(2, "interface.py", *EXACT, "--run", "told", cwd=place, code=wait)
    for line in processes[0].stdout:
        if "waiting" in line:
            break
    for process in processes:
        process.terminate()
    for rank, (status, _, err) in enumerate(finish(processes)):
        assert status == 2 and f"error: process {rank} was told to stop" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "missing"], "error: missing: no such file or folder."),
        (["--resume", "nothing"], "error: nothing: no such folder"),
        (["--epochz", "3"], "error: unrecognized arguments"),
        (
            ["--batch-size", "1"],
            "--batch-size 1 over 35 images makes batches of no image for each of 2 processes",
        ),
        (
            ["--model", "ImprovedFER2013Model", "--batch-size", "3"],
            "batches of one image for each of 2 processes",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_fault_that_all_meet_is_said_once(place, args, message):
    done = finish(start(2, "interface.py", *args, cwd=place))
    assert [status for status, _, _ in done] == [2, 2]
    assert message in done[0][2] and not done[1][2].strip(), done


FAILING = """
import sys
from errors import UserError, exit_status
from ranks import joined
def main():
    return exit_status(work)
def work():
    with joined() as ranks:
        ranks.in_turn(print, "prepared")
        if ranks.rank == {victim}:
            raise UserError("the disk is full")
        return {waiting}
"""


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("waiting", ["ranks.gather(3)", "0"], ids=["in a step", "at the end"])
def test_an_error_of_one_process_ends_all_and_only_that_one_reports_it(tmp_path, victim, waiting):
    (tmp_path / "failing.py").write_text(FAILING.format(victim=victim, waiting=waiting))
    began = time.monotonic()
    done = finish(start(3, "failing.py", cwd=tmp_path, code="sys.path.insert(0, '.')"))
    assert [status for status, _, _ in done] == [2, 2, 2], done
    assert [err for _, _, err in done] == ["error: the disk is full\n" * (rank == victim) for rank in range(3)]
    assert done[0][1] == "prepared\n" and time.monotonic() - began < 60


def test_torchrun_itself_trains(place):
    command = [shutil.which("torchrun") or os.path.join(os.path.dirname(sys.executable), "torchrun")]
    command += ["--standalone", "--nproc_per_node=2", "--", str(REPO / "interface.py")]
    done = subprocess.run(
        [*command, *EXACT, "--epochs", "1", "--run", "torchrun"], cwd=place, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nepoch ") == 1 and (place / "runs/torchrun/best.pth").exists()


# --- Without processes ---


def test_one_process_alone_needs_no_others():
    ranks = Ranks()
    values = torch.ones(3)
    assert ranks.first and ranks.gather("a") == ["a"] and ranks.share("b") == "b" and ranks.in_turn(lambda: 3) == 3
    assert ranks.sum(values) is values and ranks.part(7) == slice(0, 7)
    ranks.check("mps")
    with joined() as ranks:
        assert ranks == Ranks()


@pytest.mark.parametrize(("count", "size"), [(11, 2), (12, 5), (3, 3), (128, 7)])
def test_parts_are_near_equal_and_take_everything_once(count, size):
    parts = [range(count)[Ranks(rank, size).part(count)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("wrong", [{"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "2"}])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, wrong):
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start with torchrun"):
        rank_of_environment()


@pytest.mark.parametrize(
    ("device", "message"), [("mps", "several processes cannot train on mps"), ("cuda", "finds no GPU of its own")]
)
def test_a_device_that_cannot_be_shared_is_refused(monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=message):
        Ranks(1, 2, 1).check(device)
    Ranks(1, 2, 1).check("cpu")

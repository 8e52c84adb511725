"""Several processes: what they train, score and print is what one does; an error or the loss of one ends all."""

import importlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from errors import UserError
from helpers import REPO, write_folders
from ranks import Ranks, joined

# What one process and several must agree on: nothing that is sampled or averaged per process
EXACT = shlex.split("--model TheModel --dropout 0 --precision fp32 --batch-size 16 --threads 1 --device cpu")
# Processes are forked from one that has imported what a training needs: that takes seconds
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch.distributed", "torch._dynamo", "interface", "predict", "test", "train", "plots"])


def free_port() -> int:
    """A port below those that the system hands out itself: another test's connection cannot take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def run_as(rank: int, place: dict[str, str], script: str, args: list[str], folder: Path, code: str) -> None:
    """Be the process `rank`: run `code`, then the script's main in `folder`, where the output goes to out and err."""
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    sys.path.insert(0, "")
    exec(code, {"os": os, "sys": sys})
    sys.exit(importlib.import_module(script).main(args))


def start(size: int, script: str, *args, cwd: Path, code: str = "") -> list:
    """`size` running processes of a script, as torchrun starts them; `code` is run in each first."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    given = (place, script, [str(arg) for arg in args], cwd, code)
    processes = [FORKS.Process(target=run_as, args=(rank, *given)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list, cwd: Path) -> list[tuple[int, str, str]]:
    """Each process's (exit status, stdout, stderr)."""
    for process in processes:
        process.join(240)
    texts = [[(cwd / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in range(len(processes))]
    return [(process.exitcode, *text) for process, text in zip(processes, texts, strict=True)]


def together(size: int, script: str, *args, cwd: Path, code: str = "", status: int = 0) -> str:
    """What the first of `size` processes printed; all must end with `status`, and the others in silence."""
    done = finish(start(size, script, *args, cwd=cwd, code=code), cwd)
    assert [one[0] for one in done] == [status] * size, done
    assert not any(out for _, out, _ in done[1:])
    return done[0][1]


def distance(run: Path, other: Path) -> float:
    """The largest relative difference of a layer's best weights, by their norms."""
    first, second = (torch.load(each / "best.pth", weights_only=True)["state_dict"] for each in (run, other))
    return max(float((value - second[name]).norm() / second[name].norm()) for name, value in first.items())


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with archive/ in it, and runs/one: two epochs of one process over 35 images, 12, 12 and 11 a batch."""
    place = tmp_path_factory.mktemp("ranks")
    write_folders(place / "archive", train=35, val=300, test=0)
    together(1, "interface", *EXACT, "--epochs", 2, "--run", "one", cwd=place)
    return place


def test_several_processes_give_the_weights_and_figures_of_one(place):
    out = together(3, "interface", *EXACT, "--epochs", 2, "--run", "three", cwd=place)
    assert ", 3 processes" in out
    assert distance(place / "runs/three", place / "runs/one") < 1e-4
    for ours, theirs in zip(history(place / "runs/three"), history(place / "runs/one"), strict=True):
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
    out = together(2, "interface", *EXACT, "--epochs", 2, "--run", f"cut{later}", cwd=place, code=STOP, status=130)
    assert "stopped in epoch 1" in out
    assert torch.load(place / run / "last.pth", weights_only=True)["progress"]["step"] == 1
    together(later, "interface", "--resume", run, cwd=place)
    assert distance(place / run, place / "runs/one") < 1e-4
    for name in ("train_loss", "train_accuracy"):
        assert history(place / run)[0][name] == pytest.approx(history(place / "runs/one")[0][name], rel=1e-4)


# The digest of the weights that each process ends with, on stderr
TELL = """
import hashlib, sys, train
run_epochs = train.run_epochs
def tell(trainer):
    run_epochs(trainer)
    states = [trainer.model.state_dict(), trainer.eval_model.state_dict()]
    seen = b''.join(value.numpy().tobytes() for state in states for value in state.values())
    print(hashlib.sha1(seen).hexdigest(), file=sys.stderr)
train.run_epochs = tell
"""


def test_batch_norm_and_averaged_weights_are_the_same_in_all_processes(place):
    knobs = ("--model", "ImprovedFER2013Model", "--batch-size", 16, "--ema", 0.5, "--epochs", 1, "--threads", 1)
    done = finish(start(2, "interface", *knobs, "--run", "norm", cwd=place, code=TELL), place)
    assert [status for status, _, _ in done] == [0, 0], done
    digests = [re.findall(r"^[0-9a-f]{40}$", err, re.M) for _, _, err in done]
    assert digests[0] == digests[1] and len(digests[0]) == 1


def test_scoring_by_two_processes_prints_what_one_prints(place):
    args = ("test", "--split", "val", "--weights", "runs/one/best.pth", "--threads", "1")
    alone, two = (together(size, *args, "--json", f"{size}.json", cwd=place) for size in (1, 2))
    assert "of 300)" in alone and two == alone
    assert (place / "1.json").read_bytes() == (place / "2.json").read_bytes()


@pytest.mark.parametrize(("size", "bad"), [(2, range(8, 24)), (5, (0, 9, 10, 30))])
def test_prediction_by_several_processes_prints_and_writes_what_one_does(place, size, bad):
    folder = place / f"in{size}"
    write_folders(folder, train=0, val=40, test=0)
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        if index in bad:
            path.write_bytes(b"no image")
    args = (folder, "--weights", "runs/one", "--threads", "1", "--csv", "t.csv", "--json", "t.json")
    results = []
    for count in (1, size):
        done = finish(start(count, "predict", *args, cwd=place, code="import predict; predict.BATCH = 8"), place)
        assert [status for status, _, _ in done] == [0] * count and not any(out for _, out, _ in done[1:]), done
        texts = [re.sub(r"\d+ images/s", "", text) for text in done[0][1:]]
        results.append([*texts, (place / "t.csv").read_text(), (place / "t.json").read_text()])
    assert results[0] == results[1] and len(results[0][2].splitlines()) == 41


# SIGKILL in the third step
DIE = """
import signal, train
step, count = train.train_step, 0
def die(*args):
    global count
    count += 1
    if count == 3 and os.environ["RANK"] == "{}":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args)
train.train_step = die
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_process_ends_the_others_with_a_clear_error(place, victim):
    args = (*EXACT, "--epochs", 30, "--run", f"lost{victim}")
    processes = start(2, "interface", *args, cwd=place, code=DIE.format(victim))
    processes[victim].join(120)
    dead = time.monotonic()
    status, _, err = finish(processes, place)[1 - victim]
    assert processes[victim].exitcode == -signal.SIGKILL
    assert status == 2 and time.monotonic() - dead < 20
    assert f"error: process {1 - victim} of 2 has lost another one" in err and "Traceback" not in err
    assert (place / f"runs/lost{victim}/last.pth").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--epochz", "3"], "error: unrecognized arguments"),
        (["--batch-size", "1"], "--batch-size 1 over 35 images makes batches of no image for each of 2 processes"),
    ],
    ids=["a flag", "the data"],
)
def test_a_fault_that_all_meet_is_reported_by_the_first(place, args, message):
    done = finish(start(2, "interface", *args, cwd=place), place)
    assert [status for status, _, _ in done] == [2, 2]
    assert message in done[0][2] and message not in done[1][2] and "Traceback" not in done[1][2], done


FAILING = """
from errors import UserError, exit_status
from ranks import joined
def main(args):
    return exit_status(work)
def work():
    with joined() as ranks:
        ranks.in_turn(print, "prepared")
        if ranks.rank == {victim}:
            raise UserError("the disk is full")
        return {waiting}
"""


@pytest.mark.parametrize(("victim", "waiting"), [(0, "ranks.gather(3)"), (1, "ranks.gather(3)"), (1, "0")])
def test_an_error_of_one_process_ends_all(tmp_path, victim, waiting):
    (tmp_path / "failing.py").write_text(FAILING.format(victim=victim, waiting=waiting))
    began = time.monotonic()
    done = finish(start(3, "failing", cwd=tmp_path), tmp_path)
    assert [status for status, _, _ in done] == [2, 2, 2] and time.monotonic() - began < 60, done
    assert done[0][1] == "prepared\n"
    for rank, (_, _, err) in enumerate(done):
        message = "the disk is full" if rank == victim else f"process {rank} of 3 has lost another one"
        assert err.startswith(f"error: {message}") and err.count("\n") == 1


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
    assert ranks.first and ranks.gather("a") == ["a"] and ranks.share("b") == "b" and ranks.in_turn(len, "abc") == 3
    assert ranks.sum(values) is values and ranks.part(7) == slice(0, 7)
    ranks.check("cuda")
    with joined() as ranks:
        assert ranks == Ranks()


@pytest.mark.parametrize(("count", "size"), [(11, 2), (12, 5), (3, 3), (128, 7)])
def test_parts_are_near_equal_and_take_everything_once(count, size):
    parts = [range(count)[Ranks(rank, size).part(count)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="finds no GPU of its own: there are 1"):
        Ranks(1, 2, 1).check("cuda")
    Ranks(1, 2, 1).check("cpu")

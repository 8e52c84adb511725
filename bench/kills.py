"""What the drill does to whole scripts: kills them, fills their disk, starts two at once. Used by bench/drill.py.

A job is a command that writes into an empty folder. It is run undisturbed once, for the files it should leave. Then it
is disturbed, run again as a user would, and has to leave the same files, bit for bit: tables, caches, figures, and the
tensors of weight files (their other entries name times and folders).
"""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from errors import SHIPPED, UserError

KEPT = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # coverage is a large file
ENVIRONMENT = KEPT | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
HANG_SECONDS = 300.0
POLL_SECONDS = 0.02
LEAST_ROOM = 4096  # bytes on a full disk
TOGETHER_SECONDS = 0.3  # between the starts of two at once, at most
MACHINE = ("--device", "cpu", "--threads", "1")
NETWORK = ("--model", "EmotionResNet-nano", "--width", "0.25", "--precision", "fp32", *MACHINE)
TIMED = ("seconds", "images_per_second")  # in a row of metrics.jsonl
LEFT_OUT = (".lock", ".png")  # files that are not compared
PROMOTE = """
import importlib.util, json, sys, time
from pathlib import Path
from config import Config
from dataset import load
from utils import pick_machine
places, run, seconds = sys.argv[1:]
at = "training.promote" if importlib.util.find_spec("training") else "weights"  # of commit 1ec3311
promote = importlib.import_module(at).promote
data, machine = load(Config(**json.loads(places))), pick_machine("cpu", "fp32", 1)
Path("runs", run, "ready").touch()
while len(list(Path("runs").glob("*/ready"))) < 2:
    time.sleep(0.001)
time.sleep(float(seconds))
print(promote(Path("runs", run), data, machine=machine))
"""  # two of these begin when both are ready
Seen = Callable[[float], None]
State = dict[str, str]  # of a folder: each file and its digest


class Ended(NamedTuple):
    """A process that has ended: its status (None: it hung), what it printed, its peak memory in MB."""

    status: int | None
    text: str
    peak: float

    @property
    def outcome(self) -> str:
        if self.status is None:
            return "hung"
        if "Traceback (most" in self.text:
            return "uncaught"
        return "died" if self.status < 0 else {0: "equal", 2: "refused"}.get(self.status, "uncaught")


class Result(NamedTuple):
    """How the job of one trial ended; `count` kills or starts were tried."""

    outcome: str
    why: str
    peak: float
    count: int = 1


def unless(result: Result, wrong: str) -> Result:
    """`result`, or "different" where it was "equal" but something is `wrong`."""
    return (
        result._replace(outcome="different", why=f"{wrong}\n{result.why}")
        if result.outcome == "equal" and wrong
        else result
    )


class Job(NamedTuple):
    """A command; the one that goes on after it was stopped; what is there before, by its place in the drill's HOME."""

    command: list[str]
    again: list[str]
    before: dict[str, str] = {}  # noqa: RUF012 (never changed)


class Reference(NamedTuple):
    """What a job leaves undisturbed, and the seconds of the first and the last change in its folder."""

    before: State
    after: State
    first: float
    last: float
    size: int  # bytes, at most


class Jobs:
    """The jobs of a checkout, with the files in the folder `home`."""

    def __init__(self, checkout: Path, home: Path) -> None:
        self.checkout, self.home, self.lock = checkout, home, threading.Lock()
        data = ["--data", str(home / "faces.zip"), "--cache", str(home / "caches")]
        self.train = ["interface.py", *data, *NETWORK, "--runs", "runs"]
        resume = ["interface.py", "--resume", "runs/good", *data, *MACHINE]
        cache = ["dataset.py", "--data", str(home / "large.zip"), "--cache", "cache"]
        predict = ["predict.py", str(home / "faces.zip"), "--csv", "out.csv", "--json", "out.json", "--quiet", *MACHINE]
        promoted = {"runs/good": "runs/good", SHIPPED: "weights/worst.pth"}
        self.jobs = {
            "training": Job([*self.train, "--run", "good", "--epochs", "3", "--batch-size", "32"], resume),
            "caching": Job(cache, cache),
            "promotion": Job(resume, resume, promoted),
            "prediction": Job(predict, predict, {"out.csv": "old.csv"}),
        }
        self.references: dict[str, Reference] = {}
        self.mounts = can_mount(home)

    def run(
        self, command: Sequence[str], folder: Path, *, kill_after: float = 0, largest: int = 0, seen: Seen | None = None
    ) -> Ended:
        """Run a script of the checkout in `folder` to its end, or kill it after some seconds.

        `largest` limits the bytes of each file it writes. `seen` is called with the seconds, while it runs.
        """
        script = command if command[0] == "-c" else [str(self.checkout / command[0]), *command[1:]]
        environment = ENVIRONMENT | {"PYTHONPATH": str(self.checkout)}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        start, peak, text = time.monotonic(), 0.0, None
        process = subprocess.Popen([sys.executable, *script], cwd=folder, env=environment, **pipes)
        if largest:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, largest))
        while text is None:
            left = start + (kill_after or HANG_SECONDS) - time.monotonic()
            try:
                text, _ = process.communicate(timeout=max(0.001, min(POLL_SECONDS, left)))
            except subprocess.TimeoutExpired:
                peak = max(peak, peak_memory(process.pid))
                if seen:
                    seen(time.monotonic() - start)
                if left <= POLL_SECONDS:
                    process.kill()
        hung = process.returncode == -signal.SIGKILL and not kill_after
        said = text.decode(errors="replace") + f"\nended by signal {-process.returncode}" * (process.returncode < 0)
        return Ended(None if hung else process.returncode, said, peak)

    def place(self, job: Job, folder: Path) -> None:
        """Make `folder` with what is there before the job."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in job.before.items():
            path = self.home / source
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / name)

    def reference(self, name: str) -> Reference:
        """The Reference of a job; it is run when it is asked for first. Raises UserError if it fails."""
        with self.lock:
            if name not in self.references:
                job, folder = self.jobs[name], self.home.parent / f"undisturbed-{name}"
                self.place(job, folder)
                before, times, stamps = state(folder), [], [listing(folder)]

                def seen(passed: float) -> None:
                    if (now := listing(folder)) != stamps[-1]:
                        stamps.append(now)
                        times.append(passed)

                done = self.run(job.command, folder, seen=seen)
                if done.status != 0:
                    raise UserError(f"{' '.join(job.command)} fails undisturbed:\n{done.text[-2000:]}")
                size = max(sum(size for _, size, _ in stamp) for stamp in (*stamps, listing(folder)))
                first, last = (times or [0.0])[0], (times or [1.0])[-1]
                self.references[name] = Reference(before, state(folder), first, last, size)
                shutil.rmtree(folder)
            return self.references[name]

    def go_on(self, job: Job, folder: Path, *, kill_after: float = 0) -> Ended:
        """Run the job, or what goes on with it if it was stopped; a run is resumed once it has its config.json."""
        begun = job.before or job.again == job.command or (folder / "runs" / "good" / "config.json").exists()
        return self.run(job.again if begun else job.command, folder, kill_after=kill_after)

    def compare(self, reference: Reference, folder: Path, done: Ended, count: int = 1) -> Result:
        """The Result of a job that went on and is `done`."""
        result = Result(done.outcome, done.text[-2000:], done.peak, count)
        return unless(result, differing(reference.after, state(folder)))

    # --- Trials ---

    def kill(self, rng: random.Random, folder: Path, name: str) -> Result:
        """Kill a job at random, once or some times, and let it go on."""
        job, reference, kills = self.jobs[name], self.reference(name), 0
        self.place(job, folder)
        while not kills or rng.random() < 0.4:
            ended = self.go_on(job, folder, kill_after=rng.uniform(0.8 * reference.first, 1.1 * reference.last))
            if ended.status != -signal.SIGKILL:  # it was quicker, or failed
                return self.compare(reference, folder, ended, max(kills, 1))
            kills += 1
            if lost := torn(reference, state(folder)):
                return Result("different", f"after the kill: {lost}", ended.peak, kills)
        return self.compare(reference, folder, self.go_on(job, folder), kills)

    def fill(self, rng: random.Random, folder: Path) -> Result:
        """Run a job with too little room, then with enough."""
        name = rng.choice(list(self.jobs))
        job, reference = self.jobs[name], self.reference(name)
        room = rng.randrange(LEAST_ROOM, int(1.2 * reference.size) + 2 * LEAST_ROOM)
        with small_disk(folder / "disk", self.mounts) as resize:
            self.place(job, folder / "disk")
            resize(room)
            first = self.run(job.command, folder / "disk", largest=0 if self.mounts else room)
            if first.outcome not in ("equal", "refused"):
                return Result(first.outcome, f"{name}, {room} bytes free: {first.text[-2000:]}", first.peak)
            if lost := torn(reference, state(folder / "disk")):
                return Result("different", f"{name}, {room} bytes free: {lost}", first.peak)
            resize(2**32)
            done = first if first.status == 0 else self.go_on(job, folder / "disk")
            result = self.compare(reference, folder / "disk", done)
        outcome = first.outcome if result.outcome == "equal" else result.outcome
        return result._replace(outcome=outcome, why=f"{name}, {room} bytes free: {result.why}", peak=first.peak)

    def together(self, commands: list[list[str]], rng: random.Random, folder: Path) -> Result:
        """Run two commands at about the same time; the Result is "equal" if both end well."""
        wait = rng.uniform(0, rng.choice((0.0, TOGETHER_SECONDS / 10, TOGETHER_SECONDS)))

        def start(seconds: float, command: list[str]) -> Ended:
            time.sleep(seconds)
            return self.run(command, folder)

        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(start, (0.0, wait), rng.sample(commands, 2)))
        outcome = next((each.outcome for each in both if each.outcome != "equal"), "equal")
        return Result(outcome, "\n".join(each.text[-1500:] for each in both), max(each.peak for each in both))

    def two_caches(self, rng: random.Random, folder: Path) -> Result:
        """Two processes decode the same dataset into the same cache."""
        job, reference = self.jobs["caching"], self.reference("caching")
        result = self.together([job.command, job.command], rng, folder)
        return unless(result, differing(reference.after, state(folder)))

    def two_promotions(self, rng: random.Random, folder: Path) -> Result:
        """Two runs, both better than the shipped weights, are promoted: the better one has to be there in the end."""
        job, reference = self.jobs["promotion"], self.reference("promotion")
        self.place(job, folder)
        shutil.copytree(self.home / "runs" / "fair", folder / "runs" / "fair")
        wait = rng.choice((0.0, rng.uniform(0, 0.1)))
        places = json.dumps({"data": str(self.home / "faces.zip"), "cache": str(self.home / "caches")})
        commands = [["-c", PROMOTE, places, run, str(seconds)] for run, seconds in (("good", 0.0), ("fair", wait))]
        result = self.together(commands, rng, folder)
        now = state(folder)
        wrong = [name for name in now if name.endswith(".tmp")]
        wrong += [SHIPPED] * (now.get(SHIPPED) != reference.after[SHIPPED])
        return unless(result, f"of two runs, the better one should be in its place: {wrong}" if wrong else "")

    def two_runs(self, rng: random.Random, folder: Path) -> Result:
        """Two runs without a name are begun in the same second: both are trained."""
        command = [*self.train, "--epochs", "1", "--batch-size", "32"]
        result = self.together([command, command], rng, folder)
        states = [state(run) for run in sorted((folder / "runs").glob("*")) if run.is_dir()]
        fine = len(states) == 2 and states[0] == states[1]
        return unless(result, "" if fine else f"{len(states)} runs, or not the same")


class Process(NamedTuple):
    """A row of the table: what is done once, and the outcomes that are right."""

    trial: Callable[[Jobs, random.Random, Path], Result]
    allowed: tuple[str, ...] = ("equal",)


PROCESSES = {
    "kill training": Process(lambda *args: Jobs.kill(*args, "training")),
    "kill caching": Process(lambda *args: Jobs.kill(*args, "caching")),
    "kill promotion": Process(lambda *args: Jobs.kill(*args, "promotion")),
    "kill prediction": Process(lambda *args: Jobs.kill(*args, "prediction")),
    "full disk": Process(Jobs.fill, ("refused", "equal")),
    "two caches": Process(Jobs.two_caches),
    "two promotions": Process(Jobs.two_promotions),
    "two runs": Process(Jobs.two_runs),
}


# --- Folders ---


def state(folder: Path) -> State:
    """Each file below `folder` and a digest of what counts in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(LEFT_OUT):
            name = re.sub("(replaced_weights)-[0-9]+", r"\1", str(path.relative_to(folder)))  # kept once more
            found[name] = hashlib.sha256(contents(path)).hexdigest()[:16]
    return found


def contents(path: Path) -> bytes:
    """What counts in a file: of weights the tensors, of metrics.jsonl all but times, of others all."""
    if path.suffix == ".pth":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(name for name in archive.namelist() if "/data/" in name)
                return b"".join(archive.read(name) for name in names)
        except zipfile.BadZipFile:
            return b"damaged"
    if path.suffix == ".jsonl":
        with suppress(ValueError):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            return json.dumps([{key: row[key] for key in row if key not in TIMED} for row in rows]).encode()
    return path.read_bytes()


def differing(wanted: State, found: State) -> str:
    """The files that are missing, left over or other than wanted."""
    return ", ".join(
        f"{name} {'is missing' if name not in found else 'is left over' if name not in wanted else 'differs'}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    )


def torn(reference: Reference, now: State) -> str:
    """The files that were there before the job and are now neither as before nor as it leaves them."""
    wanted = {name: (digest, reference.after.get(name)) for name, digest in reference.before.items()}
    return ", ".join(name for name, digests in wanted.items() if now.get(name) not in digests)


def listing(folder: Path) -> set[tuple[str, int, int]]:
    """Each file below `folder` with its size and time."""
    found = set()
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has gone
            status = path.stat()
            found.add((str(path), status.st_size if path.is_file() else 0, status.st_mtime_ns))
    return found


def peak_memory(pid: int) -> float:
    """The peak memory of a process in MB; 0 where it has ended, or is not known."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


# --- Disks ---


def mount(*options: str | Path) -> None:
    """Call mount. Raises UserError."""
    done = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"mount: {done.stderr.strip()}")


def can_mount(folder: Path) -> bool:
    """Whether a small disk can be mounted, as root can; else a limit on each file stands for it."""
    with suppress(OSError, UserError), small_disk(folder / "mounted", True):
        return True
    return False


@contextmanager
def small_disk(folder: Path, mounts: bool) -> Iterator[Callable[[int], None]]:
    """Make the folder a disk of its own, in memory; a function that sets the bytes that are free there."""
    folder.mkdir(parents=True)
    if not mounts:
        yield lambda room: None
        return
    mount("-t", "tmpfs", "-o", "size=4g", "drill", folder)
    try:
        yield lambda room: mount("-o", f"remount,size={shutil.disk_usage(folder).used + room}", folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)

"""Damaged inputs, kills, full disks and two at once: nothing may be lost, and nothing wrong be accepted in silence.

    python -m bench.drill MINUTES [--data archive.zip] [--seed 0] [--kinds png zip ...] [--against CHECKOUT]

Prints a row for each kind: how many were tried, how they ended, and by how much the memory of a process grew at most.
docs/robust.md says what the kinds and the outcomes are. An input that ends badly is kept in a folder of --keep, which
`--again` reads once more. The exit status is 1 if any ended badly. The same seed and kind make the same inputs in the
same order; how many there is time for depends on the machine.
"""

import argparse
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench import mutate, originals
from bench.kills import ENVIRONMENT, PROCESSES, Jobs, Result
from cli import Parser, nonempty
from config import Config
from errors import SHIPPED, UserError, counted, cpu_quota, exit_status, plain

ROOT = Path(__file__).resolve().parent.parent
HANG_SECONDS = 20.0  # of computing for one input; the largest that is accepted takes a few
WAIT_SECONDS = 120.0  # for one input, also where others use the machine
MOST_MEMORY = 2048.0  # MB that one input may take; more is counted as died
MOST_KEPT = 10  # bad inputs of a kind, each with another cause
OUTCOMES = ("refused", "equal", "different", "uncaught", "hung", "died")


class Kind(NamedTuple):
    """Inputs of one kind: damaged copies of the files `originals` (a pattern), read by a function of bench/trial.py.

    `sealed`: the format carries a checksum, or the project wrote the file; then it is refused, or read as if it were
    whole. `around`: the other files of its folder go with it.
    """

    reader: str
    originals: str
    change: mutate.Change = mutate.damage
    sealed: bool = False
    around: bool = False


INPUTS = {
    "png": Kind("image", "png/*", sealed=True),
    "png fields": Kind("image", "png/*", mutate.fields),
    **{name: Kind("image", f"{name}/*") for name in originals.PICTURES[1:]},
    "zip": Kind("dataset", "zip/*", sealed=True),
    "zip fields": Kind("dataset", "zip/*", mutate.fields),
    "zip auto": Kind("auto", "zip/*", mutate.fields),
    "zip predicted": Kind("predicted", "zip/*", mutate.either),
    "tar": Kind("dataset", "tar/*.tar", mutate.either),
    "tar.gz": Kind("dataset", "tar/*.gz", sealed=True),
    "tar.gz fields": Kind("dataset", "tar/*.gz", mutate.fields),
    "csv": Kind("dataset", "csv/*", mutate.either),
    "parquet": Kind("dataset", "parquet/*", mutate.either),
    "votes": Kind("votes", "votes/*", mutate.either),
    "cache": Kind("cache", "cache/*/*", mutate.either, sealed=True, around=True),
    "weights": Kind("weights", "weights/*.pth", sealed=True),
    "weights fields": Kind("predicted_by", "weights/small.pth", mutate.fields),
    "last.pth": Kind("resumed", "state/last.pth", sealed=True, around=True),
    "last.pth fields": Kind("resumed", "state/last.pth", mutate.fields, around=True),
    "onnx": Kind("onnx", "weights/*.onnx", sealed=True),
    "config.json": Kind("config", "ended/config.json", mutate.either),
    "metrics.jsonl": Kind("resumed", "ended/metrics.jsonl", mutate.either, around=True),
    "video": Kind("video", "video/*"),
}
WITHOUT_RUNS = {
    name for name, kind in INPUTS.items() if kind.reader in ("image", "dataset", "auto", "votes", "onnx", "video")
}


@dataclass
class Row:
    """What is known of a kind so far."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    peak: float = 0.0  # MB
    begun: int = 0
    seconds: float = 0.0  # spent on it, over its share
    longest: float = 0.0  # seconds of one
    bad: dict[str, str] = field(default_factory=dict)  # cause -> where it is kept
    note: str = ""  # why it is not tried

    @property
    def share(self) -> float:
        """Of the time, compared with other kinds: a process takes seconds."""
        return 3.0 if self.name in PROCESSES else 1.0

    @property
    def allowed(self) -> tuple[str, ...]:
        if self.name in PROCESSES:
            return PROCESSES[self.name].allowed
        return OUTCOMES[: 2 if INPUTS[self.name].sealed else 3]

    @property
    def faults(self) -> int:
        return sum(count for outcome, count in self.counts.items() if outcome not in self.allowed)

    def add(self, result: Result) -> None:
        self.counts[result.outcome] += result.count
        self.peak = max(self.peak, result.peak)

    def line(self) -> str:
        sealed = self.name in PROCESSES or INPUTS[self.name].sealed
        counts = (sum(self.counts.values()), *(self.counts[outcome] for outcome in OUTCOMES))
        shown = "".join(f"{count:>11,}" for count in counts)
        return f"{self.name + ' *' * sealed:<20}{shown}{self.peak:>9,.0f}{'  ' * bool(self.note)}{self.note}"


# --- Workers ---


class Worker:
    """A process of bench/trial.py that reads inputs one after the other; a new one where it hangs or dies."""

    def __init__(self, checkout: Path, home: Path) -> None:
        self.command = [sys.executable, "-P", "-X", "faulthandler", str(ROOT / "bench" / "trial.py"), str(home)]
        self.environment, self.logs = ENVIRONMENT | {"PYTHONPATH": str(checkout)}, home.parent
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start a process, unless there is one. Raises UserError if none starts."""
        if not self.process:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.logs, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
            )
            if (started := self.wait()).get("outcome"):
                raise UserError(f"no worker starts: {' '.join(self.command)} ends with {started}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The reply to a request, or an outcome "hung" or "died"."""
        self.start()
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.wait()

    def wait(self) -> dict[str, Any]:
        (busy, memory), end = self.usage(), time.monotonic() + WAIT_SECONDS
        while not select.select([self.process.stdout], [], [], 0.05)[0]:
            seconds, grown = (now - before for now, before in zip(self.usage(), (busy, memory), strict=True))
            if grown > MOST_MEMORY or seconds > HANG_SECONDS or time.monotonic() > end:
                self.stop()
                why = f"computed for {seconds:.0f} s, took {grown:.0f} MB"
                return {"outcome": "died" if grown > MOST_MEMORY else "hung", "why": why, "peak": grown}
        if line := self.process.stdout.readline():
            reply = json.loads(line)
            if reply.get("peak", 0) > MOST_MEMORY:
                reply |= {"outcome": "died", "why": f"took {reply['peak']:.0f} MB"}
            return reply
        log = self.logs / f"{self.process.pid}.log"
        said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        return {"outcome": "died", "why": f"{said}\nstatus {self.stop()}", "peak": 0.0}

    def usage(self) -> tuple[float, float]:
        """Seconds that the process has computed, and MB that it uses; 0 where that is not known (Linux only)."""
        try:
            found = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0, 0.0
        return (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK"), int(found[21]) * 4096 / 2**20

    def stop(self) -> int:
        """End the process; its exit status."""
        process, self.process = self.process, None
        if process:
            process.kill()
            process.stdin.close()
            process.stdout.close()
        return process.wait() if process else 0


# --- The drill ---


class Drill:
    """Rows that are filled by some threads, each with a worker, until the time is over. Raises UserError."""

    def __init__(self, args: argparse.Namespace, home: Path) -> None:
        self.args, self.home, self.end = args, home, time.monotonic() + 60 * args.minutes
        self.checkout = Path(args.against or ROOT).resolve()
        self.jobs = Jobs(self.checkout, home)
        self.rows = [Row(name, seconds=2.0 * (name in PROCESSES)) for name in args.kinds]
        self.lock, self.whole, self.failed = threading.Lock(), {}, None

    def prepare(self) -> None:
        """Make the good files that the kinds need."""
        images, labels = originals.faces(self.args.data, self.args.cache, seed=self.args.seed)
        originals.write_originals(self.home, images, labels)
        for name in (SHIPPED, Path(SHIPPED).with_suffix(".onnx")):
            if (self.checkout / name).exists():
                shutil.copyfile(self.checkout / name, self.home / "weights" / f"shipped{Path(name).suffix}")
        if not WITHOUT_RUNS.issuperset(self.args.kinds):
            originals.make_runs(self.jobs)

    def run(self) -> None:
        threads = [threading.Thread(target=self.work, args=[slot], daemon=True) for slot in range(self.args.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            print("stopping after these trials", file=sys.stderr)
            self.end = 0.0
            for thread in threads:
                thread.join()
        if self.failed:
            raise self.failed

    def work(self, slot: int) -> None:
        """Try inputs and processes, always of the kind that had the least time so far."""
        folder, worker = self.home.parent / f"worker-{slot}", Worker(self.checkout, self.home)
        try:
            worker.start()
            while turn := self.next_turn():
                row, number, guess = turn
                start, rng = time.monotonic(), random.Random(f"{self.args.seed} {row.name} {number}")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                if row.name in PROCESSES:
                    result, kept = PROCESSES[row.name].trial(self.jobs, rng, folder), {}
                else:
                    result, kept = self.try_input(row, rng, folder, worker)
                took = time.monotonic() - start
                with self.lock:
                    row.seconds += (took - guess) / row.share
                    row.longest = max(row.longest, took)
                    row.add(result)
                    if result.count and result.outcome not in row.allowed:
                        self.keep(row, result, folder, kept | {"seed": self.args.seed, "number": number})
        except BaseException as error:
            self.failed, self.end = error, 0.0
        finally:
            worker.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def next_turn(self) -> tuple[Row, int, float] | None:
        """The row whose turn it is, the number of the input, and the seconds that are counted for it already."""
        with self.lock:
            left = self.end - time.monotonic()
            rows = [row for row in self.rows if not row.note and row.longest < left and row.begun < self.args.most]
            if not rows:
                return None
            row = min(rows, key=lambda row: row.seconds)
            row.begun, row.seconds = row.begun + 1, row.seconds + row.longest / row.share
            return row, row.begun - 1, row.longest

    def try_input(self, row: Row, rng: random.Random, folder: Path, worker: Worker) -> tuple[Result, dict[str, Any]]:
        """Damage a good file and let the worker read it."""
        kind = INPUTS[row.name]
        files = [path for path in sorted(self.home.glob(kind.originals)) if path.suffix != ".lock"]
        if not files:
            row.note = "this checkout has no such file"
            return Result("", "", 0.0, 0), {}
        original, way = rng.choice(files), rng.randrange(2)
        request = {"read": kind.reader, "folder": str(folder), "way": way}
        request["file"] = place(kind, original, self.home, folder)
        key = kind.reader, original, way
        if key not in self.whole:  # what is read of the good file
            self.whole[key] = worker.ask(**request)
            if self.whole[key]["outcome"] != "read":
                row.note = f"not read even undamaged: {plain(self.whole[key]['why'].strip()[-200:])}"
                return Result("", "", 0.0, 0), {}
            shutil.rmtree(folder)
            place(kind, original, self.home, folder)
        (folder / request["file"]).write_bytes(kind.change(original.read_bytes(), rng))
        reply = worker.ask(**request)
        facts = {"kind": row.name, "original": str(original.relative_to(self.home))} | request
        return Result(*compare(self.whole[key], reply), reply["peak"]), facts

    def keep(self, row: Row, result: Result, folder: Path, facts: dict[str, Any]) -> None:
        """Keep what ended badly in a folder of its own, one for each cause."""
        cause = f"{cause_of(result)} {facts.get('original', '') if result.outcome == 'different' else ''}".strip()
        place = Path(self.args.keep, row.name.replace(" ", "-"), f"{result.outcome}-{facts['number']}")
        if cause in row.bad or len(row.bad) >= MOST_KEPT:
            return
        row.bad[cause] = str(place)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place, symlinks=True)
        (place / "drill.json").write_text(json.dumps(facts | result._asdict(), indent=2))


def place(kind: Kind, original: Path, home: Path, folder: Path) -> str:
    """Copy a good file into `folder`, with what is around it; its name there."""
    if not kind.around:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(original, folder / original.name)
        return original.name
    top, *inside = original.relative_to(home).parts
    shutil.copytree(home / top, folder, dirs_exist_ok=True)
    return str(Path(*inside))


def compare(whole: dict[str, Any], reply: dict[str, Any]) -> tuple[str, str]:
    """The outcome of an input, given the reply for the undamaged one, and why.

    Images that are missing count as refused where as many more are named as skipped.
    """
    if reply["outcome"] != "read":
        return reply["outcome"], reply["why"]
    good, found = Counter(whole["rows"]), Counter(reply["rows"])
    missing, other = (good - found).total(), (found - good).total()
    named = reply["skipped"] - whole["skipped"]
    outcome = "different" if other or missing > named else "refused" if missing else "equal"
    return outcome, f"{missing} missing, {other} other, {named} named as skipped"


def cause_of(result: Result) -> str:
    """One line that tells the cause of a bad outcome from others."""
    places = re.findall(r'File ".*?([^/"]+)", line (\d+)', result.why)
    errors = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Characters))\b", result.why, re.MULTILINE)
    if errors and result.outcome == "uncaught":
        return f"{result.outcome}: {errors[-1]}" + (" at {}:{}".format(*places[-1]) if places else "")
    said = re.search("^error: .*", result.why, re.MULTILINE) or re.search(r"\S.*", result.why)
    return f"{result.outcome}: {re.sub('[0-9]+', 'N', said[0])[:100] if said else ''}"


# --- The script ---


def again(args: argparse.Namespace, drill: Drill) -> int:
    """Read a kept input once more and print what becomes of it."""
    kept = Path(args.again)
    facts = json.loads((kept / "drill.json").read_text())
    row, folder = Row(facts["kind"]), drill.home.parent / "again"
    drill.args.kinds = [row.name]
    drill.prepare()
    worker = Worker(drill.checkout, drill.home)
    shutil.copytree(kept, folder)
    reply = worker.ask(read=INPUTS[row.name].reader, folder=str(folder), file=facts["file"], way=facts["way"])
    worker.stop()
    print(reply["why"], f"{reply['outcome']}, {reply['peak']:.0f} MB", sep="\n")
    return int(reply["outcome"] not in ("read", "refused"))


def run(args: argparse.Namespace) -> int:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "home")
        home.mkdir()
        drill = Drill(args, home)
        if args.again:
            return again(args, drill)
        drill.prepare()
        drill.run()
    print(f"{'':<20}" + "".join(f"{word:>11}" for word in ("tried", *OUTCOMES)) + f"{'peak MB':>9}")
    print("\n".join(row.line() for row in drill.rows))
    faults = sum(row.faults + (bool(row.note) and not args.against) for row in drill.rows)
    for row in drill.rows:
        for cause, kept in row.bad.items():
            print(f"{row.name}: {plain(cause)}: {kept}")
    disks = (
        "disks in memory" if drill.jobs.mounts else "limits on each file's size, as only root can mount a small disk"
    )
    minutes = (time.monotonic() - start) / 60
    tried = sum(row.counts.total() for row in drill.rows)
    print(
        f"{counted(tried, 'trial')} in {minutes:.1f} minutes, seed {args.seed}, full disks are {disks}: "
        f"{counted(faults, 'fault')}"
    )
    return int(faults > 0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.drill", __doc__.splitlines()[0])
    add = parser.add_argument
    kinds = (*INPUTS, *PROCESSES)
    add("minutes", type=float, nargs="?", default=2.0, metavar="MINUTES", help="how long (2)")
    add("--data", default="", metavar="PATH", help="take the faces of this dataset, not rendered ones")
    add("--cache", default=Config().cache, help="folder for decoded images of --data")
    add("--seed", type=int, default=0, help="other inputs (0)")
    add("--kinds", nargs="+", choices=kinds, default=kinds, metavar="KIND", help=f"of {', '.join(kinds)} (all)")
    add("--most", type=int, default=10**9, metavar="N", help="try so many of a kind at most")
    add("--workers", type=int, default=min(4, cpu_quota()), metavar="N", help="how many at a time")
    add("--against", type=nonempty, metavar="CHECKOUT", help="try the code in this folder, not this one's")
    add("--keep", type=nonempty, default="drill-examples", metavar="DIR", help="folder for inputs that end badly")
    add("--again", type=nonempty, metavar="FOLDER", help="only read an input that was kept there")
    return exit_status(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

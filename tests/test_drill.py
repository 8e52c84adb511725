"""The drill: damaged files are made by seed, and what becomes of them is told apart. Its workers are replaced here."""

import io
import json
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench import drill, kills, mutate, originals
from helpers import faces


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of good files of every kind."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(originals, "LARGE", 200)
        originals.write_originals(folder, *faces(originals.IMAGES))
    return folder


@pytest.fixture
def rendered(monkeypatch):
    """No faces are rendered, which takes seconds."""
    monkeypatch.setattr(originals, "faces", lambda *_, **__: faces(originals.IMAGES))
    monkeypatch.setattr(originals, "LARGE", 200)


FORMS = (
    "zip/dataset.zip",
    "png/colour.png",
    "tar/fer2013.tar",
    "tar/fer2013.tar.gz",
    "csv/fer2013.csv",
    "jpeg/colour.jpg",
)


@pytest.mark.parametrize("name", FORMS)
def test_a_seed_makes_the_same_damage_every_time(home, name):
    data = (home / name).read_bytes()
    for change in (mutate.damage, mutate.fields):
        made = [change(data, random.Random(seed)) for seed in range(20)]
        assert made == [change(data, random.Random(seed)) for seed in range(20)]
        assert sum(each != data for each in made) > 10 and len(set(made)) > 10


def test_bytes_that_only_begin_as_json_are_no_json():
    assert mutate.fields(b"{\xb0\xb1\xb2" * 20, random.Random(0)) != b"{\xb0\xb1\xb2" * 20


def test_fields_of_json_and_pickles_are_changed():
    import pickle

    for data in (
        json.dumps({"a": 1, "b": {"c": [2.5]}}).encode(),
        b'{"a": 1}\n{"a": 2}\n',
        pickle.dumps([1, "x", None], 2),
    ):
        made = {mutate.fields(data, random.Random(seed)) for seed in range(50)}
        assert len(made) > 10


def test_a_zip_that_is_written_field_by_field_is_right_where_nothing_is_changed(home):
    with zipfile.ZipFile(home / "zip" / "dataset.zip") as archive:
        entries = [
            (name.encode(), archive.read(name), number % 2 * 8) for number, name in enumerate(archive.namelist())
        ]
    with zipfile.ZipFile(io.BytesIO(mutate.write_zip(entries, {}))) as archive:
        assert archive.testzip() is None
        assert [(name.encode(), archive.read(name)) for name in archive.namelist()] == [entry[:2] for entry in entries]


def test_what_is_missing_counts_as_refused_only_where_it_was_named():
    whole = {"rows": ["a", "a", "b"], "skipped": 0}
    replies = {
        "equal": ({"rows": ["b", "a", "a"], "skipped": 0}, {"rows": ["a", "a", "b"], "skipped": 2}),
        "refused": ({"rows": ["a", "b"], "skipped": 1}, {"rows": [], "skipped": 3}),
        "different": ({"rows": ["a", "b"], "skipped": 0}, {"rows": ["a", "a", "c"], "skipped": 1}),
    }
    for outcome, some in replies.items():
        assert [drill.compare(whole, {"outcome": "read", **reply})[0] for reply in some] == [outcome] * 2
    assert drill.compare(whole, {"outcome": "hung", "why": "x"}) == ("hung", "x")


WORKER = "import sys, os, time\nprint('{}', flush=True)\nfor line in sys.stdin:\n    "


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ('print(\'{"outcome": "read"}\', flush=True)', "read"),
        ('print(\'{"outcome": "read", "peak": 5000}\', flush=True)', "died"),
        ("time.sleep(30)", "hung"),
        ("while True: pass", "hung"),
        ("os.abort()", "died"),
        ("a = b'x' * 6 * 10**8; time.sleep(30)", "died"),
    ],
)
def test_a_worker_that_hangs_or_dies_is_told_and_replaced(tmp_path, monkeypatch, code, outcome):
    monkeypatch.setattr(drill, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(drill, "WAIT_SECONDS", 1.5)
    monkeypatch.setattr(drill, "MOST_MEMORY", 200.0)
    (tmp_path / "home").mkdir()
    worker = drill.Worker(drill.ROOT, tmp_path / "home")
    worker.command = [sys.executable, "-c", WORKER + code]
    try:
        assert [worker.ask(read="image")["outcome"] for _ in range(2)] == [outcome] * 2
    finally:
        worker.stop()


class Fake:
    """A worker that reads good files well; damaged ones end with the outcome of the class, and are read as others."""

    outcome = "read"

    def __init__(self, checkout, home):
        self.good = {path.read_bytes() for path in home.glob("*/*") if path.is_file()}

    def ask(self, *, folder, file, **_):
        whole = Path(folder, file).read_bytes() in self.good
        outcome, rows = ("read", ["good"]) if whole else (self.outcome, ["other"])
        return {"outcome": outcome, "rows": rows, "skipped": 0, "why": "ValueError: no", "peak": 1.0}

    def start(self):
        pass

    stop = start


@pytest.mark.parametrize(
    ("kind", "outcome", "status"),
    [("png", "read", 1), ("gif", "read", 0), ("gif", "uncaught", 1), ("png", "refused", 0), ("gif", "hung", 1)],
)
def test_a_bad_outcome_is_counted_and_its_input_kept(tmp_path, monkeypatch, capsys, rendered, kind, outcome, status):
    monkeypatch.setattr(drill, "Worker", Fake)
    monkeypatch.setattr(Fake, "outcome", outcome)
    keep = tmp_path / "kept"
    assert drill.main(["1", "--kinds", kind, "--most", "6", "--workers", "1", "--keep", str(keep)]) == status
    out = capsys.readouterr().out
    assert re.search(rf"^{kind}( \*)? +6 ", out, re.MULTILINE)
    kept = list(keep.glob(f"{kind}/*/drill.json"))
    assert bool(kept) == bool(status)
    for facts in kept:
        assert (facts.parent / json.loads(facts.read_text())["file"]).is_file()


def test_a_folder_is_compared_by_what_counts(tmp_path):
    import torch

    (tmp_path / "runs").mkdir()
    file, figures = tmp_path / "runs" / "best.pth", tmp_path / "runs" / "metrics.jsonl"

    def write(value, seconds, note):
        torch.save({"a": torch.full((4,), value), "note": note}, file)
        figures.write_text(json.dumps({"loss": 0.5, "seconds": seconds}) + "\n")
        return kills.state(tmp_path)

    first = write(1.0, 1, "x")
    assert kills.differing(first, write(1.0, 2, "y")) == ""
    assert "best.pth differs" in kills.differing(first, write(2.0, 1, "x"))
    (tmp_path / ".x.tmp").touch()
    assert ".x.tmp is left over" in kills.differing(first, write(1.0, 1, "x"))
    file.unlink()
    assert "best.pth is missing" in kills.differing(first, kills.state(tmp_path))


def test_a_process_is_killed_and_limited(tmp_path):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "sleep.py").write_text("import time\ntime.sleep(30)\n")
    (tmp_path / "checkout" / "write.py").write_text("open('big', 'wb', 0).write(bytes(10**6))\nraise SystemExit(2)\n")
    (tmp_path / "home").mkdir()
    jobs, start = kills.Jobs(tmp_path / "checkout", tmp_path / "home"), time.monotonic()
    assert jobs.run(["sleep.py"], tmp_path, kill_after=0.2).status == -signal.SIGKILL
    assert time.monotonic() - start < 10
    assert jobs.run(["write.py"], tmp_path, largest=5000).outcome == "refused"
    assert (tmp_path / "big").stat().st_size == 5000


def test_the_drill_reads_through_the_project(tmp_path):
    command = [sys.executable, "-m", "bench.drill", "1", "--kinds", "png", "gif", "csv", "--most", "5"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")], cwd=drill.ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    assert re.search(r"^csv +5 ", done.stdout, re.MULTILINE), done.stdout


def test_extremes_fit_their_fields():
    rng = np.random.default_rng(0)
    for size in (1, 2, 4, 8):
        seeds = rng.integers(0, 2**31, 50).tolist()
        assert all(0 <= mutate.extreme(random.Random(seed), size) < 256**size for seed in seeds)

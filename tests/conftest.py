"""Set up before any test is imported: the repo on the path, one torch thread per worker, and no GPU."""

import os
import sys
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # several workers with many threads each fight over the cores
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is equal bit for bit is so on the CPU; two processes need two GPUs
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The path of weights that read the brightness of `helpers.faces` without error."""
    from helpers import brightness_weights

    return brightness_weights(tmp_path_factory.mktemp("weights") / "w.pth")


@pytest.fixture(scope="session")
def loaded(weights):
    from utils import pick_machine
    from weights import load_weights

    return load_weights(weights, machine=pick_machine("cpu", "fp32"))


@pytest.fixture(scope="session")
def fer2013_cache(tmp_path_factory, worker_id):
    """One folder for the decoded images of FER2013, of all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return str((base if worker_id == "master" else base.parent) / "fer2013")


@pytest.fixture
def script_runner(weights, loaded, tmp_path, monkeypatch, capsys):
    """Makes of a script's main a call in an empty folder, with small batches and the weights already loaded.

    The call returns (status, stdout, stderr).
    """
    import val
    import weights as weights_module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(val, "BATCH", 8)
    load = weights_module.load_weights
    monkeypatch.setattr(
        weights_module,
        "load_weights",
        lambda path, *, machine: loaded if path == weights else load(path, machine=machine),
    )

    def runner(main):
        def run(*args, weights=weights):
            files = map(str, weights if isinstance(weights, list) else [weights])
            status = main([*map(str, args), "--weights", *files, "--device", "cpu", "--precision", "fp32"])
            out, err = capsys.readouterr()
            return status, out, err

        return run

    return runner


@pytest.fixture
def saved(monkeypatch):
    """The figures of matplotlib that are saved from now on, to be asked what they show."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures

"""The notebook: stored as executed on the demo faces, small, and it runs from top to bottom on other data."""

import json
import re
import shutil

import nbformat
from nbclient import NotebookClient

from helpers import REPO, write_folders

PATH = REPO / "emotion_recognition.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = """
DATA, SHOW_FACES, EPOCHS = "elsewhere", True, 1
STUDY = "--quick --limit 70 --experts 2 --groupings valence --epochs 1 1 1 1".split()
"""


def shown(cells: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def test_it_is_stored_as_executed_on_the_demo_faces():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    first = "".join(CODE[0]["source"])
    assert 'DATA = "demo"' in first and 'SHOW_FACES = DATA == "demo"' in first
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert shown(CODE) == 9
    assert nbformat.validate(nbformat.read(PATH, as_version=4)) is None


def test_it_names_no_machine_and_stays_small():
    text = PATH.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|tmp|work|srv|Users)/", text)
    assert PATH.stat().st_size < 800_000


def test_it_repeats_none_of_the_modules():
    source = "\n".join("".join(cell["source"]) for cell in CODE)
    assert not re.search(r"^\s*(def|class) |import torch|nn\.", source, re.M)


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    shutil.copy(PATH, tmp_path)
    write_folders(tmp_path / "elsewhere", train=70, val=35, test=0)
    notebook = nbformat.read(tmp_path / PATH.name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = SMALL
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(code) == 9
    (report,) = tmp_path.glob("reports/notebook-*")
    assert {path.name for path in report.iterdir()} >= {"report.md", "results.json", "gains.png"}
    assert sorted(folder.name.split("-")[0] for folder in (tmp_path / "runs").iterdir()) == ["notebook", "study"]

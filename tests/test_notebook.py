"""The notebook: stored as executed on the demo faces, and it runs from top to bottom on these and on other data."""

import json
import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import REPO, write_folders

PATH = REPO / "emotion_recognition.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = """
DATA, EPOCHS = {data!r}, 1
SHOW_FACES = DATA == "demo"
STUDY = "--quick --limit 140 --groupings valence --epochs 1 1 1 1".split()
"""


def printed(cell: dict) -> str:
    """What the cell prints and shows as text."""
    texts = [output.get("text") or output.get("data", {}).get("text/markdown", "") for output in cell["outputs"]]
    return "".join("".join(text) for text in texts)


def shown(cells: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def test_it_is_stored_as_executed_on_the_demo_faces():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert 'DATA = "demo"' in (first := "".join(CODE[0]["source"])) and 'SHOW_FACES = DATA == "demo"' in first
    assert not [output for cell in CODE for output in cell["outputs"] if output["output_type"] == "error"]
    assert not [output for cell in CODE for output in cell["outputs"] if output.get("name") == "stderr"]
    assert any("drawn faces" in printed(cell) for cell in CODE)
    assert shown(CODE) == 9
    assert nbformat.validate(nbformat.read(PATH, as_version=4)) is None


def test_it_speaks_of_no_machine():
    text = PATH.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|tmp|work|Users)/", text)
    assert PATH.stat().st_size < 1_500_000


def test_it_repeats_none_of_the_modules():
    source = "\n".join("".join(cell["source"]) for cell in CODE)
    assert not re.search(r"^\s*(def|class) |import torch|nn\.", source, re.M)


@pytest.mark.parametrize("kind", ["demo", "folders"])
def test_it_runs_from_top_to_bottom(kind, tmp_path):
    for file in [*REPO.glob("*.py"), PATH]:
        shutil.copy(file, tmp_path)
    data = "demo" if kind == "demo" else write_folders(tmp_path / "elsewhere", train=140, val=70).name
    notebook = nbformat.read(tmp_path / PATH.name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = SMALL.format(data=data)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(code) == (9 if kind == "demo" else 7)
    assert "the report is" in "".join(printed(cell) for cell in code)
    (report,) = tmp_path.glob("reports/notebook-*")
    assert (report / "report.html").is_file()
    assert sorted(folder.name.split("-")[0] for folder in (tmp_path / "runs").iterdir()) == ["notebook", "study"]

"""Every command in the README's code blocks is run, on a small dataset; what it and docs/ point to is there."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from config import RECIPES, Config
from helpers import REPO, faces, write_folders, zip_folder

TEXT = (REPO / "README.md").read_text(encoding="utf-8")
PAGES = {page: page.read_text(encoding="utf-8") for page in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]}
LINES = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line]
# Left to others: installing, the tests themselves, and .ci/run, which does both.
RUN = [line for line in LINES if "pip install" not in line]


STOPPED = """
import os, signal, sys
sys.path.insert(0, "")
import interface, train
evaluate = train.evaluate
def stop(*args, **named):
    os.kill(os.getpid(), signal.SIGINT)
    return evaluate(*args, **named)
train.evaluate = stop
sys.exit(interface.main())
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The repo's files with a small archive.zip beside them, something to predict, and a stopped run."""
    clone = tmp_path_factory.mktemp("clone")
    for file in [*REPO.glob("*.py"), *REPO.glob("*.pth")]:
        shutil.copy(file, clone)
    folder = write_folders(clone / "elsewhere", val=28, test=14)
    zip_folder(folder, clone / "archive.zip")
    zip_folder(folder / "test", clone / "test.zip")
    zip_folder(folder / "test", clone / "faces.zip")
    folder.joinpath("test").rename(clone / "faces")
    Image.fromarray(faces(1)[0][0]).resize((600, 800)).save(clone / "photo.jpg")
    stopped = [sys.executable, "-c", STOPPED, "--limit", "35", "--epochs", "2", "--run", "NAME"]
    done = subprocess.run(stopped, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    return clone


def test_the_readme_shows_commands():
    assert len(RUN) >= 7 and any(line.startswith("python interface.py") for line in RUN)


@pytest.mark.parametrize("line", dict.fromkeys(RUN))
def test_a_command_of_the_readme_runs(clone, line):
    command = shlex.split(line)
    assert command[0] == "python"
    if command[1:] == ["interface.py"]:  # 40 epochs are for the reader; two of them show that the command runs
        command += ["--epochs", "2"]
    done = subprocess.run([sys.executable, *command[1:]], cwd=clone, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_python_of_the_readme_says_what_predict_says(clone):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    said = [
        subprocess.run([sys.executable, *command], cwd=clone, capture_output=True, text=True, check=True).stdout
        for command in (["-c", block], ["predict.py", "photo.jpg", "--json", "-"])
    ]
    (row,) = json.loads(said[1])
    assert ast.literal_eval(said[0]) == pytest.approx(row["probabilities"], abs=1e-4)


def test_the_two_commands_are_there():
    assert "python -m pip install -r requirements.txt && python interface.py" in LINES
    assert "python -m pip install -r requirements-dev.txt && python -m pytest" in LINES


def anchors(page):
    """The names by which links find the headings of `page`, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", PAGES[page], re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if not target.startswith("http")]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_found_from_the_readme():
    assert all(f"(docs/{page.name})" in TEXT for page in PAGES if page.parent.name == "docs")


def test_commands_on_the_pages_are_valid_calls():
    import interface

    calls = [call for text in PAGES.values() for call in re.findall(r"`python interface\.py([^`]*)`", text)]
    assert any("--recipe" in call for call in calls)
    for call in calls:
        if "--help" not in call and "--config" not in call:
            interface.parse(shlex.split(call))


def test_scripts_that_the_pages_name_are_there():
    named = {name for text in PAGES.values() for name in re.findall(r"python ([\w/]+\.py)", text)}
    named |= {f"bench/{name}.py" for text in PAGES.values() for name in re.findall(r"python -m bench\.(\w+)", text)}
    assert {"interface.py", "bench/results.py"} <= named
    assert all((REPO / name).exists() for name in named), named


def test_recipes_of_the_readme_are_those_of_config():
    rows = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", TEXT, re.M)
    assert dict(rows) == {name: recipe.get("model", Config().model) for name, recipe in RECIPES.items()}

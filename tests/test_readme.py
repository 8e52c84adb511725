"""Every command in the README's code blocks is run, on small datasets; what README and docs/ point to is there."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import skimage
from PIL import Image

from config import RECIPES, Config
from helpers import REPO, write_folders, zip_folder

README, *DOCS = PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXTS[README], re.S)]
LINES = [line for block in BLOCKS for line in block]
RUN = [block for block in BLOCKS if "pip install" not in block[0]]  # installing is left to .ci/run


def call(line: str, *more: str) -> int:
    """The exit status of a command line of the README, run in this process and the current folder."""
    python, *command = shlex.split(line)
    assert python == "python"
    name, *arguments = command[1:] if command[0] == "-m" else [command[0].removesuffix(".py"), *command[1:]]
    return importlib.import_module(name.replace("/", ".")).main([*arguments, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the README's reader has it: archive.zip, a photo, own images, the shipped weights, a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("final_weights_new.pth", "final_weights_new.onnx"):
        shutil.copy(REPO / name, folder)
    zip_folder(write_folders(folder / "mydata", val=28, test=14), folder / "archive.zip")
    shutil.copytree(folder / "mydata/test", folder / "photos")
    Image.fromarray(skimage.data.astronaut()).save(folder / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("python interface.py --limit 35 --epochs 1 --run NAME --model EmotionResNet-nano") == 0
    return folder


@pytest.mark.parametrize("block", RUN, ids=lambda block: block[-1])
def test_the_commands_of_a_block_run(folder, monkeypatch, capsys, block):
    monkeypatch.chdir(folder)
    for line in block:
        trains = "interface.py" in line and "--resume" not in line
        assert call(line, *(("--epochs", "1") if trains else ())) == 0, capsys.readouterr().err


def test_the_readme_shows_the_commands_that_a_newcomer_needs():
    assert len(RUN) >= 5
    install = "python -m pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    train = "python -m pip install -r requirements.txt && python interface.py"
    assert LINES.index(install) < LINES.index(train)
    assert "python -m pip install -r requirements-dev.txt && python -m pytest" in LINES


def test_the_readme_is_short():
    assert len(TEXTS[README].splitlines()) <= 220


def test_the_python_on_the_pages_answers_as_predict_does(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"```python\n(.*?)```", "".join(TEXTS.values()), re.S)
    exec(compile(block, "page", "exec"), {})
    printed = capsys.readouterr().out
    assert call("python predict.py photo.jpg --json -") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert f" {row['answer']} {str(row['probability'])[:6]}" in printed and f"Box(x={row['x']:.1f}" in printed


def anchors(page: Path) -> set[str]:
    """The names by which links find the headings of `page`, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", TEXTS[page], re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    found = re.findall(r"\]\(([^)]+)\)|src(?:set)?=\"([^\"]+)\"", TEXTS[page])
    targets = [one or other for one, other in found if not (one or other).startswith("http")]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_and_figure_is_shown():
    assert all(f"(docs/{page.name})" in TEXTS[README] for page in DOCS)
    assert all(figure.name in "".join(TEXTS.values()) for figure in (REPO / "docs").glob("*.[pj]*g"))


def test_commands_on_the_pages_are_valid_calls():
    import interface

    everything = "\n".join(TEXTS.values())
    calls = re.findall(r"python interface\.py((?: +[^`\s&;|]+)*)", everything.replace("\\\n", " "))
    assert any("--recipe" in flags for flags in calls)
    for flags in calls:
        if "--help" not in flags and "--config" not in flags:
            interface.parse(shlex.split(flags.replace("$seed", "0")))
    named = {name.replace(".", "/") for name in re.findall(r"python -m ((?:bench|demo)\.\w+)", everything)}
    named |= {name.removesuffix(".py") for name in re.findall(r"python ([\w/]+\.py)", everything)}
    assert "interface" in named and all((REPO / f"{name}.py").exists() for name in named), named


def test_recipes_of_the_pages_are_those_of_config():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", TEXTS[REPO / "docs/training.md"], re.M))
    assert rows == {name: recipe.get("model", Config().model) for name, recipe in RECIPES.items()}

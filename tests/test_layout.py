"""The shape of the repository: who may import whom, nothing done at import, environment files, what git tracks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

# Low to high: a room (a package, or a module at the top) imports from lower floors and from itself only.
FLOORS = (
    {"config", "errors"},
    {"classes", "metrics", "model"},
    {"cli", "losses", "utils"},
    {"plots", "ranks", "readers"},
    {"demo", "faces", "splits", "votes"},
    {"audit"},
    {"dataset"},
    {"val"},
    {"weights"},
    {"explain", "training"},
    {"hubconf", "predictor", "test", "train"},
    {"export", "interface", "study", "video"},
    {"predict"},
    {"bench", "experiments"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
APART = ("dataset", "model")  # neither reaches the other, not even through a third
SCRIPTS = ("interface", "test", "predict", "experiments", "export")
HEAVY = {"torch", "torchvision", "matplotlib", "cv2"}  # a second or more: `--help` answers without them
COMPARED = {"fer", "skimage"}  # of bench/photos.py: another project, and its photos
OPTIONAL = {"pyarrow"}  # a line says where it is missing
FACE_NAME = re.compile(r"(Training|PublicTest|PrivateTest)_\d+\.(png|jpe?g)", re.IGNORECASE)
MEGABYTE = 1_000_000
LONGEST = 400  # lines of a file
# What a prediction without torch needs
TORCH_FREE = {"cli", "dataset", "faces", "metrics", "predict", "predictor", "ranks", "readers", "video"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(path for path in ROOT.glob("**/*.py") if room(path) in FLOOR)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> set[str]:
    """The top-level names of the modules that are imported anywhere in `tree`, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0] if node.level == 0 else "a relative import")
    return found


# --- Modules ---


def test_every_room_is_on_a_floor():
    rooms = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert rooms == set(FLOOR), "a room is missing on a floor of FLOORS, or is gone"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_from_lower_floors_only(path):
    here = room(path)
    above = {name for name in FLOOR if FLOOR[name] >= FLOOR[here]} - {here}
    wrong = imports(parse(path)) & (above | {"a relative import"})
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}, which is not below it"


def test_dataset_and_model_never_meet():
    inner = {name: set() for name in FLOOR}
    for path in FILES:
        inner[room(path)] |= imports(parse(path)) & set(FLOOR)
    for start, other in (APART, APART[::-1]):
        reached, todo = set(), [start]
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += inner[name]
        assert other not in reached, f"{start} reaches {other} by its imports"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_only_imports_and_defines(path):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    working = [
        f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for node in parse(path).body
        if not isinstance(node, allowed)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING"))
        and not re.match(r"(warnings|logging|sys\.path)\.", ast.unparse(node))  # settings of the process
    ]
    assert not working, f"{path.relative_to(ROOT)} works at import time: {'; '.join(working)}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_script_is_quick(script, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / f"{script}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage:" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & HEAVY, f"{script}.py --help imports {imported & HEAVY}: import them later"


def test_what_needs_no_torch_imports_without_it():
    modules = [path for path in FILES if room(path) in TORCH_FREE and path.stem != "__init__"]
    names = ", ".join(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules)
    code = f"import sys; sys.modules.update(torch=None, torchvision=None); import {names}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_no_file_is_too_long_to_be_read_at_once():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}


# --- Environment ---


def test_environment_yml_installs_the_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "EmotionRecML"
    plain = [part for part in environment["dependencies"] if isinstance(part, str)]
    assert {re.match(r"[\w-]+", part)[0] for part in plain} == {"python", "pip", "jupyter"}
    assert [part for part in environment["dependencies"] if part not in plain] == [{"pip": ["-r requirements.txt"]}]


def test_every_third_party_import_is_required():
    named = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    files = ("requirements.txt", "requirements-predict.txt")
    lines = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in files).splitlines()
    required = {found[0] for line in lines if (found := re.match(r"[\w-]+", line))}
    used = (
        set().union(*(imports(parse(path)) for path in FILES))
        - COMPARED
        - OPTIONAL
        - set(sys.stdlib_module_names)
        - set(FLOOR)
    )
    assert {named.get(name, name) for name in used} <= required


# --- Git ---


def tracked() -> list[Path]:
    """The files that git tracks; skips the test where this is no checkout, or nothing is committed yet."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listed.returncode or not listed.stdout:
        pytest.skip(f"git lists no files here: {listed.stderr.strip()}")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_no_image_of_fer2013_and_no_large_file_is_tracked():
    faces = [str(path) for path in tracked() if FACE_NAME.search(path.name)]
    assert not faces, f"images of FER2013 are tracked: {faces[:3]}"
    there = [path for path in tracked() if (ROOT / path).is_file()]
    large = [str(path) for path in there if (ROOT / path).stat().st_size > 11 * MEGABYTE]
    assert not large, f"above 11 MB: {large}"

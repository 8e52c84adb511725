"""The shape of the repository: who may import whom, nothing done at import, environment files, what git tracks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

# Left to right: a module imports only from its left. A new module is added here, as far left as it can stand.
ORDER = (
    "losses",
    "config",
    "utils",
    "groupings",
    "ranks",
    "plots",
    "plots_study",
    "plots_inside",
    "images",
    "tables",
    "source_layout",
    "source_csv",
    "source_zip",
    "image_folder",
    "sources",
    "ferplus",
    "cache",
    "demo_strokes",
    "demo_faces",
    "dataset",
    "augment",
    "plan",
    "feed",
    "optim",
    "blocks",
    "model",
    "val",
    "weights",
    "distill",
    "trainer",
    "train",
    "resume",
    "stages",
    "mixtures",
    "stats",
    "report_data",
    "report_confusions",
    "findings",
    "report_words",
    "report_gains",
    "report_inside",
    "report_text",
    "pages",
    "report_tables",
    "report",
)
SCRIPTS = ("interface", "test", "predict", "experiments")  # rightmost; none of them imports another
APART = ("dataset", "model")  # neither reaches the other, not even through a third
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))

# What may be called to build a constant at the top level of a module or class: any class of the same module, any
# function of these libraries except the ones that read or draw, and these few.
PURE_LIBRARIES = {"math", "np", "re", "struct"}
NOT_PURE = {"fromfile", "genfromtxt", "load", "loadtxt", "memmap", "random"}
CHEAP_CALLS = {
    *("bytes", "dict", "enumerate", "float", "frozenset", "int", "len", "list", "max", "min", "range", "set", "sorted"),
    *("str", "sum", "tuple", "zip"),
    *("TypeVar", "field", "getLogger", "knob", "Lock", "namedtuple", "partial"),
    *("astype", "encode", "format", "items", "join", "keys", "reshape", "split", "values"),
    *("Path", "resolve", "with_name"),
    *("Mouth", "Upper"),  # named tuples of demo_strokes
}
# Settings of the process that a module must make once, before any of its functions run.
SETTINGS = {
    "images": (
        "warnings.filterwarnings('ignore', module=",
        "logging.getLogger('PIL').addHandler(",
    )
}
HEAVY = {"torch", "torchvision", "matplotlib"}  # a second or more: `--help` answers without them
FACE_NAME = re.compile(r"(Training|PublicTest|PrivateTest)_\d+\.(png|jpe?g)", re.IGNORECASE)
MEGABYTE = 1_000_000


def imports(tree: ast.AST) -> set[str]:
    """The top-level names of the modules that are imported anywhere in `tree`, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0] if node.level == 0 else "a relative import")
    return found


def parse(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))


def work_at_import(tree: ast.Module, settings: tuple[str, ...] = ()) -> list[str]:
    """What in `tree` does more on import than import, define, or name a constant."""
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    classes |= {ast.unparse(n.targets[0]) for n in assigned if ast.unparse(n.value).startswith("namedtuple(")}
    return [
        f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for node in working_nodes(tree.body, CHEAP_CALLS | classes)
        if not ast.unparse(node).startswith(settings or ("no settings",))
    ]


def working_nodes(body: list[ast.stmt], cheap: set[str]) -> list[ast.AST]:
    """The statements and calls that work, in the body of a module or class."""
    found = []
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Pass():
                pass
            case ast.Expr(value=ast.Constant()):  # a docstring
                pass
            case ast.ClassDef():
                found += working_nodes(node.body, cheap)
            case ast.If(test=test) if ast.unparse(test) == "__name__ == '__main__'":
                pass
            case ast.If(test=test) if ast.unparse(test) == "TYPE_CHECKING":
                found += working_nodes(node.body + node.orelse, cheap)
            case ast.Try(handlers=handlers) if {ast.unparse(h.type or h) for h in handlers} == {"ImportError"}:
                branches = [node.body, node.orelse, node.finalbody, *(handler.body for handler in handlers)]
                found += [working for branch in branches for working in working_nodes(branch, cheap)]
            case ast.Assign(value=value) | ast.AnnAssign(value=value):
                found += [] if value is None else dear_calls(value, cheap)
            case _:
                found.append(node)
    return found


def dear_calls(value: ast.AST, cheap: set[str]) -> list[ast.AST]:
    """The calls in `value` that may not build a constant; what stands in a lambda does not run yet."""
    if isinstance(value, ast.Lambda):
        return []
    dear = [call for child in ast.iter_child_nodes(value) for call in dear_calls(child, cheap)]
    if isinstance(value, ast.Call):
        path = ast.unparse(value.func).split(".")
        pure = path[0] in PURE_LIBRARIES and not NOT_PURE & set(path)
        if not pure and path[-1] not in cheap:
            dear.append(value)
    return dear


# --- Modules ---


@pytest.mark.parametrize("module", MODULES)
def test_module_is_in_the_list(module):
    assert module in ORDER + SCRIPTS, (
        f"{module}.py is not in the list of modules: add {module!r} to ORDER (or SCRIPTS) in tests/test_layout.py, "
        f"to the right of every module that it imports"
    )


@pytest.mark.parametrize("module", [*ORDER, *SCRIPTS])
def test_listed_module_is_there(module):
    assert module in MODULES, f"{module}.py is gone: take it out of ORDER or SCRIPTS in tests/test_layout.py"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_its_left(module):
    left = set(ORDER[: ORDER.index(module)] if module in ORDER else ORDER)
    wrong = (imports(parse(module)) & {*MODULES, "a relative import"}) - left
    assert not wrong, f"{module}.py imports {', '.join(sorted(wrong))}, which does not stand to its left"


def test_dataset_and_model_never_meet():
    inner = {module: imports(parse(module)) & set(MODULES) for module in MODULES}
    for start, other in (APART, APART[::-1]):
        reached, todo = set(), [start]
        while todo:
            module = todo.pop()
            if module not in reached:
                reached.add(module)
                todo += inner.get(module, ())
        assert other not in reached, f"{start}.py reaches {other}.py by its imports"


@pytest.mark.parametrize("module", MODULES)
def test_module_does_no_work_at_import(module):
    found = work_at_import(parse(module), SETTINGS.get(module, ()))
    assert not found, (
        f"{module}.py works at import time ({'; '.join(found)}): move it into a function, "
        f"or, if it only builds a constant, add the call to CHEAP_CALLS in tests/test_layout.py"
    )


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("'''Text.'''\nimport os\nX: int = 3\nY = frozenset({X})\ndef f(): print()", 0),
        ("if __name__ == '__main__':\n    print()", 0),
        ("try:\n    import cv2\nexcept ImportError:\n    cv2 = None", 0),
        ("@dataclass(frozen=True)\nclass A:\n    x: list = field(default_factory=list)\n    f = lambda: print()", 0),
        ("class A(NamedTuple):\n    x: int\nX = {1: A(x=1)}\nY = np.cos(np.arange(9)).reshape(3, 3)", 0),
        ("A = namedtuple('A', ['x'])\nX = A(1)", 0),
        ("X = open('file')", 1),
        ("X = np.random.default_rng()", 1),
        ("X = [torch.load(name) for name in NAMES]", 1),
        ("print()", 1),
        ("for i in range(3):\n    pass", 1),
        ("class A:\n    x = torch.load('file')", 1),
        ("if X:\n    import os", 1),
        ("try:\n    import cv2\nexcept Exception:\n    cv2 = None", 1),
    ],
)
def test_the_check_for_work_at_import_sees_it(code, count):
    assert len(work_at_import(ast.parse(code))) == count


@pytest.mark.parametrize(("module", "others"), [("config", {"losses"}), ("losses", set())])
def test_config_and_losses_import_the_standard_library_only(module, others):
    foreign = imports(parse(module)) - (set(sys.stdlib_module_names) - set(MODULES)) - others
    assert not foreign, f"{module}.py imports {', '.join(sorted(foreign))}: it is to be instant"


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name in MODULES])
def test_help_of_a_script_is_quick(script, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / f"{script}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage:" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & HEAVY, f"{script}.py --help imports {imported & HEAVY}: import them inside functions"


# --- Environment ---


def test_environment_yml_installs_the_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "EmotionRecML"
    plain = [part for part in environment["dependencies"] if isinstance(part, str)]
    assert {re.match(r"[\w-]+", part)[0] for part in plain} == {"python", "pip", "jupyter"}
    assert [part for part in environment["dependencies"] if part not in plain] == [{"pip": ["-r requirements.txt"]}]


def test_every_third_party_import_is_required():
    named = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    required = {re.match(r"[\w-]+", line)[0] for line in lines}
    used = set().union(*(imports(parse(module)) for module in MODULES)) - set(sys.stdlib_module_names) - set(MODULES)
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


def test_no_image_of_fer2013_is_tracked():
    faces = [str(path) for path in tracked() if FACE_NAME.search(path.name)]
    assert not faces, f"images of FER2013 are tracked: {faces[:3]}"


def test_no_large_file_is_tracked():
    there = [path for path in tracked() if (ROOT / path).is_file()]
    large = [str(path) for path in there if (ROOT / path).stat().st_size > 11 * MEGABYTE]
    assert not large, f"above 11 MB: {large}"

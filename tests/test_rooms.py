"""The house rules, read off the source: who imports whom, what is declared, what is never done."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ("dino_core", "apps", "scripts")

FLOORS = {
    1: {
        "errors",
        "rng",
        "files",
        "distributed",
        "memory",
        "processes",
        "runs",
        "launcher",
        "serving",
        "usage",
    },
    2: {"data", "augment", "models", "measures"},
    3: {"lenses"},
    4: {"training", "gallery", "views"},
    5: {"evaluation", "benchmarks", "api", "emergence"},
    6: {"catalog"},
    7: {"apps", "scripts"},
}
GROUND, TOP = min(FLOORS), max(FLOORS)
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

# Distributions whose import name differs from their own.
DISTRIBUTION_OF = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top or inside a function, by its absolute name."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from dino_core import runs` imports dino_core.runs
            is_package = (ROOT / module.replace(".", "/") / "__init__.py").is_file()
            yield from (f"{module}.{alias.name}" if is_package else module for alias in node.names)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "dino_core" else parts[0]


def imported_room(module: str) -> str | None:
    first, _, rest = module.partition(".")
    if first in ("apps", "scripts"):
        return first
    name = rest.partition(".")[0]
    return name if first == "dino_core" and name in FLOOR_OF else None


def may_import(room: str, other: str) -> bool:
    mine, theirs = FLOOR_OF[room], FLOOR_OF[other]
    if room == other or theirs < mine:
        return True
    return mine == theirs == GROUND  # its modules build on each other


def test_every_room_has_a_floor():
    found = {
        path.stem for path in (ROOT / "dino_core").iterdir() if not path.name.startswith(("_", "."))
    }
    assert found <= FLOOR_OF.keys(), "a new room: say here, and in the design, on which floor it is"


@pytest.mark.parametrize("path", sources(*HOUSE), ids=name_of)
def test_imports_only_run_downwards(path):
    room = room_of(path)
    if room == "__init__":
        assert not list(imports_of(path)), "importing dino_core imports nothing"
        return
    wrong = [
        module
        for module in imports_of(path)
        if (other := imported_room(module)) and not may_import(room, other)
    ]
    assert not wrong, f"{room} (floor {FLOOR_OF[room]}) must not import {wrong}"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("training", "dino_core.models.head", True),
        ("gallery", "dino_core.training", False),
        ("models", "dino_core.data.decode", False),
        ("data", "dino_core.models", False),
        ("runs", "dino_core.files", True),
        ("files", "dino_core.data", False),
        ("lenses", "apps.lens", False),
        ("scripts", "apps.lens", False),
        ("apps", "dino_core.catalog", True),
    ],
)
def test_the_rule_itself(importer, imported, allowed):
    room = imported_room(imported)
    assert room is not None
    assert may_import(importer, room) is allowed


def modules_after(statement: str) -> set[str]:
    """The top-level modules that are loaded after a fresh Python ran `statement`."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "import dino_core, dino_core.catalog, dino_core.runs, dino_core.serving, "
            "dino_core.launcher, dino_core.gallery.listing",
            {"torch", "timm", "faiss", "umap", "gradio", "streamlit"},
        ),
        ("import dino_core.training", {"faiss", "umap", "gradio", "streamlit"}),
    ],
)
def test_a_light_import_stays_light(statement, heavy):
    assert not modules_after(statement) & heavy


def test_every_third_party_import_is_declared():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = config["project"]["optional-dependencies"]
    optional = [line for name, lines in extras.items() if name != "test" for line in lines]
    declared = {
        re.split(r"[<>=!~\s\[;]", line)[0].lower()
        for line in (ROOT / "requirements.txt").read_text().splitlines() + optional
        if line.strip() and not line.startswith("#")
    }
    local = {*HOUSE, *(path.stem for path in (*ROOT.glob("apps/*"), *ROOT.glob("scripts/*")))}
    imported = {
        name
        for path in sources(*HOUSE)
        for module in imports_of(path)
        if (name := module.partition(".")[0]) not in sys.stdlib_module_names | local
    }
    undeclared = {name for name in imported if DISTRIBUTION_OF.get(name, name) not in declared}
    assert not undeclared, "requirements.txt, or an extra, is where dependencies are listed"


def test_requirements_hold_no_option_lines():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if line.startswith("-")], "they break pyproject.toml"
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_whatever_is_not_python_is_declared_as_package_data():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = config["tool"]["setuptools"]["package-data"]
    patterns = [
        f"{'*' if package == '*' else package.replace('.', '/')}/{pattern}"
        for package, globs in declared.items()
        for pattern in globs
    ]
    listed = subprocess.run(
        ["git", "ls-files", "dino_core"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    data = [name for name in listed if not name.endswith(".py")]
    missing = [name for name in data if not any(fnmatch(name, glob) for glob in patterns)]
    assert not missing, "a wheel would lack these"


def dotted(node: ast.expr) -> str:
    """`torch.load` for the expression torch.load, `` for anything but names and attributes."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unpickles(call: ast.Call) -> bool:
    name = dotted(call.func)
    given = {
        keyword.arg: getattr(keyword.value, "value", None)
        for keyword in call.keywords
        if keyword.arg
    }
    if name.endswith("torch.load"):
        return given.get("weights_only") is not True
    if given.get("allow_pickle"):
        return True
    return name.endswith(
        ("pickle.load", "pickle.loads", "Unpickler", "joblib.load", "read_pickle", "torch.save")
    )


WRITES_PTH = "dino_core/models/export/to_dino.py"  # for other programs, which read nothing else


@pytest.mark.parametrize("path", sources(*HOUSE), ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path):
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    if name_of(path) == WRITES_PTH:
        calls = [call for call in calls if dotted(call.func) != "torch.save"]
    lines = [
        call.lineno for call in calls if unpickles(call) or dotted(call.func) in ("eval", "exec")
    ]
    assert not lines


@pytest.mark.parametrize(
    ("expression", "bad"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("pickle.loads(data)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("json.loads(text)", False),
    ],
)
def test_what_counts_as_unpickling(expression, bad):
    call = ast.parse(expression, mode="eval").body
    assert isinstance(call, ast.Call)
    assert unpickles(call) is bad


def texts() -> list[Path]:
    kinds = {".py", ".js", ".css", ".html", ".md", ".toml", ".txt"}
    folders = [ROOT / folder for folder in (*HOUSE, "tests", "docs")]
    inside = [path for folder in folders for path in folder.rglob("*") if path.suffix in kinds]
    return sorted(inside) + [path for path in ROOT.iterdir() if path.suffix in kinds]


def test_no_path_of_somebodys_machine():
    private = re.compile(r"(?<![\w.:/*-])/(?:home/(?!me/)|root/|Users/|mnt/|work/)\w+")
    assert not [name_of(path) for path in texts() if private.search(path.read_text("utf-8"))]


def test_no_address_abroad_in_what_a_browser_gets():
    """Apps fetch nothing from elsewhere: no CDN, no fonts, no telemetry."""
    served = [path for path in texts() if path.suffix in {".js", ".css", ".html"}]
    namespace = "http://www.w3.org/"  # a name, never fetched
    abroad = re.compile(rf"(?:https?:)?//(?!{re.escape(namespace)[7:]})[\w-]+\.[\w.-]+/")
    found = {name_of(path): abroad.findall(path.read_text("utf-8")) for path in served}
    assert not {path: addresses for path, addresses in found.items() if addresses}

"""The house rule: which room may import which (design: the house), function-local imports forbidden."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import transpike

ROOT = Path(transpike.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

# who may import what; a name with a dot is one file, else it is a room (a folder or a file of its own)
ALLOWED = {
    "errors": set(),
    "graph": {"graph", "errors"},
    "spiking": {"spiking", "graph", "errors"},
    "engines": {"engines", "spiking", "graph", "errors"},
    "methods": {"engines", "spiking", "graph", "errors", "methods"}
    | {
        f"methods._{name}"
        for name in ("calibration", "coarsening", "grid", "observe", "pareto", "sender", "sensitivity", "statistics", "weights")
    },
    "network": {"engines", "spiking", "graph", "errors"},
    "artifact": {"network", "spiking", "graph", "errors"},
    "measure": {"measure", "network", "engines", "spiking", "graph", "errors"},
    "tasks": {"tasks", "measure", "network", "engines", "spiking", "graph", "errors"},
    "export": {"export", "network", "engines", "spiking", "graph", "errors"},
    "training": {"engines", "graph", "spiking", "errors"},
    "convert": {"network", "graph", "spiking", "methods", "errors"},
}
FREE = {"__init__", "cli", "console", "specs", "demo"}  # the shell around the rooms: may import anything, is imported by no room


def _name(file: str) -> str:
    """``graph/ir.py`` as ``graph.ir``, a package's ``__init__`` as the package."""
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = {_name(file) for file in FILES}


def _own_imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and module, without the leading ``transpike.``, of every import of our own."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            inside = module.removeprefix("transpike").lstrip(".")
            submodules = [a.name for a in node.names if f"{inside}.{a.name}".lstrip(".") in MODULES]
            found += [(node.lineno, f"{module}.{name}") for name in submodules]
            if len(submodules) < len(node.names):
                found.append((node.lineno, module))
    return [(line, m.removeprefix("transpike").lstrip(".")) for line, m in found if m.split(".")[0] == "transpike"]


def _may(file: str, module: str) -> bool:
    room, target = _name(file).split(".")[0], module.split(".")[0]
    if room in FREE or room.startswith("demo"):
        return True
    if target in FREE or target.startswith("demo") or not module:
        return False
    if file == "methods/auto.py" and target == "methods":  # a choice among the methods
        return True
    if room == "methods" and target == "methods":  # never another method, unless as the protocol
        return module in ALLOWED["methods"]
    if "._" in module and target != room:  # a file with an underscore belongs to its room
        return False
    return target in ALLOWED[room]


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_room_may(file):
    tree = ast.parse((ROOT / file).read_text())
    wrong = [f"line {line}: {module}" for line, module in _own_imports(tree) if not _may(file, module)]
    assert wrong == []


@pytest.mark.parametrize("file", FILES)
def test_no_function_imports_our_own_modules(file):
    functions = [
        n for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [f"line {line}: {module}" for function in functions for line, module in _own_imports(function)] == []


def test_the_rule_would_notice_a_breach():
    assert not _may("graph/ir.py", "spiking.plan") and not _may("network.py", "artifact")
    assert not _may("methods/ltb.py", "methods.mmse") and _may("methods/ltb.py", "methods._observe")
    assert not _may("measure/energy.py", "methods._observe") and _may("measure/energy.py", "measure._count")
    tree = ast.parse("def f():\n    from transpike.graph import ir, serial\n    import transpike.network")
    assert [m for _, m in _own_imports(tree)] == ["graph.ir", "graph.serial", "network"]


def test_every_room_is_in_the_table():
    rooms = {_name(file).split(".")[0] for file in FILES} - {"transpike"}
    assert {room for room in rooms if room not in FREE and not room.startswith("demo")} <= set(ALLOWED)


def test_only_capture_knows_torch_export():
    knowing = {file for file in FILES if "torch.export" in _code(file)}
    assert knowing == {"graph/capture.py", "specs.py"}  # specs reads .pt2 files


def _code(file: str) -> str:
    """The names a file imports and uses, without its comments and docstrings."""
    tree = ast.parse((ROOT / file).read_text())
    used = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom, ast.Attribute))]
    return "\n".join(used).replace("from torch import export", "torch.export")


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_longer_than_350_lines(file):
    assert len((ROOT / file).read_text().splitlines()) <= 350

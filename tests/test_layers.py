"""Who may import whom: the table of CONTRIBUTING.md, read from the code itself."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "transpike"

ALLOWED = {
    "errors": set(),
    "graph": {"errors"},
    "spiking": {"graph", "errors"},
    "engines": {"spiking", "graph", "errors"},
    "methods": {"engines", "spiking", "graph", "errors"},
    "network": {"engines", "spiking", "graph", "errors"},
    "artifact": {"network", "spiking", "graph", "errors"},
    "measure": {"network", "engines", "spiking", "graph", "errors"},
    "tasks": {"measure", "network", "errors"},
    "convert": {"network", "graph", "spiking", "methods", "errors"},
    "specs": {"methods", "errors"},
    "demo": {"convert", "measure", "methods", "tasks", "spiking", "errors"},
}
FREE = {"cli", "__init__"}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Our own modules that are imported, as dotted names without the package."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transpike":
            module = (node.module or "").removeprefix("transpike").removeprefix(".")
            found += [module] if module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("transpike.") for alias in node.names if alias.name.startswith("transpike")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    own = room(path)
    if own in FREE:
        return
    for module in imports(ast.parse(path.read_text())):
        other = module.split(".")[0]
        assert other == own or other in ALLOWED[own], f"{own} may not import {module}"


@pytest.mark.parametrize("path", sorted((SOURCE / "methods").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_no_method_imports_another(path: Path) -> None:
    for module in imports(ast.parse(path.read_text())):
        if module.startswith("methods."):
            assert module.split(".")[1].startswith("_"), f"{path.stem} imports {module}"


def test_convert_knows_methods_by_their_protocol_only() -> None:
    tree = ast.parse((SOURCE / "convert.py").read_text())
    assert [m for m in imports(tree) if m.startswith("methods")] == ["methods"]


def test_nobody_imports_the_command_line() -> None:
    for path in FILES:
        assert "cli" not in imports(ast.parse(path.read_text())), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_own_modules_are_imported_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    inside = [node for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.ClassDef)) for node in f.body]
    assert not [module for node in inside for module in imports(node)]


def test_only_tasks_and_specs_import_torchvision() -> None:
    for path in FILES:
        names = [n.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for n in node.names]
        froms = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if any(name.split(".")[0] == "torchvision" for name in names + froms):
            assert room(path) in ("tasks", "specs"), path


def test_no_file_is_longer_than_350_lines() -> None:
    assert {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 350} == {}

"""The public surface: few names, sorted, each with something to say."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import transpike

MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(transpike.__path__, "transpike.")
    if not info.name.rpartition(".")[2].startswith("_")
    and (importlib.util.find_spec("triton") or not info.name.endswith(".triton_kernels"))
]


def test_there_are_at_most_fourteen_public_names_sorted():
    assert transpike.__all__ == sorted(transpike.__all__)
    assert len(transpike.__all__) <= 14 and len(set(transpike.__all__)) == len(transpike.__all__)


@pytest.mark.parametrize("name", transpike.__all__)
def test_a_public_name_exists_and_is_documented(name):
    assert (inspect.getdoc(getattr(transpike, name)) or "").strip()


def test_nothing_public_is_left_out_of_the_list():
    found = {n for n, value in vars(transpike).items() if not n.startswith("_") and not isinstance(value, ModuleType)}
    assert found == set(transpike.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_module_lists_its_names_sorted_and_each_is_there(module):
    names = getattr(module, "__all__", [])
    assert names == sorted(names)
    assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_module_and_public_function_class_and_method_has_a_docstring(module):
    silent = []
    if not inspect.getdoc(module) and Path(module.__file__).read_text().strip():
        silent.append(module.__name__)
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        own = value.__doc__ or ""
        if not own.strip() or own.startswith(f"{name}("):  # the signature that dataclasses put there
            silent.append(name)
        silent += [f"{name}.{key}" for key, method in vars(value).items() if _silent(key, method)] if inspect.isclass(value) else []
    assert silent == []


def _silent(key: str, method: object) -> bool:
    """A public method of more than a line without a docstring; what overrides a method inherits its docstring."""
    function = getattr(method, "__func__", method)
    if key.startswith("_") or not inspect.isfunction(function) or function.__doc__:
        return False
    return len(inspect.getsource(function).splitlines()) > 4

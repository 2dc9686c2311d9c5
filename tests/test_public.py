"""The public face: few names, sorted, documented."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import transpike

MODULES = [m.name for m in pkgutil.walk_packages(transpike.__path__, "transpike.") if not m.name.endswith("__main__")]


def test_the_public_names_are_sorted_and_few() -> None:
    assert list(transpike.__all__) == sorted(transpike.__all__)
    assert len(transpike.__all__) <= 14
    assert {"capture", "calibrate", "build", "convert", "simulate", "evaluate", "energy", "inspect", "load"} <= set(
        transpike.__all__
    )


@pytest.mark.parametrize("name", transpike.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(transpike, name)
    assert len((inspect.getdoc(value) or "").strip()) > 20


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for_and_lists_its_names(name: str) -> None:
    module = importlib.import_module(name)
    source = Path(str(module.__file__)).read_text()
    if not source:
        return  # a package without names of its own
    assert (module.__doc__ or "").strip(), name
    if ast.parse(source).body[1:] and not name.endswith("__init__"):
        names = getattr(module, "__all__", None)
        assert names is not None, name
        assert list(names) == sorted(names)
        for public in names:
            value = getattr(module, public)
            if inspect.isfunction(value) or inspect.isclass(value):
                assert (inspect.getdoc(value) or "").strip(), f"{name}.{public}"


def test_there_is_an_error_for_each_kind_of_mistake() -> None:
    from transpike import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), transpike.TranspikeError)

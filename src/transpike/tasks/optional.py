"""Packages that one task needs and most users do not: imported when it is measured."""

from __future__ import annotations

import importlib
from types import ModuleType

from transpike.errors import DataError

__all__ = ["needed"]


def needed(module: str, what: str, *, extra: str = "tasks") -> ModuleType:
    """The module, imported now; ``extra`` is what installs it.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{what} needs {package}, which is not installed: pip install 'transpike[{extra}]'") from error

"""How the numbers are chosen: one method a file, found by a scan of this folder.

A method is a frozen dataclass whose fields are its settings, with ``fit(graph, batches, plan=None) -> Plan``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any, Protocol

from transpike.graph.ir import Graph
from transpike.spiking.plan import Plan

__all__ = ["Method", "available"]


class Method(Protocol):
    """Looks at a graph and calibration batches, returns a plan; one that refines another takes its plan."""

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan: ...


def available() -> dict[str, type[Any]]:
    """Every method by its class name."""
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
        found.update((kind.__name__, kind) for kind in own if _is_method(kind))
    return dict(sorted(found.items()))


def _is_method(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) and callable(getattr(kind, "fit", None))

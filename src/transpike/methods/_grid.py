"""The grid search for thresholds of least quantisation error, which several methods start from (see `mmse`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transpike.engines.kernels import threads_for
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import collapse, watch
from transpike.methods._statistics import quantisation_errors
from transpike.spiking.plan import Granularity

__all__ = ["GridSearch", "largest_activations"]

_GRID = 1.0 - 0.01 * np.arange(95)


def largest_activations(graph: Graph, batches: Iterable[Any], granularity: Granularity) -> dict[str, Any]:
    """By site, the largest activation of every group that shares a threshold."""
    largest: dict[str, Any] = {}

    def look(site: Site, a: torch.Tensor) -> None:
        here = _array(collapse(site, a, granularity)).max(axis=(0, 2))
        largest[site.name] = np.maximum(largest.get(site.name, 0), here)

    watch(graph, batches, look)
    return largest


@dataclass(frozen=True)
class GridSearch:
    """``argmin over V of E (Q(x; V) - x)^2``, ``Q(x; V) = V / T floor(clip(x / V, 0, B) T + shift)``.

    Args:
        steps: T. shift: what is added before rounding down, in levels. granularity: what shares a threshold.
    """

    steps: int
    shift: float
    granularity: Granularity

    @classmethod
    def of(cls, method: Any) -> GridSearch:
        """The search for ``method.steps``; with no ``method.shift`` signed neurons are taken to round, others to round down.

        Raises:
            PlanError: ``steps`` or ``shift`` is out of range.
        """
        shift = (0.5 if method.signed else 0.0) if method.shift is None else method.shift
        if method.steps < 1 or not 0 <= shift < 1:
            given = f"{type(method).__name__}(steps={method.steps}, shift={shift})"
            raise PlanError(f"{given}: steps is at least 1, shift from 0 to below 1")
        return cls(method.steps, shift, method.granularity)

    def best(
        self, graph: Graph, batches: Batches, largest: Mapping[str, Any], caps: Mapping[str, int | None]
    ) -> dict[str, torch.Tensor]:
        """By site, the best V of every group among ``{1.00, 0.99, ..., 0.06} largest / cap``, in one pass.

        Args:
            largest: see `largest_activations`. caps: by site, most spikes B in one step (None: no limit, grid of 1).
        """
        errors: dict[str, Any] = {}

        def add(site: Site, a: torch.Tensor) -> None:
            x = _array(collapse(site, a, self.granularity))
            cap = caps[site.name]
            grid = _candidates(largest[site.name], cap)
            highest = np.float32(np.inf if cap is None else cap)
            with threads_for(x.size * len(_GRID)):
                here = quantisation_errors(x, grid, np.float32(self.steps), highest, np.float32(self.shift))
            errors[site.name] = errors.get(site.name, 0) + here

        watch(graph, batches, add)
        thresholds = {}
        for name, error in errors.items():
            grid = _candidates(largest[name], caps[name])
            best = np.take_along_axis(grid, error.argmin(1)[:, None], 1)[:, 0]  # the first of equals: the larger V
            thresholds[name] = torch.from_numpy(best)
        return thresholds


def _array(x: torch.Tensor) -> Any:
    return x.to("cpu", torch.float32).contiguous().numpy()


def _candidates(largest: Any, cap: int | None) -> Any:
    """V for every group. groups x candidates"""
    return (largest[:, None] * _GRID[None] / (cap or 1)).astype(np.float32)

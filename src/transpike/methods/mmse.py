"""MMSE: the threshold that quantises the activations with the least squared error.

    Q(x; V) = V / T floor(clip(x / V, 0, B) T + shift)
    theta = argmin over V of E (Q(x; V) - x)^2,  V in {1.00, 0.99, ..., 0.06} max(x) / B

T steps and at most B spikes a step give B T levels of V / T, so the best V trades clipping against resolution and
falls with T. With bursts (B > 1) the grid shrinks by B: the neuron's ceiling is B V.

Reference: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration",
ICML 2021, arXiv:2106.06984; with bursts Wang et al., AAAI 2025, arXiv:2412.16219.
Departures: one error over all calibration data on one grid (two passes), not a moving average of per-batch optima;
per channel for every layer, linear ones too; ties go to the larger V as there. `shift` is 0 there although the
simulated neuron starts at half a threshold; 0.5 fits what is simulated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transpike.engines.kernels import threads_for
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_neurons, collapse, to_plan, watch
from transpike.methods._statistics import quantisation_errors
from transpike.spiking.plan import Granularity, Plan

__all__ = ["MMSE"]

_GRID = 1.0 - 0.01 * np.arange(95)


@dataclass(frozen=True)
class MMSE:
    """Thresholds of least quantisation error at ``steps`` steps.

    Args:
        steps: the number of time steps T that the thresholds are made for.
        shift: what the quantiser adds before rounding down, in levels: 0 as published, 0.5 rounds to nearest.
        granularity: what shares a threshold.
        v_init: initial membrane potential as a fraction of the threshold.
        cap: most spikes B of a neuron in one step (None: no limit; the grid is that of cap 1).
        signed: may neurons take spikes back?
    """

    steps: int = 32
    shift: float = 0.0
    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    cap: int | None = 1
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Watch the ANN on ``batches`` twice (maximum, then errors) and return thresholds for every site.

        Raises:
            PlanError: ``steps``, ``shift``, ``v_init`` or ``cap`` is out of range.
        """
        if self.steps < 1 or not 0 <= self.shift < 1:
            raise PlanError(f"MMSE(steps={self.steps}, shift={self.shift}): steps is at least 1, shift from 0 to below 1")
        check_neurons(self)
        batches = Batches(graph, batches)
        largest: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        cap = np.float32(np.inf if self.cap is None else self.cap)

        def find_largest(site: Site, a: torch.Tensor) -> None:
            here = _array(collapse(site, a, self.granularity)).max(axis=(0, 2))
            largest[site.name] = np.maximum(largest.get(site.name, 0), here)

        def add_errors(site: Site, a: torch.Tensor) -> None:
            x = _array(collapse(site, a, self.granularity))
            grid = _candidates(largest[site.name], self.cap)
            with threads_for(x.size * len(_GRID)):
                here = quantisation_errors(x, grid, np.float32(self.steps), cap, np.float32(self.shift))
            errors[site.name] = errors.get(site.name, 0) + here

        watch(graph, batches, find_largest)
        samples = watch(graph, batches, add_errors)
        thresholds = {}
        for name, error in errors.items():
            grid = _candidates(largest[name], self.cap)
            best = np.take_along_axis(grid, error.argmin(1)[:, None], 1)[:, 0]  # the first of equals: the larger V
            thresholds[name] = torch.from_numpy(best)
        return to_plan(self, graph, thresholds, samples)


def _array(x: torch.Tensor) -> Any:
    return x.to("cpu", torch.float32).contiguous().numpy()


def _candidates(largest: Any, cap: int | None) -> Any:
    """V for every group. groups x candidates"""
    return (largest[:, None] * _GRID[None] / (cap or 1)).astype(np.float32)

"""MMSE: the threshold that quantises the activations with the least squared error.

    Q(x; V) = V / T floor(clip(x / V, 0, B) T + shift)
    theta = argmin over V of E (Q(x; V) - x)^2,  V in {1.00, 0.99, ..., 0.06} max(x) / B

T steps and at most B spikes a step give B T levels of V / T, so the best V trades clipping against resolution and
falls with T. With bursts (B > 1) the grid shrinks by B: the neuron's ceiling is B V.

Reference: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration",
ICML 2021, arXiv:2106.06984; with bursts Wang et al., AAAI 2025, arXiv:2412.16219.
Departures: one error over all calibration data on one grid (two passes), not a moving average of per-batch optima;
per channel for every layer, linear ones too; ties go to the larger V as there. `shift` is 0 there. Neurons that start
at half a threshold and take spikes back end at the nearest level, so 0.5 is the default for signed ones. Others err by
more than the quantiser, in proportion to the threshold, when charge comes unevenly: the lower thresholds of 0 serve
them better.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transpike.graph.batches import Batches
from transpike.graph.ir import Graph
from transpike.methods._grid import GridSearch, largest_activations
from transpike.methods._observe import check_neurons, to_plan
from transpike.spiking.plan import Granularity, Plan

__all__ = ["MMSE"]


@dataclass(frozen=True)
class MMSE:
    """Thresholds of least quantisation error at ``steps`` steps.

    Args:
        steps: the number of time steps T that the thresholds are made for.
        shift: what the quantiser adds before rounding down, in levels: 0 as published, 0.5 rounds to nearest (None: 0.5
            for signed neurons, 0 for others).
        granularity: what shares a threshold.
        v_init: initial membrane potential as a fraction of the threshold.
        cap: most spikes B of a neuron in one step (None: no limit; the grid is that of cap 1).
        signed: may neurons take spikes back?
    """

    steps: int = 32
    shift: float | None = None
    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    cap: int | None = 1
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Watch the ANN on ``batches`` twice (maximum, then errors) and return thresholds for every site.

        Raises:
            PlanError: ``steps``, ``shift``, ``v_init`` or ``cap`` is out of range.
        """
        search = GridSearch.of(self)
        check_neurons(self)
        batches = Batches(graph, batches)
        largest = largest_activations(graph, batches, self.granularity)
        caps = dict.fromkeys(largest, self.cap)
        thresholds = search.best(graph, batches, largest, caps)
        return to_plan(self, graph, thresholds, batches.samples)

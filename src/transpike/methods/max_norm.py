"""Max norm: the threshold is the largest activation, so nothing is clipped.

    theta = max over the calibration data of ReLU(z)

The oldest rule, and the one whose error falls like 1/T: at many steps it reaches the ANN, at few steps its
resolution theta/T is coarse because outliers set theta.

Reference: Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold
balancing", IJCNN 2015, doi:10.1109/IJCNN.2015.7280696.
Departures: per channel instead of per layer; a true maximum, not a moving average of batch maxima.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_neurons, reduced_axes, to_plan, watch
from transpike.spiking.plan import Granularity, Plan

__all__ = ["MaxNorm"]


@dataclass(frozen=True)
class MaxNorm:
    """Thresholds at the largest activation.

    Args:
        granularity: what shares a threshold.
        v_init: initial membrane potential as a fraction of the threshold; 0.5 rounds instead of cutting off.
        cap: most spikes of a neuron in one step (None: no limit).
        signed: may neurons take spikes back?
    """

    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    cap: int | None = 1
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Watch the ANN on ``batches`` and return thresholds for every site.

        Raises:
            PlanError: ``v_init`` or ``cap`` is out of range.
        """
        check_neurons(self)
        largest: dict[str, torch.Tensor] = {}

        def look(site: Site, a: torch.Tensor) -> None:
            here = a.amax(reduced_axes(site, self.granularity))
            largest[site.name] = torch.maximum(largest[site.name], here) if site.name in largest else here

        samples = watch(graph, batches, look)
        return to_plan(self, graph, largest, samples)

"""Robust norm: the threshold is a high percentile of the activations, so outliers do not set the resolution.

    theta = q-th percentile over the calibration data of ReLU(z), zeros included

Reference: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for
image classification", Front. Neurosci. 2017, doi:10.3389/fnins.2017.00682 (q = 99.9).
Departures: per channel; a streaming histogram over the bits of the floats (128 bins per factor of two, linear inside
a bin, so within 0.8 % of the exact percentile) instead of a sort: any number of activations, any order of batches,
same result. A channel that is active less often than 1 - q keeps its maximum instead of a threshold of 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transpike.errors import PlanError
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_neurons, collapse, to_plan, watch
from transpike.methods._statistics import histogram
from transpike.spiking.plan import Granularity, Plan

__all__ = ["Percentile"]

_SHIFT = 16  # keeps 7 of the 23 bits of a float32's fraction: 128 bins per factor of two
_LOW, _HIGH = 2.0**-20, 2.0**20  # the first and last bin hold what lies beyond
_BASE = (int(np.float32(_LOW).view(np.int32)) >> _SHIFT) - 1  # bin 0 holds zeros, bin 1 starts at _LOW
_BINS = (int(np.float32(_HIGH).view(np.int32)) >> _SHIFT) - _BASE


@dataclass(frozen=True)
class Percentile:
    """Thresholds at the ``q``-th percentile of the activations.

    Args:
        q: per cent, above 0 and at most 100.
        granularity: what shares a threshold; every group takes 20 kB while fitting.
        v_init: initial membrane potential as a fraction of the threshold.
        cap: most spikes of a neuron in one step (None: no limit).
        signed: may neurons take spikes back?
    """

    q: float = 99.9
    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    cap: int | None = 1
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Watch the ANN on ``batches`` and return thresholds for every site.

        Raises:
            PlanError: ``q`` is not a percentage, or ``v_init`` or ``cap`` is out of range.
        """
        if not 0 < self.q <= 100:
            raise PlanError(f"q is {self.q}: a percentage, above 0 and at most 100")
        check_neurons(self)
        counts: dict[str, Any] = {}
        largest: dict[str, torch.Tensor] = {}

        def look(site: Site, a: torch.Tensor) -> None:
            x = collapse(site, a, self.granularity).to("cpu", torch.float32).contiguous()
            if site.name not in counts:
                wide = self.granularity is Granularity.LAYER  # whose single group may see more than 2**32 activations
                counts[site.name] = np.zeros((x.shape[1], _BINS), np.int64 if wide else np.uint32)
                largest[site.name] = torch.zeros(x.shape[1])
            histogram(x.numpy().view(np.int32), counts[site.name], _SHIFT, _BASE)
            largest[site.name] = torch.maximum(largest[site.name], x.amax((0, 2)))

        samples = watch(graph, batches, look)
        thresholds = {name: _quantile(counts[name], self.q / 100, largest[name]) for name in counts}
        return to_plan(self, graph, thresholds, samples)


def _quantile(counts: Any, q: float, largest: torch.Tensor) -> torch.Tensor:
    """The value below which a share ``q`` of each row lies, linear inside its bin."""
    edges = ((np.arange(_BINS + 1, dtype=np.int64) + _BASE) << _SHIFT).astype(np.int32).view(np.float32)
    edges[0], edges[-1] = 0.0, np.inf
    total = counts.sum(1, keepdims=True)
    below = counts.cumsum(1)
    bin_of = (below < q * total).sum(1)
    rows = np.arange(len(counts))
    before = np.where(bin_of > 0, below[rows, bin_of - 1], 0)
    share = (q * total[:, 0] - before) / np.maximum(counts[rows, bin_of], 1)
    value = edges[bin_of] + np.clip(share, 0, 1) * (edges[bin_of + 1] - edges[bin_of])
    value = np.where(bin_of == 0, largest.numpy(), np.minimum(value, largest.numpy()))
    return torch.from_numpy(value.astype(np.float32))

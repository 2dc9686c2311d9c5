"""Spike compression: raise thresholds where the read-out feels it least, so that fewer spikes carry the same averages.

    theta^l <- rho^l theta^l,   minimise sum_l E_l(rho^l)   subject to   sum_l S_l(rho^l) <= tolerance sum_l S_l(1)

A threshold rho times higher sends about 1 / rho as many spikes, each worth rho times more: the mean stays, the
resolution falls. S_l(rho) is the symmetric KL divergence between the ANN's and the read-out's softmax with only layer l
scaled, E_l(rho) the spikes of that layer. Since every layer is measured in the same network, sum_l S_l(1) is L times the
divergence D of the plan as given, and a tolerance of 1 + x allows for a predicted divergence of (1 + x L) D.

Refines any plan: chain it behind another method; bias calibration may follow.

Reference: Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural networks", AAAI 2025,
arXiv:2412.16219 (there: sensitivity spike compression).
Departures: that the S_l add up is an assumption, so the compressed network as a whole is simulated, and where its
divergence exceeds `check` times D a choice with more spikes is taken from the same Pareto front, by bisection (`check`
None: the first choice, as published). Neurons of a clipped rectifier are not scaled beyond the clip. Initial potential
and worth of a spike scale with the threshold, `current` stays: it is charge. Plain samples instead of an augmented
batch. Networks without one logits tensor: see `_sensitivity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.errors import PlanError
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_refines, refined
from transpike.methods._pareto import Front, pareto_front
from transpike.methods._sensitivity import Bench, Measured
from transpike.spiking.plan import Plan, SiteParams, expand

__all__ = ["SpikeCompression", "scaled"]

_TRIALS = 10  # simulations that look for the furthest choice


@dataclass(frozen=True)
class SpikeCompression:
    """A plan's thresholds, raised site by site.

    Args:
        steps: the number of time steps T at which sensitivity is measured.
        tolerance: how large the sum of sensitivities may become, as a multiple of that without scaling.
        check: how large the measured divergence of the compressed network may be, as a multiple of that of the plan
            given (None: it is not checked).
        largest: the highest ratio rho.
        increment: between one ratio and the next, from 1 on.
        samples: how many calibration samples measure.
    """

    order_dependent: ClassVar[bool] = True  # the first samples measure
    refines: ClassVar[bool] = True  # needs a plan

    steps: int = 8
    tolerance: float = 1.0
    check: float | None = 1.5
    largest: float = 10.0
    increment: float = 0.5
    samples: int = 100

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Measure every ratio at every site of ``plan``, choose, and return the plan with scaled thresholds.

        Raises:
            PlanError: there is no plan, it does not fit, a setting is out of range, or no choice keeps to ``tolerance``.
        """
        self._check_settings()
        plan = check_refines(self, graph, plan)
        bench = Bench(graph, batches, self.samples, self.steps)
        before = bench.measure(plan)
        options = {
            site.name: [plan.sites[site.name], *(scaled(site, plan.sites[site.name], rho) for rho in self.ratios[1:])]
            for site in graph.sites
        }
        bound = self.tolerance * len(options) * before.distance
        distances, spikes = bench.table(plan, options, before, limit=bound)
        front = pareto_front(distances, spikes, bound)
        if not len(front):
            least = sum(min(row) for row in distances) / (len(options) * before.distance)
            raise PlanError(
                f"SpikeCompression(tolerance={self.tolerance}): no choice of ratios keeps the summed sensitivity of {graph.name} "
                f"so low; the smallest feasible tolerance is {math.ceil(least * 1e4) / 1e4:.4f}, and 1 is always feasible"
            )

        def compressed(pick: int) -> Plan:
            chosen = zip(options.items(), front.picks[pick], strict=True)
            return replace(plan, sites={name: choices[k] for (name, choices), k in chosen})

        pick, after = self._furthest(front, lambda pick: bench.measure(compressed(pick)), before)
        picks = [0] * len(options) if pick is None else front.picks[pick].tolist()
        notes: list[str] = []
        if pick != len(front) - 1:
            notes.append(
                f"SpikeCompression: the ratios that the tolerance of {self.tolerance} allows would raise the divergence beyond "
                f"{self.check} times that of the plan, so a choice with more spikes was taken"
            )
        if after.total > 0.99 * before.total:
            fell = f"{before.total:.4g} to {after.total:.4g} a sample"
            notes.append(f"SpikeCompression: spikes fell by less than 1 %, {fell}; raise tolerance or check")
        found = {
            "ratios": {name: self.ratios[k] for name, k in zip(options, picks, strict=True)},
            "spikes": {"before": before.total, "after": after.total},
            "distance": {"before": before.distance, "after": after.distance},
        }
        best = plan if pick is None else compressed(pick)
        return refined(self, best, bench.samples, notes, compression=found).validate(graph)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The candidates, ascending from 1."""
        return tuple(1.0 + k * self.increment for k in range(int((self.largest - 1.0) / self.increment + 1e-9) + 1))

    def _check_settings(self) -> None:
        if self.steps < 1 or self.samples < 1:
            raise PlanError(f"SpikeCompression(steps={self.steps}, samples={self.samples}): at least 1 each")
        if not (1 <= self.largest < math.inf and self.increment > 0):
            raise PlanError(
                f"SpikeCompression(largest={self.largest}, increment={self.increment}): ratios go from 1 up to `largest`"
            )
        if not 0 < self.tolerance < math.inf or (self.check is not None and not self.check >= 1):
            raise PlanError(
                f"SpikeCompression(tolerance={self.tolerance}, check={self.check}): tolerance is above 0, check at least 1"
            )

    def _furthest(self, front: Front, measure: Callable[[int], Measured], before: Measured) -> tuple[int | None, Measured]:
        """The choice of fewest spikes whose measured divergence passes the check, by bisection; None: that of no scaling."""
        last = len(front) - 1
        found = measure(last)
        if self.check is None or found.distance <= self.check * before.distance:
            return last, found
        passed, failed, best = -1, last, before
        for _ in range(_TRIALS):
            if failed - passed <= 1:
                break
            middle = (passed + failed) // 2
            found = measure(middle)
            if found.distance <= self.check * before.distance:
                passed, best = middle, found
            else:
                failed = middle
        return (passed if passed >= 0 else None), best


def scaled(site: Site, params: SiteParams, ratio: float) -> SiteParams:
    """The neurons with thresholds ``ratio`` times higher, of a clipped rectifier no further than its clip.

    ``cap x amplitude`` is the most that a neuron can send in one step; it does not pass ``site.ceiling``.
    """
    factor = torch.tensor(ratio, dtype=params.threshold.dtype, device=params.threshold.device)
    if site.ceiling is not None and params.cap is not None:
        factor = torch.minimum(factor, (site.ceiling / (params.cap * params.worth)).clamp(min=1))

    def times(x: torch.Tensor) -> torch.Tensor:
        alike = x.dim() == 0 or factor.dim() == 0 or x.shape == factor.shape
        return x * factor if alike else expand(x, site) * expand(factor, site)

    amplitude = None if params.amplitude is None else times(params.amplitude)
    return replace(params, threshold=times(params.threshold), v_init=times(params.v_init), amplitude=amplitude)

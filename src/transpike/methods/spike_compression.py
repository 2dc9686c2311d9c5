"""Spike compression: raise thresholds where the read-out feels it least, so that fewer spikes carry the same averages.

    theta^l <- rho^l theta^l,   minimise sum_l E_l(rho^l)   subject to   sum_l S_l(rho^l) <= tolerance sum_l S_l(1)

A threshold rho times higher sends about 1 / rho as many spikes, each worth rho times more: the mean stays, the
resolution falls. S_l(rho) is the symmetric KL divergence between the ANN's and the read-out's softmax with only layer l
scaled, E_l(rho) the spikes of that layer. Since every layer is measured in the same network, sum_l S_l(1) is L times the
divergence D of the plan as given, and a tolerance of 1 + x allows for a predicted divergence of (1 + x L) D.

Refines any plan: chain it behind another method; bias calibration may follow.

Reference: Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural networks", AAAI 2025,
arXiv:2412.16219 (there: sensitivity spike compression).
Departures: that the S_l add up is an assumption, and a poor one, so the compressed network as a whole is simulated, and
where its divergence exceeds D by more than `check` a choice with more spikes is taken, by bisection along the Pareto
front of sensitivities that rise with rho (`check` None: the first choice, as published). Ratios beyond one that
alone breaks the tolerance are not tried. Neurons of a clipped rectifier are not scaled beyond the clip. Initial
potential and worth of a spike scale with the threshold, `current` stays: it is charge. Plain samples instead of an
augmented batch. Networks without one logits tensor: see `_sensitivity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from transpike.errors import PlanError
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_refines, refined
from transpike.methods._pareto import pareto_front
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
        check: how much the measured divergence of the compressed network may rise above that of the plan given, in nats
            (None: it is not checked).
        largest: the highest ratio rho.
        increment: between one ratio and the next, from 1 on.
        samples: how many calibration samples measure.
    """

    order_dependent: ClassVar[bool] = True  # the first samples measure
    refines: ClassVar[bool] = True  # needs a plan

    steps: int = 8
    tolerance: float = 1.0
    check: float | None = 0.005
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

        def compressed(picks: Sequence[int]) -> Plan:
            chosen = zip(options.items(), picks, strict=True)
            return replace(plan, sites={name: choices[k] for (name, choices), k in chosen})

        picks = front.picks[-1].tolist()
        after = bench.measure(compressed(picks))
        passes = self.check is None or after.distance <= before.distance + self.check
        if not passes:
            milder = _milder(self.ratios, distances, spikes, bound, _total(spikes, picks))
            picks, after = self._furthest(milder, lambda picks: bench.measure(compressed(picks)), before)
        notes: list[str] = []
        if not passes:
            notes.append(
                f"SpikeCompression: together, the ratios that a tolerance of {self.tolerance} allows would raise the divergence "
                f"by more than {self.check}, so a choice with more spikes was taken"
            )
        if after.total > 0.99 * before.total:
            fell = f"{before.total:.4g} to {after.total:.4g} a sample"
            notes.append(f"SpikeCompression: spikes fell by less than 1 %, {fell}; raise tolerance or check")
        found = {
            "ratios": {name: self.ratios[k] for name, k in zip(options, picks, strict=True)},
            "spikes": {"before": before.total, "after": after.total},
            "distance": {"before": before.distance, "after": after.distance},
        }
        return refined(self, compressed(picks), bench.samples, notes, compression=found).validate(graph)

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
        if not 0 < self.tolerance < math.inf or (self.check is not None and not self.check >= 0):
            raise PlanError(
                f"SpikeCompression(tolerance={self.tolerance}, check={self.check}): tolerance is above 0, check at least 0"
            )

    def _furthest(
        self, milder: Sequence[list[int]], measure: Callable[[list[int]], Measured], before: Measured
    ) -> tuple[list[int], Measured]:
        """The last of ``milder`` choices whose measured divergence passes the check, by bisection; the first is no scaling."""
        assert self.check is not None
        passed, failed, best = 0, len(milder), before
        for _ in range(_TRIALS):
            if failed - passed <= 1:
                break
            middle = (passed + failed) // 2
            found = measure(milder[middle])
            if found.distance <= before.distance + self.check:
                passed, best = middle, found
            else:
                failed = middle
        return milder[passed], best


def _milder(
    ratios: Sequence[float], distances: Sequence[Sequence[float]], spikes: Sequence[Sequence[float]], bound: float, least: float
) -> list[list[int]]:
    """Choices from no scaling on, each with fewer spikes, down to ``least``.

    They are the Pareto front of ``max over r <= rho of S(r) + D / L (rho^2 - 1)``: what seems to improve the read-out alone
    does so by chance, or by making up for another error once; and if all sites have an equal share in the divergence D of
    the plan, a step rho times coarser multiplies that of its site, a variance, by rho^2.
    """
    share = max(distances[0][0], 1e-12) / len(distances)
    coarser = share * (np.square(ratios) - 1)
    rising = [(np.maximum.accumulate(row) + coarser).tolist() for row in distances]
    front = pareto_front(rising, spikes, sum(max(x for x in row if x < math.inf) for row in rising))
    picks = [front.picks[k].tolist() for k in range(len(front)) if front.losses[k] >= least]
    return [choice for choice in picks if not any(choice) or _total(distances, choice) <= bound]


def _total(table: Sequence[Sequence[float]], picks: Sequence[int]) -> float:
    return sum(row[k] for row, k in zip(table, picks, strict=True))


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

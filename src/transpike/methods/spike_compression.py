"""Spike compression: raise thresholds where the read-out feels it least, so that fewer spikes carry the same averages.

    theta^l <- rho^l theta^l,   minimise E(rho)   subject to   N(rho) <= (1 + rise) N(1),  M(rho) <= M(1) + moved

A threshold rho times higher sends about 1 / rho as many spikes, each worth rho times more: the mean stays, the
resolution falls. E are the spikes of the whole network, N is the error of its read-out (squared difference from the ANN's,
as a share of the ANN's square), M how much probability its softmax gives to other classes than the ANN's. So `rise` 1 lets
compression add as much error as the conversion made before it, in any network, and `moved` bounds the share of predictions
that change where that was much already. One simulation a site tells how to divide coarseness among sites at every number of
spikes (see `_coarsening`); how far to go along this path a bisection finds, which simulates the whole network on samples
that the path was not made from.

Refines any plan: chain it behind another method; bias calibration may follow.

Cost: simulations of (sites + 1) x `samples` + 8 x `held_out` samples.

Reference: Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural networks", AAAI 2025,
arXiv:2412.16219 (there: sensitivity spike compression).
Departures: there, ratios 1, 1.5, ..., 10 minimise sum_l E_l(rho^l) subject to sum_l S_l(rho^l) <= tolerance sum_l S_l(1),
S_l the symmetric KL divergence of softmaxes with only layer l scaled; a `tolerance` asks for that. Small S are mostly
chance on data that the ANN has learnt (see `_sensitivity`): scaled sites look harmless alone, and together raise it many
times. Neurons of a clipped rectifier are not scaled beyond the clip. Initial potential and worth of a spike scale with the
threshold, `current` stays: it is charge. Plain samples instead of an augmented batch. Networks without one logits tensor:
see `_sensitivity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph, Site
from transpike.methods._coarsening import coarseness, last, probe, split
from transpike.methods._observe import check_refines, clip_beside, refined
from transpike.methods._pareto import pareto_front
from transpike.methods._sensitivity import Bench, Measured
from transpike.spiking.plan import Plan, SiteParams, expand

__all__ = ["SpikeCompression", "scaled"]

_PROBE = 2.0  # the ratio at which sites are measured one by one


@dataclass(frozen=True)
class SpikeCompression:
    """A plan's thresholds, raised site by site.

    Args:
        steps: the number of time steps T at which the read-out is measured.
        rise: how much the error of the read-out may grow, as a share of that of the plan given.
        moved: how much more probability may move to other classes than the ANN's, as a share of all.
        largest: the highest ratio rho.
        samples: how many calibration samples measure what each site does, half of all at most.
        held_out: how many others judge the network as a whole, half of all at most.
        tolerance: choose as published, with the sum of sensitivities at most so many times that without scaling (None: do not).
        increment: between one ratio and the next, as published.
    """

    order_dependent: ClassVar[bool] = True  # the first samples measure
    refines: ClassVar[bool] = True  # needs a plan

    steps: int = 8
    rise: float = 1.0
    moved: float = 0.01
    largest: float = 10.0
    samples: int = 100
    held_out: int = 256
    tolerance: float | None = None
    increment: float = 0.5

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Measure the sites of ``plan``, choose ratios, and return the plan with scaled thresholds.

        Raises:
            PlanError: there is no plan, it does not fit, a setting is out of range, or no choice keeps to ``tolerance``.
        """
        self._check_settings()
        plan = check_refines(self, graph, plan)
        data = Batches(graph, batches)
        if self.tolerance is None:
            probing, judging, _ = split(graph, data, self.samples, self.held_out, self.steps, parts=2)
            ratios, before, after = self._joint(graph, probing, judging, plan)
            samples = probing.samples + judging.samples
        else:
            bench = Bench(graph, data, self.samples, self.steps)
            ratios, before, after = self._additive(graph, bench, plan, self.tolerance)
            samples = bench.samples
        notes: list[str] = []
        if after.total > 0.99 * before.total:
            fell = f"{before.total:.4g} to {after.total:.4g} a sample"
            allow = "rise or moved" if self.tolerance is None else "tolerance"
            notes.append(f"SpikeCompression: spikes fell by less than 1 %, {fell}; raise {allow}")
        found = {
            "ratios": {name: float(f"{ratio:.6g}") for name, ratio in ratios.items()},
            "spikes": {"before": before.total, "after": after.total},
            "error": {"before": before.error, "after": after.error},
            "moved": {"before": before.moved, "after": after.moved},
            "distance": {"before": before.distance, "after": after.distance},
        }
        return refined(self, _compressed(graph, plan, ratios), samples, notes, compression=found).validate(graph)

    def _joint(self, graph: Graph, probing: Bench, judging: Bench, plan: Plan) -> tuple[Mapping[str, float], Measured, Measured]:
        """The ratios furthest along the path that pass, and what the plan does without and with them."""
        twice = {site.name: scaled(site, plan.sites[site.name], min(_PROBE, self.largest)) for site in graph.sites}
        law = probe(probing, plan, {name: (own, coarseness(plan.sites[name], own)) for name, own in twice.items()})
        path = law.path(self.largest)
        before = judging.measure(plan)
        passed = {0: before}

        def passes(k: int) -> bool:
            found = judging.measure(_compressed(graph, plan, path[k]))
            good = found.error <= (1 + self.rise) * before.error and found.moved <= before.moved + self.moved
            if good:
                passed[k] = found
            return good

        last(len(path), passes)
        best = min(passed, key=lambda k: passed[k].total)
        return path[best], before, passed[best]

    def _additive(self, graph: Graph, bench: Bench, plan: Plan, tolerance: float) -> tuple[Mapping[str, float], Measured, Measured]:
        """The same as published: by the sum of sensitivities."""
        before = bench.measure(plan)
        options = {
            site.name: [plan.sites[site.name], *(scaled(site, plan.sites[site.name], rho) for rho in self.ratios[1:])]
            for site in graph.sites
        }
        bound = tolerance * len(options) * before.distance
        distances, spikes = bench.table(plan, options, before, limit=bound)
        front = pareto_front(distances, spikes, bound)
        if not len(front):
            least = sum(min(row) for row in distances) / (len(options) * before.distance)
            raise PlanError(
                f"SpikeCompression(tolerance={tolerance}): no choice of ratios keeps the summed sensitivity of {graph.name} "
                f"so low; the smallest feasible tolerance is {math.ceil(least * 1e4) / 1e4:.4f}, and 1 is always feasible"
            )
        ratios = {name: self.ratios[k] for name, k in zip(options, front.picks[-1], strict=True)}
        return ratios, before, bench.measure(_compressed(graph, plan, ratios))

    @property
    def ratios(self) -> tuple[float, ...]:
        """The published candidates, ascending from 1."""
        return tuple(1.0 + k * self.increment for k in range(int((self.largest - 1.0) / self.increment + 1e-9) + 1))

    def _check_settings(self) -> None:
        if self.steps < 1 or self.samples < 1 or self.held_out < 1:
            given = f"steps={self.steps}, samples={self.samples}, held_out={self.held_out}"
            raise PlanError(f"SpikeCompression({given}): at least 1 each")
        if not (1 <= self.largest < math.inf and self.increment > 0):
            raise PlanError(
                f"SpikeCompression(largest={self.largest}, increment={self.increment}): ratios go from 1 up to `largest`"
            )
        if not (0 <= self.rise < math.inf and self.moved >= 0):
            raise PlanError(f"SpikeCompression(rise={self.rise}, moved={self.moved}): what is allowed in addition, at least 0 each")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise PlanError(f"SpikeCompression(tolerance={self.tolerance}): above 0, or None for the measured choice")


def _compressed(graph: Graph, plan: Plan, ratios: Mapping[str, float]) -> Plan:
    sites = {
        s.name: plan.sites[s.name] if ratios[s.name] == 1 else scaled(s, plan.sites[s.name], ratios[s.name]) for s in graph.sites
    }
    return replace(plan, sites=sites)


def scaled(site: Site, params: SiteParams, ratio: float) -> SiteParams:
    """The neurons with thresholds ``ratio`` times higher, of a clipped rectifier no further than its clip.

    ``cap x amplitude`` is the most that a neuron can send in one step; it does not pass ``site.ceiling``.
    """
    factor = torch.tensor(ratio, dtype=params.threshold.dtype, device=params.threshold.device)
    clip = clip_beside(site, params.worth)
    if clip is not None and params.cap is not None:
        factor = torch.minimum(factor, (clip / (params.cap * params.worth)).clamp(min=1))

    def times(x: torch.Tensor) -> torch.Tensor:
        alike = x.dim() == 0 or factor.dim() == 0 or x.shape == factor.shape
        return x * factor if alike else expand(x, site) * expand(factor, site)

    amplitude = None if params.amplitude is None else times(params.amplitude)
    return replace(params, threshold=times(params.threshold), v_init=times(params.v_init), amplitude=amplitude)

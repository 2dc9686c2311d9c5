"""AdaFire: burst neurons whose cap is chosen layer by layer, by what it does to the read-out and what it costs in spikes.

    m = v + I(t);  s = clip(floor(m / theta), 0, B^l);  v = m - theta s
    minimise N(B)   subject to   E(B) <= budget E(target)

A neuron that may send up to B spikes in one step has B times the levels and makes good for charge that came late, at
the price of more spikes. N(B) is the error of the read-out, its squared difference from the ANN's as a share of the
ANN's square, E(B) are the spikes, a burst of k counted k times. Thresholds are those of least quantisation error under
the cap (see `mmse`; the grid shrinks with the cap, so its floor never limits the cap). How a site's cap changes N and E
follows from one simulation a site (see `_coarsening`); dynamic programming finds the best caps for every number of
spikes, and along this front a bisection simulates the whole network on samples that nothing else has seen: of the
choices that really keep to the budget, the one of least measured error is taken, and its thresholds are fitted again to
all samples. Bias calibration afterwards is a refinement: chain one behind.

Cost: simulations of (sites + 1) x `samples` + 9 x `held_out` samples, and a pass over the others for every candidate.

Reference: Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural networks", AAAI 2025,
arXiv:2412.16219.
Departures: there, sensitivities S_l(B), symmetric KL divergences between the softmax of the ANN and of the network with
only layer l at cap B, are taken to add up, and so are spikes E_l(B); `additive` does that, with the best sum found
exactly. But S measured on data that the ANN has learnt is mostly chance (see `_sensitivity`), and the least of many
chances is not a good choice. A candidate cap has the threshold it would have (`refit` False: that of the highest cap, as
published; then a low cap cuts off what a refit would restore, and the budget does not say what the plan will spend).
Candidates are halves of the cap and the middles between them unless `doubling` is False; the budget may refer to the
highest cap. Plain samples measure, not one augmented batch. v(0) is a part of the threshold, where they add
theta / (2T) at every step. Networks without one logits tensor: see `_sensitivity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph
from transpike.methods._coarsening import coarseness, last, probe, split
from transpike.methods._grid import GridSearch, largest_activations
from transpike.methods._observe import check_neurons, to_plan
from transpike.methods._pareto import Front, pareto_front
from transpike.methods._sensitivity import Bench, Measured
from transpike.spiking.plan import Granularity, Plan

__all__ = ["AdaFire"]

_SLACK = 0.01  # of the reference spikes: what goes beyond the budget by more is noted


@dataclass(frozen=True)
class AdaFire:
    """Burst neurons with a cap of their own for every site, within a budget of spikes.

    Args:
        steps: the number of time steps T that thresholds and caps are made for.
        cap: the highest cap, most spikes of a neuron in one step; the search starts from it.
        least: the lowest cap.
        target: the cap whose spikes are the measure of the budget (None: ``cap``).
        budget: spikes allowed, as a share of those with every site at ``target``.
        samples: how many calibration samples measure what each site does, a quarter of all at most.
        held_out: how many others judge the network as a whole, a quarter at most.
        doubling: candidates are cap, cap / 2, cap / 4, ..., the middles between them, and ``least`` (False: all whole numbers).
        additive: choose by the sum of sensitivities as published.
        refit: measure a candidate with the threshold it would have; False, that of the highest cap, only if ``additive``.
        shift: what the quantiser adds before rounding down, in levels, see `MMSE`.
        granularity: what shares a threshold.
        v_init: initial membrane potential as a fraction of the threshold.
        signed: may neurons take spikes back?
    """

    order_dependent: ClassVar[bool] = True  # the first samples measure

    steps: int = 8
    cap: int = 8
    least: int = 1
    target: int | None = None
    budget: float = 0.8
    samples: int = 100
    held_out: int = 256
    doubling: bool = True
    additive: bool = False
    refit: bool = True
    shift: float | None = None
    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Fit thresholds for every cap, choose the caps, and return thresholds under the chosen ones.

        Raises:
            PlanError: a setting is out of range, or no choice of caps keeps to the budget.
        """
        search = GridSearch.of(self)
        self._check()
        data = batches = Batches(graph, batches)
        probing = judging = Bench(graph, batches, self.samples, self.steps)
        if not self.additive:
            probing, judging, data = split(graph, batches, self.samples, self.held_out, self.steps, parts=4)
        caps, largest = self.candidates, largest_activations(graph, data, self.granularity)
        uniform = {cap: dict.fromkeys(largest, cap) for cap in caps}
        thresholds = {cap: search.best(graph, data, largest, uniform[cap]) for cap in (caps if self.refit else caps[-1:])}
        plans = [to_plan(self, graph, thresholds.get(cap, thresholds[self.cap]), data.samples, caps=uniform[cap]) for cap in caps]
        chosen, found = self._additive(graph, probing, plans) if self.additive else self._joint(graph, probing, judging, plans)
        if not self.additive:
            largest = largest_activations(graph, batches, self.granularity)
        plan = to_plan(self, graph, search.best(graph, batches, largest, chosen), batches.samples, caps=chosen)
        after = judging.measure(plan)
        for name, value in _figures(after).items():
            found[name]["chosen"] = value
        notes = list(plan.notes)
        if (share := after.total / found["spikes"]["target"]) > self.budget + _SLACK:
            notes.append(
                f"AdaFire: the chosen caps spend {share:.1%} of the spikes of cap {self.target or self.cap} instead of "
                f"{self.budget:.1%}: lower the budget"
            )
        return replace(plan, metadata={**plan.metadata, "search": {"caps": chosen, **found}}, notes=tuple(notes))

    def _joint(self, graph: Graph, probing: Bench, judging: Bench, plans: Sequence[Plan]) -> tuple[dict[str, int], dict[str, Any]]:
        """The cap of every site, and what was measured; ``plans`` have one candidate cap everywhere, the last the highest."""
        caps, start = self.candidates, plans[-1]
        half = min(range(len(caps)), key=lambda k: abs(2 * caps[k] - self.cap))
        ratios = {name: [coarseness(own, plan.sites[name]) for plan in plans] for name, own in start.sites.items()}
        law = probe(probing, start, {name: (plans[half].sites[name], ratios[name][half]) for name in ratios})
        costs = [[law.spikes[name] / ratio for ratio in row] for name, row in ratios.items()]
        losses = [[law.error(name, ratio) for ratio in row] for name, row in ratios.items()]
        choices = _by_percent(pareto_front(costs, losses, math.inf))
        highest = judging.measure(start)
        target = highest if self.target in (None, self.cap) else judging.measure(plans[caps.index(self.target)])
        tried: dict[int, Measured] = {}

        def keeps(k: int) -> bool:
            sites = {name: plans[pick].sites[name] for name, pick in zip(ratios, choices[k], strict=True)}
            tried[k] = judging.measure(replace(start, sites=sites))
            return tried[k].total <= self.budget * target.total

        if not keeps(0):
            raise self._infeasible(graph, tried[0].total / max(target.total, 1e-30))
        last(len(choices), keeps)
        best = min((k for k in tried if tried[k].total <= self.budget * target.total), key=lambda k: tried[k].error)
        figures = {name: {"highest cap": value} for name, value in _figures(highest).items()}
        figures["spikes"]["target"] = target.total
        return {name: caps[pick] for name, pick in zip(ratios, choices[best], strict=True)}, {
            "candidates": list(caps),
            "samples": {"probing": probing.samples, "held out": judging.samples},
            **figures,
            "slopes": {name: float(f"{slope:.4g}") for name, slope in law.slopes.items()},
            "tried": {f"{m.total / max(target.total, 1e-30):.4f}": float(f"{m.error:.4g}") for m in tried.values()},
        }

    def _additive(self, graph: Graph, bench: Bench, plans: Sequence[Plan]) -> tuple[dict[str, int], dict[str, Any]]:
        """The same as published: by the sum of sensitivities."""
        caps, names, start = self.candidates, [site.name for site in graph.sites], plans[-1]
        before = bench.measure(start)
        distances, spikes = bench.table(start, {name: [plan.sites[name] for plan in plans] for name in names}, before)
        target = max(sum(row[caps.index(self.target or self.cap)] for row in spikes), 1e-30)
        front = pareto_front(spikes, distances, self.budget * target)
        if not len(front):
            raise self._infeasible(graph, sum(min(row) for row in spikes) / target)
        figures = {name: {"highest cap": value} for name, value in _figures(before).items()}
        figures["spikes"]["target"] = target
        return {name: caps[k] for name, k in zip(names, front.picks[-1], strict=True)}, {
            "candidates": list(caps),
            "samples": bench.samples,
            **figures,
            "sensitivities": {name: [float(f"{s:.4g}") for s in row] for name, row in zip(names, distances, strict=True)},
        }

    def _infeasible(self, graph: Graph, least: float) -> PlanError:
        return PlanError(
            f"AdaFire(budget={self.budget}): no choice of caps keeps {graph.name} to {self.budget:.1%} of the spikes of cap "
            f"{self.target or self.cap} at {self.steps} steps; the smallest feasible budget is {math.ceil(least * 1e4) / 1e4:.4f}: "
            "raise it, lower `least`, or compress the plan with SpikeCompression"
        )

    @property
    def candidates(self) -> tuple[int, ...]:
        """The caps to choose from, ascending."""
        if not self.doubling:
            return tuple(range(self.least, self.cap + 1))
        halves = [self.cap >> k for k in range(self.cap.bit_length())]
        middles = [(high + low) // 2 for high, low in pairwise(halves)]
        return tuple(sorted({self.least, *(cap for cap in (*halves, *middles) if cap >= self.least)}))

    def _check(self) -> None:
        """Refuse settings that make no sense, all that need no data."""
        check_neurons(self)
        if self.cap is None or not 1 <= self.least <= self.cap:
            raise PlanError(f"AdaFire(cap={self.cap}, least={self.least}): both are spikes in one step, 1 <= least <= cap")
        if self.target is not None and self.target not in self.candidates:
            wanted = ", ".join(map(str, self.candidates))
            raise PlanError(f"AdaFire(target={self.target}): the budget refers to one of the candidate caps, {wanted}")
        if not 0 < self.budget < math.inf or self.samples < 1 or self.held_out < 1:
            given = f"budget={self.budget}, samples={self.samples}, held_out={self.held_out}"
            raise PlanError(f"AdaFire({given}): a share of spikes above 0, at least 1 sample each")
        if not (self.refit or self.additive):
            raise PlanError("AdaFire(refit=False): thresholds of the highest cap are a part of the published choice: additive=True")


def _figures(measured: Measured) -> dict[str, Any]:
    return {"spikes": measured.total, "error": measured.error, "distance": measured.distance}


def _by_percent(front: Front) -> list[list[int]]:
    """For every percent of the dearest choice's cost the best choice that costs no more, from the cheapest to the dearest."""
    limits = front.costs[-1] * np.arange(101) / 100
    ends = np.unique(np.searchsorted(front.costs, limits, side="right") - 1)
    return [front.picks[k].tolist() for k in np.union1d(ends[ends >= 0], [0, len(front) - 1])]

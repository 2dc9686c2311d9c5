"""AdaFire: burst neurons whose cap is chosen layer by layer, by what it does to the read-out and what it costs in spikes.

    m = v + I(t);  s = clip(floor(m / theta), 0, B^l);  v = m - theta s
    minimise sum_l S_l(B^l)   subject to   sum_l E_l(B^l) <= budget sum_l E_l(target)

A neuron that may send up to B spikes in one step has B times the levels and makes good for charge that came late, at
the price of more spikes. S_l(B) is the symmetric KL divergence between the ANN's and the read-out's softmax with only
layer l at cap B, E_l(B) the spikes of that layer, a burst of k counted k times. That the S_l add up is an assumption;
the best sum is found exactly, by dynamic programming over the Pareto front. Thresholds are those of least quantisation
error under the chosen caps (see `mmse`; the grid shrinks with the cap, so its floor never limits the cap). Bias
calibration afterwards is a refinement: chain one behind.

Reference: Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural networks", AAAI 2025,
arXiv:2412.16219.
Departures: a candidate cap is measured with the threshold it would have (`refit` False: with that of the highest cap,
as published; then a low cap cuts off what a refit would restore, and the budget does not say what the plan will
spend). Candidates are powers of two below the cap unless `doubling` is False; the budget may refer to the highest cap.
The first samples of the calibration data measure, not one augmented batch. v(0) is a part of the threshold, where
they add theta / (2T) at every step. Networks without one logits tensor: see `_sensitivity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph
from transpike.methods._grid import GridSearch, largest_activations
from transpike.methods._observe import check_neurons, to_plan
from transpike.methods._pareto import pareto_front
from transpike.methods._sensitivity import Bench
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
        samples: how many calibration samples measure sensitivity (thresholds see all of them).
        doubling: candidates are cap, cap / 2, cap / 4, ... and ``least`` (False: every whole number between).
        refit: measure a candidate with the threshold it would have, not with that of the highest cap.
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
    doubling: bool = True
    refit: bool = True
    shift: float = 0.0
    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Fit thresholds, measure every cap of every site, choose, and return thresholds under the chosen caps.

        Raises:
            PlanError: a setting is out of range, or no choice of caps keeps to the budget.
        """
        self._check()
        batches, caps = Batches(graph, batches), self.candidates
        search = GridSearch(self.steps, self.shift, self.granularity)
        largest = largest_activations(graph, batches, self.granularity)
        samples = batches.samples

        def fitted(by_site: Mapping[str, int]) -> dict[str, torch.Tensor]:
            return search.best(graph, batches, largest, by_site)

        uniform = {cap: dict.fromkeys(largest, cap) for cap in caps}
        thresholds = {cap: fitted(uniform[cap]) for cap in (caps if self.refit else caps[-1:])}
        plans = [to_plan(self, graph, thresholds.get(cap, thresholds[self.cap]), samples, caps=uniform[cap]) for cap in caps]
        bench = Bench(graph, batches, self.samples, self.steps)
        chosen, found = self._search(graph, bench, plans)
        final = {name: thresholds[cap][name] for name, cap in chosen.items()} if self.refit else fitted(chosen)
        plan = to_plan(self, graph, final, samples, caps=chosen)
        after = bench.measure(plan)
        found["spikes"]["chosen"], found["distance"]["chosen"] = after.total, after.distance
        notes = list(plan.notes)
        if (share := after.total / found["spikes"]["target"]) > self.budget + _SLACK:
            notes.append(
                f"AdaFire: the chosen caps spend {share:.1%} of the spikes of cap {self.target or self.cap} instead of "
                f"{self.budget:.1%}: every site was measured with the others at cap {self.cap}; lower the budget"
            )
        return replace(plan, metadata={**plan.metadata, "search": found}, notes=tuple(notes))

    def _search(self, graph: Graph, bench: Bench, plans: Sequence[Plan]) -> tuple[dict[str, int], dict[str, Any]]:
        """The cap of every site, and what was measured; ``plans`` have one candidate cap everywhere, the last the highest."""
        caps, names, start = self.candidates, [site.name for site in graph.sites], plans[-1]
        before = bench.measure(start)
        distances, spikes = bench.table(start, {name: [plan.sites[name] for plan in plans] for name in names}, before)
        target = max(sum(row[caps.index(self.target or self.cap)] for row in spikes), 1e-30)
        front = pareto_front(spikes, distances, self.budget * target)
        if not len(front):
            least = math.ceil(sum(min(row) for row in spikes) / target * 1e4) / 1e4
            raise PlanError(
                f"AdaFire(budget={self.budget}): no choice of caps keeps {graph.name} to {self.budget:.1%} of the spikes of cap "
                f"{self.target or self.cap} at {self.steps} steps; the smallest feasible budget is {least:.4f}: raise it, lower "
                "`least`, or compress the plan with SpikeCompression"
            )
        chosen = {name: caps[k] for name, k in zip(names, front.picks[-1], strict=True)}
        return chosen, {
            "caps": chosen,
            "candidates": list(caps),
            "samples": bench.samples,
            "spikes": {"highest cap": before.total, "target": target},
            "distance": {"highest cap": before.distance},
            "sensitivities": {name: [float(f"{s:.4g}") for s in row] for name, row in zip(names, distances, strict=True)},
        }

    @property
    def candidates(self) -> tuple[int, ...]:
        """The caps to choose from, ascending."""
        if not self.doubling:
            return tuple(range(self.least, self.cap + 1))
        halves = {self.cap >> k for k in range(self.cap.bit_length())}
        return tuple(sorted({self.least, *(cap for cap in halves if cap >= self.least)}))

    def _check(self) -> None:
        """Refuse settings that make no sense, all that need no data."""
        if self.steps < 1 or not 0 <= self.shift < 1:
            raise PlanError(f"AdaFire(steps={self.steps}, shift={self.shift}): steps is at least 1, shift from 0 to below 1")
        check_neurons(self)
        if self.cap is None or not 1 <= self.least <= self.cap:
            raise PlanError(f"AdaFire(cap={self.cap}, least={self.least}): both are spikes in one step, 1 <= least <= cap")
        if self.target is not None and self.target not in self.candidates:
            wanted = ", ".join(map(str, self.candidates))
            raise PlanError(f"AdaFire(target={self.target}): the budget refers to one of the candidate caps, {wanted}")
        if not 0 < self.budget < math.inf or self.samples < 1:
            raise PlanError(f"AdaFire(budget={self.budget}, samples={self.samples}): a share of spikes above 0, at least 1 sample")

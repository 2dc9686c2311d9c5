"""Where a network bears coarser neurons: from one simulation a site to the best choice for any number of spikes.

    N(rho) = N(1) + sum_i a_i (rho_i^2 - 1),   E(rho) = sum_i e_i / rho_i
    a_i = max(|d_i|^2 / (r_i^2 + 1), (N_i - N(1)) / (r_i^2 - 1))

A threshold rho times higher sends 1 / rho of the spikes; the steps of what the site passes on are rho times coarser, and
the power of the error they cause rho^2 times larger. Every site alone is made r_i times coarser once (the probe); N_i is
the error of the read-out then (see `_sensitivity`), d_i how far the read-out moved from that before, as a share of the
ANN's square. Two independent errors of power a_i and r_i^2 a_i differ by (r_i^2 + 1) a_i, which is seen clearly; the rise
of N alone also has what the site's error shares with the others', and much more chance, so it counts where it says more.

The choice of least error for a number of spikes has a closed form, rho_i^3 proportional to e_i / a_i: the cube root takes
what is left of the chance out. The law is only relied on to order choices along one path from many spikes to few; how far
along it to go, a few simulations of all changed sites together say, on other samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from transpike.graph.batches import Batches
from transpike.graph.ir import Graph
from transpike.methods._sensitivity import Bench, Response
from transpike.spiking.plan import Plan, SiteParams

__all__ = ["Law", "coarseness", "last", "probe", "split"]

_LEVELS = 4096  # points of the closed form from which those nearest to whole percents are taken
_LEAST = 0.01  # of the mean slope: a site that seems to bear anything may do so by chance


@dataclass(frozen=True)
class Law:
    """How spikes and error of every site depend on its coarseness: ``slopes`` a_i and ``spikes`` e_i by site."""

    slopes: Mapping[str, float]
    spikes: Mapping[str, float]

    def error(self, name: str, ratio: float) -> float:
        """What the site adds to the read-out's error at ``ratio``."""
        return self.slopes[name] * (ratio**2 - 1) if ratio > 1 else 0.0

    def path(self, largest: float) -> list[dict[str, float]]:
        """Ratios from 1 up to ``largest``: each choice has the least error for its spikes, about 1 % fewer than the one before."""
        slopes, spikes = (np.array(list(by_site.values())) for by_site in (self.slopes, self.spikes))
        wish = np.where(slopes < np.inf, spikes / slopes, 0.0)
        if largest <= 1 or not (wish > 0).any():
            return [dict.fromkeys(self.slopes, 1.0)]
        levels = np.geomspace(1 / wish.max(), largest**3 / wish[wish > 0].min(), _LEVELS)
        ratios = np.cbrt(levels[:, None] * wish[None]).clip(1, largest)  # levels x sites
        percents = np.round(100 * (spikes / ratios).sum(1) / spikes.sum())
        firsts = np.unique(percents, return_index=True)[1][::-1]
        return [dict(zip(self.slopes, ratios[k].tolist(), strict=True)) for k in firsts]


def probe(bench: Bench, plan: Plan, probes: Mapping[str, tuple[SiteParams, float]]) -> Law:
    """Simulate every site of ``probes`` with the numbers given there, which are so many times coarser, the others as they are.

    A site that gets no coarser (its clip forbids it) is not simulated: its slope is infinite.
    """
    start = bench.respond(plan)
    before = bench.compare(start).error
    slopes = {
        name: _slope(bench, start, before, bench.respond(replace(plan, sites={**plan.sites, name: params})), ratio)
        if ratio > 1.01
        else np.inf
        for name, (params, ratio) in probes.items()
    }
    finite = [slope for slope in slopes.values() if slope < np.inf]
    least = max(_LEAST * sum(finite) / max(len(finite), 1), 1e-30)
    return Law({name: max(slope, least) for name, slope in slopes.items()}, start.spikes)


def coarseness(before: SiteParams, after: SiteParams) -> float:
    """How many times higher thresholds are, as a geometric mean."""
    return float((after.threshold.double().log().mean() - before.threshold.double().log().mean()).exp())


def split(graph: Graph, data: Batches, samples: int, held_out: int, steps: int, parts: int) -> tuple[Bench, Bench, Batches]:
    """Samples to probe with, samples to judge with, and the others: the two take a ``parts``-th of all at most.

    Where there are not even ``parts`` samples, everything is done with all of them.
    """
    part = sum(len(inputs[0]) for inputs in data) // parts
    if not part:
        return Bench(graph, data, parts, steps), Bench(graph, data, parts, steps), data
    first, second = min(samples, part), min(held_out, part)
    judging = Bench(graph, data.after(first), second, steps)
    return Bench(graph, data, first, steps), judging, data.after(first + second)


def _slope(bench: Bench, start: Response, before: float, found: Response, ratio: float) -> float:
    apart, rise = bench.error(found, start), bench.compare(found).error - before
    return max(apart / (ratio**2 + 1), rise / (ratio**2 - 1))


def last(count: int, passes: Callable[[int], bool]) -> int:
    """The last of ``count`` ordered choices that passes, by bisection; the first is taken to pass."""
    passed, failed = 0, count
    while failed - passed > 1:
        middle = (passed + failed) // 2
        if passes(middle):
            passed = middle
        else:
            failed = middle
    return passed

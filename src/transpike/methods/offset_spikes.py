"""Offset spikes: what the membrane keeps at the end says which spikes were amiss; the neuron starts again without that error.

    first time:    v(T) = v(0) + sum_t I(t) - theta n
    second time:   v'(0) = v(0) + theta floor(v(T) / theta)

A neuron that is left with a threshold or more fired too little (its charge came too late), one left below 0 too much (too
early). Starting higher or lower by those spikes mends the count, as far as there are steps without, or with, a spike.
Each layer is mended before the next one sees its spikes. The neurons need all steps at once, and fire twice.

Reference: Hao et al., "Bridging the gap between ANNs and SNNs by calibrating offset spikes", ICLR 2023, arXiv:2302.10685.
Departures: one round at every layer, by as many spikes as the residual says, not by one at a time over several rounds; the
first time takes the same number of steps as the second. With parallel neurons nothing is left to mend.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transpike.errors import PlanError
from transpike.graph.ir import Graph
from transpike.methods._observe import check_refines, refined
from transpike.spiking.plan import NeuronKind, Plan

__all__ = ["OffsetSpikes"]


@dataclass(frozen=True)
class OffsetSpikes:
    """Neurons that mend their spike count; a refinement of any plan without signed or parallel neurons."""

    refines: ClassVar[bool] = True  # needs a plan

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Return the plan with neurons that mend their count; the data is not looked at.

        Raises:
            PlanError: there is no plan to refine, or its neurons are signed or parallel.
        """
        plan = check_refines(self, graph, plan)
        amiss = [name for name, site in plan.sites.items() if site.signed or site.kind is NeuronKind.PARALLEL]
        if amiss:
            raise PlanError(f"{len(amiss)} sites have signed or parallel neurons ({amiss[0]}): they mend their count themselves")
        sites = {name: replace(site, kind=NeuronKind.OFFSET) for name, site in plan.sites.items()}
        return refined(self, replace(plan, sites=sites), plan.metadata.get("samples", 0)).validate(graph)

"""The count engine: neurons that look at the whole charge need one pass of the network, whatever the number of steps.

    n = clip(floor((T (z + current) + v(0)) / theta), 0, B T),   next layer sees amplitude n / T

on means over time ``z``. This is what a parallel neuron does by definition, and where a signed neuron without a cap
stands after every step (0 <= n, no upper clip): linear operations pass means on, and the differential combinator makes
the mean of any other operation's output the function of the means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from transpike.errors import SpecError
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Role, Site
from transpike.spiking.neurons import parallel_count
from transpike.spiking.plan import NeuronKind, Plan, SiteParams, expand

__all__ = ["count", "counts_serve", "in_counts"]


def counts_serve(graph: Graph, plan: Plan) -> bool:
    """Is every neuron's count a function of the whole charge, and every other operation one of means?"""
    kinds = all(p.kind is NeuronKind.PARALLEL or (p.signed and p.cap is None) for p in plan.sites.values())
    return kinds and all(node.role is not Role.STEPWISE for node in graph.body)


def count(site: Site, params: SiteParams, mean: torch.Tensor, steps: int) -> torch.Tensor:
    """Spikes of all ``steps`` steps for the mean current ``mean`` (N *site)."""
    v_init, current, threshold = (expand(x, site) for x in (params.v_init, params.current, params.threshold))
    return parallel_count((mean + current) * steps, v_init, threshold, steps, params.cap)


def in_counts(
    graph: Graph,
    plan: Plan,
    inputs: Sequence[torch.Tensor],
    steps: int,
    look: Callable[[Site, torch.Tensor, torch.Tensor], None] | None = None,
) -> Any:
    """The mean read-out after ``steps`` steps; ``look`` sees every site's mean current and spike count (N *site).

    Raises:
        SpecError: a neuron whose count depends on when its charge arrives.
    """
    if not counts_serve(graph, plan):
        raise SpecError(
            "the count engine runs parallel neurons and signed neurons without a cap, and no pooling of currents: "
            "this network has others, choose engine='dense'"
        )

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        params = plan.sites[site.name]
        n = count(site, params, z, steps)
        if look is not None:
            look(site, z, n)
        return n * (expand(params.worth, site) / steps)

    return forward(graph.with_params({**graph.params, **plan.params}), inputs, at_site)

"""Initial potential: where a channel's membranes start is chosen so that its rates come closest to the ANN's activations.

    f* = argmin over f in {0, 1/8, ..., 1} of  E (r(f) - a)^2,    v(0) = f theta

layer by layer, each on the spikes that the layers before it, already fitted, really send. For charge that comes evenly the
optimum is 1/2; where spikes come late, or thresholds cut off much, it is not.

Reference: Bu et al., "Optimized potential initialization for low-latency spiking neural networks", AAAI 2022,
arXiv:2202.01440 (1/2 for all neurons).
Departures: measured for every channel and for the number of steps instead of the theoretical optimum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.engines.allocator import keep_freed_memory
from transpike.engines.sweep import respond, sweep
from transpike.errors import PlanError
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_refines, few_samples, rectify, refined
from transpike.spiking.plan import Plan

__all__ = ["InitialPotential"]

_FRACTIONS = torch.arange(9) / 8


@dataclass(frozen=True)
class InitialPotential:
    """Chooses the initial potential of every channel; a refinement of any plan.

    Args:
        steps: time steps T that the potentials are made for.
        samples: most calibration samples that are looked at together.
    """

    order_dependent: ClassVar[bool] = True  # looks at the first samples
    refines: ClassVar[bool] = True  # needs a plan

    steps: int = 32
    samples: int = 64

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Return the plan with new initial potentials.

        Raises:
            PlanError: there is no plan to refine, or a setting is out of range.
        """
        if self.steps < 1 or self.samples < 1:
            raise PlanError(f"{self}: both are at least 1")
        plan = check_refines(self, graph, plan)
        keep_freed_memory()
        inputs, notes = few_samples(graph, batches, self.samples, copies=2 * self.steps)
        wanted: dict[str, torch.Tensor] = {}

        def show(site: Site, z: torch.Tensor) -> torch.Tensor:
            wanted[site.name] = rectify(site, z)
            return wanted[site.name].clone()

        forward(graph, inputs, show)
        first, sites = plan, dict(plan.sites)

        def at_site(site: Site, currents: torch.Tensor) -> torch.Tensor:
            a = wanted.pop(site.name)
            others = [axis for axis in range(a.dim()) if axis != site.channel_axis + 1]
            params, theta = sites[site.name], first.sites[site.name].threshold
            errors = []
            for fraction in _FRACTIONS.tolist():
                rates = respond(site, replace(params, v_init=fraction * theta), currents).emitted.mean(0)
                errors.append((rates - a).square().mean(others))
            order = torch.stack(errors)[_BY_PREFERENCE]  # of equals the one nearest to 1/2
            best = _FRACTIONS[_BY_PREFERENCE].to(theta)[order.argmin(0)]
            shape = site.channel_shape() if theta.dim() > 1 or tuple(theta.shape) == site.shape else (-1,)
            sites[site.name] = replace(params, v_init=best.view(shape) * theta)
            return respond(site, sites[site.name], currents).emitted

        sweep(graph, plan, inputs, self.steps, at_site)
        return refined(self, replace(plan, sites=sites), len(inputs[0]), notes).validate(graph)


_BY_PREFERENCE = (_FRACTIONS - 0.5).abs().argsort(stable=True)

"""How many steps pass until the last layer has heard of the input: the delay of the read-out.

    t0 = sum over layers of min over neurons i of (theta_i - v_i(0)) / m_i,   m_i = E ReLU(z_i) > 0

the time the fastest neuron of each layer needs for its first spike, in the network whose activations are clipped at
their thresholds. For one threshold a layer this is equation 19 of Bu et al. (CVPR 2025, arXiv:2409.03368). Residual
shortcuts are shorter than the sum: it is a heuristic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.spiking.plan import Plan, expand

__all__ = ["estimate_delay"]


def estimate_delay(graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor]) -> float:
    """The estimated delay in steps, from one batch of inputs (0 for a network without neurons)."""
    waits: list[float] = []

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        params = plan.sites[site.name]
        theta = expand(params.threshold, site)
        cap = float("inf") if params.cap is None else params.cap
        mean = z.clamp_(min=0).mean(0)  # the charge of a step: only what the next layers see is clipped
        wait = (theta - expand(params.v_init, site)).clamp(min=0) / mean
        active = mean > 0
        waits.append(float(wait[active].min()) if bool(active.any()) else 0.0)
        return torch.minimum(z, theta * cap)

    forward(graph.with_params({**graph.params, **plan.params}), inputs, at_site)
    return sum(waits)

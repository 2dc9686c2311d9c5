"""Local threshold balancing: thresholds rise until little is cut off, all layers at once, layer by layer in effect.

    minimise E (clip(z, 0, theta) - ReLU(z))^2:   theta <- theta + 2 eta mean (z - theta)+,   starting from 0

Every site updates with the current batch, then passes on ``clip(z, 0, theta)`` with the new threshold, so each layer
is balanced on inputs that are already clipped by the layers before it. The rule never lowers a threshold and has no
term for resolution: the number of iterations is the early stopping (few: better at few steps; many: higher ceiling).
It costs about one forward pass an iteration and serves every number of time steps.

Reference: Bu et al., "Inference-scale complexity in ANN-SNN conversion for high-performance and low-power
applications", CVPR 2025, arXiv:2409.03368.
Departures: eta is not given there; mean reduction and eta = 1 as in the authors' code. Exactly ``iterations`` updates.
Clipped rectifiers (ReLU6) clip the target too, so theta cannot pass the clip. Order of batches matters by design.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch

from transpike.engines.kernels import threads_for
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_neurons, collapse, to_plan
from transpike.methods._statistics import clip, mean_overflow
from transpike.spiking.plan import Granularity, Plan

__all__ = ["LTB"]

_CUT = 0.01  # a site has not converged while it still cuts off more than this share of its activation


@dataclass(frozen=True)
class LTB:
    """Thresholds by local threshold balancing.

    Args:
        iterations: number of updates, one batch each, going round the batches as often as needed.
        eta: step size of the update.
        granularity: what shares a threshold.
        v_init: initial membrane potential as a fraction of the threshold.
        cap: most spikes of a neuron in one step (None: no limit).
        signed: may neurons take spikes back?
    """

    order_dependent: ClassVar[bool] = True  # by definition: an online rule

    iterations: int = 1000
    eta: float = 1.0
    granularity: Granularity = Granularity.CHANNEL
    v_init: float = 0.5
    cap: int | None = 1
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Balance on ``iterations`` batches and return thresholds for every site.

        Raises:
            PlanError: ``iterations`` or ``eta`` is not positive, or ``v_init`` or ``cap`` is out of range.
        """
        if self.iterations < 1 or self.eta <= 0:
            raise PlanError(f"LTB(iterations={self.iterations}, eta={self.eta}): both must be positive")
        check_neurons(self)
        theta: dict[str, torch.Tensor] = {}
        cut: dict[str, float] = {}  # share of the activation that the last batch lost

        def balance(site: Site, z: torch.Tensor) -> torch.Tensor:
            clip = site.clip(z)
            if clip is not None:
                z = z.clamp_(max=clip)
            x = collapse(site, z, self.granularity)
            old = theta.get(site.name)
            old = torch.zeros(x.shape[1], device=z.device, dtype=z.dtype) if old is None else old
            theta[site.name], cut[site.name], clipped = update(x, old, self.eta)
            shares_memory = clipped.data_ptr() == z.data_ptr()
            return z if shares_memory else _like(clipped, z, site, self.granularity)

        batches = Batches(graph, batches)
        seen = 0
        for inputs in islice(batches.forever(), self.iterations):
            forward(graph, inputs, balance)
            seen += len(inputs[0])
        notes = []
        if unfinished := [name for name, share in cut.items() if share > _CUT]:
            worst = max(unfinished, key=lambda name: cut[name])
            notes.append(
                f"LTB has not converged after {self.iterations} iterations: {len(unfinished)} of {len(cut)} sites still cut off "
                f"more than {_CUT:.0%} of their activation ({worst}: {cut[worst]:.1%}); thresholds are too low, raise iterations"
            )
        return to_plan(self, graph, theta, seen, notes)


def update(x: torch.Tensor, theta: torch.Tensor, eta: float) -> tuple[torch.Tensor, float, torch.Tensor]:
    """One update of one site: new thresholds, the share of the activation they cut off, the clipped activation.

    Args:
        x: pre-activations, outer x groups x inner; overwritten where possible.
        theta: per group. eta: step size.
    """
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if on_cpu:
        with threads_for(x.numel()):
            over, full = (torch.from_numpy(mean) for mean in mean_overflow(x.numpy(), theta.numpy()))
    else:
        over = (x - theta[:, None]).clamp(min=0).mean((0, 2), dtype=torch.float64)
        full = x.clamp(min=0).mean((0, 2), dtype=torch.float64)
    new = theta + (2 * eta * over).to(theta.dtype)
    share = float(over.sum() / full.sum().clamp(min=1e-30))
    if on_cpu:
        with threads_for(x.numel()):
            clip(x.numpy(), new.numpy())
    else:
        x = torch.minimum(x.clamp(min=0), new[:, None])
    return new, share, x


def _like(clipped: torch.Tensor, z: torch.Tensor, site: Site, granularity: Granularity) -> torch.Tensor:
    """Undo `collapse` where it had to copy."""
    if granularity is Granularity.CHANNEL and z.dim() > 2 and z.stride(site.channel_axis + 1) == 1:
        axis = site.channel_axis + 1
        return clipped.reshape(z.movedim(axis, -1).shape).movedim(-1, axis)
    if granularity is Granularity.LAYER:
        order = sorted(range(z.dim()), key=lambda axis: -z.stride(axis))
        back = [order.index(axis) for axis in range(z.dim())]
        return clipped.reshape([z.shape[axis] for axis in order]).permute(back)
    return clipped.reshape(z.shape)

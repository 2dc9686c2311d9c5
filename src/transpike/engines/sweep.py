"""Layer by layer instead of chunk by chunk: every site gets all steps of all samples at once, in the order of the network.

For methods that calibrate: what a site is given was emitted by layers that are calibrated already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transpike.engines.dense import DensePopulation
from transpike.engines.executor import simulate
from transpike.graph.ir import Graph, Site
from transpike.spiking.plan import Plan, SiteParams

__all__ = ["AtSite", "Response", "respond", "sweep"]

# a site and its currents (T N *site; not to be written to) -> what it emits (T N *site)
AtSite = Callable[[Site, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Response:
    """What the neurons of a site made of their currents.

    Args:
        emitted: activation units. T N *site
        spikes: of either sign, all steps. N *site
        membrane: final potentials, activation units. N *site
    """

    emitted: torch.Tensor
    spikes: torch.Tensor
    membrane: torch.Tensor


def respond(site: Site, params: SiteParams, currents: torch.Tensor) -> Response:
    """Run the neurons of one site on ``currents`` (T N *site), which stay as they are."""
    steps, samples = currents.shape[:2]
    flat = currents.flatten(0, 1)
    neurons = DensePopulation(site, params, samples, 0, flat)
    emitted = neurons.advance(flat, steps, constant=False, overwrite=False)
    return Response(emitted.view(currents.shape), neurons.spikes(), neurons.membrane())


def sweep(graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor], steps: int, at_site: AtSite) -> Any:
    """Simulate with ``at_site`` in the place of the neurons; returns the read-out of every step (T N ...).

    Memory grows with steps x samples: give few samples at a time.
    """

    def population(site: Site, params: SiteParams, samples: int, axis: int, like: torch.Tensor, shared: dict[Any, Any]) -> _Hook:
        return _Hook(site, samples, axis, at_site)

    return simulate(graph, plan, inputs, steps, population=population, chunk=steps, whole=True).outputs


class _Hook:
    """Stands for the neurons of one site and asks ``at_site`` what they emit."""

    def __init__(self, site: Site, samples: int, axis: int, at_site: AtSite) -> None:
        self._site, self._samples, self._axis, self._at_site = site, samples, axis, at_site

    def advance(
        self, current: torch.Tensor, steps: int, *, constant: bool, overwrite: bool, beside: torch.Tensor | None = None
    ) -> torch.Tensor:
        current = current if beside is None else current + beside
        first = current.movedim(self._axis, 0)  # [steps x] rows, rest of the site's shape
        frames = first.reshape(-1 if not constant else 1, self._samples, *self._site.shape)
        emitted = self._at_site(self._site, frames.expand(steps, *frames.shape[1:]))
        return emitted.reshape(-1, *first.shape[1:]).movedim(0, self._axis)

    def keep(self, kept: torch.Tensor) -> None:
        self._samples = len(kept)

    def spikes(self) -> torch.Tensor:
        return torch.zeros(self._samples, *self._site.shape)

    net = membrane = spikes

"""What the executor asks of the neurons of a site, whoever runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from transpike.graph.ir import Site
from transpike.spiking.plan import SiteParams

__all__ = ["NewPopulation", "Population"]


class Population(Protocol):
    """The neurons of one site while a run lasts."""

    def advance(
        self, current: torch.Tensor, steps: int, *, constant: bool, overwrite: bool, beside: torch.Tensor | None = None
    ) -> torch.Tensor: ...
    def spikes(self) -> torch.Tensor: ...
    def net(self) -> torch.Tensor: ...
    def membrane(self) -> torch.Tensor: ...
    def keep(self, kept: torch.Tensor) -> None: ...


# a site, its numbers, samples, batch axis, a current of the kind to come, and what populations of one run share
NewPopulation = Callable[[Site, SiteParams, int, int, torch.Tensor, dict[Any, Any]], Population]

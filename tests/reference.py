"""The slowest honest simulator: the user's own model, step by step, its rectifiers and pools replaced by objects with state.

It shares no code with the engines: no graph, no chunks, no kernel. float64 throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transpike.spiking.plan import SiteParams


class Neurons(nn.Module):
    """m = v + I;  s = clip(floor(m / theta), low, cap);  v = m - theta s."""

    def __init__(self, params: SiteParams) -> None:
        super().__init__()
        self.params, self.v, self.net, self.spikes = params, None, None, None

    def forward(self, current: torch.Tensor) -> torch.Tensor:
        theta, v0, extra = (self._spread(x, current) for x in self.params.tensors().values())
        if self.v is None:
            self.v, self.net, self.spikes = v0.expand_as(current).clone(), torch.zeros_like(current), torch.zeros_like(current)
        m = self.v + current + extra
        s = torch.floor(m / theta)
        s = torch.maximum(s, -self.net if self.params.signed else torch.zeros_like(s))
        s = s if self.params.cap is None else torch.clamp(s, max=self.params.cap)
        self.v, self.net, self.spikes = m - theta * s, self.net + s, self.spikes + s.abs()
        return theta * s

    def _spread(self, x: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        x = x.double()
        return x.view(-1, *[1] * (current.dim() - 2)) if x.dim() == 1 else x


class OfSums(nn.Module):
    """``function`` of sums over the steps so far, as differences: exact, for max pools grow with their input."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function, self.sum, self.before = function, 0.0, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sum = self.sum + x
        now = self.function(self.sum)
        change, self.before = now - self.before, now
        return change


@dataclass
class Result:
    outputs: torch.Tensor  # T N ...
    neurons: Mapping[str, Neurons]


def simulate(model: nn.Module, sites: Mapping[str, SiteParams], x: torch.Tensor, steps: int, *, frames: bool = False) -> Result:
    """``model`` with its ReLU modules (each called once) replaced by neurons and its max pools by `OfSums`.

    ``frames``: ``x`` has another input for every step, N T ...
    """
    model = copy.deepcopy(model).double()
    neurons: dict[str, Neurons] = {}
    for path, module in list(model.named_modules()):
        new: Any = None
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            new = neurons[f"{path}#1"] = Neurons(sites[f"{path}#1"])
        elif isinstance(module, (nn.MaxPool1d, nn.MaxPool2d)):
            new = OfSums(module)
        if new is not None:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
    with torch.no_grad():
        outputs = [model((x[:, t] if frames else x).double()) for t in range(steps)]
    return Result(torch.stack(outputs), neurons)

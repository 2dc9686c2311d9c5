"""What a simulation gave, and how the runs of some samples become the run of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from transpike.engines.samples import empty_like
from transpike.engines.trace import Trace
from transpike.errors import DataError
from transpike.graph.ir import map_tree

__all__ = ["Run", "place", "room_for"]


@dataclass(frozen=True, eq=False)
class Run:
    """What a simulation gave.

    Args:
        steps: number of time steps T.
        outputs: the read-out of every step, in the network's own output structure; tensors are T N ...
        spikes: by site, how many spikes (of either sign) each unit of each sample emitted. N *site
        net: by site, spikes less those taken back; equal to ``spikes`` for unsigned neurons. N *site
        membranes: by site, the final membrane potentials in activation units. N *site
        trace: what ran where: time, density and engine of every layer.
    """

    steps: int
    outputs: Any
    spikes: Mapping[str, torch.Tensor]
    net: Mapping[str, torch.Tensor]
    membranes: Mapping[str, torch.Tensor]
    trace: Trace = field(default_factory=Trace)

    def readout(self, t: int | None = None, start: int = 0) -> Any:
        """The mean read-out over steps ``start + 1 .. t``, in the network's own output structure.

        ``o(start, t) = 1 / (t - start) sum_(tau = start + 1)^t y(tau)``

        Raises:
            DataError: an empty window or one beyond the steps that were run.
        """
        t = self.steps if t is None else t
        if not 0 <= start < t <= self.steps:
            raise DataError(f"no read-out over steps {start + 1}..{t}: the run has steps 1..{self.steps}, start < t")
        return map_tree(lambda y: y[start:t].mean(0), self.outputs)


def room_for(part: Run, samples: int, axes: Sequence[int]) -> Run:
    """An empty run of ``samples`` samples for parts like ``part``; ``axes`` are the batch axes of the outputs."""

    def wider(x: torch.Tensor, axis: int = 0) -> torch.Tensor:
        return empty_like(x, axis, samples * x.shape[axis] // count)

    count = len(next(iter(part.spikes.values()))) if part.spikes else next(leaves(part.outputs)).shape[axes[0]]
    rooms = iter([wider(x, axis) for x, axis in zip(leaves(part.outputs), axes, strict=True)])
    spikes = {name: wider(x) for name, x in part.spikes.items()}
    net = {n: spikes[n] if x.data_ptr() == part.spikes[n].data_ptr() else wider(x) for n, x in part.net.items()}
    membranes = {name: wider(x) for name, x in part.membranes.items()}
    return Run(part.steps, map_tree(lambda _: next(rooms), part.outputs), spikes, net, membranes)  # its trace is filled in


def place(part: Run, whole: Run, first: int, samples: int, axes: Sequence[int]) -> None:
    """Copy ``part``, whose first sample is the run's sample ``first``, to its place."""
    whole.trace.add(part.trace)
    for x, room, axis in zip(leaves(part.outputs), leaves(whole.outputs), axes, strict=True):
        rows = room.shape[axis] // samples * first
        room.narrow(axis, rows, x.shape[axis]).copy_(x)
    for mine, room in ((part.spikes, whole.spikes), (part.net, whole.net), (part.membranes, whole.membranes)):
        for name, x in mine.items():
            room[name][first : first + len(x)] = x


def leaves(tree: Any) -> Iterator[torch.Tensor]:
    collected: list[torch.Tensor] = []
    map_tree(collected.append, tree)
    return iter(collected)

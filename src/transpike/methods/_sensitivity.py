"""How much a plan's read-out differs from the ANN's, and how many spikes it takes: measured by simulation.

    S = 1/2 [KL(q || p) + KL(p || q)],   p, q: softmax of the ANN's outputs and of the mean read-out over T steps

averaged over samples and positions, for every output of N x classes (x positions). An output without a class axis (one
number a sample) counts with its squared error over the ANN's mean square. Several outputs add up. Softmax is taken in
logarithms and double precision, so that nothing underflows to 0 / 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from transpike.engines.executor import simulate
from transpike.graph.batches import Batches
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, map_tree, tree_refs
from transpike.spiking.plan import Plan, SiteParams

__all__ = ["Bench", "Measured"]

_PART = 16  # samples simulated at a time: bounds the memory of their spike counts


@dataclass(frozen=True)
class Measured:
    """What a plan does: ``distance`` of its read-out from the ANN's (S), ``spikes`` per sample by site."""

    distance: float
    spikes: Mapping[str, float]

    @property
    def total(self) -> float:
        """Spikes per sample of all sites."""
        return sum(self.spikes.values())


class Bench:
    """Some samples with the ANN's outputs for them, on which plans are measured.

    Args:
        batches: calibration data, of which the first ``samples`` samples are taken.
        steps: simulated time steps T.
    """

    def __init__(self, graph: Graph, batches: Iterable[Any], samples: int, steps: int) -> None:
        self._graph, self._steps = graph, steps
        parts = _first(graph, batches, samples)
        self.samples = sum(len(part[0]) for part in parts)
        self._parts = [(part, _leaves(graph, forward(graph, part))) for part in parts]
        self._squares = [
            sum(float(leaves[k].abs().square().sum()) for _, leaves in self._parts) for k in range(len(self._parts[0][1]))
        ]

    def measure(self, plan: Plan) -> Measured:
        """Simulate ``plan`` on every sample."""
        distance = 0.0
        spikes: dict[str, float] = {site.name: 0.0 for site in self._graph.sites}
        for inputs, wanted in self._parts:
            run = simulate(self._graph, plan, inputs, self._steps)
            found = _leaves(self._graph, run.readout())
            for a, b, square in zip(wanted, found, self._squares, strict=True):
                distance += _distance(a, b, square) * (len(inputs[0]) / self.samples if _has_classes(a) else 1)
            for name, count in run.spikes.items():
                spikes[name] += float(count.sum(dtype=torch.float64)) / self.samples
        return Measured(distance, spikes)

    def table(
        self, plan: Plan, options: Mapping[str, Sequence[SiteParams]], known: Measured, *, limit: float = math.inf
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Distance, and spikes of the site itself (sites x options each), with only that site's numbers replaced.

        Args:
            options: by site, from mild to strong; what is the plan's own is not simulated again.
            known: what ``plan`` itself does.
            limit: after an option whose distance is beyond it, the site's later ones are not measured: infinite.
        """
        distances: list[list[float]] = []
        spikes: list[list[float]] = []
        for name, choices in options.items():
            found: list[Measured] = []
            for choice in choices:
                if found and found[-1].distance > limit:
                    found.append(Measured(math.inf, found[-1].spikes))
                elif choice is plan.sites[name]:
                    found.append(known)
                else:
                    found.append(self.measure(replace(plan, sites={**plan.sites, name: choice})))
            distances.append([m.distance for m in found])
            spikes.append([m.spikes[name] for m in found])
        return distances, spikes


def _first(graph: Graph, batches: Iterable[Any], samples: int) -> list[list[torch.Tensor]]:
    """The first ``samples`` samples in parts of one size, however they are batched."""
    taken: list[list[torch.Tensor]] = []
    missing = samples
    for inputs in batches if isinstance(batches, Batches) else Batches(graph, batches):
        taken.append([x[:missing] for x in inputs])
        missing -= len(taken[-1][0])
        if missing <= 0:
            break
    whole = [torch.cat(column) for column in zip(*taken, strict=True)]
    return [list(part) for part in zip(*(x.split(_PART) for x in whole), strict=True)]


def _leaves(graph: Graph, outputs: Any) -> list[torch.Tensor]:
    """The outputs that depend on the sample, with the batch first and in double precision."""
    axes = {value.name: 0 for value in graph.inputs} | {node.name: node.batch_axis for node in graph.nodes}
    found: list[torch.Tensor] = []
    map_tree(found.append, outputs)
    named = zip(tree_refs(graph.outputs), found, strict=True)
    leaves = [x.movedim(axis, 0) for name, x in named if (axis := axes.get(name)) is not None]
    return [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in leaves]


def _has_classes(x: torch.Tensor) -> bool:
    return x.dim() >= 2 and x.shape[1] >= 2 and not x.is_complex()


def _distance(wanted: torch.Tensor, found: torch.Tensor, square: float) -> float:
    """Mean symmetric KL divergence over axis 1, or squared error as a share of ``square``."""
    if not _has_classes(wanted):
        return float((found - wanted).abs().square().sum()) / max(square, 1e-30)
    p, q = wanted.log_softmax(1), found.log_softmax(1)
    return float(((q.exp() - p.exp()) * (q - p)).sum(1).mean()) / 2

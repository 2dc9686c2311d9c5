"""How much a plan's read-out differs from the ANN's, and how many spikes it takes: measured by simulation.

    S = 1/2 E [KL(q || p) + KL(p || q)],   N = E |b - a|^2 / E |a|^2,   M = 1/2 E |q - p|_1

p, q: softmax of the ANN's outputs a and of the mean read-out b over T steps, averaged over samples and positions, for
every output of N x classes (x positions); in N what all classes have in common is taken away, as softmax does. S is
what papers use. Where the ANN has learnt its calibration data by heart, a few samples of which it is less sure make all
of S, and S is mostly chance; N comes from all of them (on ResNet-20, 128 samples: standard errors of 50 % and 6 %).
M is the share of predictions that would change if they were drawn from the softmax. An output without a class axis
(one number a sample) counts with its squared error over the ANN's mean square, in S too. S and N add up over outputs.
Softmax is taken in logarithms and double precision, so that nothing underflows to 0 / 0.
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

__all__ = ["Bench", "Measured", "Response"]

_PART = 16  # samples simulated at a time: bounds the memory of their spike counts


@dataclass(frozen=True, eq=False)
class Response:
    """Read-outs (parts of samples x outputs, batch first), and ``spikes`` per sample by site."""

    readouts: Sequence[Sequence[torch.Tensor]]
    spikes: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """What a plan does: ``distance`` S and ``error`` N of its read-out, ``moved`` probability, ``spikes`` per sample by site."""

    distance: float
    error: float
    moved: float
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
        self._inputs = _first(graph, batches, samples)
        self.samples = sum(len(part[0]) for part in self._inputs)
        self.ann = Response([_leaves(graph, forward(graph, part)) for part in self._inputs], {})
        self._squares = [sum(map(_square, column)) for column in zip(*self.ann.readouts, strict=True)]

    def measure(self, plan: Plan) -> Measured:
        """Simulate ``plan`` on every sample and compare it with the ANN."""
        return self.compare(self.respond(plan))

    def respond(self, plan: Plan) -> Response:
        """Simulate ``plan`` on every sample."""
        readouts: list[list[torch.Tensor]] = []
        spikes: dict[str, float] = {site.name: 0.0 for site in self._graph.sites}
        for inputs in self._inputs:
            run = simulate(self._graph, plan, inputs, self._steps)
            readouts.append(_leaves(self._graph, run.readout()))
            for name, count in run.spikes.items():
                spikes[name] += float(count.sum(dtype=torch.float64)) / self.samples
        return Response(readouts, spikes)

    def compare(self, response: Response) -> Measured:
        """How far ``response`` is from the ANN's."""
        distance, moved, outputs = 0.0, 0.0, 0
        for column in zip(zip(*self.ann.readouts, strict=True), zip(*response.readouts, strict=True), strict=True):
            pairs = list(zip(*column, strict=True))
            if _has_classes(pairs[0][0]):
                outputs += 1
                distance += sum(len(a) * _divergence(a, b) for a, b in pairs) / self.samples
                moved += sum(len(a) * _variation(a, b) for a, b in pairs) / self.samples
            else:
                distance += sum(_square(b - a) for a, b in pairs) / max(sum(_square(a) for a, _ in pairs), 1e-30)
        return Measured(distance, self.error(response, self.ann), moved / max(outputs, 1), response.spikes)

    def error(self, response: Response, reference: Response) -> float:
        """N: the squared difference of two read-outs, as a share of the ANN's square."""
        both = zip(zip(*reference.readouts, strict=True), zip(*response.readouts, strict=True), self._squares, strict=True)
        return sum(sum(_square(b - a) for a, b in zip(*columns, strict=True)) / max(square, 1e-30) for *columns, square in both)

    def misfit(self, response: Response) -> float:
        """`error` against the ANN, of classes after the best scale common to all samples: ``min_c |c y - a|^2 / |a|^2``.

        Spikes that set in late make a read-out smaller, which no class feels.
        """
        scales = []
        for wanted, found in zip(zip(*self.ann.readouts, strict=True), zip(*response.readouts, strict=True), strict=True):
            own, both = (
                sum(map(_square, found)),
                sum(_square(a + b) - _square(a - b) for a, b in zip(wanted, found, strict=True)) / 4,
            )
            scales.append(both / own if _has_classes(wanted[0]) and both > 0 else 1.0)
        scaled = [[scale * y for scale, y in zip(scales, row, strict=True)] for row in response.readouts]
        return self.error(Response(scaled, response.spikes), self.ann)

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
                    found.append(replace(found[-1], distance=math.inf))
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
    """The outputs that depend on the sample, with the batch first."""
    axes = {value.name: 0 for value in graph.inputs} | {node.name: node.batch_axis for node in graph.nodes}
    found: list[torch.Tensor] = []
    map_tree(found.append, outputs)
    named = zip(tree_refs(graph.outputs), found, strict=True)
    return [x.movedim(axis, 0) for name, x in named if (axis := axes.get(name)) is not None]


def _has_classes(x: torch.Tensor) -> bool:
    return x.dim() >= 2 and x.shape[1] >= 2 and not x.is_complex()


def _square(x: torch.Tensor) -> float:
    """The sum of squares, over classes of what differs from their mean: what all have in common, softmax does not see."""
    x = x.to(torch.complex128 if x.is_complex() else torch.float64)
    return float((x - x.mean(1, keepdim=True) if _has_classes(x) else x).abs().square().sum())


def _divergence(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean symmetric KL divergence over axis 1."""
    p, q = a.double().log_softmax(1), b.double().log_softmax(1)
    return float(((q.exp() - p.exp()) * (q - p)).sum(1).mean()) / 2


def _variation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean total variation over axis 1: how much probability moved from one class to another."""
    return float((a.double().softmax(1) - b.double().softmax(1)).abs().sum(1).mean()) / 2

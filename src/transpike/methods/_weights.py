"""Calibration of weights: the part of a network between two layers of neurons, made trainable on averages over time.

Averages pass through linear operations, and through the differential combinator as its function of the means. So what a
site is given on average follows from what earlier sites emit on average: the operations between them run once on means,
whatever the number of steps. (Max pooling of each step's currents is the exception; there the means are an estimate.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from transpike.graph.interpret import call
from transpike.graph.ir import Graph, Node, Role, Site
from transpike.graph.roles import SYNAPSES, base_name
from transpike.spiking.plan import SiteParams, expand

__all__ = ["Feed", "Updates", "as_node", "feeds", "late", "quantised", "train"]


@dataclass(frozen=True)
class Feed:
    """What brings charge to a site, as far back as other sites, the constant part and the inputs.

    Args:
        site: the site that is fed. source: the operation it reads.
        weights: the parameters to train: of synapses that reach the site without passing neurons or other synapses.
        before: operations that no trained weight reaches, in order.
        after: the trained synapses and what depends on them, in order.
        reads: what ``after`` needs of the rest, with the axis of its samples.
    """

    site: Site
    source: Node
    weights: tuple[str, ...]
    before: tuple[Node, ...]
    after: tuple[Node, ...]
    reads: Mapping[str, int | None]


@dataclass(frozen=True)
class Updates:
    """Updates ``first .. last - 1`` of ``total``, whose step size falls from ``rate`` to 0 as half a cosine.

    Args:
        batch: samples of one update, drawn at random. generator: draws them.
    """

    rate: float
    batch: int
    first: int
    last: int
    total: int
    generator: torch.Generator

    def rates(self) -> Iterator[float]:
        """The step size of every update."""
        return (self.rate * 0.5 * (1 + math.cos(math.pi * i / self.total)) for i in range(self.first, self.last))


def late(graph: Graph) -> Graph:
    """The same network with every operation as late as possible: just before the first site that needs it."""
    return replace(graph, body=tuple(node for part in _parts(graph) for node in part))


def feeds(graph: Graph) -> dict[str, Feed]:
    """For every site, by its name, the part of a `late` network that feeds it.

    A synapse belongs to the first site it feeds; a weight that is read in several places belongs to none.
    """
    times_read = Counter(name for node in graph.nodes for name in node.refs())
    nodes = {node.name: node for node in graph.body}
    sites = {site.node: site for site in graph.sites}
    axes = {node.name: node.batch_axis for node in graph.nodes} | {value.name: 0 for value in graph.inputs}
    found = {}
    for part in _parts(graph):
        if part[-1].name not in sites:
            continue  # the read-out
        site, source, fresh = sites[part[-1].name], part[-1].args[0].name, {node.name for node in part}
        ahead = _ahead(graph.body, source)
        weights = [ref for node in _nearest_synapses(graph.body, source) if node.name in fresh for ref in _own_weights(graph, node)]
        weights = [ref for ref in weights if times_read[ref] == 1]
        reached = set(weights) | {node.name for node in ahead if node.shape is None}  # lists are not cut in samples
        for node in ahead:
            if reached & set(node.refs()):
                reached.add(node.name)
        after = tuple(node for node in ahead if node.name in reached)
        known = reached | set(graph.params)
        reads = {ref: axes.get(ref) for node in after for ref in node.refs() if ref not in known}
        before = tuple(node for node in ahead if node.name not in reached)
        if weights:
            found[site.name] = Feed(site, nodes[source], tuple(weights), before, after, reads)
    return found


def _parts(graph: Graph) -> list[list[Node]]:
    """The body cut behind each site: what the site needs and no earlier one does; last what only the read-out needs."""
    left = dict.fromkeys(node.name for node in graph.body)
    ends = [{node.name} for node in graph.body if node.role is Role.NEURON] + [set(left)]
    parts = []
    for needed in ends:
        for node in reversed(graph.body):
            if node.name in needed:
                needed.update(node.refs())
        parts.append([node for node in graph.body if node.name in needed and node.name in left])
        for node in parts[-1]:
            del left[node.name]
    return [part for part in parts if part]


def _ahead(body: Sequence[Node], source: str) -> list[Node]:
    """The operations from other sites, the constant part and the inputs to ``source``, in order."""
    needed, found = {source}, []
    for node in reversed(body):
        if node.name in needed and node.role is not Role.NEURON:
            needed.update(node.refs())
            found.append(node)
    return found[::-1]


def _nearest_synapses(body: Sequence[Node], source: str) -> list[Node]:
    """The synapses that reach ``source`` without passing neurons or other synapses, in order."""
    needed, found = {source}, []
    for node in reversed(body):
        if node.name in needed and node.role is not Role.NEURON:
            if base_name(node.op) in SYNAPSES:
                found.append(node)
            else:
                needed.update(node.refs())
    return found[::-1]


def _own_weights(graph: Graph, node: Node) -> list[str]:
    """The parameters that a synapse multiplies its input with."""
    return [ref for ref in node.refs() if ref in graph.params and graph.params[ref].dim() > 1]


def as_node(site: Site, node: Node, x: torch.Tensor) -> torch.Tensor:
    """Values N *site in the layout that the site's node has."""
    assert node.shape is not None and node.batch_axis is not None
    rest = [size for axis, size in enumerate(node.shape) if axis != node.batch_axis]
    return x.reshape(-1, *rest).movedim(0, node.batch_axis)  # type: ignore[arg-type] # sizes but one are numbers


def train(
    feed: Feed,
    known: Mapping[str, Any],
    target: torch.Tensor,
    quantise: Callable[[torch.Tensor], torch.Tensor],
    updates: Updates,
) -> dict[str, torch.Tensor]:
    """The weights that bring the quantised mean current nearest to ``target``, by Adam.

        minimise over W  mean_(samples, space) sum_channels (Q(z(W)) - a)^2

    Args:
        known: values by name: parameters, and averages over time of what the feed begins with.
        target: the ANN's activations a. N *site
        quantise: Q, of mean currents N *site.
    """
    samples, device = len(target), target.device
    values = dict(known)
    with torch.no_grad():
        for node in feed.before:
            values[node.name] = call(node, values, samples, device)
    weights = {name: known[name].detach().clone().requires_grad_() for name in feed.weights}
    adam = torch.optim.Adam(weights.values())
    axis = feed.source.batch_axis
    assert axis is not None
    with torch.enable_grad():
        for rate in updates.rates():
            adam.param_groups[0]["lr"] = rate
            some = torch.randperm(samples, generator=updates.generator)[: updates.batch].to(device)
            env = {**known, **weights, **{name: _pick(values[name], where, some, samples) for name, where in feed.reads.items()}}
            for node in feed.after:
                env[node.name] = call(node, env, len(some), device)
            z = env[feed.source.name].movedim(axis, 0).reshape(-1, *feed.site.shape)
            if not z.requires_grad:  # nothing on the way has a derivative (an arg max)
                return {}
            error = (quantise(z) - target[some]).square().sum() * (feed.site.channels / z.numel())
            adam.zero_grad()
            error.backward()
            adam.step()
    return {name: weight.detach() for name, weight in weights.items()}


def quantised(site: Site, params: SiteParams, z: torch.Tensor, steps: int, *, rounding: bool) -> torch.Tensor:
    """What neurons pass on average for even currents of mean ``z`` (N *site); floor counts as having the derivative 1.

    ``Q(z) = amplitude / T clip(floor((T (z + current) + v(0)) / theta), 0, B T)``; without ``rounding`` no v(0).
    """
    theta, current, v_init, worth = (expand(x, site) for x in (params.threshold, params.current, params.v_init, params.worth))
    level = (z + current) * (steps / theta) + (v_init / theta if rounding else 0)
    level = level.clamp(min=0, max=None if params.cap is None else params.cap * steps)
    level = level + (level.floor() - level).detach()
    return level * (worth / steps)


def _pick(x: torch.Tensor, axis: int | None, some: torch.Tensor, samples: int) -> torch.Tensor:
    """The rows of some samples; what has no samples as it is."""
    return x if axis is None else x.unflatten(axis, (samples, -1)).index_select(axis, some).flatten(axis, axis + 1)

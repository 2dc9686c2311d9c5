"""What can be known about running a graph before any data is there.

Where the event engine may run, or neurons take sums as they come, a neuron layer takes the synapse before it (and the residual
sum between them) into one step of the program, `Joined`: events add up to a line of currents, and its neurons fire from the same
pass. Elsewhere on the CPU it takes the residual sum alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from transpike.engines.bit_moves import beside
from transpike.engines.events import Synapse
from transpike.errors import SpecError
from transpike.graph.interpret import frees, overwritable
from transpike.graph.ir import Graph, Node, Ref, Role, Site, tree_refs
from transpike.graph.roles import HOMOGENEOUS, SYNAPSES, base_name
from transpike.spiking.plan import NeuronKind, Plan

__all__ = ["ENGINES", "Joined", "Kept", "Program", "check_engine"]

_NONE: Mapping[str, bool] = {}
ENGINES = ("auto", "dense", "events")


def check_engine(engine: str) -> None:
    """Raises `SpecError` if no engine is called so."""
    if engine not in ENGINES:
        raise SpecError(f"there is no engine {engine!r}: choose from {', '.join(ENGINES)}")


@dataclass(frozen=True)
class Joined:
    """A neuron layer with what its current comes from: a synapse, and perhaps something that is added to it."""

    synapse: Node
    other: str | None
    sum: Node | None


class _Layer(NamedTuple):
    """A neuron layer, what computes its current, and if that is a sum, what the neurons may take over of it."""

    site: Site
    source: Node
    operands: list[tuple[Node, str]]


@dataclass(frozen=True, eq=False)
class Program:
    """A graph and a plan, ready to be walked.

    Args:
        body: what runs at every step, in order.
        synapses: what the event engine may run, by node name. joined: neuron layers that begin with one, by node name.
        heard: neuron layers of which a synapse in ``synapses`` reads, if only through others put beside them.
        counted: joined neuron layers that low precision reads.
        beside: what other neuron layers add to their current themselves.
        own: results whose memory their only reader may reuse.
        averaged: what the combinator reads by its running mean: all that varies, but masks and indices.
        summed: analog operations that need sums only.
        shared: filled while it runs: numbers in memory order.
    """

    graph: Graph
    plan: Plan
    engine: str
    body: tuple[Node, ...]
    synapses: Mapping[str, Synapse]
    joined: Mapping[str, Joined]
    heard: set[str]
    counted: set[str]
    beside: Mapping[str, str]
    params: Mapping[str, torch.Tensor]
    sites: Mapping[str, Site]
    own: set[str]
    averaged: set[str]
    summed: set[str]
    batch_axes: Mapping[str, int]
    prefix_frees: list[list[str]]
    body_frees: list[list[str]]
    shared: dict[Any, Any]

    @staticmethod
    def of(graph: Graph, plan: Plan, engine: str, like: torch.Tensor, summed: Mapping[str, bool] = _NONE) -> Program:
        """The program for inputs like ``like``: events run on the CPU, in single precision.

        Args:
            summed: nodes whose sums are neurons' to take, before their bias comes to them; do they read whole spikes?
        """
        outputs, own = set(tree_refs(graph.outputs)), overwritable(graph.body, graph.outputs)
        synapses, joined, layers = {}, {}, _layers(graph, plan, own)
        if like.dtype == torch.float32 and (summed or like.device.type == "cpu"):
            if engine != "dense" and like.device.type == "cpu":
                linear = [node for node in graph.body if node.role is Role.LINEAR and base_name(node.op) in SYNAPSES]
                found = {node.name: Synapse.of(node, graph) for node in linear}
                synapses = {name: synapse for name, synapse in found.items() if synapse is not None}
            joined = _joined(layers, {*synapses, *summed})
        added = _added(layers, joined) if like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64) else {}
        body = _shortened(graph.body, joined, added)
        for_body = outputs | {name for node in body for name in node.refs()}
        averaged = {node.name for node in graph.body if node.floating} | set(graph.streamed)
        return Program(
            graph,
            plan,
            engine,
            body,
            synapses,
            joined,
            _heard(graph, synapses),
            _heard(graph, {name for name, counting in summed.items() if counting}) & joined.keys(),
            {name: other for name, (_, _, other) in added.items()},
            {**graph.params, **plan.params},
            {site.node: site for site in graph.sites},
            own,
            averaged,
            {node.name for node in graph.body if _works_on_sums(node, averaged)},
            {value.name: 0 for value in graph.inputs} | {n.name: n.batch_axis for n in graph.nodes if n.batch_axis is not None},
            frees(graph.prefix, for_body),
            frees(body, outputs),
            {},
        )


class Kept:
    """The program of a network's last run, for the next one: it also holds weights and thresholds as the engines read them.

    It serves until one of the tensors is written to, which torch counts unless it goes through ``.data``. Copies of a network
    begin with nothing.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, list[torch.Tensor], Program] | None = None

    def program(self, graph: Graph, plan: Plan, engine: str, like: torch.Tensor, summed: Mapping[str, bool] = _NONE) -> Program:
        """`Program.of`, or what it gave the last time."""
        tensors = [*graph.params.values(), *plan.tensors().values()]
        if any(x.is_inference() for x in tensors):  # which do not say when they are written to
            return Program.of(graph, plan, engine, like, summed)
        written = [(id(x), x._version) for x in tensors]  # they are held below: no other tensor has the id of one
        key = id(graph), id(plan), engine, like.dtype, like.device, dict(summed), written
        last = self._last
        if last is None or last[0] != key:
            self._last = last = key, tensors, Program.of(graph, plan, engine, like, summed)
        return last[-1]

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _works_on_sums(node: Node, averaged: set[str]) -> bool:
    """Is ``f(c x) = c f(x)`` for all that it reads? A constant operand would have to grow with the sums."""
    return base_name(node.op) in HOMOGENEOUS and node.floating and all(name in averaged for name in node.refs())


def _layers(graph: Graph, plan: Plan, own: set[str]) -> list[_Layer]:
    """The integrate-and-fire layers with samples on the first axis whose current nothing else reads."""
    nodes = {node.name: node for node in graph.nodes}
    found = []
    for site in graph.sites:
        neuron = nodes[site.node]
        source = nodes.get(neuron.args[0].name)
        steady = plan.sites[site.name].kind is NeuronKind.INTEGRATE_AND_FIRE
        if steady and neuron.batch_axis == 0 and neuron.batch_times == 1 and source is not None and source.name in own:
            found.append(_Layer(site, source, _operands(source, nodes, own)))
    return found


def _operands(source: Node, nodes: Mapping[str, Node], own: set[str]) -> list[tuple[Node, str]]:
    """Of a sum: an operand that nothing else reads, and the other one, which has the sum's shape."""
    if source.op != "aten.add.Tensor" or source.kwargs or not all(isinstance(arg, Ref) for arg in source.args):
        return []
    names, found = [arg.name for arg in source.args], []
    for name, other in (names, names[::-1]):
        beside = nodes.get(other)
        fits = beside is not None and beside.floating and beside.batch_axis == 0 and beside.shape == source.shape
        if fits and name in own and name != other:
            found.append((nodes[name], other))
    return found


def _joined(layers: list[_Layer], synapses: Collection[str]) -> dict[str, Joined]:
    """Neuron layers whose current is a synapse's result, or a sum with one."""
    found: dict[str, Joined] = {}
    taken: set[str] = set()
    for site, source, operands in layers:
        if source.name in synapses and _fits(site, source):
            found[site.node] = Joined(source, None, None)
        for operand, other in operands:
            if operand.name in synapses and operand.name not in taken and _fits(site, operand):
                found[site.node] = Joined(operand, other, source)
                break
        if site.node in found:
            taken.add(found[site.node].synapse.name)
    return found


def _added(layers: list[_Layer], joined: Collection[str]) -> dict[str, tuple[Node, str, str]]:
    """Other neuron layers whose current is a sum: the sum, what they may overwrite, what is added to it."""
    found = {}
    for site, source, operands in layers:
        fitting = [(operand.name, other) for operand, other in operands if operand.shape == source.shape]
        if fitting and site.node not in joined:
            found[site.node] = source, *fitting[0]
    return found


def _heard(graph: Graph, synapses: Collection[str]) -> set[str]:
    """Neuron layers that a synapse reads, or that are put beside others which it reads."""
    nodes = {node.name: node for node in graph.nodes}
    found: set[str] = set()
    asked = [node.args[0].name for node in graph.body if node.name in synapses]
    while asked:
        node = nodes.get(asked.pop())
        if node is None:
            continue
        if node.role is Role.NEURON:
            found.add(node.name)
        elif beside(node):
            asked += node.refs()
    return found


def _fits(site: Site, node: Node) -> bool:
    """Do the neurons lie in memory as the synapse's result does: with the channels innermost?"""
    return len(node.shape or ()) in (2, 4) and node.numel() == site.units


def _shortened(
    body: tuple[Node, ...], joined: Mapping[str, Joined], added: Mapping[str, tuple[Node, str, str]]
) -> tuple[Node, ...]:
    """The body without what neurons have taken over; they read what it read."""
    gone = {node.name for found in joined.values() for node in (found.synapse, found.sum) if node is not None}
    gone |= {total.name for total, _, _ in added.values()}
    kept = []
    for node in body:
        if node.name in joined:
            found = joined[node.name]
            more = () if found.other is None else (Ref(found.other),)
            kept.append(replace(node, args=(*found.synapse.args, *more)))
        elif node.name in added:
            kept.append(replace(node, args=tuple(map(Ref, added[node.name][1:]))))
        elif node.name not in gone:
            kept.append(node)
    return tuple(kept)

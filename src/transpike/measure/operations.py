"""What a spiking network computes: which synapses spikes drive, how many operations a spike causes, what stays dense.

A synaptic operation (SOP) is one spike arriving at one connection. They are counted exactly by sending spike counts
through the network's own layers with every weight set to one: ``SOP = sum conv(S, ones)`` (borders, strides, groups).
Average pooling is folded into the next synapse: each pooled spike goes on. A spike that reaches a neuron without a
synapse (identity shortcut) is one SOP. Max pooling of spikes that share a threshold passes on whole spikes and is
a source of spikes of its own; its comparisons are not counted. Everything else is dense work at every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from transpike.graph.interpret import call, channels_last, interpret
from transpike.graph.ir import BatchSize, Graph, Node, Ref, Role, tree_refs
from transpike.graph.roles import AFFINE, MAX_POOLS, SYNAPSES, base_name
from transpike.spiking.plan import Plan

__all__ = ["Drive", "Operations", "Work", "count_operations", "synaptic_operations"]

_SUMS = frozenset(["aten.add", "aten.sub", "aten.rsub"])
_SCALINGS = frozenset(["aten.mul", "aten.div", "aten.neg", AFFINE])
_COPIES = frozenset(["aten.cat", "aten.stack", "aten.constant_pad_nd", "aten.pad", "aten.upsample_nearest1d",
                     "aten.upsample_nearest2d", "aten.upsample_nearest3d"])  # fmt: skip


class Drive:
    """What makes a synapse work (plain names, they stand in reports)."""

    SPIKES = "spikes"  # only when spikes arrive
    CONSTANT = "constant"  # once: it depends on the input alone
    DENSE = "dense"  # at every step: graded values arrive


@dataclass(frozen=True)
class Work:
    """One operation that costs something: its dense cost for one sample and what drives it.

    ``macs`` are multiply-accumulates; ``elements`` are the inputs of an analog operation without any (softmax,
    GELU, max pooling of graded values), charged like as many multiply-accumulates at every step.
    """

    node: str
    op: str
    path: str
    macs: int
    drive: str
    elements: int = 0


@dataclass(frozen=True, eq=False)
class Operations:
    """The static account of a network.

    Args:
        work: every synapse and every analog operation.
        sources: names of nodes that emit spikes: sites, and max pools that pass spikes on.
        amplitudes: what a spike of a source is worth, broadcastable against one sample.
    """

    work: tuple[Work, ...]
    sources: tuple[str, ...]
    amplitudes: Mapping[str, torch.Tensor]

    def macs(self, drive: str | None = None) -> int:
        """Multiply-accumulates of one sample, of everything or of what has this drive."""
        return sum(w.macs for w in self.work if drive is None or w.drive == drive)

    def dense_work(self) -> int:
        """Multiply-accumulates, and analog elements charged as such, of every step of one sample."""
        return sum(w.macs + w.elements for w in self.work if w.drive == Drive.DENSE)

    @property
    def spiking_share(self) -> float:
        """The share of the ANN's operations that spikes drive."""
        return self.macs(Drive.SPIKES) / self.macs() if self.macs() else 0.0


def count_operations(graph: Graph, plan: Plan) -> Operations:
    """Go through the network once and say what each operation costs and what drives it."""
    macs = _dense_macs(graph)
    amplitudes = _amplitudes(graph, plan)
    driven = _spike_carrying(graph, set(amplitudes))
    work = []
    for node in graph.nodes:
        synapse = base_name(node.op) in SYNAPSES
        if not node.varying:
            drive = Drive.CONSTANT
        elif synapse and node.role is Role.LINEAR and all(n in driven for n in node.refs() if _varies(graph, n)):
            drive = Drive.SPIKES
        else:
            drive = Drive.DENSE
        if synapse or macs[node.name]:
            work.append(Work(node.name, node.op, node.path, macs[node.name], drive))
        elif node.varying and node.role is Role.ANALOG and node.name not in amplitudes:
            elements = sum(n.numel() for n in graph.nodes if n.name in set(node.refs()))
            work.append(Work(node.name, node.op, node.path, 0, drive, elements))
    return Operations(tuple(work), tuple(amplitudes), amplitudes)


def _varies(graph: Graph, name: str) -> bool:
    return any(node.name == name for node in graph.body)


def _dense_macs(graph: Graph) -> dict[str, int]:
    """Multiply-accumulates of every node for one sample, counted while it runs."""
    found: dict[str, int] = {}
    device = next(iter(graph.params.values())).device if graph.params else torch.device("cpu")

    def handle(node: Node, env: Mapping[str, Any]) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = call(node, env, 1, device)
        found[node.name] = counter.get_total_flops() // 2
        return result

    env: dict[str, Any] = dict(graph.params)
    env.update((v.name, channels_last(torch.zeros(1, *v.shape, dtype=v.dtype, device=device))) for v in graph.inputs)
    with torch.no_grad():
        interpret(graph.nodes, env, handle)
    return found


def _amplitudes(graph: Graph, plan: Plan) -> dict[str, torch.Tensor]:
    """The worth of a spike for every source; values that carry whole spikes unscaled are followed to max pools."""
    worth: dict[str, torch.Tensor] = {}  # of every value that consists of whole spikes
    sources: dict[str, torch.Tensor] = {}
    sites = {site.node: site for site in graph.sites}
    for node in graph.body:
        site = sites.get(node.name)
        first = next((name for name in tree_refs(node.args[:1])), "")
        op = base_name(node.op)
        if site is not None:
            theta = plan.sites[site.name].threshold
            shared = theta.dim() == 0 or theta.shape == (site.channels,)
            sources[node.name] = theta.view(site.channel_shape()) if theta.dim() == 1 and shared else theta
            if shared and site.channel_axis == 0 and node.batch_axis == 0:
                worth[node.name] = theta.expand(site.channels).view(site.channel_shape())
        elif op in MAX_POOLS and node.role is Role.ANALOG and first in worth and node.index in (None, 0):
            worth[node.name] = sources[node.name] = worth[first]
        elif op == "aten.cat" and node.args[1:] in ((1,), ()) and node.args[1:]:
            parts = list(tree_refs(node.args[0]))
            if all(name in worth for name in parts):
                worth[node.name] = torch.cat([worth[name] for name in parts])
    return sources


def _spike_carrying(graph: Graph, sources: set[str]) -> set[str]:
    """Values that are sums of whole, perhaps scaled, spikes: what reaches a synapse without another in between."""
    carrying = set(sources)
    for node in graph.body:
        if node.name in carrying or node.role not in (Role.LINEAR, Role.SHAPE) or base_name(node.op) in SYNAPSES:
            continue
        if not (node.role is Role.SHAPE or base_name(node.op) in _SUMS | _SCALINGS | _COPIES or _is_average(node)):
            continue
        inputs = [name for name in node.refs() if _varies(graph, name)]
        if inputs and all(name in carrying for name in inputs):
            carrying.add(node.name)
    return carrying


def _is_average(node: Node) -> bool:
    op = base_name(node.op)
    return "avg_pool" in op or op in ("aten.mean", "aten.sum")


def synaptic_operations(graph: Graph, counts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Exact synaptic operations caused by spike counts, by the node that they arrive at.

    Args:
        counts: spikes of every source of `count_operations`. N *site

    Returns:
        One number per node that receives spikes: synapses, and neurons or sums reached without a synapse
        (identity shortcuts). Differentiable in ``counts``: the gradient of the total is each unit's fan-out.
    """
    samples = len(next(iter(counts.values())))
    device = next(iter(counts.values())).device
    received: dict[str, torch.Tensor] = {}
    env: dict[str, Any] = {}  # spike counts; None where graded values flow
    constants = {node.name for node in graph.prefix} | set(graph.params) | {value.name for value in graph.inputs}

    def arrive(node: Node, spikes: Any) -> None:
        if isinstance(spikes, torch.Tensor):
            received[node.name] = received.get(node.name, torch.zeros((), device=device)) + spikes.sum()

    for node in graph.body:
        if node.name in counts:
            for name in node.refs():
                if node.role is Role.NEURON:
                    arrive(node, env.get(name))
            env[node.name] = counts[node.name].reshape(_full_shape(node, samples))
            continue
        op = base_name(node.op)
        inputs = {name: env.get(name) for name in node.refs() if name not in constants}
        if node.role in (Role.ANALOG, Role.STEPWISE) or any(x is None for x in inputs.values()):
            for spikes in inputs.values():
                arrive(node, spikes)
            env[node.name] = None
        elif op in SYNAPSES:
            arrive(node, _through_ones(node, graph, inputs, samples, device))
            env[node.name] = None
        elif op in _SUMS:
            env[node.name] = sum(x for x in inputs.values() if x is not None)
        elif op in _SCALINGS:
            env[node.name] = next(iter(inputs.values()))
        elif _is_average(node):
            env[node.name] = _summed(node, next(iter(inputs.values())))
        elif node.role is Role.SHAPE or op in _COPIES:
            env[node.name] = call(node, {**graph.params, **inputs}, samples, device)
        else:
            for spikes in inputs.values():
                arrive(node, spikes)
            env[node.name] = None
    return received


def _full_shape(node: Node, samples: int) -> tuple[int, ...]:
    assert node.shape is not None
    return tuple(size.times * samples if isinstance(size, BatchSize) else size for size in node.shape)


def _through_ones(node: Node, graph: Graph, inputs: Mapping[str, Any], samples: int, device: torch.device) -> torch.Tensor:
    """The synapse with every weight one and no bias: each result counts the spikes that reach it."""
    env = dict(inputs)
    args = list(node.args)
    for i, arg in enumerate(args):
        if isinstance(arg, Ref) and arg.name not in inputs:
            bias = base_name(node.op) not in ("aten.mm", "aten.bmm", "aten.matmul", "aten.addmm") and i == 2
            tensor = graph.params.get(arg.name)
            if bias:
                args[i] = None
            elif tensor is not None:
                env[arg.name] = torch.ones_like(tensor)
    return call(replace(node, args=tuple(args)), env, samples, device)


def _summed(node: Node, x: Any) -> torch.Tensor:
    """The sum where the node takes the mean."""
    op = base_name(node.op)
    if op in ("aten.mean", "aten.sum"):
        axes = node.args[1] if len(node.args) > 1 else list(range(1, x.dim()))
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        return x.sum(dim=axes, keepdim=keep)
    if "adaptive" in op:
        size = list(node.args[1])
        area = torch.ones((), device=x.device)
        rank = len(size)
        for axis, out in enumerate(size):
            full = x.shape[x.dim() - rank + axis]
            o = torch.arange(out, device=x.device)
            length = ((o + 1) * full + out - 1) // out - o * full // out
            area = area.unsqueeze(-1) * length.to(x.dtype)
        return call(node, {node.args[0].name: x}, len(x), x.device) * area
    kernel = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    dims = int(op[-2])
    kernel = list(kernel) * (dims if len(kernel) == 1 else 1)
    if dims == 1:  # has no divisor of its own; pads count
        return call(node, {node.args[0].name: x}, len(x), x.device) * math.prod(kernel)
    defaults: list[Any] = [None, None, [], 0, False, True]
    padded = [*node.args[1:], *defaults[len(node.args) :]]
    function = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    stride = padded[1] if padded[1] else None
    return function(x, padded[0], stride, padded[2], bool(padded[3]), True, 1)

"""What a spiking network computes: which synapses spikes drive, how many operations a spike causes, what stays dense.

A synaptic operation (SOP) is one spike arriving at one connection. They are counted exactly by sending spike counts
through the network's own layers with every weight set to one: ``SOP = sum conv(S, ones)`` (borders, strides, groups).
Average pooling is folded into the next synapse: each pooled spike goes on. A spike that reaches a neuron without a
synapse (identity shortcut) is one SOP. Max pooling of spikes that share a threshold passes on whole spikes and is
a source of spikes of its own; its comparisons are not counted. Everything else is dense work at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from transpike.graph.interpret import call, channels_last, interpret
from transpike.graph.ir import BatchSize, Graph, Node, Ref, Role, tree_refs
from transpike.graph.passes import data_dependent, spike_gates
from transpike.graph.roles import AFFINE, BATCH_NORM, SYNAPSES, base_name
from transpike.spiking.plan import Plan

__all__ = ["Drive", "Operations", "Work", "count_operations", "synaptic_operations"]

_SUMS = frozenset(["aten.add", "aten.sub", "aten.rsub"])
_SCALINGS = frozenset(["aten.mul", "aten.div", "aten.neg", AFFINE, BATCH_NORM])
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
    varying = _varying(graph)
    sizes = {node.name: node.numel() for node in graph.nodes}
    work = []
    for node in graph.nodes:
        synapse = base_name(node.op) in SYNAPSES
        if not node.varying:
            drive = Drive.CONSTANT
        elif synapse and node.role is Role.LINEAR and all(n in driven for n in node.refs() if n in varying):
            drive = Drive.SPIKES
        else:
            drive = Drive.DENSE
        if synapse or macs[node.name]:
            work.append(Work(node.name, node.op, node.path, macs[node.name], drive))
        elif node.varying and node.role is Role.ANALOG and node.name not in amplitudes:
            elements = sum(sizes.get(name, 0) for name in set(node.refs()))
            work.append(Work(node.name, node.op, node.path, 0, drive, elements))
    return Operations(tuple(work), tuple(amplitudes), amplitudes)


def _varying(graph: Graph) -> set[str]:
    """Values that are others at every step. The frames of a streamed input are, and carry no spikes."""
    return {node.name for node in graph.body} | set(graph.streamed)


def _graded_constants(graph: Graph) -> set[str]:
    """Values of the constant part that depend on the input: graded, unlike weights, sizes and index tensors."""
    return data_dependent(graph) - _varying(graph)


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
    sites, gates = {site.node: site for site in graph.sites}, spike_gates(graph)
    for node in graph.body:
        site = sites.get(node.name)
        first = next((name for name in tree_refs(node.args[:1])), "")
        op = base_name(node.op)
        if site is not None:
            theta = plan.sites[site.name].worth
            shared = theta.dim() == 0 or theta.shape == (site.channels,)
            sources[node.name] = theta.view(site.channel_shape()) if theta.dim() == 1 and shared else theta
            if shared and site.channel_axis == 0 and node.batch_axis == 0:
                worth[node.name] = theta.expand(site.channels).view(site.channel_shape())
        elif node.name in gates and first in worth:
            worth[node.name] = sources[node.name] = worth[first]
        elif op == "aten.cat" and node.args[1:] == (1,):
            parts = list(tree_refs(node.args[0]))
            if all(name in worth for name in parts):
                worth[node.name] = torch.cat([worth[name] for name in parts])
    return sources


def _spike_carrying(graph: Graph, sources: set[str]) -> set[str]:
    """Values that are sums of whole, perhaps scaled, spikes: what reaches a synapse without another in between."""
    carrying, graded, varying = set(sources), _graded_constants(graph), _varying(graph)
    for node in graph.body:
        if node.name in carrying or node.role not in (Role.LINEAR, Role.SHAPE) or base_name(node.op) in SYNAPSES:
            continue
        if not (node.role is Role.SHAPE or base_name(node.op) in _SUMS | _SCALINGS | _COPIES or _is_average(node)):
            continue
        inputs = [name for name in node.refs() if name in varying or (name in graded and base_name(node.op) in _SUMS | _COPIES)]
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
    like = next(iter(counts.values()))
    samples, device = len(like), like.device
    received: dict[str, torch.Tensor] = {}
    env: dict[str, Any] = {}  # spike counts; None where graded values flow
    varying, graded = _varying(graph), _graded_constants(graph)
    shapes = _constant_shapes(graph, samples)
    moving = _constants_of_moves(graph, samples, device)

    def arrive(node: Node, spikes: Any) -> None:
        if isinstance(spikes, torch.Tensor):
            received[node.name] = received.get(node.name, torch.zeros((), device=device)) + spikes.sum()

    for node in graph.body:
        if node.name in counts:
            for name in node.refs():
                if node.role is Role.NEURON:
                    arrive(node, env.get(name))
            env[node.name] = _in_place_of(node, counts[node.name])
            continue
        op = base_name(node.op)
        inputs = {name: env.get(name) for name in node.refs() if name in varying}
        joins_graded = op in _SUMS | _COPIES and not graded.isdisjoint(node.refs())
        if node.role in (Role.ANALOG, Role.STEPWISE) or joins_graded or any(x is None for x in inputs.values()):
            for spikes in inputs.values():
                arrive(node, spikes)
            env[node.name] = None
        elif op in SYNAPSES:
            arrive(node, _through_ones(node, shapes, inputs, like))
            env[node.name] = None
        elif op in _SUMS:
            env[node.name] = sum(x for x in inputs.values() if x is not None)
        elif op in _SCALINGS:
            env[node.name] = next(iter(inputs.values()))
        elif _is_average(node):
            env[node.name] = _summed(node, next(iter(inputs.values())))
        elif node.role is Role.SHAPE:
            env[node.name] = call(node, {**moving, **inputs}, samples, device)
        elif op in _COPIES:
            others = {
                name: torch.zeros(shapes[name], dtype=like.dtype, device=device) for name in node.refs() if name not in varying
            }
            env[node.name] = call(node, {**others, **inputs}, samples, device)
        else:
            for spikes in inputs.values():
                arrive(node, spikes)
            env[node.name] = None
    return received


def _full_shape(shape: Sequence[int | BatchSize], samples: int) -> tuple[int, ...]:
    return tuple(size.times * samples if isinstance(size, BatchSize) else size for size in shape)


def _in_place_of(node: Node, spikes: torch.Tensor) -> torch.Tensor:
    """Spike counts N *site in the layout of the node's result."""
    assert node.shape is not None and node.batch_axis is not None
    rest = [size for axis, size in enumerate(node.shape) if axis != node.batch_axis]
    return spikes.reshape(-1, *_full_shape(rest, 1)).movedim(0, node.batch_axis)


def _constant_shapes(graph: Graph, samples: int) -> dict[str, tuple[int, ...]]:
    """Shapes of everything that does not change from step to step."""
    shapes = {name: tuple(x.shape) for name, x in graph.params.items()}
    shapes.update((value.name, (samples, *value.shape)) for value in graph.inputs)
    shapes.update((node.name, _full_shape(node.shape, samples)) for node in graph.prefix if node.shape is not None)
    return shapes


def _constants_of_moves(graph: Graph, samples: int, device: torch.device) -> dict[str, Any]:
    """Parameters, and the computed index tensors that operations which move spikes about read."""
    env: dict[str, Any] = dict(graph.params)
    read = {name for node in graph.body if node.role is Role.SHAPE for name in node.refs()}
    if not read.isdisjoint(node.name for node in graph.prefix):
        env.update((v.name, torch.zeros(samples, *v.shape, dtype=v.dtype, device=device)) for v in graph.inputs)
        with torch.no_grad():
            interpret(graph.prefix, env, lambda node, values: call(node, values, samples, device))
    return env


def _through_ones(node: Node, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Any], like: torch.Tensor) -> torch.Tensor:
    """The synapse with every weight one and no bias: each result counts the spikes that reach it."""
    if base_name(node.op) == "aten.addmm":  # bias first
        node = replace(node, op="aten.mm.default", args=node.args[1:3], kwargs={})
    env, args = dict(inputs), list(node.args)
    for i, arg in enumerate(args):
        if isinstance(arg, Ref) and arg.name not in inputs:
            if i == 2:  # the bias
                args[i] = None
            else:
                env[arg.name] = torch.ones(shapes[arg.name], dtype=like.dtype, device=like.device)
    return call(replace(node, args=tuple(args)), env, len(like), like.device)


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
    dims = int(op[-2])
    defaults: list[Any] = [None, None, [], 0, False, True]
    kernel, stride, padding, ceil = [*node.args[1:], *defaults[len(node.args) :]][:4]
    stride = stride or kernel
    if dims == 1:  # has no divisor of its own: pool rows of an image with one row
        row, step, border = (v[0] if isinstance(v, (list, tuple)) else v for v in (kernel, stride, padding))
        return torch.nn.functional.avg_pool2d(x.unsqueeze(-2), (1, row), (1, step), (0, border), bool(ceil), True, 1).squeeze(-2)
    function = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    return function(x, kernel, stride, padding, bool(ceil), True, 1)

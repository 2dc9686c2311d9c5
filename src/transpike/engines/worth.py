"""Which values on their way through the body are whole spikes, and what one spike is worth at each place.

A neuron layer emits ``worth s`` with integers ``s``. Moving values about, putting them side by side and pooling the largest
keep them so; sums, means and analog operations do not.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import Any

import torch

from transpike.graph.interpret import call
from transpike.graph.ir import Graph, Node, Role
from transpike.graph.passes import spike_gates
from transpike.graph.roles import base_name
from transpike.spiking.plan import Plan, expand

__all__ = ["Spikes", "by_channel", "whole_spikes"]


@dataclass(frozen=True, eq=False)
class Spikes:
    """A value that is ``worth s`` with whole numbers ``s``.

    Args:
        worth: activation units, in the value's own shape for a batch of one.
        most: the largest ``s`` of a step where none is negative, None where there is no such bound beforehand.
    """

    worth: Any
    most: int | None


def whole_spikes(graph: Graph, plan: Plan) -> dict[str, Spikes]:
    """The values of the body that are whole spikes, by name."""
    sites, gates = {site.node: site for site in graph.sites}, spike_gates(graph)
    found: dict[str, Spikes] = {}
    for node in graph.body:
        if node.role is Role.NEURON:
            site, axis = sites[node.name], node.batch_axis
            assert axis is not None, "neurons have a batch axis (checked at capture)"
            params = plan.sites[site.name]
            rest = [size for k, size in enumerate(node.shape or ()) if k != axis and isinstance(size, int)]
            worth = expand(params.worth, site).reshape(node.batch_times, *rest).movedim(0, axis)
            found[node.name] = Spikes(worth, None if params.signed else params.cap)
        elif node.role is Role.SHAPE or node.name in gates or base_name(node.op) in ("aten.cat", "aten.stack"):
            moved = _moved(node, graph, found)
            if moved is not None:
                found[node.name] = moved
    return found


def _moved(node: Node, graph: Graph, found: dict[str, Spikes]) -> Spikes | None:
    """What the operation makes of its operands' worths, None if not all that varies in them are spikes."""
    parts = [found[name] for name in node.refs() if name in found]
    if not parts or not all(name in found or name in graph.params for name in node.refs()):
        return None
    worths = {name: spikes.worth for name, spikes in found.items()}
    device = next(iter(worths.values())).device
    bounds = [part.most for part in parts]
    most = None if None in bounds else max(bound for bound in bounds if bound is not None)
    return Spikes(call(node, ChainMap(worths, dict(graph.params)), 1, device), most)


def by_channel(worth: torch.Tensor, axis: int) -> torch.Tensor | None:
    """What a spike is worth in each channel, None if the places of a channel differ."""
    rows = worth.movedim(axis, 0).flatten(1) if worth.dim() > 1 else worth[:, None]
    low, high = rows.aminmax(dim=1)
    return low if torch.equal(low, high) else None

"""A network whose input is another at every step: recordings of event cameras, one frame per time step.

Direct encoding presents an input unchanged, so what depends on it alone is computed once. Of a stream nothing is
constant: the whole of the prefix becomes part of the body, its linear operations run on every frame, and the differential
combinator keeps the others exact. After t steps the read-out is that of the ANN for the mean of the frames so far,
as well as spikes can tell.
"""

from __future__ import annotations

from dataclasses import replace

from transpike.graph.ir import Graph, Role
from transpike.graph.passes import split_and_name

__all__ = ["streamed"]


def streamed(graph: Graph) -> Graph:
    """The same network, with the same sites, for inputs with frames N T ..., of which step t sees frame t."""
    inputs = tuple(replace(value, varying=True) for value in graph.inputs)
    nodes = tuple(replace(node, varying=True) for node in graph.nodes)
    pooled = {node.name for node in graph.body if node.role is Role.STEPWISE}
    whole = split_and_name(replace(graph, inputs=inputs, prefix=(), body=nodes))
    # what was pooled once, exactly, stays exact: it does not become the approximation that pools each step's currents
    body = [
        replace(node, role=Role.ANALOG) if node.role is Role.STEPWISE and node.name not in pooled else node for node in whole.body
    ]
    return replace(whole, body=tuple(body))

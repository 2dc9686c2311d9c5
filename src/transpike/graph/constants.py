"""What depends on parameters alone is a parameter: weights that a forward pass standardises or composes are computed once.

Standardised convolutions, weight norm, tables of relative positions: all that is left of them is the tensor that the network
uses, so that batch norm folds into it, methods may change it, and event kernels can lay it out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from transpike.graph.interpret import call
from transpike.graph.ir import BatchSize, Graph, Node, map_tree, tree_refs

__all__ = ["compute_constants"]


def compute_constants(graph: Graph) -> Graph:
    """The graph with the results of operations that read nothing but parameters as parameters of the operations' names."""
    device = next((x.device for x in graph.params.values()), torch.device("cpu"))
    env: dict[str, Any] = dict(graph.params)
    kept, returned = [], set(tree_refs(graph.outputs))
    with torch.no_grad():
        for node in graph.body:
            reads = list(node.refs())
            fixed = bool(reads) and all(name in env for name in reads) and node.name not in returned and not _sized(node)
            value = call(node, env, 1, device) if fixed else None
            if isinstance(value, torch.Tensor):
                env[node.name] = value.clone(memory_format=torch.contiguous_format)
            else:
                kept.append(node)
    return replace(graph, body=tuple(kept), params=env)


def _sized(node: Node) -> bool:
    """Does it read the number of samples?"""
    found: list[Any] = []
    map_tree(found.append, (node.args, dict(node.kwargs)))
    return any(isinstance(leaf, BatchSize) for leaf in found)

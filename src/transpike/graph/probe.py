"""Does one sample's result depend on another sample? Tried, not guessed: change one and watch the other.

No table of operations can answer this for all of ATen, and a wrong answer would be silent: the time steps of a
simulation are laid out along the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from transpike.graph.interpret import call, interpret
from transpike.graph.ir import Graph, Node, Role, tree_refs

__all__ = ["mixing_problems"]


def mixing_problems(graph: Graph, example: Sequence[torch.Tensor]) -> list[str]:
    """Reasons why the samples of a batch are not independent; ``example`` has two samples."""
    inputs = {value.name for value in graph.inputs}
    reached = set(inputs)
    for node in graph.nodes:
        if any(name in reached for name in node.refs()):
            reached.add(node.name)
            if node.shape is not None and node.batch_axis is None:
                return [_problem(node, "its result has no batch axis any more")]
    outputs = set(tree_refs(graph.outputs))
    problems = [
        f"output {i} does not depend on the input" for i, name in enumerate(tree_refs(graph.outputs)) if name not in reached
    ]
    matters = outputs | {site.node for site in graph.sites}
    matters |= {name for node in graph.body if node.role is Role.ANALOG for name in [node.name, *node.refs()]}
    matters |= {name for node in graph.body for name in node.refs() if name in {n.name for n in graph.prefix}}
    before, after = _values(graph, example), _values(graph, [_change_last(x) for x in example])
    culprit = None
    for node in graph.nodes:
        if node.name not in reached or not isinstance(before[node.name], torch.Tensor):
            continue
        if not torch.equal(_first_sample(node, before[node.name]), _first_sample(node, after[node.name])):
            culprit = culprit or node
            if node.name in matters:
                return [*problems, _problem(culprit, "one sample's result changes with another sample")]
    return problems


def _problem(node: Node, what: str) -> str:
    return f"{node.op} in {node.path or 'the model'} mixes the batch: {what}; samples must be independent"


def _change_last(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1], (0.25 - 0.75 * x[1:]).flip(-1)])


def _values(graph: Graph, inputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    env: dict[str, Any] = {**graph.params, **{value.name: x for value, x in zip(graph.inputs, inputs, strict=True)}}
    with torch.no_grad():
        interpret(graph.nodes, env, lambda node, values: call(node, values, 2, inputs[0].device))
    return env


def _first_sample(node: Node, value: torch.Tensor) -> torch.Tensor:
    axis = node.batch_axis
    assert axis is not None
    return torch.nan_to_num(value.narrow(axis, 0, node.batch_times))

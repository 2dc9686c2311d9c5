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
from transpike.graph.passes import data_dependent

__all__ = ["mixing_problems"]

Values = dict[str, Any]


def mixing_problems(graph: Graph, example: Sequence[torch.Tensor]) -> list[str]:
    """Reasons why the samples of a batch are not independent; ``example`` has two samples."""
    reached = data_dependent(graph)
    for node in graph.nodes:
        if node.name in reached and node.shape is not None and node.batch_axis is None:
            return [_problem(node, "its result has no batch axis any more")]
    outputs = set(tree_refs(graph.outputs))
    problems = [
        f"output {i} does not depend on the input" for i, name in enumerate(tree_refs(graph.outputs)) if name not in reached
    ]
    matters = outputs | {site.node for site in graph.sites}
    matters |= {name for node in graph.body if node.role is Role.ANALOG for name in [node.name, *node.refs()]}
    matters |= {name for node in graph.body for name in node.refs() if name in {n.name for n in graph.prefix}}
    changed = [_change_last(x) for x in example]
    before, after = _values(graph, example), _values(graph, changed)
    culprit = None
    for node in graph.nodes:
        if node.name not in reached or not isinstance(before[node.name], torch.Tensor):
            continue
        if not torch.equal(_first_sample(node, before[node.name]), _first_sample(node, after[node.name])):
            culprit = culprit or node
            if node.name in matters:
                return [*problems, _problem(culprit, "one sample's result changes with another sample")]
    folded = _folded(graph, [torch.cat(pair) for pair in zip(example, changed, strict=True)], before, after)
    culprit = None
    for node in graph.nodes:
        if node.name not in reached or not node.floating or not isinstance(before[node.name], torch.Tensor):
            continue
        if not _close(folded[node.name], _together(node, before, after)):
            culprit = culprit or node
            if node.name in matters:
                why = "its result depends on the size of the batch or on a sample's place in it"
                return [*problems, _problem(culprit, why)]
    return problems


def _folded(graph: Graph, inputs: Sequence[torch.Tensor], before: Values, after: Values) -> Values:
    """All values when two runs of two samples are one run of four.

    The body gets what two prefixes gave, as if these were two steps of two samples.
    """
    given = {**graph.params, **{value.name: x for value, x in zip(graph.inputs, inputs, strict=True)}}
    prefix, body = dict(given), {**given, **{node.name: _together(node, before, after) for node in graph.prefix}}
    with torch.no_grad():
        for nodes, env in ((graph.prefix, prefix), (graph.body, body)):
            interpret(nodes, env, lambda node, values: call(node, values, 4, inputs[0].device))
    return {**body, **prefix}


def _together(node: Node, before: Values, after: Values) -> Any:
    a, b, axis = before[node.name], after[node.name], node.batch_axis
    return a if axis is None else torch.cat([a, b], axis)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding, which may make a few quantised values fall on the other side."""
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    return bool((a - b).abs().mean() <= 0.02 * b.abs().mean() + 1e-6)


def _problem(node: Node, what: str) -> str:
    return f"{node.op} in {node.path or 'the model'} mixes the batch: {what}; samples must be independent"


def _change_last(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1], (0.25 - 0.75 * x[1:]).flip(-1)])


def _values(graph: Graph, inputs: Sequence[torch.Tensor]) -> Values:
    env: Values = {**graph.params, **{value.name: x for value, x in zip(graph.inputs, inputs, strict=True)}}
    with torch.no_grad():
        interpret(graph.nodes, env, lambda node, values: call(node, values, 2, inputs[0].device))
    return env


def _first_sample(node: Node, value: torch.Tensor) -> torch.Tensor:
    axis = node.batch_axis
    assert axis is not None
    return torch.nan_to_num(value.narrow(axis, 0, node.batch_times))

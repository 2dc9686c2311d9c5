"""Does one sample's result depend on another sample? Tried, not guessed: change one and watch the other.

No table of operations can answer this for all of ATen, and a wrong answer would be silent: the time steps of a
simulation are laid out along the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from transpike.graph.interpret import call, frees
from transpike.graph.ir import Graph, Node, Role, tree_refs
from transpike.graph.passes import data_dependent

__all__ = ["mixing_problems"]


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
    touched = moved = seen = None  # the first nodes whose samples mix, and whose results change with the batch; where that matters
    for node, before, after, folded in _values(graph, example, changed):
        if node.name not in reached or not isinstance(before, torch.Tensor):
            continue
        if not torch.equal(_first_sample(node, before), _first_sample(node, after)):
            touched = touched or node
            if node.name in matters:
                return [*problems, _problem(touched, "one sample's result changes with another sample")]
        if seen is None and node.floating and not _close(folded, _together(node, before, after)):
            moved = moved or node
            seen = moved if node.name in matters else None
    if seen is not None:
        return [*problems, _problem(seen, "its result depends on the size of the batch or on a sample's place in it")]
    return problems


def _values(graph: Graph, example: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]) -> Iterator[tuple[Node, Any, Any, Any]]:
    """Of every node in turn its value for two samples, for them with the last one changed, and when both runs are one of four.

    The body of the third run gets what the prefixes of the others gave, as if these were two steps of two samples. What
    nobody reads any more is dropped: all values of a large network do not fit into memory.
    """
    four = [torch.cat(pair) for pair in zip(example, changed, strict=True)]
    names = [value.name for value in graph.inputs]
    before, after, prefix, body = ({**graph.params, **dict(zip(names, x, strict=True))} for x in (example, changed, four, four))
    constant, device = {node.name for node in graph.prefix}, example[0].device
    for node, dead in zip(graph.nodes, frees(graph.nodes, set()), strict=True):
        with torch.no_grad():
            before[node.name], after[node.name] = (call(node, env, 2, device) for env in (before, after))
            if node.name in constant:
                folded = prefix[node.name] = call(node, prefix, 4, device)
                body[node.name] = _together(node, before[node.name], after[node.name])
            else:
                folded = body[node.name] = call(node, body, 4, device)
        yield node, before[node.name], after[node.name], folded
        for name in dead:
            for env in (before, after, prefix, body):
                env.pop(name, None)


def _together(node: Node, before: Any, after: Any) -> Any:
    return before if node.batch_axis is None else torch.cat([before, after], node.batch_axis)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding, which may make a few quantised values fall on the other side."""
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    return bool((a - b).abs().mean() <= 0.02 * b.abs().mean() + 1e-6)


def _problem(node: Node, what: str) -> str:
    return f"{node.op} in {node.path or 'the model'} mixes the batch: {what}; samples must be independent"


def _change_last(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1], (0.25 - 0.75 * x[1:]).flip(-1)])


def _first_sample(node: Node, value: torch.Tensor) -> torch.Tensor:
    axis = node.batch_axis
    assert axis is not None
    return torch.nan_to_num(value.narrow(axis, 0, node.batch_times))

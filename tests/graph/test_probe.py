"""The probe tries whether samples depend on each other: no false alarm, no silent mixing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models import CASES, as_inputs, batch_of, captured
from transpike.graph.ir import BatchSize, Graph, Node, Ref
from transpike.graph.probe import mixing_problems


def _with_operation(graph: Graph, op: str, *args: object) -> Graph:
    """``graph`` whose last neuron layer's spikes go through one more operation."""
    site = graph.node(graph.sites[-1].node)
    node = replace(site, name="extra", op=op, args=(Ref(site.name), *args))
    readers: dict[str, Node] = {}
    for n in graph.body:
        if site.name in n.refs():
            readers[n.name] = replace(n, args=tuple(Ref("extra") if arg == Ref(site.name) else arg for arg in n.args))
    body: list[Node] = []
    for n in graph.body:
        body += [readers.get(n.name, n)] + ([node] if n.name == site.name else [])
    return replace(graph, body=tuple(body))


@pytest.mark.parametrize("name", CASES)
def test_no_network_with_independent_samples_is_refused(name):
    assert mixing_problems(captured(name), as_inputs(batch_of(name, 2))) == []


@pytest.mark.parametrize(
    ("op", "args", "why"),
    [
        ("aten.flip.default", ([0],), "changes with another sample"),
        ("aten.roll.default", ([1], [0]), "changes with another sample"),
        ("aten.cumsum.default", (0,), "size of the batch or on a sample's place"),
        ("aten.softmax.int", (0,), "changes with another sample"),
        ("aten.mul.Tensor", (BatchSize(),), "size of the batch"),
        ("aten.div.Tensor", (BatchSize(),), "size of the batch"),
    ],
)
def test_an_operation_across_the_batch_is_found_and_named(op, args, why):
    (problem,) = mixing_problems(_with_operation(captured("mlp"), op, *args), [batch_of("mlp", 2)])
    assert problem.startswith(op) and why in problem

"""The passes: nothing idle is left, pooling stands where it was asked for, the constant part is separate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import CASES, as_inputs, batch_of, captured, images, make, tensors
from transpike.graph.capture import Pooling, capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Role, tree_refs
from transpike.graph.roles import MAX_POOLS, NO_OPS, base_name

POOLED = ("deep_pool", "fire", "branched_stem")


def _pools(graph: Graph) -> list[tuple[str, Role]]:
    body = {node.name for node in graph.body}
    return [("body" if n.name in body else "prefix", n.role) for n in graph.nodes if base_name(n.op) in MAX_POOLS]


@pytest.mark.parametrize("name", CASES)
def test_no_idle_operation_and_no_unread_parameter_is_left(name):
    graph = captured(name)
    read = {ref for node in graph.nodes for ref in node.refs()} | set(tree_refs(graph.outputs))
    assert not [node.op for node in graph.nodes if base_name(node.op) in NO_OPS]
    assert set(graph.params) <= read and {node.name for node in graph.nodes} <= read


@pytest.mark.parametrize("name", CASES)
def test_the_prefix_holds_what_no_neuron_reaches_and_the_body_the_rest(name):
    graph = captured(name)
    fired = {site.node for site in graph.sites}
    for node in graph.nodes:
        if any(ref in fired for ref in node.refs()):
            fired.add(node.name)
    assert {node.name for node in graph.body} == fired
    assert all(node.varying == (node.name in fired) for node in graph.nodes)


@pytest.mark.parametrize("name", CASES)
def test_every_node_reads_only_what_was_computed_before(name):
    graph = captured(name)
    known = {*graph.params, *(value.name for value in graph.inputs)}
    for node in graph.nodes:
        assert set(node.refs()) <= known
        known.add(node.name)
    assert set(tree_refs(graph.outputs)) <= known


@pytest.mark.parametrize("name", POOLED)
def test_both_pooling_placements_compute_the_same_network(name):
    x = as_inputs(batch_of(name))
    rate, current = forward(captured(name), x), forward(captured(name, Pooling.CURRENT), x)
    assert torch.equal(rate, current)


def test_pooling_of_a_constant_current_moves_before_the_neuron_into_the_prefix():
    for name, pooling in (("residual", Pooling.RATE), ("branched_stem", Pooling.RATE), ("branched_stem", Pooling.CURRENT)):
        assert {where for where, _ in _pools(captured(name, pooling))} == {"prefix"}


def test_rate_pooling_stays_behind_deep_neurons_and_is_analog():
    assert _pools(captured("deep_pool")) == [("body", Role.ANALOG)]


def test_current_pooling_stands_before_deep_neurons_and_is_done_at_every_step():
    graph = captured("deep_pool", Pooling.CURRENT)
    assert _pools(graph) == [("body", Role.STEPWISE)]
    pool = next(node for node in graph.body if base_name(node.op) in MAX_POOLS)
    assert next(node for node in graph.body if pool.name in node.refs()).role is Role.NEURON
    assert [site.shape for site in graph.sites] == [(6, 8, 8), (6, 4, 4)]


def test_current_pooling_goes_through_a_concatenation_of_channels():
    graph = captured("fire", Pooling.CURRENT)
    assert [role for where, role in _pools(graph) if where == "body"] == [Role.STEPWISE, Role.STEPWISE]
    assert [site.shape for site in graph.sites] == [(6, 4, 4), (4, 4, 4), (5, 2, 2), (5, 2, 2), (4, 2, 2)]


def test_a_neuron_that_something_else_reads_stays_before_the_pool():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv(x))
            return x + self.pool(x)

    model = Twice().eval()
    graph = capture(model, images(), pooling=Pooling.CURRENT)
    assert _pools(graph) == [("body", Role.ANALOG)]
    torch.testing.assert_close(forward(graph, [images()]), model(images()).detach())


def test_a_ceiling_survives_the_exchange_with_a_pool():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.MaxPool2d(2)).eval()
    model[0].weight.data *= 20
    graph = capture(model, images())
    assert [(site.ceiling, site.shape) for site in graph.sites] == [(6.0, (4, 3, 3))]
    torch.testing.assert_close(forward(graph, [images()]), model(images()))  # memory layouts round convolutions differently
    assert forward(graph, [images()]).max() == model(images()).max() == 6


def test_max_pooling_commutes_with_rectification_and_clipping_for_all_windows_bit_for_bit():  # P-IF-5
    z = torch.cat([-images(4).abs(), images(8)])  # windows without a positive value too
    pool = nn.MaxPool2d(2)
    assert torch.equal(pool(z.relu()), pool(z).relu())
    assert torch.equal(pool(z.clamp(0, 0.75)), pool(z).clamp(0, 0.75))


def test_the_graph_of_a_network_without_neurons_is_all_prefix():
    graph = capture(nn.Linear(6, 4).eval(), torch.zeros(2, 6))
    assert graph.body == () and graph.sites == () and len(graph.prefix) == 1


def test_dropout_and_unused_modules_leave_no_trace():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop, self.unused = nn.Linear(6, 4), nn.Dropout(0.9), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.unused(x[:, :3])
            return self.drop(torch.relu(self.drop(self.fc(x)).contiguous()))

    graph = capture(Idle().eval(), torch.zeros(2, 6))
    assert [base_name(node.op) for node in graph.nodes] == ["aten.linear", "aten.relu"]
    assert set(graph.params) == {"fc.weight", "fc.bias"}


def test_results_of_one_operation_are_picked_one_by_one():
    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(x)
            values, places = nn.functional.max_pool2d(x, 2, return_indices=True)
            return nn.functional.max_unpool2d(values, places, 2)

    graph = capture(Pooled().eval(), images())
    assert [(node.index, node.floating) for node in graph.body[1:]] == [(0, True), (1, False), (None, True)]
    assert torch.equal(forward(graph, [images()]), Pooled()(images()))


def test_a_value_that_is_returned_is_never_exchanged_with_a_pool():
    class Feature(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.relu(self.conv(x))
            return x, nn.functional.max_pool2d(x, 2)

    model = Feature().eval()
    for a, b in zip(tensors(forward(capture(model, images()), [images()])), model(images()), strict=True):
        torch.testing.assert_close(a, b.detach())


def test_the_stem_of_a_network_is_computed_once():
    assert [base_name(node.op) for node in captured("residual").prefix] == ["aten.conv2d", "aten.max_pool2d"]
    assert make("residual").stem_bn is not None  # which is folded

"""Running nodes: references and batch sizes are resolved, values are dropped in time, nobody's memory is overwritten."""

from __future__ import annotations

import pytest
import torch

from models import CASES, as_inputs, batch_of, captured, images, tensors
from transpike.graph.interpret import affine, channels_last, forward, frees, overwritable, resolve
from transpike.graph.ir import BatchSize, DeviceSlot, Node, Ref, Role, tree_refs

CPU = torch.device("cpu")


def _node(name: str, *reads: str) -> Node:
    return Node(name, "aten.add.Tensor", tuple(Ref(read) for read in reads), {}, Role.LINEAR, (BatchSize(), 1))


def test_arguments_are_resolved_inside_lists_and_tuples():
    value = [Ref("a"), (BatchSize(), BatchSize(3)), DeviceSlot(), None, "mean"]
    assert resolve(value, {"a": 7}, 4, CPU) == [7, (4, 12), CPU, None, "mean"]


def test_affine_scales_and_shifts_the_channels_on_axis_one():
    x, scale, shift = images(2), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, -1.0])
    for c in range(3):
        torch.testing.assert_close(affine(x, scale, shift)[:, c], x[:, c] * scale[c] + shift[c])


def test_a_value_is_dropped_after_its_last_reader_unless_it_is_kept():
    nodes = [_node("a", "x"), _node("b", "a"), _node("c", "a", "b"), _node("d", "c")]
    assert frees(nodes, {"d"}) == [[], [], ["a", "b"], ["c"]]
    assert frees(nodes, {"a", "d"}) == [[], [], ["b"], ["c"]]


def test_only_results_of_linear_operations_with_one_reader_may_be_overwritten():
    nodes = [_node("a", "x"), _node("b", "a"), _node("c", "b", "b"), _node("d", "c")]
    assert overwritable(nodes, Ref("d")) == {"a", "c"}
    assert overwritable(nodes, (Ref("a"), Ref("d"))) == {"c"}


@pytest.mark.parametrize("name", CASES)
def test_an_observer_that_overwrites_what_it_sees_changes_nothing_but_its_own_result(name):
    graph, x = captured(name), as_inputs(batch_of(name))
    before = [value.clone() for value in x]
    weights = {key: value.clone() for key, value in graph.params.items()}
    plain = forward(graph, x)

    def at_site(site, z):
        assert z.shape[1:] == site.shape
        a = z.clamp(min=0) if site.ceiling is None else z.clamp(0, site.ceiling)
        z.fill_(float("nan"))
        return a

    for a, b in zip(tensors(forward(graph, x, at_site)), tensors(plain), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))
    assert all(torch.equal(graph.params[key], value) for key, value in weights.items())


def test_the_observer_sees_every_site_once_in_order():
    seen: list[str] = []

    def at_site(site, z):
        seen.append(site.name)
        return z.clamp_(min=0)

    forward(captured("residual"), [images()], at_site)
    assert seen == [site.name for site in captured("residual").sites]


def test_channels_last_keeps_the_values():
    for x in (images(2), torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3)):
        assert torch.equal(channels_last(x), x)


def test_references_are_found_in_nested_structures():
    assert list(tree_refs({"a": [Ref("x"), (Ref("y"), 3)], "b": Ref("x")})) == ["x", "y", "x"]

"""How activations are laid out for statistics, and how thresholds become a plan."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from transpike.errors import DataError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import collapse, to_plan, watch
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import Granularity


def site(*shape: int, channel_axis: int = 0) -> Site:
    return Site("s", "n", shape, channel_axis)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


LAYOUTS = {
    "image": (numbered(2, 3, 4, 5), 0),
    "image, channels last": (numbered(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), 0),
    "image, cropped": (numbered(2, 3, 6, 7)[:, :, 1:5, 2:7], 0),
    "one channel": (numbered(2, 1, 4, 5), 0),
    "one channel, channels last": (numbered(2, 1, 4, 5).contiguous(memory_format=torch.channels_last), 0),
    "vector": (numbered(4, 6), 0),
    "points": (numbered(2, 3, 7), 0),
    "tokens": (numbered(2, 7, 3), 1),
    "video": (numbered(2, 3, 2, 2, 4), 0),
    "video, channels last": (numbered(2, 3, 2, 2, 4).contiguous(memory_format=torch.channels_last_3d), 0),
    "several rows a sample": (numbered(2, 4, 3, 5), 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("granularity", Granularity)
def test_collapse_puts_exactly_the_values_that_share_a_threshold_together(name: str, granularity: Granularity) -> None:
    x, axis = LAYOUTS[name]
    found = collapse(site(*x.shape[1:], channel_axis=axis), x, granularity)
    assert found.dim() == 3 and found.numel() == x.numel()
    groups = [sorted(found[:, g].flatten().tolist()) for g in range(found.shape[1])]
    if granularity is Granularity.LAYER:
        wanted = [sorted(x.flatten().tolist())]
    elif granularity is Granularity.CHANNEL:
        wanted = [sorted(x.select(axis + 1, c).flatten().tolist()) for c in range(x.shape[axis + 1])]
    else:
        wanted = [sorted(unit.tolist()) for unit in x.flatten(1).T]
    assert groups == wanted


@pytest.mark.parametrize("name", ["image", "image, channels last", "vector", "points", "tokens", "video, channels last"])
@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.LAYER])
def test_collapse_copies_nothing_in_the_usual_layouts(name: str, granularity: Granularity) -> None:
    x, axis = LAYOUTS[name]
    found = collapse(site(*x.shape[1:], channel_axis=axis), x, granularity)
    assert found.data_ptr() == x.data_ptr() and found.is_contiguous()  # kernels go through memory in order


@cache
def rectifier(*shape: int) -> Graph:
    return capture(nn.Sequential(nn.ReLU(), nn.Linear(shape[-1], 2)).eval(), torch.zeros(2, *shape))


def test_watch_shows_rectified_activations_and_counts_samples() -> None:
    seen: list[torch.Tensor] = []
    data = [torch.tensor([[-1.0, 2.0, 0.5]]), torch.tensor([[3.0, -4.0, 0.0], [1.0, 1.0, 1.0]])]
    kept = [x.clone() for x in data]
    assert watch(rectifier(3), data, lambda _, a: seen.append(a.clone())) == 3
    assert torch.equal(torch.cat(seen), torch.tensor([[0.0, 2.0, 0.5], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))  # the caller's data is not rectified
    with pytest.raises(DataError):
        watch(rectifier(3), [], lambda _, a: None)


def test_dead_channels_take_their_sites_largest_threshold_and_are_noted() -> None:
    x = torch.tensor([[1.0, -1.0, 3.0, -2.0], [2.0, 0.0, 1.0, -5.0]])
    plan = MaxNorm().fit(rectifier(4), [x])
    assert plan.sites["0#1"].threshold.tolist() == [2.0, 3.0, 3.0, 3.0]
    (note,) = plan.notes
    assert "2 thresholds in 1 sites have never seen activity" in note and "0#1: 2" in note


def test_a_site_that_is_dead_altogether_gets_a_threshold_of_one() -> None:
    plan = MaxNorm().fit(rectifier(3), [-torch.ones(2, 3)])
    assert plan.sites["0#1"].threshold.tolist() == [1.0] * 3 and len(plan.notes) == 1


def test_live_channels_leave_no_note() -> None:
    assert MaxNorm().fit(rectifier(3), [torch.ones(2, 3)]).notes == ()


@pytest.mark.parametrize(("given", "shape"), [((1,), ()), ((3,), (3,)), ((15,), (5, 3))])
def test_flat_thresholds_take_the_shape_that_their_number_means(given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    graph = rectifier(5, 3)  # 5 tokens of 3 features: behind no layer, channels are axis 1 of the input
    graph = Graph(**{**vars(graph), "sites": (Site("0#1", graph.sites[0].node, (5, 3), 1),)})
    plan = to_plan(MaxNorm(), graph, {"0#1": torch.rand(given) + 1}, 1)
    assert tuple(plan.sites["0#1"].threshold.shape) == shape

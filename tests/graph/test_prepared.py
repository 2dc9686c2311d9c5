"""Interception: every spelling of a rectifier is caught where the user wrote it, and nothing else changes."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import CASES, batch_of, captured, make, tensors
from transpike.errors import PlanError
from transpike.graph import serial
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Role
from transpike.graph.prepared import Prepared, intercepted
from transpike.graph.quantised import qcfs

SPELLINGS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float | None]] = {
    "F.relu": (F.relu, None),
    "torch.relu": (torch.relu, None),
    "Tensor.relu": (lambda x: x.relu(), None),
    "Tensor.relu_": (lambda x: x.relu_(), None),
    "torch.relu_": (lambda x: torch.relu_(x), None),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), None),
    "F.relu in place by position": (lambda x: F.relu(x, True), None),
    "F.relu6": (F.relu6, 6.0),
    "nn.ReLU": (nn.ReLU(), None),
    "nn.ReLU in place": (nn.ReLU(inplace=True), None),
    "nn.ReLU6": (nn.ReLU6(), 6.0),
    "nn.Hardtanh": (nn.Hardtanh(0, 2.5), 2.5),
    "F.hardtanh": (lambda x: F.hardtanh(x, 0.0, 1.5), 1.5),
    "F.hardtanh_": (lambda x: F.hardtanh_(x, min_val=0.0, max_val=1.5), 1.5),
    "clamp(0)": (lambda x: x.clamp(0), None),
    "clamp(min=0)": (lambda x: torch.clamp(x, min=0), None),
    "clamp_(0, 3)": (lambda x: x.clamp_(0, 3), 3.0),
    "clamp(min, max)": (lambda x: torch.clamp(x, min=0.0, max=2.0), 2.0),
    "clip": (lambda x: x.clip(0, 4), 4.0),
    "clamp_min": (lambda x: x.clamp_min(0), None),
    "threshold": (lambda x: F.threshold(x, 0, 0), None),
    "nn.Threshold": (nn.Threshold(0, 0), None),
}
OTHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clamp(-1, 1)": lambda x: x.clamp(-1, 1),
    "clamp(max=1)": lambda x: x.clamp(max=1),
    "hardtanh": F.hardtanh,
    "leaky relu": F.leaky_relu,
    "gelu": F.gelu,
    "threshold(1, 0)": lambda x: F.threshold(x, 1, 0),
    "whole numbers": lambda x: x.long().clamp(min=0).float(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_caught_with_its_clip(name: str) -> None:
    call, clip = SPELLINGS[name]
    seen: list[tuple[int, float | None]] = []

    def at_call(i: int, z: torch.Tensor, found: float | None, axis: int) -> torch.Tensor:
        seen.append((i, found))
        return z.clamp(0, found) * 2

    x = torch.linspace(-5, 9, 40)
    with intercepted(at_call):
        y = call(x.clone()) + 0
        call(x.clone())
    assert seen == [(0, clip), (1, clip)]
    assert torch.equal(y, x.clamp(0, clip) * 2)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_rectifier_is_left_alone(name: str) -> None:
    x = torch.linspace(-5, 9, 40)
    with intercepted(lambda i, z, clip, axis: pytest.fail("caught")):
        y = OTHERS[name](x)
    assert torch.equal(y, OTHERS[name](x))


def test_in_place_calls_write_in_place_and_keep_their_gradients() -> None:
    class Net(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.in_place = nn.Linear(4, 6), nn.Linear(6, 3), in_place

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            z = F.relu(y, inplace=self.in_place)
            return self.b(z) + (y if self.in_place else z).sum(1, keepdim=True)  # y was overwritten

    x = torch.randn(8, 4)
    found = []
    for in_place in (False, True):
        net = Prepared(Net(in_place), 4, [1.0])
        net(x).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def ready(name: str, levels: int = 8, per_channel: bool = True) -> tuple[Prepared, Any, tuple[Any, ...], dict[str, Any]]:
    batch = batch_of(name)
    args = () if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    kwargs = batch if isinstance(batch, dict) else {}
    net = Prepared(make(name), levels, per_channel=per_channel, initial=2.0)
    net(*args, **kwargs)
    return net, batch, args, kwargs


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_capture_finds_one_quantising_site_per_call_and_runs_the_quantised_network(name: str, per_channel: bool) -> None:
    net, batch, args, kwargs = ready(name, per_channel=per_channel)
    with torch.no_grad():
        for ceiling in net.ceilings:
            ceiling *= torch.rand_like(ceiling) + 0.5
    plain, graph = captured(name), capture(net, batch)
    assert len(graph.sites) == len(plain.sites) == len(net.ceilings)
    assert all(site.levels == 8 for site in graph.sites)
    found = [[site.ceiling] if isinstance(site.ceiling, float) else list(site.ceiling or ()) for site in graph.sites]
    assert sorted(found) == sorted(c.flatten().tolist() for c in net.ceilings)
    assert all(len(ceilings) == (site.channels if per_channel else 1) for ceilings, site in zip(found, graph.sites, strict=True))
    assert not any("network" in site.name for site in graph.sites) and graph.name == type(net.network).__name__
    assert not any("aten.copy." in node.op for node in graph.nodes)
    with torch.no_grad():
        wanted = tensors(net(*args, **kwargs))
    inputs = list(args) or [kwargs[value.key] for value in graph.inputs]
    for a, b in zip(tensors(forward(graph, inputs)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_site_names_are_those_of_the_users_modules() -> None:
    net, batch, *_ = ready("residual")
    assert [site.name for site in capture(net, batch).sites] == ["relu#1", "relu#2", "relu#3"]


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_graph_with_levels_survives_a_file_and_older_files_still_load(per_channel: bool) -> None:
    net, batch, *_ = ready("residual", per_channel=per_channel)
    graph = capture(net, batch)
    header = json.loads(json.dumps(serial.header(graph)))
    again = serial.from_header(header, graph.params)
    assert again.sites == graph.sites and again.nodes == graph.nodes
    older = serial.header(captured("residual"))
    assert all("levels" not in site for site in older["sites"])
    assert all(site.levels is None for site in serial.from_header(older, captured("residual").params).sites)


def test_batch_norms_are_kept_and_round_as_torch_rounds() -> None:
    net, batch, *_ = ready("residual")
    graph = capture(net, batch)
    assert sum("batch_norm" in node.op for node in graph.nodes) == 3
    assert all(node.role is Role.LINEAR for node in graph.nodes if "batch_norm" in node.op)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            x = batch.contiguous(memory_format=layout)
            assert torch.equal(forward(graph, [x]), net(x))
    assert not any("batch_norm" in node.op for node in captured("residual").nodes)


def test_the_users_network_is_left_as_it_is_and_its_names_stay() -> None:
    model = make("residual").train()
    before = copy.deepcopy(model.state_dict())
    net = Prepared(model, 4, [1.0, 1.0, 1.0])
    assert net.training and net.network.training
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch_of("residual")).sum().backward()
    optimiser.step()
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert F.relu(torch.tensor(-1.0)) == 0  # and so is torch
    names = {key.removeprefix("network.") for key in net.state_dict() if key.startswith("network.")}
    assert names == set(model.state_dict())
    assert any(not torch.equal(x, before[key]) for key, x in net.network.state_dict().items() if "running_mean" in key)


def test_another_number_of_calls_is_an_error() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.a(x))
            return F.relu(x - 1) if self.training else x

    net = Prepared(Moody().eval(), 4)
    net(torch.randn(2, 3))
    with pytest.raises(PlanError, match="called at least 2 rectifiers, 1 before"):
        net.train()(torch.randn(2, 3))
    net = Prepared(Moody().train(), 4)
    net(torch.randn(2, 3))
    with pytest.raises(PlanError, match="called 1 rectifiers, 2 before"):
        net.eval()(torch.randn(2, 3))


def test_without_values_the_first_pass_finds_the_ceilings_and_parameters_wait_for_it() -> None:
    net = Prepared(make("depthwise"), 8, per_channel=True)
    with pytest.raises(PlanError, match="run one batch"):
        torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch_of("depthwise"))
    assert all(c.dim() == 3 and torch.equal(c, torch.full_like(c, 6.0)) for c in net.ceilings)  # ReLU6 clips the 8 of the authors
    assert len([name for name, _ in net.named_parameters() if name.startswith("ceilings.")]) == 3


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_state_dict_restores_a_network_that_has_seen_no_data(per_channel: bool) -> None:
    net, _, args, _ = ready("residual", per_channel=per_channel)
    again = Prepared(make("residual", seed=5), 8).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(*args), net(*args))
    with pytest.raises(PlanError, match="levels=8"):
        Prepared(make("residual"), 4).load_state_dict(net.state_dict())


def test_copies_and_pickles() -> None:
    net, _, args, _ = ready("residual")
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(*args), net(*args))


class Pools(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.max_pool2d(F.relu(x), 3, 2, 1, ceil_mode=True)
        b = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)(x)
        return torch.max_pool2d(a + b, [2, 2]) + nn.AdaptiveMaxPool2d(3)(x)[:, :, :1, :1]


def test_max_pools_become_averages_of_the_same_windows_if_asked() -> None:
    x = torch.randn(2, 3, 9, 9)
    ceiling = torch.tensor(8.0)
    pooled = [F.avg_pool2d(v, 3, 2, 1, ceil_mode=True) for v in (qcfs(x, ceiling, 4), x)]
    wanted = F.avg_pool2d(pooled[0] + pooled[1], 2) + F.adaptive_avg_pool2d(x, 3)[:, :, :1, :1]
    assert torch.equal(Prepared(Pools(), 4, average_pooling=True)(x), wanted)
    assert not torch.equal(Prepared(Pools(), 4)(x), wanted)

    class Dilated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(x, 2, dilation=2)

    with pytest.raises(PlanError, match="dilation"):
        Prepared(Dilated(), 4, average_pooling=True)(x)


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 5), nn.ReLU()], [(4, 1, 1), (5,)]),
        ([nn.Linear(7, 5), nn.LayerNorm(5), nn.ReLU()], [(5,)]),
        ([nn.Linear(7, 5), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()], [(4, 1, 1)]),
    ],
)
def test_channels_lie_where_the_last_layer_put_them(layers: list[nn.Module], shapes: list[tuple[int, ...]]) -> None:
    net = Prepared(nn.Sequential(*layers).eval(), 4, per_channel=True)
    net(torch.randn(2, 3, 7, 7))
    assert [tuple(c.shape) for c in net.ceilings] == shapes


def test_noise_is_some_levels_wide_and_only_there_while_training() -> None:
    net = Prepared(nn.Sequential(nn.ReLU()), 8, [4.0], noise=1.5)
    z = torch.full((20_000,), 2.0)
    assert torch.equal(net.eval()(z), z)
    out = net.train()(z)
    levels = ((out - 2) / 0.5).unique(return_counts=True)
    assert levels[0].tolist() == [-1, 0, 1] and (levels[1] / len(z) - 1 / 3).abs().max() < 0.02
    out.sum().backward()
    assert net.ceilings[0].grad is not None

"""QCFS: the start from data, ceilings as thresholds, P-QCFS-2, and parallel neurons that are the trained network to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from models import batch_of, calibration, dyadic, make
from transpike.engines.counts import in_counts
from transpike.errors import CaptureError, DataError, PlanError
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.graph.prepared import Prepared
from transpike.graph.quantised import qcfs
from transpike.methods.chain import Chain
from transpike.methods.ltb import LTB
from transpike.methods.mmse import MMSE
from transpike.methods.qcfs import QCFS, prepare
from transpike.methods.spike_compression import scaled
from transpike.spiking.plan import Granularity, NeuronKind, Plan, expand


def unread() -> Iterator[torch.Tensor]:
    raise AssertionError("data was read")
    yield


BOTH = pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.LAYER])


def prepared(name: str = "residual", levels: int = 8, granularity: Granularity = Granularity.CHANNEL) -> Prepared:
    return prepare(make(name), QCFS(levels=levels, granularity=granularity), calibration(name)).eval()


def parallel(plan: Plan) -> Plan:
    sites = {name: dataclasses.replace(p, kind=NeuronKind.PARALLEL) for name, p in plan.sites.items()}
    return dataclasses.replace(plan, sites=sites)


@BOTH
def test_thresholds_are_the_ceilings_and_no_data_is_read(granularity: Granularity) -> None:
    net = prepared(granularity=granularity)
    plan = QCFS().fit(capture(net, batch_of("residual")), unread())
    found = [p.threshold for p in plan.sites.values()]
    assert all(torch.equal(theta.flatten(), c.detach().flatten()) for theta, c in zip(found, net.ceilings, strict=True))
    assert all(torch.equal(p.v_init, p.threshold / 2) for p in plan.sites.values())
    assert plan.notes == () and plan.metadata["settings"]["levels"] == 8


def test_a_network_that_does_not_quantise_is_refused_before_data_is_read() -> None:
    with pytest.raises(PlanError, match=r"prepare\(model, QCFS\(levels=8\), batches\)"):
        QCFS().fit(capture(make("residual"), batch_of("residual")), unread())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"levels": 0}, "levels"),
        ({"v_init": 2.0}, "v_init"),
        ({"cap": 0}, "cap"),
        ({"granularity": Granularity.UNIT}, "granularity"),
        ({"granularity": "channel"}, "granularity"),
        ({"steps": 0}, "steps"),
        ({"steps": 4, "noise": 0.5}, "noise"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        QCFS(**settings).fit(capture(make("mlp"), batch_of("mlp")), unread())
    with pytest.raises(PlanError, match=says):
        prepare(make("mlp"), QCFS(**settings))


class Hidden(nn.Module):
    """One rectifier that interception sees and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.ops.aten.relu.default(self.b(torch.relu(self.a(x)))))


def test_data_that_the_network_cannot_read_is_one_clear_line() -> None:
    with pytest.raises(DataError, match=r"cannot read the data, which has shape \(2, 1, 8, 8\): .* 3 channels"):
        prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), QCFS(), [torch.zeros(2, 1, 8, 8)])


def test_sites_that_do_not_quantise_are_noted_and_get_their_largest_activation() -> None:
    torch.manual_seed(0)
    model, data = Hidden().eval(), [torch.randn(20, 6), torch.randn(20, 6)]
    net = prepare(model, QCFS(), data)
    graph = capture(net, data[0])
    assert [site.levels for site in graph.sites] == [8, None]
    plan = QCFS().fit(graph, data)
    assert any("1 of 2 sites do not quantise" in note for note in plan.notes)
    with torch.no_grad():
        clipped = torch.minimum(model.a(torch.cat(data)).clamp(min=0), net.ceilings[0])  # as every method sees it
        wanted = model.b(clipped).max()
    torch.testing.assert_close(plan.sites[graph.sites[1].name].threshold, wanted)


def test_other_levels_than_asked_for_are_noted() -> None:
    plan = QCFS(levels=8).fit(capture(prepared(levels=4), batch_of("residual")), unread())
    assert any("trained with 4 levels, not 8" in note for note in plan.notes)


@BOTH
def test_the_start_is_the_ceiling_of_least_error_found_by_brute_force(granularity: Granularity) -> None:
    model, data = make("mlp"), torch.cat(calibration("mlp"))
    net = prepare(model, QCFS(levels=4, granularity=granularity), data.split(7))
    with torch.no_grad():
        a = model[1](model[0](data))
        for ceilings, activations in zip(net.ceilings, (a, model[3](model[2](a))), strict=True):
            groups = activations.T if granularity is Granularity.CHANNEL else activations.reshape(1, -1)
            for found, group in zip(ceilings.reshape(-1).tolist(), groups, strict=True):
                x = group.double().numpy()
                grid = (x.max() or float(activations.max())) * (1 - 0.01 * np.arange(95))
                errors = [((np.clip(np.floor(x * 4 / v + 0.5) / 4, 0, 1) * v - x) ** 2).mean() for v in grid]
                assert found == pytest.approx(grid[int(np.argmin(errors))] if x.max() > 0 else found, rel=1e-6)


def test_a_silent_channel_starts_at_the_largest_ceiling_of_its_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    ceilings = prepare(model, QCFS(granularity=Granularity.CHANNEL), [torch.rand(50, 2)]).ceilings[0]
    assert ceilings[2] == ceilings[1] > ceilings[0]


def test_clipped_rectifiers_start_at_their_clip_or_below() -> None:
    net = prepare(make("depthwise"), QCFS(), [40 * x for x in calibration("depthwise")])
    assert all(bool(((c > 0) & (c <= 6)).all()) for c in net.ceilings) and max(float(c.detach().max()) for c in net.ceilings) > 4


def test_a_prepared_network_keeps_its_ceilings_at_other_levels() -> None:
    first = prepared(levels=8)
    again = prepare(first, QCFS(levels=4))
    assert again.levels == 4 and all(torch.equal(a, b) for a, b in zip(again.ceilings, first.ceilings, strict=True))
    assert not isinstance(again.network, Prepared) and again.ceilings[0] is not first.ceilings[0]


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_first_layer_counts_are_the_levels_deeper_ones_not_always(levels: int) -> None:
    """P-QCFS-2: constant input, T = L, theta = lambda, v(0) = theta / 2."""
    torch.manual_seed(3)
    wide = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    net = Prepared(dyadic(wide), levels, [2.0, 1.0])
    x = torch.randint(-8, 9, (16, 6)) / 4
    run = transpike.simulate(transpike.convert(net, QCFS(levels=levels), [x]), x, steps=levels)
    levels_of: dict[str, torch.Tensor] = {}
    graph = capture(net, x)
    with torch.no_grad():
        h = qcfs(net.network[0](x), net.ceilings[0], levels)
        levels_of["1#1"] = h * levels / 2.0
        levels_of["3#1"] = qcfs(net.network[2](h), net.ceilings[1], levels) * levels
    assert [site.name for site in graph.sites] == list(levels_of)
    assert torch.equal(run.spikes["1#1"], levels_of["1#1"]) and run.spikes["1#1"].unique().numel() == levels + 1
    assert not torch.equal(run.spikes["3#1"], levels_of["3#1"])


@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise", "conv3d", "fire", "two_inputs"])
@pytest.mark.parametrize("levels", [4, 8])
@BOTH
def test_parallel_neurons_are_the_prepared_network_to_the_bit(name: str, levels: int, granularity: Granularity) -> None:
    net = prepared(name, levels, granularity)
    batch = batch_of(name, 16)
    inputs = batch if isinstance(batch, tuple) else (batch,)
    graph = capture(net, batch)
    plan = parallel(QCFS(levels=levels).fit(graph, unread()))
    with torch.no_grad():
        assert torch.equal(in_counts(graph, plan, list(inputs), levels), net(*inputs))


def test_the_captured_network_is_the_quantised_one_for_every_consumer() -> None:
    net, data = prepared(), calibration("residual")
    graph = capture(net, data[0])
    with torch.no_grad():
        assert torch.equal(forward(graph, [data[0]]), net(data[0]))
    found = transpike.evaluate(transpike.build(graph, QCFS().fit(graph, data)), [(x, torch.zeros(len(x)).long()) for x in data], 8)
    assert 0 <= found.ann["top1"] <= 1


@pytest.mark.parametrize("shared_by", Granularity)
@BOTH
@pytest.mark.parametrize("method", [LTB(iterations=20), MMSE(steps=8)])
def test_other_methods_see_a_clipped_rectifier(method: Any, granularity: Granularity, shared_by: Granularity) -> None:
    net, data = prepared(granularity=granularity), calibration("residual")
    method = dataclasses.replace(method, granularity=shared_by)
    graph = capture(net, data[0])
    plan = method.fit(graph, data)
    for site in graph.sites:
        theta = plan.sites[site.name].threshold
        clip = site.clip(theta)
        assert clip is not None and bool((expand(theta, site) <= clip * (1 + 1e-6)).all())
    assert list(Chain(QCFS(), method).fit(graph, data).sites) == list(plan.sites)


def test_bursts_share_the_ceiling() -> None:
    graph = capture(prepared(), batch_of("residual"))
    plan = QCFS(cap=4).fit(graph, unread())
    for site in graph.sites:
        torch.testing.assert_close(4 * plan.sites[site.name].threshold, torch.tensor(site.ceiling))


def test_compression_stays_below_every_channels_ceiling() -> None:
    graph = capture(prepared(), batch_of("residual"))
    plan = MMSE(steps=8).fit(graph, calibration("residual"))
    for site in graph.sites:
        found = expand(scaled(site, plan.sites[site.name], 1e6).threshold, site)
        clip = site.clip(found)
        assert clip is not None
        torch.testing.assert_close(found, clip.expand(site.shape))


def test_fine_tuning_recovers_what_few_levels_cost() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    x = torch.randn(256, 6)
    with torch.no_grad():
        wanted = model(x)
    net = prepare(model, QCFS(levels=2), [x]).train()
    started = [c.detach().clone() for c in net.ceilings]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    errors = []
    for _ in range(300):
        loss = (net(x) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < errors[0] / 2
    assert all(bool(((c - s).abs() > 1e-3).any()) for c, s in zip(net.ceilings, started, strict=True))


@BOTH
@pytest.mark.parametrize(("cap", "signed"), [(1, False), (3, False), (2, True)])
def test_training_by_steps_answers_as_the_converted_network_and_learns_by_the_quantiser(
    granularity: Granularity, cap: int, signed: bool
) -> None:
    method = QCFS(levels=4, granularity=granularity, steps=6, cap=cap, signed=signed)
    net = prepare(make("residual"), method, calibration("residual"))
    x = batch_of("residual", 5)
    spiking = transpike.simulate(transpike.convert(net.eval(), method, calibration("residual")), x, 6).readout(6)
    net.train().network.eval()  # batch norm by its running statistics, as in the converted network
    out = net(x)
    assert torch.allclose(out, spiking, atol=1e-5) and not torch.allclose(out, net.eval()(x), atol=1e-3)
    net.train()
    assert torch.equal(net.eval()(x), prepare(net, dataclasses.replace(method, steps=None)).eval()(x))
    out.square().sum().backward()
    assert all(c.grad is not None and c.grad.isfinite().all() for c in net.ceilings)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in net.named_parameters() if name.endswith("weight"))


def test_training_by_steps_leaves_modes_as_they_are_and_counts_statistics_once() -> None:
    net = prepare(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout()), QCFS(steps=4), [torch.randn(8, 3)])
    net.train().network[3].eval()
    net(torch.randn(8, 3))
    assert [module.training for module in net.network] == [True, True, True, False]
    assert net.network[1].num_batches_tracked == 1


class Auxiliary(nn.Module):
    """A rectifier more while training, or one less."""

    def __init__(self, extra: int = 1) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.relu()
        for _ in range(self.extra if self.training else 1 - self.extra):
            x = x.relu()
        return x


@pytest.mark.parametrize(("extra", "says"), [(1, "1 rectifiers"), (0, "at least 2|2 rectifiers")])
def test_training_by_steps_asks_for_the_same_rectifiers_in_both_modes(extra: int, says: str) -> None:
    x = torch.rand(2, 3, 4)
    net = prepare(Auxiliary(extra=extra), QCFS(steps=2))
    with pytest.raises(PlanError, match=says):
        for _ in range(2):  # the first pass finds the ceilings
            net.train()(x)


def test_training_by_steps_follows_weights_and_sizes_and_pools_with_indices() -> None:
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), Pooled(), nn.Conv1d(4, 4, 3), nn.ReLU())
    net = prepare(pooled, QCFS(levels=4, steps=3), [torch.rand(4, 3, 12)]).train()
    for size in (12, 12, 16):
        x = torch.rand(5, 3, size)
        spiking = transpike.simulate(transpike.convert(net.eval(), QCFS(levels=4), [x]), x, 3).readout(3)
        assert torch.allclose(net.train()(x), spiking, atol=1e-5)
        with torch.no_grad():
            for p in net.network.parameters():
                p.add_(0.1 * torch.randn_like(p))


class Pooled(nn.Module):
    """Max pooling that knows where the largest was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool1d(x, 2, return_indices=True)[0]


def test_training_by_steps_leaves_rectifiers_alone_that_do_not_quantise() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="relu")
    net = prepare(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), layer, nn.Linear(8, 3)), QCFS(levels=4, steps=3), [torch.rand(5, 4, 6)])
    out = net.train()(torch.rand(5, 4, 6))
    assert out.isfinite().all() and out.requires_grad


def test_training_by_steps_says_what_it_cannot_read() -> None:
    class Flag(nn.Module):
        def forward(self, x: torch.Tensor, twice: bool) -> torch.Tensor:
            return x.relu() * (2 if twice else 1)

    net = prepare(Flag(), QCFS(levels=4, steps=3))
    with pytest.raises(CaptureError, match="the example holds bool"):
        for _ in range(2):  # the first pass finds the ceilings
            net.train()(torch.rand(2, 3), True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_by_steps_keeps_the_networks_precision(dtype: torch.dtype) -> None:
    x = batch_of("residual", 4).to(dtype)
    net = prepare(make("residual").to(dtype), QCFS(levels=4, steps=3), [x]).train()
    out = net(x)
    out.sum().backward()
    assert out.dtype == dtype and all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters())

"""P-EN-2 and P-EN-3, and the meter against counting a run's spikes by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from models import batch_of, calibration, make
from transpike.errors import DataError
from transpike.graph.capture import capture
from transpike.graph.ir import Node
from transpike.measure._count import weigh
from transpike.measure.energy import CONSTANTS, Constants, Energy, Meter
from transpike.measure.operations import count_operations, synaptic_operations
from transpike.methods.max_norm import MaxNorm
from transpike.network import SpikingNetwork
from transpike.spiking.plan import Plan, SiteParams

CMOS, CHIP = CONSTANTS


@cache
def network(name: str, cap: int | None = 1, signed: bool = False) -> SpikingNetwork:
    return transpike.convert(make(name), MaxNorm(cap=cap, signed=signed), calibration(name))


def published(sops: float, macs: int) -> Energy:
    return Energy(1, macs, 0, 0, (sops,), (sops,), {}, 1.0)


@pytest.mark.parametrize(("sops", "frames_per_joule"), [(20.86e9, 622.6), (33.42e9, 388.6)])
def test_the_published_resnet34_figures_follow_from_the_constants(sops: float, frames_per_joule: float) -> None:
    """P-EN-3: ResNet-34 of Bu et al., SOP90 and SOP95 against 3.66 G MAC."""
    at = published(sops, 3_660_000_000).at(1)["neuromorphic"]
    assert at["snn_frames_per_joule"] == pytest.approx(frames_per_joule, abs=0.05)
    assert at["ann_frames_per_joule"] == pytest.approx(21.9, abs=0.05)
    assert at["saving"] == pytest.approx(frames_per_joule / 21.86, rel=1e-3)


def test_the_published_saving_is_28_times_under_one_model_and_none_under_the_other() -> None:
    at = published(20.86e9, 3_660_000_000).at(1)
    assert at["neuromorphic"]["saving"] == pytest.approx(28.5, abs=0.05)
    assert at["cmos45"]["snn_mj"] == pytest.approx(18.8, abs=0.05)
    assert at["cmos45"]["ann_mj"] == pytest.approx(16.8, abs=0.05)
    assert at["cmos45"]["saving"] < 1


def test_every_constant_names_its_source() -> None:
    assert [(c.name, c.sop_pj, c.mac_pj) for c in CONSTANTS] == [("cmos45", 0.9, 4.6), ("neuromorphic", 0.077, 12.5)]
    assert all("doi:" in c.source for c in CONSTANTS)


def test_energy_adds_what_is_done_once_and_what_is_done_at_every_step() -> None:
    e = Energy(1, 1000, 300, 20, (50.0, 90.0, 140.0), (50.0, 80.0, 120.0), {}, 0.5)
    assert [e.macs(t) for t in (1, 2, 3)] == [320, 340, 360]
    assert e.snn_pj(3, Constants("c", 2.0, 10.0, "")) == 2.0 * 140 + 10.0 * 360
    assert e.ann_pj(CMOS) == 4600.0
    assert e.at(2)["events"] == 80.0


def test_a_network_without_any_spike_is_still_json() -> None:
    nothing = published(0.0, 100)
    assert nothing.at(1)["cmos45"]["saving"] is None
    json.dumps(nothing.to_dict(), allow_nan=False)
    assert "infinitely many" in str(nothing)


def test_rate_times_macs_over_counts_where_there_is_padding() -> None:
    """P-EN-2: 3x3 over 5x5 with padding 1 and every neuron firing once: 13 x 13 taps a channel pair, not 15 x 15."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 5, 3, padding=1)).eval()
    graph = capture(model, torch.zeros(2, 3, 5, 5))
    plan = Plan({"0#1": SiteParams(torch.ones(()))})
    (work,) = count_operations(graph, plan).work
    assert work.macs == 5 * 25 * 27 == 3375
    exact = transpike.energy(transpike.build(graph, plan), [torch.ones(4, 3, 5, 5)], steps=1)
    assert exact.sops == (13 * 13 * 3 * 5,) == (2535,)


@pytest.mark.parametrize("name", ["mlp", "residual", "fire", "depthwise", "upsampling", "conv3d", "shared_conv"])
def test_the_meter_equals_counting_the_spikes_of_the_run(name: str) -> None:
    """The weighted sum, the sum by layer, and the spikes of `Run` sent through the network of ones are one number."""
    net, x = network(name), batch_of(name, 6)
    measured = transpike.energy(net, [x], steps=7)
    sites = {site.name: site.node for site in net.graph.sites}
    pooled: dict[str, torch.Tensor] = {}

    def probe(node: Node, emitted: torch.Tensor, done: int, first: int) -> None:
        if node.name in sources and node.name not in sites.values():
            spikes = (emitted / sources[node.name]).round().abs().sum((0, 1)).double()
            pooled[node.name] = pooled.get(node.name, 0) + spikes

    sources = count_operations(net.graph, net.plan).amplitudes
    run = transpike.simulate(net, x, 7, probe=probe)
    counts = {sites[key]: spikes.sum(0, keepdim=True).double() for key, spikes in run.spikes.items()}
    counts |= {key: spikes[None] for key, spikes in pooled.items()}
    by_hand = sum(float(arrived) for arrived in synaptic_operations(net.graph, counts).values()) / 6
    assert measured.sops[-1] == pytest.approx(by_hand, rel=1e-5)
    assert sum(measured.by_layer.values()) == pytest.approx(by_hand, rel=1e-9)
    assert by_hand > 0 and list(measured.sops) == sorted(measured.sops)


def test_a_two_layer_network_by_hand() -> None:
    """Thresholds 1, input 0.5: v goes 0.5, 1 - fires - and so on: a spike at every second step, 4 x 3 connections each."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3)).eval()
    net = transpike.build(capture(model, torch.zeros(2, 4)), Plan({"0#1": SiteParams(torch.ones(()))}))
    x = torch.full((2, 4), 0.5)
    x[1] = 0.0
    e = transpike.energy(net, [x], steps=4)
    assert e.sops == (0.0, 6.0, 6.0, 12.0)  # per sample: one of the two is silent
    assert e.by_layer == {"1.linear (linear)": 12.0} and e.samples == 2
    assert (e.ann_macs, e.constant_macs, e.dense_macs, e.spiking_share) == (12, 0, 0, 1.0)


def test_a_burst_counts_every_spike_but_is_one_event() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(1, 3)).eval()
    net = transpike.build(capture(model, torch.zeros(2, 1)), Plan({"0#1": SiteParams(torch.ones(()), cap=4)}))
    e = transpike.energy(net, [torch.tensor([[3.0]])], steps=2)
    assert (e.sops, e.events) == ((9.0, 18.0), (3.0, 6.0))


def test_spikes_taken_back_are_operations_too() -> None:
    """One spike too early, then taken back: two synaptic operations, none in the net count."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 5)).eval()
    model[1].weight.data.fill_(-1.0)
    graph = capture(model, torch.zeros(2, 1))
    first = SiteParams(torch.tensor(1.0))
    second = SiteParams(torch.tensor(1.0), v_init=torch.tensor(1.0), signed=True)  # fires at once, is inhibited later
    net = transpike.build(graph, Plan({"0#1": first, "2#1": second}))
    x = torch.tensor([[0.5]])
    run = transpike.simulate(net, x, 4)
    assert float(run.spikes["2#1"]) == 2.0 and float(run.net["2#1"]) == 0.0
    e = transpike.energy(net, [x], steps=4)
    assert e.by_layer == {"1.linear (linear)": 2.0, "3.linear (linear)": 2 * 5.0}


def test_rounding_at_a_max_pool_is_no_event() -> None:
    """Sums of 0.1 in different orders differ by an ulp: what the pool then passes on is not a spike."""
    net = network("deep_pool", cap=8)
    e = transpike.energy(net, [batch_of("deep_pool", 8)], steps=16)
    assert all(events <= sops * (1 + 1e-6) for events, sops in zip(e.events, e.sops, strict=True))
    x = np.array([0.3, 1e-8, 0.6], np.float32)  # one step, one sample, three units of threshold 0.3
    table = np.array([[10.0] * 3, [1 / 0.3] * 3, [3.0] * 3], np.float32)
    sops, spikes, events = weigh(x, table, np.zeros(3), 1, 1, 3)[:, 0, 0]
    assert (round(sops, 5), round(spikes, 5), events) == (9.0, 3.0, 6.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_counting_kernel_equals_numpy(dtype: type) -> None:
    steps, samples, units = 3, 4, 2500  # more than two blocks
    generator = np.random.default_rng(0)
    x = (generator.integers(-2, 4, (steps, samples, units)) * 0.5).astype(dtype)
    table = generator.random((3, units)).astype(dtype) + dtype(1)
    totals = np.ones(units)
    found = weigh(x.reshape(-1), table, totals, steps, samples, units)
    a = np.abs(x.astype(np.float64))
    wanted = [(a * table[0]).sum(2), (a * table[1]).sum(2), ((a > 0) * table[2].astype(np.float64)).sum(2)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(totals, 1 + a.sum((0, 1)), rtol=1e-6)


class Rows(nn.Module):
    """Three rows of the batch axis belong to one sample, as frames of a video do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(15, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.reshape(-1, 4))).reshape(-1, 15))


class Halves(nn.Module):
    """Spikes cut in two by chunk, one linear layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(x).chunk(2, 1)
        return self.fc(left) + self.fc(right)


class Swapped(nn.Module):
    """The batch on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.transpose(0, 1)))).transpose(0, 1).sum(1)


@pytest.mark.parametrize(
    ("build", "shape", "fan_out"),
    [(Rows, (3, 4), 2), (Halves, (4,), 3), (Swapped, (5, 4), 2), (lambda: nn.Sequential(nn.ReLU(), nn.Flatten(0)), (1,), 0)],
    ids=["rows", "halves", "swapped", "scalar"],
)
def test_unusual_layouts_count_spikes_times_fan_out(build: Callable[[], nn.Module], shape: tuple[int, ...], fan_out: int) -> None:
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    net = transpike.convert(build().eval(), MaxNorm(), [x])
    spikes = float(sum(s.sum() for s in transpike.simulate(net, x, 5).spikes.values()))
    e = transpike.energy(net, [x[:4], x[4:]], steps=5)
    assert spikes > 0
    assert e.sops[-1] == pytest.approx(spikes * fan_out / 6, rel=1e-6)
    assert sum(e.by_layer.values()) == pytest.approx(spikes * fan_out / 6, rel=1e-12) and len(e.by_layer) <= 1


def test_rates_and_silent_channels_from_the_spikes() -> None:
    net, x = network("residual"), batch_of("residual", 5)
    site = net.graph.sites[0]
    muted = replace(net.plan.sites[site.name], threshold=net.plan.sites[site.name].threshold.clone())
    muted.threshold[2] = 1e9  # channel 2 never reaches its threshold
    muted = replace(muted, v_init=torch.zeros(()))
    net = transpike.build(net.graph, replace(net.plan, sites={**net.plan.sites, site.name: muted}))
    meter = Meter(net.graph, net.plan, 6)
    run = transpike.simulate(net, x, 6, probe=meter.probe)
    meter.samples = 5
    assert meter.silent_channels()[site.name] == int((run.spikes[site.name].sum((0, 2, 3)) == 0).sum()) >= 1
    for name, spikes in run.spikes.items():
        assert meter.rates()[name] == pytest.approx(float(spikes.sum()) / (5 * 6 * spikes[0].numel()), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_size_of_a_chunk_does_not_change_the_count(chunk: int) -> None:
    net, x = network("fire"), batch_of("fire", 4)
    meters = [Meter(net.graph, net.plan, 7) for _ in range(2)]
    transpike.simulate(net, x, 7, probe=meters[0].probe)
    transpike.simulate(net, x, 7, chunk=chunk, probe=meters[1].probe)
    np.testing.assert_allclose(meters[0].energy().sops, meters[1].energy().sops, rtol=1e-6)


def test_a_network_without_neurons_is_all_constant() -> None:
    net = transpike.build(capture(nn.Linear(4, 3).eval(), torch.zeros(2, 4)), Plan({}))
    e = transpike.energy(net, [torch.zeros(2, 4)], steps=3)
    assert (e.sops, e.constant_macs, e.macs(3), e.spiking_share) == ((0.0, 0.0, 0.0), 12, 12, 0.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(DataError, match="at least one step"):
        transpike.energy(network("mlp"), [batch_of("mlp", 2)], steps=0)

"""The event engine: its currents are the operation's, its spikes those of the dense engine, its choices follow the density."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from models import CASES, batch_of, captured, dyadic, eighths, make
from transpike.engines.emitted import frames_of
from transpike.engines.event_kernels import events, looked
from transpike.engines.events import Synapse
from transpike.engines.executor import Run, simulate
from transpike.engines.program import Program
from transpike.engines.vectors import LANES
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.spiking.plan import NeuronKind, Plan, SiteParams

STEPS = 6


def plan_of(graph: Graph, **options: Any) -> Plan:
    """Thresholds of 3/8 to 11/8 per channel, potentials and currents in eighths."""
    sites = {}
    for k, site in enumerate(graph.sites):
        theta, v = eighths(site.channels, seed=k, low=3, high=11), eighths(site.channels, seed=k + 50, low=0, high=3)
        sites[site.name] = SiteParams(theta, v, eighths(seed=k + 90, low=-1, high=1), **options)
    return Plan(sites)


def same(a: Run, b: Run) -> None:
    for kind in ("spikes", "net", "membranes"):
        for name, x in getattr(a, kind).items():
            assert torch.equal(x, getattr(b, kind)[name]), (kind, name)
    torch.testing.assert_close(a.outputs, b.outputs, rtol=0, atol=0)


def pair(low: int, high: int) -> Any:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=120, deadline=None)
@given(
    kernel=pair(1, 4), stride=pair(1, 3), padding=pair(0, 3), dilation=pair(1, 3), size=pair(3, 9),
    groups=st.sampled_from([1, 1, 2, 3]), ins=st.sampled_from([1, 3, 6, 16, 20]), outs=st.sampled_from([1, 5, 16, 18, 33]),
    share=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_currents_are_those_of_the_convolution(
    kernel, stride, padding, dilation, size, groups, ins, outs, share, seed
):  # fmt: skip
    if any(d * (k - 1) + 1 > n + 2 * p for d, k, n, p in zip(dilation, kernel, size, padding, strict=True)):
        return  # the kernel does not fit into the picture
    generator = torch.Generator().manual_seed(seed)
    channels, features = ins * groups, outs * groups
    x = torch.randint(-3, 4, (2, channels, *size), generator=generator) * (torch.rand(2, channels, *size) < share)
    w = torch.randint(-8, 9, (features, ins, *kernel), generator=generator).float()
    b = torch.randint(-8, 9, (features,), generator=generator).float()
    model = nn.Conv2d(channels, features, kernel, stride, padding, dilation, groups)
    model.weight.data, model.bias.data = w, b  # type: ignore[union-attr]
    wanted = model(x.float())
    synapse = Synapse(
        "w", "b", *size, channels, *wanted.shape[2:], features, kernel, stride, padding, dilation, groups
    )  # fmt: skip
    assert torch.equal(synapse.currents(x.float(), synapse.layout({"w": w, "b": b})), wanted)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("channels", "groups", "stride"), [(16, 1, 1), (70, 1, 1), (32, 2, 1), (20, 1, 2)])
def test_what_events_are_worth_is_read_once_only_where_all_of_a_channel_are_equal(channels, groups, stride, odd) -> None:
    worth = eighths(channels, low=1, high=9)
    x = worth[:, None, None] * (torch.rand(3, channels, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.4)
    if odd:
        x[2, channels - 1, 5, 6] += 1
    w = eighths(24, channels // groups, 3, 3, seed=1)
    synapse = Synapse("w", None, 6, 7, channels, 6 // stride, -(-7 // stride), 24, (3, 3), (stride, stride), (1, 1), (1, 1), groups)
    flat = frames_of(x)
    _, found = events(flat, 3, synapse.geometry)
    assert torch.equal(torch.from_numpy(found), worth) if not odd else len(found) == 0
    assert torch.equal(synapse.currents(x, synapse.layout({"w": w})), F.conv2d(x, w, None, stride, 1, 1, groups))


def test_density_is_looked_at_in_parts_all_over_the_input() -> None:
    x = torch.zeros(100_000)
    x[::4] = 1
    found, total = looked(x.numpy())
    assert total < 20_000 and abs(found / total - 0.25) < 0.01
    assert looked(x[:7].numpy()) == (2, 7)


def test_depthwise_convolutions_stay_dense() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU()).eval()
    graph = capture(model, torch.rand(1, 8, 9, 9))
    first, second = (node for node in graph.nodes if node.op.startswith("aten.conv2d"))
    assert Synapse.of(first, graph) is None and Synapse.of(second, graph) is not None


def test_many_channels_are_computed_in_blocks() -> None:
    x, w = eighths(2, 300, 4, 4), eighths(200, 300, 3, 3, seed=1)
    wanted = F.conv2d(x, w, None, 1, 1)
    synapse = Synapse("w", None, 4, 4, 300, 4, 4, 200, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    assert synapse.blocks > 1 and synapse.blocks * synapse.vectors * LANES >= 200
    assert torch.equal(synapse.currents(x, synapse.layout({"w": w})), wanted)


@pytest.mark.parametrize(
    "options", [{}, {"cap": 3}, {"signed": True}, {"cap": None, "signed": True}, {"kind": NeuronKind.PARALLEL}]
)
@pytest.mark.parametrize("name", ["fire", "deep_pool", "mlp", "relu6", "shared_relu", "upsampling"])
def test_every_spike_is_that_of_the_dense_engine(name: str, options: dict[str, Any]) -> None:
    """Networks without batch norm: folding it leaves weights that are not dyadic (see the next test)."""
    graph = capture(dyadic(make(name)), batch_of(name, 2))
    plan = plan_of(graph, **options)
    x = [eighths(3, *value.shape) for value in graph.inputs]
    dense = simulate(graph, plan, x, STEPS, engine="dense")
    assert sum(float(n.sum()) for n in dense.spikes.values()) > 0
    for chunk in (None, 1) if "kind" not in options else (None,):
        same(simulate(graph, plan, x, STEPS, engine="events", chunk=chunk), dense)
    same(simulate(graph, plan, x, STEPS, engine="auto"), dense)


@pytest.mark.parametrize("name", [case for case in CASES if case not in ("encoder", "recurrent")])
def test_whatever_the_network_the_engines_agree(name: str) -> None:
    graph, x = captured(name), batch_of(name, 2)
    x = list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, (list, tuple)) else [x]
    plan = plan_of(graph)
    a, b = (simulate(graph, plan, x, STEPS, engine=engine) for engine in ("dense", "events"))
    for site, n in a.spikes.items():  # rounding may move a spike by a step, and rarely over the end
        assert float((n - b.spikes[site]).abs().mean()) <= 0.01, site


def test_parameters_of_every_unit_and_another_worth() -> None:
    graph = capture(dyadic(make("fire")), batch_of("fire", 2))
    sites = {}
    for k, site in enumerate(graph.sites):
        theta, v = eighths(*site.shape, seed=k, low=3, high=11), eighths(*site.shape, low=0, high=3)
        sites[site.name] = SiteParams(theta, v, amplitude=eighths(site.channels, low=2, high=9))
    x = [eighths(2, *graph.inputs[0].shape)]
    same(*(simulate(graph, Plan(sites), x, STEPS, engine=engine) for engine in ("events", "dense")))


def test_neurons_take_over_synapses_and_residual_sums() -> None:
    graph = captured("residual")
    x = torch.zeros(1, *graph.inputs[0].shape)
    program = Program.of(graph, plan_of(graph), "events", x)
    assert program.joined and any(found.sum is not None for found in program.joined.values())
    assert len(program.body) < len(graph.body)
    for dense in (
        Program.of(graph, plan_of(graph), "dense", x),
        Program.of(graph, plan_of(graph), "events", x.double()),  # events are in single precision
    ):
        assert not dense.joined and dense.beside and len(dense.body) == len(graph.body) - len(dense.beside)
    assert Program.of(graph, plan_of(graph), "dense", x.bfloat16()).body == graph.body  # the neuron kernel adds numbers it takes


@pytest.mark.parametrize("options", [{}, {"cap": 3}, {"signed": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neurons_that_add_a_residual_send_the_spikes_of_the_sum(options, dtype, monkeypatch) -> None:
    model = make("residual").to(dtype)
    graph = capture(model, batch_of("residual", 2).to(dtype))
    plan = plan_of(graph, **options)
    x = [torch.rand(3, *value.shape, dtype=dtype) for value in graph.inputs]
    inside = simulate(graph, plan, x, STEPS, engine="dense", chunk=2)
    monkeypatch.setattr("transpike.engines.program._added", lambda *_: {})
    assert not Program.of(graph, plan, "dense", x[0]).beside
    outside = simulate(graph, plan, x, STEPS, engine="dense", chunk=2)
    same(inside, outside)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_events_cost_more(a: float, b: float) -> None:
    synapse = Synapse("w", None, 16, 16, 32, 16, 16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    low, high = sorted((a, b))
    assert synapse.event_cost(low) <= synapse.event_cost(high)


def test_auto_goes_by_density() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()).eval()
    model[0].bias.data.fill_(9)  # all fire if the threshold lets them
    x = torch.rand(2, 3, 16, 16)
    graph = capture(model, x)
    first, second = (site.name for site in graph.sites)
    for threshold, engine in ((1e-3, "dense"), (1e3, "events")):
        plan = Plan({first: SiteParams(torch.tensor(threshold)), second: SiteParams(torch.tensor(0.5))})
        run = simulate(graph, plan, [x], STEPS)
        (layer,) = run.trace.layers.values()
        assert layer.engine == engine and layer.frames == 2 * STEPS
        assert layer.density is not None and 0 <= layer.density <= 1 and layer.seconds > 0
        assert run.trace.rows()[0]["operations"] == 2 * STEPS * 16 * 16 * 32 * 32 * 9

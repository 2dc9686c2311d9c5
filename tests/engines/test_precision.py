"""Lower precision: what is rounded and nothing else. Where nothing needs rounding every spike is that of float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transpike
from models import batch_of, captured, converted, dyadic, eighths, make, tensors
from transpike.engines import precision as module
from transpike.engines.count_kernels import counts
from transpike.engines.executor import Run, simulate
from transpike.engines.precision import Bfloat16, Int8, arithmetic_of
from transpike.engines.worth import whole_spikes
from transpike.errors import SpecError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.spiking.plan import Plan, SiteParams, expand

STEPS = 6
NEURONS: list[dict[str, Any]] = [{}, {"cap": 3}, {"cap": None, "signed": True}]


def plan_of(graph: Graph, **options: Any) -> Plan:
    """Thresholds of 1/2, 1 or 2 per channel, potentials in eighths."""
    sites = {}
    for k, site in enumerate(graph.sites):
        theta = 2.0 ** torch.randint(-1, 2, (site.channels,), generator=torch.Generator().manual_seed(k))
        sites[site.name] = SiteParams(theta, eighths(site.channels, seed=k + 50, low=0, high=3), **options)
    return Plan(sites)


def bytes_of(model: nn.Module, worth: float = 1.0) -> nn.Module:
    """Weights that are multiples of 1/8 with 127/8 as the largest of every output channel: int8 holds them exactly."""
    generator = torch.Generator().manual_seed(5)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)):
            weight = torch.randint(-126, 127, layer.weight.shape, generator=generator)
            transposed = isinstance(layer, nn.ConvTranspose2d)
            (weight[0] if transposed else weight.flatten(1)[:, 0]).fill_(127)
            if transposed:  # the first input of each group has the largest weight of all its outputs
                weight[:: len(weight) // layer.groups] = 127
            layer.weight.data = weight * (worth / 8)
    return model


def same(a: Run, b: Run) -> None:
    for kind in ("spikes", "net", "membranes"):
        for name, x in getattr(a, kind).items():
            assert torch.equal(x, getattr(b, kind)[name]), (kind, name)
    for x, y in zip(tensors(a.outputs), tensors(b.outputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    assert sum(float(n.sum()) for n in a.spikes.values()) > 0


@pytest.mark.parametrize("neurons", [{}, {"cap": 3}, {"signed": True}])
@pytest.mark.parametrize("name", ["mlp", "deep_pool", "fire", "shared_relu", "two_outputs", "upsampling"])
def test_weights_and_sums_that_bfloat16_holds_give_every_spike_of_float32(name: str, neurons: dict[str, Any]) -> None:
    model = dyadic(make(name)) if name != "upsampling" else upsampling()
    graph = capture(model, batch_of(name, 2))
    plan, x = plan_of(graph, **neurons), [eighths(3, *value.shape) for value in graph.inputs]
    low = simulate(graph, plan, x, STEPS, precision="bfloat16")
    same(low, simulate(graph, plan, x, STEPS, engine="dense"))
    assert any(layer.precision.startswith("bfloat16") for layer in low.trace.layers.values()) or name == "two_outputs"


def upsampling() -> nn.Module:
    """A grouped transposed convolution and a one-dimensional head, without batch norm; multiples of 1/8."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)]
    return dyadic(nn.Sequential(*layers, nn.ReLU()).eval())


@pytest.mark.parametrize("neurons", NEURONS)
@pytest.mark.parametrize("name", ["mlp", "deep_pool", "fire", "shared_relu", "conv1d", "upsampling"])
def test_weights_that_int8_holds_give_every_spike_of_float32(name: str, neurons: dict[str, Any], monkeypatch) -> None:
    """By the processor's kernels and without them."""
    model = upsampling() if name == "upsampling" else make(name)
    if name == "conv1d":  # without batch norm
        model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 6, 3, padding=2, dilation=2), nn.ReLU(), nn.Flatten())
    graph = capture(bytes_of(dyadic(model)).eval(), batch_of(name, 2))
    ones = {site.name: SiteParams(torch.full((site.channels,), 8.0), torch.full((), 4.0), **neurons) for site in graph.sites}
    x = [eighths(3, *value.shape) for value in graph.inputs]
    wanted = simulate(graph, Plan(ones), x, STEPS, engine="dense")
    low = simulate(graph, Plan(ones), x, STEPS, precision="int8")
    same(low, wanted)
    assert "int8" in {layer.precision for layer in low.trace.layers.values()}
    monkeypatch.setattr(module, "_has_int8", lambda device: False)
    same(simulate(graph, Plan(ones), x, STEPS, precision="int8"), wanted)


@pytest.mark.parametrize("low", ["bfloat16", "int8"])
def test_the_currents_are_the_equation(low: str) -> None:
    """Real weights, every kind of convolution: the sum over integer counts and rounded weights, computed in float64."""
    layers = {
        "grouped": (nn.Conv2d(6, 8, 3, 2, 1, groups=2), (6, 9, 9)),
        "dilated": (nn.Conv2d(6, 5, 3, padding=2, dilation=2, bias=False), (6, 9, 9)),
        "same": (nn.Conv2d(6, 5, 3, padding="same"), (6, 9, 9)),
        "volume": (nn.Conv3d(6, 4, 3, padding=1), (6, 4, 5, 5)),
        "transposed": (nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2), (6, 5, 5)),
        "linear": (nn.Linear(6, 5), (6,)),
    }
    for name, (layer, shape) in layers.items():
        graph = capture(nn.Sequential(nn.Identity(), nn.ReLU(), layer, nn.ReLU()).eval(), torch.zeros(2, *shape))
        first, second = graph.sites
        theta = torch.rand(first.channels, generator=torch.Generator().manual_seed(1)) + 0.1
        plan = Plan({first.name: SiteParams(theta, cap=3), second.name: SiteParams(torch.ones(()))})
        (found,) = arithmetic_of(graph, plan, low).values()
        s = torch.randint(0, 4, (5, *shape), generator=torch.Generator().manual_seed(2)).float()
        weight, bias = layer.weight.detach().double(), layer.bias
        worth = expand(theta, first).float()
        transposed, grouped = name == "transposed", getattr(layer, "groups", 1)
        axes = [-1, *[1] * (weight.dim() - 2)]
        by_input = theta.double().view(grouped, -1)
        if transposed:
            folded = weight * theta.double().view(-1, *[1] * (weight.dim() - 1))
        else:
            rows = [part * w.view(1, *axes) for part, w in zip(weight.chunk(grouped), by_input, strict=True)]
            folded = torch.cat(rows)
        folded = folded.float()
        if low == "bfloat16":
            rounded = folded.bfloat16().double()
        else:
            largest = folded.abs()
            if transposed:  # [inputs, outputs of a group, ...]: outputs differ by group
                top = torch.stack([part.amax((0, 2, 3)) for part in largest.chunk(grouped)])
                scale = (top / 127).repeat_interleave(3, 0)[:, :, None, None]
            else:
                scale = (largest.flatten(1).amax(1) / 127).view(-1, *[1] * (weight.dim() - 1))
            rounded = (folded / scale).round().double() * scale.double()
        module_ = layer.double()
        module_.weight.data, module_.bias = rounded, None
        sums = module_(s.double()).detach()
        if low == "bfloat16":
            sums = sums.bfloat16().double()
        if bias is not None:
            sums = sums + bias.detach().double().view(-1, *[1] * (weight.dim() - 2))
        got = found.currents(worth * s)
        assert got.dtype is torch.float32
        slack = 2**-7 if low == "bfloat16" else 1e-5  # a sum next to the middle of two bfloat16 numbers may go to either
        torch.testing.assert_close(got.double(), sums, rtol=slack, atol=1e-5)
        assert (got.double() - sums).abs().gt(1e-4).double().mean() < 0.01


@pytest.mark.parametrize(("counted", "groups"), [(127, 1), (127, 8), (63, 1), (-64, 1), (5000, 1)])
def test_nothing_saturates(counted: int, groups: int) -> None:
    """The largest counts and weights at once: pairs of products fit the 16 bits in which AVX2 adds them."""
    layer = nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False)
    layer.weight.data = torch.full_like(layer.weight.data, 127.0)
    graph = capture(nn.Sequential(nn.Identity(), nn.ReLU(), layer, nn.ReLU()).eval(), torch.zeros(2, 64, 6, 6))
    plan = Plan({site.name: SiteParams(torch.ones(()), cap=None, signed=True) for site in graph.sites})
    (found,) = arithmetic_of(graph, plan, "int8").values()
    for count in (counted, counted // 2):
        x = torch.full((2, 64, 6, 6), float(count))
        x[1, ::2] = 0
        assert torch.equal(found.currents(x).double(), F.conv2d(x.double(), layer.weight.detach().double(), None, 1, 1, 1, groups))
    flat = capture(nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(600, 9), nn.ReLU()).eval(), torch.zeros(2, 600))
    weight = torch.full_like(flat.params[next(iter(flat.params))], 127.0)
    flat = flat.with_params({name: weight if x.dim() == 2 else torch.zeros_like(x) for name, x in flat.params.items()})
    (linear,) = arithmetic_of(
        flat, Plan(dict(zip([s.name for s in flat.sites], plan.sites.values(), strict=True))), "int8"
    ).values()
    x = torch.full((3, 600), float(counted))
    assert torch.equal(linear.currents(x), F.linear(x.double(), weight.double()).float())


def test_emitted_values_become_whole_spikes_whatever_the_worth_and_the_layout() -> None:
    worth = torch.rand(37, generator=torch.Generator().manual_seed(0)) * 3 + 1e-3
    s = torch.randint(-250, 251, (4, 37, 5, 6), generator=torch.Generator().manual_seed(1)).float()
    for memory in (torch.contiguous_format, torch.channels_last):
        x = (worth.view(-1, 1, 1) * s).contiguous(memory_format=memory)
        assert torch.equal(counts(x, worth, 1, torch.float32), s)
        assert torch.equal(counts(x, worth, 1, torch.bfloat16), s.bfloat16())
        assert torch.equal(counts(x.abs(), worth, 1, torch.uint8), s.abs().to(torch.uint8))
    large = torch.arange(200_000, 200_600).float().view(1, 600)
    assert torch.equal(counts(large, torch.ones(600), -1, torch.bfloat16), large.bfloat16())


def test_only_whole_spikes_of_one_worth_per_channel_enter_as_counts() -> None:
    """Sums, means and analog operations are none; moved, joined and max-pooled spikes are."""
    graph = captured("residual")
    plan = plan_of(graph)
    found = whole_spikes(graph, plan)
    assert {site.node for site in graph.sites} <= found.keys()
    assert (
        not {node.name for node in graph.body if node.op.startswith(("aten.add", "aten.mean", "aten.adaptive_avg"))} & found.keys()
    )
    joined = captured("fire")
    (cat,) = (node for node in joined.body if node.op.startswith("aten.cat"))
    plan = plan_of(joined)
    wanted = torch.cat([plan.sites[joined.sites[k].name].threshold for k in (2, 3)])
    assert torch.equal(whole_spikes(joined, plan)[cat.name].worth[0, :, 0, 0], wanted)
    run = simulate(joined, plan, [eighths(2, 3, 8, 8)], 4, precision="int8")
    assert {layer.precision for layer in run.trace.layers.values()} == {"int8"}

    unit = {n: replace(p, threshold=torch.rand(s.shape) + 0.5) for (n, p), s in zip(plan.sites.items(), joined.sites, strict=True)}
    run = simulate(joined, Plan(unit), [eighths(2, 3, 8, 8)], 4, precision="int8")
    assert {layer.precision for layer in run.trace.layers.values()} == {"float32 (reads no whole spikes)"}
    run = simulate(joined, Plan(unit), [eighths(2, 3, 8, 8)], 4, precision="bfloat16")
    assert {layer.precision for layer in run.trace.layers.values()} == {"bfloat16 (inputs rounded)"}


def test_the_trace_names_every_layer_with_its_operations() -> None:
    graph, plan = converted("batch_norm_first")
    rows = simulate(graph, plan, [batch_of("batch_norm_first", 3)], 4, precision="int8").trace.rows()
    assert [row["precision"] for row in rows] == ["float32 (reads no whole spikes)", "float32 (behind all neurons)"]
    assert [row["operations"] for row in rows] == [4 * 3 * 6 * 6 * 6 * 4 * 9, 4 * 3 * 4 * 3]
    dense = simulate(graph, plan, [batch_of("batch_norm_first", 3)], 4, engine="auto").trace.rows()
    assert {row["precision"] for row in dense} == {"float32"}


@pytest.mark.parametrize(("low", "bound"), [("bfloat16", 0.03), ("int8", 0.06)])
@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise", "deep_pool", "conv1d", "upsampling"])
def test_on_real_networks_the_read_out_moves_little(name: str, low: str, bound: float) -> None:
    graph, plan = converted(name)
    x = [batch_of(name, 16)]
    full = tensors(simulate(graph, plan, x, 64, engine="dense").readout())[0]
    run = tensors(simulate(graph, plan, x, 64, precision=low).readout())[0]
    assert float((run - full).norm() / full.norm()) < bound


def test_chunks_and_parts_of_a_batch_change_nothing() -> None:
    graph, plan = converted("residual")
    x = [batch_of("residual", 5)]
    for low in ("bfloat16", "int8"):
        whole = simulate(graph, plan, x, 6, precision=low)
        for options in ({"chunk": 1}, {"chunk": 4}, {"max_memory": 300_000}):
            part = simulate(graph, plan, x, 6, precision=low, **options)
            for a, b in zip(tensors(part.outputs), tensors(whole.outputs), strict=True):
                assert (a.mean(0) - b.mean(0)).abs().mean() <= 0.02 * b.mean(0).abs().mean() + 1e-4
            assert [row["precision"] for row in part.trace.rows()] == [row["precision"] for row in whole.trace.rows()]


def test_what_does_not_go_together_is_refused_before_anything_runs() -> None:
    graph, plan = converted("mlp")
    net, x = transpike.build(graph, plan), batch_of("mlp")
    with pytest.raises(SpecError, match="no precision 'half': choose from float32, bfloat16, int8"):
        transpike.simulate(net, x, precision="half")
    for low in ("bfloat16", "int8"):
        for engine in ("events", "counts"):
            with pytest.raises(SpecError, match=f"engine='{engine}' .* needs engine='dense'"):
                transpike.simulate(net, x, engine=engine, precision=low)
    with pytest.raises(SpecError, match="events"):
        transpike.SpikingNetwork(graph, plan, engine="events", precision="int8")
    with pytest.raises(SpecError, match=r"has torch\.float64 weights"):
        transpike.simulate(transpike.build(graph, plan).double(), x.double(), precision="int8")


def test_native_kernels_get_the_same_numbers(monkeypatch) -> None:
    """torch's own bfloat16 operations, here emulated, and float32 ones on rounded numbers: one arithmetic."""
    graph = capture(make("fire"), batch_of("fire", 2))
    plan, x = plan_of(graph), torch.rand(4, 6, 8, 8, generator=torch.Generator().manual_seed(1)).round() * 2
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    emulated = next(iter(arithmetic_of(graph, plan, "bfloat16").values()))
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    native = next(iter(arithmetic_of(graph, plan, "bfloat16").values()))
    assert isinstance(native, Bfloat16)
    close = (native.currents(x) - emulated.currents(x)).abs()
    assert float(close.max()) < 0.02 and float((close > 0).double().mean()) < 0.02
    assert isinstance(next(iter(arithmetic_of(graph, plan, "int8").values())), Int8)

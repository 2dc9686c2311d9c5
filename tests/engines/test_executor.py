"""The clock: the engine's spikes are those of the reference loop, whatever the chunk, the batch and the memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from models import CASES, as_inputs, batch_of, calibration, captured, converted, dyadic, eighths, make, tensors, vectors
from transpike.engines import budget
from transpike.engines.budget import bytes_per_frame, chunking
from transpike.engines.executor import MicroBatch, Run, simulate
from transpike.errors import DataError, MemoryBudgetError, SpecError
from transpike.graph.capture import Pooling, capture
from transpike.graph.ir import Graph
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import Plan, SiteParams, expand


def _dyadic_plan(graph: Graph, seed: int = 0, cap: int | None = 1, signed: bool = False) -> Plan:
    """Thresholds of 3/8 to 11/8 per channel, initial potentials and currents in eighths."""
    return Plan(
        {
            site.name: SiteParams(
                eighths(site.channels, seed=seed + k, low=3, high=11),
                eighths(site.channels, seed=seed + k + 100, low=0, high=3),
                eighths(seed=seed + k + 200, low=-1, high=1),
                cap,
                signed,
            )
            for k, site in enumerate(graph.sites)
        }
    )


def _same(a: Run, b: Run) -> None:
    for x, y in zip(tensors(a.outputs), tensors(b.outputs), strict=True):
        assert torch.equal(x, y)
    for kind in ("spikes", "net", "membranes"):
        one, other = getattr(a, kind), getattr(b, kind)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _check_against_reference(model: nn.Module, x: torch.Tensor, steps: int, cap: int | None, signed: bool, seed: int = 0) -> None:
    graph = capture(model, x)
    plan = _dyadic_plan(graph, seed, cap, signed)
    wanted = reference.simulate(model, plan.sites, x, steps)
    for chunk, engine in ((1, "dense"), (3, "dense"), (steps, "dense"), (1, "events"), (3, "events"), (steps, "auto")):
        run = simulate(graph, plan, [x], steps, chunk=chunk, engine=engine)
        assert torch.equal(run.outputs.double(), wanted.outputs)
        for name, neurons in wanted.neurons.items():
            assert torch.equal(run.spikes[name].double(), neurons.spikes), name
            assert torch.equal(run.net[name].double(), neurons.net), name
            assert torch.equal(run.membranes[name].double(), neurons.v), name
    for n in range(len(x)):  # every sample alone
        alone = simulate(graph, plan, [x[n : n + 1]], steps)
        assert torch.equal(alone.outputs[:, 0].double(), wanted.outputs[:, n])


class Around(nn.Module):
    """Residual: ``x + inner(x)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Beside(nn.Module):
    """Concatenation of channels: ``[left(x), right(x)]``."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A random small network of one to three blocks and two samples of its input."""
    d = draw(st.sampled_from([1, 2]))
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[d]
    pools = {1: (nn.AvgPool1d, nn.MaxPool1d), 2: (nn.AvgPool2d, nn.MaxPool2d)}[d]
    channels, layers = 2, []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "residual", "beside", "pool"]))
        if kind == "plain":
            groups, wider = draw(st.sampled_from([1, 2])), draw(st.sampled_from([2, 4]))
            kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            options = {
                "stride": draw(st.integers(1, 2)),
                "padding": draw(st.integers(1, 2)),
                "dilation": dilation,
                "groups": groups,
            }
            layers += [conv(channels, wider, kernel, bias=draw(st.booleans()), **options), nn.ReLU()]
            channels = wider
        elif kind == "residual":
            layers += [Around(nn.Sequential(conv(channels, channels, 3, padding=1), nn.ReLU(), conv(channels, channels, 1)))]
            layers += [nn.ReLU()] if draw(st.booleans()) else []
        elif kind == "beside":
            layers += [
                Beside(nn.Sequential(conv(channels, 2, 1), nn.ReLU()), nn.Sequential(conv(channels, 2, 3, padding=1), nn.ReLU()))
            ]
            channels = 4
        else:
            layers += [conv(channels, channels, 3, padding=1), nn.ReLU(), draw(st.sampled_from(pools))(2, 1)]
    torch.manual_seed(draw(st.integers(0, 99)))
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    x = eighths(2, 2, *[8] * d, seed=draw(st.integers(0, 99)))
    with torch.no_grad():
        model(x)
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    return dyadic(model.eval()), x


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(network=networks(), cap=st.sampled_from([1, 2, None]), signed=st.booleans(), seed=st.integers(0, 99))
def test_every_spike_of_a_random_network_is_that_of_the_reference_loop(network, cap, signed, seed):
    _check_against_reference(*network, 7, cap, signed, seed)


def _close(a: Run, b: Run) -> None:
    """Equal but for rounding, which may move a spike."""
    for x, y in zip(tensors(a.outputs), tensors(b.outputs), strict=True):
        assert x.shape == y.shape
        assert (x.mean(0) - y.mean(0)).abs().mean() <= 0.02 * y.mean(0).abs().mean() + 1e-4


@pytest.mark.parametrize("name", CASES)
def test_chunk_size_changes_real_networks_by_rounding_only(name):
    graph, plan = converted(name)
    x = as_inputs(batch_of(name, 5))
    whole = simulate(graph, plan, x, 6)
    for chunk in (1, 4):
        _close(simulate(graph, plan, x, 6, chunk=chunk), whole)


@pytest.mark.parametrize(
    "name", ["mlp", "shared_relu", "inplace_relu", "deep_pool", "fire", "two_inputs", "conv3d", "stack", "input_skip"]
)
def test_chunk_size_and_batch_size_change_no_spike_on_dyadic_data(name):
    model = dyadic(make(name)) if name != "conv3d" else None
    graph = capture(model, batch_of(name)) if model else captured(name)
    if name == "conv3d":
        graph = graph.with_params({key: (x * 32).round() / 8 for key, x in graph.params.items()})
    plan = _dyadic_plan(graph, cap=2, signed=True)
    x = [eighths(8, *value.shape, seed=k) for k, value in enumerate(graph.inputs)]
    whole = simulate(graph, plan, x, 9)
    assert sum(float(count.sum()) for count in whole.spikes.values()) > 0
    for chunk in (1, 2, 5):
        _same(simulate(graph, plan, x, 9, chunk=chunk), whole)
    for n in (0, 7):
        alone = simulate(graph, plan, [value[n : n + 1] for value in x], 9)
        assert torch.equal(alone.outputs[:, 0], whole.outputs[:, n])
        assert all(torch.equal(alone.spikes[site][0], whole.spikes[site][n]) for site in whole.spikes)


@pytest.mark.parametrize("name", ["two_outputs", "dict_output", "tokens_first", "attention", "two_inputs", "recurrent"])
def test_samples_that_run_one_after_the_other_are_joined_along_their_own_batch_axis(name):
    graph, plan = converted(name)
    x = as_inputs(batch_of(name, 5))
    whole, split = simulate(graph, plan, x, 4), simulate(graph, plan, x, 4, max_memory=_least(graph, plan, 5, 4))
    _close(split, whole)
    assert all(split.spikes[name].shape == whole.spikes[name].shape for name in whole.spikes)


def test_a_signed_network_without_cap_is_a_function_of_the_step_alone_at_every_step():  # P-SGN-1
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.a(x))
            return self.d(F.relu(self.c(F.relu(self.b(x))) + x))

    torch.manual_seed(3)
    model = dyadic(Net().eval())
    x = eighths(8, 6)
    graph = capture(model, x)
    plan = _dyadic_plan(graph, cap=None, signed=True)
    theta, v0, extra = ([getattr(plan.sites[s.name], key) for s in graph.sites] for key in ("threshold", "v_init", "current"))

    def charge_to_sum(k: int, charge: torch.Tensor, t: int) -> torch.Tensor:
        return theta[k] * torch.floor((charge + t * extra[k] + v0[k]) / theta[k]).clamp(min=0)

    with torch.no_grad():
        run = simulate(graph, plan, [x], 12)
        for t in range(1, 13):
            one = charge_to_sum(0, t * model.a(x), t)
            two = charge_to_sum(1, one @ model.b.weight.T + t * model.b.bias, t)
            three = charge_to_sum(2, two @ model.c.weight.T + t * model.c.bias + one, t)
            assert torch.equal(run.outputs[:t].sum(0), three @ model.d.weight.T + t * model.d.bias)


def test_absorbing_power_of_two_thresholds_into_the_weights_changes_no_spike():  # P-IF-4
    model, x = dyadic(make("mlp")), eighths(8, 6)
    graph = capture(model, x)
    theta = [2.0 ** torch.randint(-2, 2, (site.channels,), generator=torch.Generator().manual_seed(1)) for site in graph.sites]
    plan = Plan({site.name: SiteParams(th, th / 2) for site, th in zip(graph.sites, theta, strict=True)})
    p = dict(graph.params)
    p["0.weight"], p["0.bias"] = p["0.weight"] / theta[0][:, None], p["0.bias"] / theta[0]
    p["2.weight"], p["2.bias"] = p["2.weight"] / theta[1][:, None] * theta[0], p["2.bias"] / theta[1]
    p["4.weight"] = p["4.weight"] * theta[1]
    ones = Plan({site.name: SiteParams(torch.ones(()), torch.tensor(0.5)) for site in graph.sites})
    a, b = simulate(graph, plan, [x], 12), simulate(graph.with_params(p), ones, [x], 12)
    assert torch.equal(a.outputs, b.outputs)
    assert all(torch.equal(a.spikes[site], b.spikes[site]) and a.spikes[site].sum() > 0 for site in a.spikes)


def test_pooling_before_the_neuron_keeps_the_pooled_rate_and_pooling_spikes_overestimates_it():  # P-IF-6
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = capture(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval(), x)
    plan = Plan({"0#1": SiteParams(torch.tensor(1.0))})
    rate = simulate(graph, plan, [x], 16).readout()
    assert torch.equal(rate, torch.floor(F.max_pool2d(x, 2) * 16) / 16)
    phases = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    v, pooled = phases, torch.zeros_like(rate)
    for _ in range(16):
        v = v + x
        fired = (v >= 1).float()
        v, pooled = v - fired, pooled + F.max_pool2d(fired, 2) / 16
    assert pooled.mean() > F.max_pool2d(x, 2).mean() + 0.05 > rate.mean()


class Products(nn.Module):
    """A product of two streams that both vary in time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 12), nn.Linear(6, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = F.relu(self.left(x)).view(-1, 3, 4), F.relu(self.right(x)).view(-1, 4, 3)
        return a @ b


class Behind(nn.Module):
    """``function`` behind one rectified linear layer."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.function = nn.Linear(6, 8), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(F.relu(self.fc(x)))


ANALOG_FUNCTIONS = {
    "max pool": lambda h: F.max_pool1d(h.unsqueeze(1), 2).squeeze(1),
    "softmax": lambda h: h.softmax(1),
    "layer norm": lambda h: F.layer_norm(h, (8,)),
    "maximum with a constant": lambda h: torch.maximum(h, torch.full((8,), 0.3)),
    "where": lambda h: torch.where(h > 0.3, h, 0.1 * h),
    "mask": lambda h: h * (h > 0.3).float(),
    "rounding": lambda h: (4 * h).int().float() / 4,
    "one-hot of the largest": lambda h: F.one_hot(h.max(1).indices, 8).float(),
    "sorted by an index": lambda h: h.gather(1, h.argsort(1)),
    "batch norm of its own": lambda h: F.instance_norm(h.unsqueeze(1)).squeeze(1),
    "fourier": lambda h: torch.fft.fft(h).abs(),
}


@pytest.mark.parametrize("name", ANALOG_FUNCTIONS)
def test_the_mean_of_an_analog_operation_is_the_function_of_the_mean_at_every_step(name):
    model, x = Behind(ANALOG_FUNCTIONS[name]).eval(), vectors(5)
    graph = capture(model, x)
    (site,) = graph.sites
    plan = Plan({site.name: SiteParams(torch.tensor(0.4), torch.tensor(0.2), cap=2)})
    run = simulate(graph, plan, [x], 10, chunk=4)
    for t in range(1, 11):
        rate = simulate(graph, plan, [x], t).net[site.name] * 0.4 / t
        torch.testing.assert_close(run.readout(t), model.function(rate), rtol=1e-5, atol=1e-5)


def test_the_mean_of_a_product_of_two_streams_is_the_product_of_their_means_at_every_step():
    model, x = Products().eval(), vectors(5)
    graph = capture(model, x)
    plan = Plan({site.name: SiteParams(torch.tensor(0.4), torch.tensor(0.2)) for site in graph.sites})
    run = simulate(graph, plan, [x], 10, chunk=3)
    for t in range(1, 11):
        part = simulate(graph, plan, [x], t)
        a, b = (part.net[site.name] * 0.4 / t for site in graph.sites)
        torch.testing.assert_close(run.readout(t), a.view(-1, 3, 4) @ b.view(-1, 4, 3), rtol=1e-5, atol=1e-5)


def test_pooled_currents_are_biased_behind_the_first_layer_and_pooled_rates_are_not():
    x, error = batch_of("deep_pool", 8), {}
    with torch.no_grad():
        ann = make("deep_pool")(x)
    for pooling in Pooling:
        graph = captured("deep_pool", pooling)
        plan = Plan({site.name: SiteParams(torch.tensor(1.0), torch.tensor(0.5), cap=8) for site in graph.sites})
        error[pooling] = (simulate(graph, plan, [x], 64).readout() - ann).abs().mean().item()
    assert error[Pooling.RATE] < error[Pooling.CURRENT] / 2


@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_network_is_bounded_by_its_layers_errors_and_spectral_norms(seed):  # P-IF-9
    model = make("mlp", seed).double()
    x = vectors(8).double()
    graph = capture(model, x)
    linears = [module for module in model if isinstance(module, nn.Linear)]
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in linears]
    plan = Plan({site.name: SiteParams(torch.tensor(0.3), torch.tensor(0.15)) for site in graph.sites})
    for steps in (1, 4, 16, 64):
        run = simulate(graph, plan, [x], steps)
        with torch.no_grad():
            rates = [x, *(run.net[site.name] * 0.3 / steps for site in graph.sites)]
            ann, error, bound = x, torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
            for k, layer in enumerate(linears[:-1]):
                ann = layer(ann).relu()
                intra = (rates[k + 1] - layer(rates[k]).relu()).norm(dim=1)
                bound = intra + norms[k] * bound
                error = (rates[k + 1] - ann).norm(dim=1)
                assert bool((error <= bound + 1e-9).all())
            logits = (run.readout() - linears[-1](ann)).norm(dim=1)
            assert bool((logits <= norms[-1] * bound + 1e-9).all()) and bool((error > 0).any())


def test_the_error_falls_with_the_number_of_steps():
    graph, plan = converted("residual")
    x = calibration("residual")[0]  # nothing is clipped on calibration data
    run = simulate(graph, plan, [x], 256)
    with torch.no_grad():
        ann = make("residual")(x)
    errors = [(run.readout(t) - ann).abs().mean().item() for t in (4, 32, 256)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_a_window_of_the_read_out_is_the_mean_of_its_steps():  # P-IF-8
    graph, plan = converted("mlp")
    run = simulate(graph, plan, [vectors()], 16)
    for start, t in ((0, 16), (0, 1), (4, 16), (12, 16), (3, 9)):
        wanted = sum(run.outputs[tau - 1] for tau in range(start + 1, t + 1)) / (t - start)
        torch.testing.assert_close(run.readout(t, start), wanted)
    torch.testing.assert_close((run.readout(16) * 16 - run.readout(4) * 4) / 12, run.readout(16, 4))
    assert torch.equal(run.readout(16, 15), run.outputs[15])


def test_a_delayed_window_obeys_the_rate_relation_of_the_last_layer():  # P-IF-8
    graph, plan = converted("mlp")
    t0, t, x = 5, 20, vectors()
    early, late = simulate(graph, plan, [x], t0), simulate(graph, plan, [x], t)
    last, before = graph.sites[-1].name, graph.sites[0].name

    def rate(name: str) -> torch.Tensor:
        theta = expand(plan.sites[name].threshold, graph.site(name))
        return (late.net[name] - early.net[name]) * theta / (t - t0)

    current = F.linear(rate(before), graph.params["2.weight"], graph.params["2.bias"])
    wanted = current - (late.membranes[last] - early.membranes[last]) / (t - t0)
    torch.testing.assert_close(rate(last), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("t", "start"), [(0, 0), (17, 0), (8, 8), (8, 9), (8, -1), (None, 16)])
def test_an_impossible_window_is_refused(t, start):
    graph, plan = converted("mlp")
    with pytest.raises(DataError, match="no read-out"):
        simulate(graph, plan, [vectors()], 16).readout(t, start)


def test_the_probe_sees_every_emission_of_every_step_and_sample_once():
    graph, plan = converted("fire")
    x, seen = batch_of("fire", 5), {site.node: torch.zeros(6, 5) for site in graph.sites}
    sums: dict[str, torch.Tensor] = {site.node: torch.zeros(5, *site.shape) for site in graph.sites}

    def probe(node, emitted, done, first):
        if node.name in seen:
            steps, samples = emitted.shape[:2]
            seen[node.name][done : done + steps, first : first + samples] += 1
            sums[node.name][first : first + samples] += emitted.sum(0)

    budget = _least(graph, plan, 5, 6) + 2 * bytes_per_frame(graph)
    run = simulate(graph, plan, [x], 6, max_memory=budget, probe=probe)
    for site in graph.sites:
        assert torch.equal(seen[site.node], torch.ones(6, 5))
        theta = expand(plan.sites[site.name].threshold, site)
        torch.testing.assert_close(sums[site.node], run.net[site.name] * theta, rtol=1e-4, atol=1e-5)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it held at once, those of ``given`` tensors not counted."""

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {x.untyped_storage()._cdata for x in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs: Mapping | None = None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self._known:
                self._add(x.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _least(graph: Graph, plan: Plan, samples: int, steps: int) -> int:
    """The smallest memory budget that is accepted."""
    low, high = 0, 1 << 30
    while high - low > 1:
        middle = (low + high) // 2
        try:
            chunking(graph, plan, samples, steps, None, middle, 4)
            high = middle
        except MemoryBudgetError:
            low = middle
    return high


@pytest.mark.parametrize(("engine", "grows"), [("events", True), ("dense", False)])
def test_chunks_grow_where_spikes_turn_out_to_be_bits(engine, grows, monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()]
    graph = capture(nn.Sequential(*layers, nn.Linear(16 * 36, 4)).eval(), x := torch.rand(1, 3, 12, 12))
    plan = MaxNorm().fit(graph, [x])
    monkeypatch.setattr(budget, "_CACHE_BYTES", 2 * 4 * 16 * 100)  # two steps of the first layer's numbers
    chunks: list[int] = []
    advance = MicroBatch.advance

    def seen(self: MicroBatch, done: int, steps: int) -> dict[str, torch.Tensor]:
        chunks.append(steps)
        return advance(self, done, steps)

    whole = simulate(graph, plan, [x], 20, engine=engine, chunk=20)
    monkeypatch.setattr(MicroBatch, "advance", seen)
    run = simulate(graph, plan, [x], 20, engine=engine)
    assert chunks == ([2, 5, 5, 5, 3] if grows else [2] * 10)  # five of the last layer's, which is read as numbers
    assert all(torch.equal(run.spikes[name], whole.spikes[name]) for name in run.spikes)


def test_on_a_gpu_all_samples_go_together_and_its_memory_is_the_limit():
    graph, plan = converted("residual")
    largest = 4 * max(node.numel() for node in graph.body)
    assert chunking(graph, plan, 64, 32, None, None, 4, 32 * 8 * 64 * largest) == (8, 64, 8)
    assert chunking(graph, plan, 64, 32, None, None, 4, 32 * 16 * largest) == (1, 16, 1)
    assert chunking(graph, plan, 64, 32, 4, None, 4, 1 << 40) == (4, 64, 4)


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("name", ["residual", "fire", "attention", "depthwise", "dict_output", "two_inputs"])
def test_a_run_stays_within_its_memory_budget(name, samples):
    graph, plan = converted(name)
    x, steps = as_inputs(batch_of(name, samples)), 32
    least = _least(graph, plan, samples, steps)
    for allowed in (least, 2 * least, 8 * least):
        with Peak([*x, *graph.params.values(), *plan.tensors().values()]) as peak:
            simulate(graph, plan, x, steps, max_memory=allowed)
        assert 0 < peak.peak <= allowed


def test_one_sample_holds_its_state_and_one_threshold_per_unit():
    """Threshold, potential and count of each unit, one set of currents of 0, and what passes through."""

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x[:, :, None] * torch.ones(400)).relu().mean((1, 2))[:, None]

    graph = capture(Wide().eval(), torch.randn(2, 100))
    plan = Plan({site.name: SiteParams(torch.tensor(1.0), torch.tensor(0.5)) for site in graph.sites})
    units = sum(site.units for site in graph.sites)
    frame = bytes_per_frame(graph)
    assert _least(graph, plan, 1, 4) <= 4 * (3 * units + units // 2) + frame + 4 * 100_000


def test_too_little_memory_is_refused_with_a_batch_size_that_fits():
    graph, plan = converted("residual")
    x = batch_of("residual", 16)
    budget = _least(graph, plan, 5, 8)
    with pytest.raises(MemoryBudgetError, match="give at most 5 samples at a time"):
        simulate(graph, plan, [x], 8, max_memory=budget)
    _same(simulate(graph, plan, [x[:5]], 8, max_memory=budget), simulate(graph, plan, [x[:5]], 8, max_memory=budget))
    with pytest.raises(MemoryBudgetError, match="allow more memory"):
        simulate(graph, plan, [x], 8, max_memory=1000)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (vectors(), {"engine": "warp"}, SpecError, "no engine 'warp': choose from auto"),
        (vectors(), {"steps": 0}, DataError, "steps is 0"),
        (vectors(), {"steps": -3}, DataError, "steps is -3"),
        (vectors(), {"chunk": 0}, DataError, "chunk is 0"),
        (torch.full((2, 6), float("nan")), {}, DataError, "NaN"),
        (torch.zeros(2, 5), {}, DataError, "captured for"),
        (torch.zeros(0, 6), {}, DataError, "empty batch"),
    ],
)
def test_what_cannot_be_simulated_is_refused(x, options, error, message):
    graph, plan = converted("mlp")
    with pytest.raises(error, match=message):
        simulate(graph, plan, [x], **{"steps": 4, **options})


def test_plan_parameters_take_the_place_of_the_graphs():
    graph, plan = converted("mlp")
    shifted = replace(plan, params={"4.bias": graph.params["4.bias"] + 1})
    a, b = simulate(graph, plan, [vectors()], 4), simulate(graph, shifted, [vectors()], 4)
    torch.testing.assert_close(b.outputs, a.outputs + 1)


def test_inputs_weights_and_plan_are_left_alone():
    graph, plan = converted("inplace_relu")
    x = vectors()
    kept = {**graph.params, **plan.tensors(), "x": x}
    before = {name: value.clone() for name, value in kept.items()}
    simulate(graph, plan, [x], 8)
    assert all(torch.equal(value, before[name]) for name, value in kept.items())


def test_a_network_without_neurons_gives_its_output_at_every_step():
    model = nn.Linear(6, 4).eval()
    run = simulate(capture(model, vectors()), Plan({}), [vectors()], 3)
    with torch.no_grad():
        assert torch.equal(run.outputs, model(vectors()).expand(3, -1, -1)) and not run.spikes

"""P-EN-1: exact synaptic operations against counting every tap by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models import batch_of, make
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.measure.operations import Drive, count_operations, synaptic_operations
from transpike.spiking.plan import Plan, SiteParams


def unit_plan(graph: Graph) -> Plan:
    return Plan({site.name: SiteParams(torch.ones(())) for site in graph.sites})


def spikes_of(graph: Graph, n: int = 2) -> dict[str, torch.Tensor]:
    """Random spike counts from 0 to 3 for every site."""
    generator = torch.Generator().manual_seed(0)
    return {site.node: torch.randint(0, 4, (n, *site.shape), generator=generator).double() for site in graph.sites}


def behind_relu(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.ReLU(), *layers).eval()


def arrivals(model: nn.Module, *shape: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Random spikes of the first site, and the operations they cause by node."""
    graph = capture(model, torch.zeros(2, *shape))
    counts = spikes_of(graph)
    found = synaptic_operations(graph, counts)
    return counts[graph.sites[0].node], {name: float(x) for name, x in found.items()}


def convolution_taps(
    size: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool = False, output_padding: int = 0
) -> list[tuple[int, int]]:
    """(input, output) positions along one axis that a weight connects."""
    if transposed:
        out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
        pairs = [(i, i * stride - padding + k * dilation) for i in range(size) for k in range(kernel)]
        return [(i, o) for i, o in pairs if 0 <= o < out]
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pairs = [(o * stride - padding + k * dilation, o) for o in range(out) for k in range(kernel)]
    return [(i, o) for i, o in pairs if 0 <= i < size]


def brute_force(spikes: torch.Tensor, out_channels: int, groups: int, taps: list[list[tuple[int, int]]]) -> float:
    """Every connection one by one: each carries the spikes of its input."""
    total = 0.0
    n, channels = spikes.shape[:2]
    for sample, channel in itertools.product(range(n), range(channels)):
        targets = out_channels // groups  # a channel reaches the output channels of its own group
        for connection in itertools.product(*taps):
            here = tuple(i for i, _ in connection)
            total += targets * float(spikes[(sample, channel, *here)])
    return total


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "stride beyond kernel": {"kernel_size": 1, "stride": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_a_convolution_counts_every_tap_of_every_spike(name: str, transposed: bool) -> None:
    options = CONVOLUTIONS[name]
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(4, 8, **options)
    spikes, found = arrivals(behind_relu(layer), 4, 5, 6)
    geometry = (options["kernel_size"], options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1))
    taps = [convolution_taps(size, *geometry, transposed) for size in (5, 6)]
    assert list(found.values()) == [brute_force(spikes, 8, options.get("groups", 1), taps)]


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions_too(dims: int) -> None:
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[dims](2, 3, 3, stride=2, padding=1)
    spikes, found = arrivals(behind_relu(layer), 2, *[4] * dims)
    assert list(found.values()) == [brute_force(spikes, 3, 1, [convolution_taps(4, 3, 2, 1, 1)] * dims)]


def test_a_linear_layer_sends_every_spike_to_every_output() -> None:
    spikes, found = arrivals(behind_relu(nn.Linear(6, 5)), 6)
    assert list(found.values()) == [float(spikes.sum()) * 5]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        return self.b(torch.relu(self.a(x) + x))


def test_an_identity_shortcut_is_one_operation_per_spike() -> None:
    graph = capture(Residual().eval(), torch.zeros(2, 4))
    first, second = (site.node for site in graph.sites)
    counts = spikes_of(graph)
    found = {graph.node(name).path: float(x) for name, x in synaptic_operations(graph, counts).items()}
    before, after = float(counts[first].sum()), float(counts[second].sum())
    assert found == {"a.linear": 4 * before, "add": before, "b.linear": 3 * after}


class TwoShortcuts(nn.Module):
    """Two neuron layers meet in a third without any weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = torch.relu(x), torch.relu(self.a(x))
        return self.b(torch.relu(one + two))


def test_spikes_that_meet_before_a_neuron_are_one_operation_each() -> None:
    graph = capture(TwoShortcuts().eval(), torch.zeros(2, 4))
    counts = spikes_of(graph)
    totals = [float(counts[site.node].sum()) for site in graph.sites]
    found = sum(float(x) for x in synaptic_operations(graph, counts).values())
    assert found == totals[0] + totals[1] + totals[2] * 2


class Joined(nn.Module):
    def __init__(self, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.join, self.a, self.b = join, nn.Conv2d(2, 3, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.join(torch.relu(x), torch.relu(self.a(x))))


def test_concatenated_channels_are_all_counted() -> None:
    graph = capture(Joined(lambda x, y: torch.cat([x, y], 1), 5).eval(), torch.zeros(2, 2, 3, 3))
    counts = spikes_of(graph)
    (found,) = synaptic_operations(graph, counts).values()
    assert float(found) == 4 * sum(float(x.sum()) for x in counts.values())
    assert {w.drive for w in count_operations(graph, unit_plan(graph)).work if w.node != "conv2d"} == {Drive.SPIKES}


def test_graded_values_joined_to_spikes_make_the_synapse_dense() -> None:
    model = Joined(lambda x, y: torch.cat([x, y], 1), 5)

    class WithInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner.b(torch.cat([x, torch.relu(self.inner.a(x))], 1))

    graph = capture(WithInput().eval(), torch.zeros(2, 2, 3, 3))
    counts = spikes_of(graph)
    drives = {w.path.split(".")[-2]: w.drive for w in count_operations(graph, unit_plan(graph)).work}
    assert drives == {"a": Drive.CONSTANT, "b": Drive.DENSE}
    assert sum(float(x) for x in synaptic_operations(graph, counts).values()) == float(next(iter(counts.values())).sum())


class Moved(nn.Module):
    """Spikes are cut, swapped by a computed index and by a stored one before the synapse."""

    stored: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stored", torch.tensor([1, 0]))
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(x).chunk(2, 1)
        return self.fc(left[:, torch.arange(1, -1, -1)] + right[:, self.stored])


def test_cutting_and_indexing_move_spikes_and_cost_nothing() -> None:
    spikes, found = arrivals(Moved().eval(), 4)
    assert list(found.values()) == [float(spikes.sum()) * 3]


POOLS: dict[str, tuple[nn.Module, list[list[int]]]] = {
    # windows of every output position along one axis of 6
    "2": (nn.AvgPool2d(2), [[0, 1], [2, 3], [4, 5]]),
    "3, stride 2, padding 1": (nn.AvgPool2d(3, 2, 1), [[0, 1], [1, 2, 3], [3, 4, 5]]),
    "without pads in the mean": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), [[0, 1], [1, 2, 3], [3, 4, 5]]),
    "4, rounded up": (nn.AvgPool2d(4, ceil_mode=True), [[0, 1, 2, 3], [4, 5]]),
    "adaptive 4": (nn.AdaptiveAvgPool2d(4), [[0, 1], [1, 2], [3, 4], [4, 5]]),
    "global": (nn.AdaptiveAvgPool2d(1), [[0, 1, 2, 3, 4, 5]]),
}


@pytest.mark.parametrize("name", POOLS)
def test_average_pooling_is_folded_into_the_next_synapse(name: str) -> None:
    pool, windows = POOLS[name]
    spikes, found = arrivals(behind_relu(pool, nn.Conv2d(2, 3, 1)), 2, 6, 6)
    passed = sum(float(spikes[:, :, i, j].sum()) for rows in windows for cols in windows for i in rows for j in cols)
    assert list(found.values()) == [pytest.approx(3 * passed, rel=1e-12)]


@pytest.mark.parametrize("pool", [nn.AvgPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1, count_include_pad=False)])
def test_average_pooling_of_sequences(pool: nn.Module) -> None:
    spikes, found = arrivals(behind_relu(pool, nn.Conv1d(2, 3, 1)), 2, 6)
    passed = sum(float(spikes[:, :, i].sum()) for window in ([0, 1], [1, 2, 3], [3, 4, 5]) for i in window)
    assert list(found.values()) == [pytest.approx(3 * passed, rel=1e-12)]


def test_a_mean_over_axes_passes_every_spike_on() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(x).mean((2, 3)))

    spikes, found = arrivals(Mean().eval(), 2, 3, 4)
    assert list(found.values()) == [float(spikes.sum()) * 5]


class Weights(nn.Module):
    """The ways to write a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        if self.kind == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        if self.kind == "transposed weight":
            return nn.functional.linear(x, self.weight.t(), self.bias)
        if self.kind == "normalised weight":
            return nn.functional.linear(x, (self.weight / self.weight.norm(dim=0)).t())
        return x @ self.weight


@pytest.mark.parametrize("kind", ["addmm", "transposed weight", "normalised weight", "matmul"])
def test_a_linear_layer_counts_the_same_however_it_is_written(kind: str) -> None:
    spikes, found = arrivals(Weights(kind).eval(), 4)
    assert list(found.values()) == [float(spikes.sum()) * 3]


class BatchElsewhere(nn.Module):
    """The batch on the second axis, as sequence models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.transpose(0, 1)))[1:]).transpose(0, 1)  # the first token is dropped


def test_spikes_stay_with_their_sample_where_the_batch_is_not_the_first_axis() -> None:
    graph = capture(BatchElsewhere().eval(), torch.zeros(2, 5, 4))
    (site,) = graph.sites
    counts = {site.node: torch.zeros(2, 5, 3)}
    counts[site.node][1, 0], counts[site.node][0, 2] = 100.0, 1.0
    (found,) = synaptic_operations(graph, counts).values()
    assert float(found) == 3 * 2  # three spikes of token 2, none of token 0


def test_max_pooling_that_passes_spikes_on_is_a_source_of_its_own() -> None:
    graph = capture(make("deep_pool"), batch_of("deep_pool", 2))
    ops = count_operations(graph, unit_plan(graph))
    sites = [site.node for site in graph.sites]
    (pool,) = set(ops.sources) - set(sites)
    assert graph.node(pool).op.startswith("aten.max_pool2d")
    counts = {name: torch.zeros(1, *shape) for name, shape in zip(ops.sources, [(6, 8, 8), (6, 8, 8), (6, 4, 4)], strict=True)}
    counts[sites[1]] += 5.0  # what goes into the gate costs nothing
    counts[pool][0, 0, 1, 1] = 2.0
    found = {graph.node(name).op.split(".")[1]: float(x) for name, x in synaptic_operations(graph, counts).items()}
    assert found == {"conv2d": 0.0, "linear": 2.0 * 10}
    assert {w.drive for w in ops.work} == {Drive.CONSTANT, Drive.SPIKES}


def test_max_pooling_over_unequal_thresholds_is_dense_work() -> None:
    graph = capture(make("deep_pool"), batch_of("deep_pool", 2))
    per_unit = Plan({site.name: SiteParams(1 + torch.rand(site.shape)) for site in graph.sites})
    work = {w.op: w for w in count_operations(graph, per_unit).work}
    (pool,) = (w for op, w in work.items() if "max_pool" in op)
    assert (pool.macs, pool.elements, pool.drive) == (0, 6 * 8 * 8, Drive.DENSE)
    assert work["aten.linear.default"].drive == Drive.DENSE  # it is fed graded values


def test_dense_operations_are_the_published_formula() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, groups=2), nn.Flatten(), nn.Linear(54, 5))
    graph = capture(model.eval(), torch.zeros(2, 3, 8, 8))
    ops = count_operations(graph, unit_plan(graph))
    assert [w.macs for w in ops.work] == [4 * 64 * 27, 6 * 9 * 18, 54 * 5]
    assert [w.drive for w in ops.work] == [Drive.CONSTANT, Drive.SPIKES, Drive.DENSE]  # no neuron before the last
    assert ops.macs(Drive.CONSTANT) == 6912 and ops.dense_work() == 270
    assert ops.spiking_share == pytest.approx(972 / (6912 + 972 + 270))


def test_analog_operations_are_charged_their_inputs_at_every_step() -> None:
    graph = capture(make("activations"), batch_of("activations", 2))
    work = {w.op.split(".")[1]: w for w in count_operations(graph, unit_plan(graph)).work if w.elements}
    assert work["gelu"].elements == work["silu"].elements == 8 and work["gelu"].drive == Drive.DENSE


def test_counting_leaves_the_network_alone() -> None:
    graph = capture(make("residual"), batch_of("residual", 2))
    before = {key: x.clone() for key, x in graph.params.items()}
    count_operations(graph, unit_plan(graph))
    synaptic_operations(graph, spikes_of(graph))
    assert all(torch.equal(x, before[key]) for key, x in graph.params.items())

"""The distance between read-outs, and what a bench measures, against computations by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models import CASES, calibration, converted, make
from transpike.engines.executor import simulate
from transpike.graph.capture import capture
from transpike.methods._sensitivity import Bench, Response
from transpike.spiking.plan import NeuronKind, Plan, SiteParams


def symmetric_kl(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows, in plain numpy."""
    p, q = (np.exp(x - x.max(1, keepdims=True)) for x in (a.astype(float), b.astype(float)))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float(np.mean(0.5 * ((q * np.log(q / p)).sum(1) + (p * np.log(p / q)).sum(1))))


def test_distance_and_spikes_equal_those_computed_by_hand() -> None:
    graph, plan = converted("residual")
    data = calibration("residual")
    measured = Bench(graph, data, 24, 6).measure(plan)
    run = simulate(graph, plan, [torch.cat(data)], 6)
    with torch.no_grad():
        ann = make("residual")(torch.cat(data))
    assert measured.distance == pytest.approx(symmetric_kl(ann.numpy(), run.readout().numpy()), rel=1e-5)
    for name, count in run.spikes.items():
        assert measured.spikes[name] == pytest.approx(float(count.double().sum()) / 24)
    assert measured.total == pytest.approx(sum(measured.spikes.values()))


def test_error_and_moved_probability_equal_those_computed_by_hand() -> None:
    graph, plan = converted("residual")
    data = calibration("residual")
    measured = Bench(graph, data, 24, 6).measure(plan)
    b = simulate(graph, plan, [torch.cat(data)], 6).readout().double().numpy()
    with torch.no_grad():
        a = make("residual")(torch.cat(data)).double().numpy()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    assert measured.moved == pytest.approx(np.abs(q - p).sum() / 2 / 24, rel=1e-4)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    assert measured.error == pytest.approx(((b - a) ** 2).sum() / (a**2).sum(), rel=1e-4)


def test_the_error_between_two_responses_is_a_share_of_the_anns_square() -> None:
    graph, plan = converted("mlp")
    bench = Bench(graph, calibration("mlp"), 24, 4)
    found = bench.respond(plan)
    assert bench.error(found, found) == 0 and bench.error(found, bench.ann) == bench.measure(plan).error
    shifted = Response([[x + 3.0 for x in part] for part in found.readouts], found.spikes)  # softmax does not see it
    assert bench.error(shifted, found) == pytest.approx(0, abs=1e-10)


def test_bursts_count_as_many_spikes_as_they_have() -> None:
    """9.C-7: two spikes in one step are two, not one event."""
    graph = capture(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).eval(), torch.zeros(2, 3))
    plan = Plan({"0#1": SiteParams(torch.tensor(1.0), cap=4)})
    measured = Bench(graph, [torch.tensor([[2.0, 3.0, 9.0]])], 1, 5).measure(plan)
    assert measured.spikes == {"0#1": 5 * (2 + 3 + 4)}


@pytest.mark.parametrize("size", [1, 5, 24])
def test_only_the_first_samples_count_however_they_are_batched(size: int) -> None:
    graph, plan = converted("mlp")
    data = torch.cat(calibration("mlp"))
    wanted = Bench(graph, [data[:18]], 100, 4)
    found = Bench(graph, list(data.split(size)), 18, 4)
    assert (wanted.samples, found.samples) == (18, 18)
    assert found.measure(plan).distance == wanted.measure(plan).distance
    assert found.measure(plan).spikes == wanted.measure(plan).spikes


@pytest.mark.parametrize("model", CASES)
def test_every_network_has_a_distance_that_falls_with_steps(model: str) -> None:
    graph, plan = converted(model)
    near, far = (Bench(graph, calibration(model), 16, steps).measure(plan).distance for steps in (256, 2))
    assert 0 <= near < far < np.inf


def test_outputs_without_classes_count_with_their_relative_squared_error() -> None:
    graph = capture(Regression().eval(), torch.zeros(2, 3))
    plan = Plan({site.name: SiteParams(torch.tensor(0.7)) for site in graph.sites})
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    found = simulate(graph, plan, [x], 3).readout().double()
    wanted = x.double().sum(1)
    error = float((found - wanted).square().sum() / wanted.square().sum())
    assert Bench(graph, list(x.split(3)), 20, 3).measure(plan).distance == pytest.approx(error, rel=1e-5)


class Regression(nn.Module):
    """One number a sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).sum(1)


def test_extreme_logits_give_a_finite_distance() -> None:
    """9.C-13: softmax entries that underflow to 0."""
    head = nn.Linear(2, 2)
    head.weight.data = torch.tensor([[5000.0, 0.0], [0.0, 5000.0]])
    graph = capture(nn.Sequential(nn.ReLU(), head).eval(), torch.zeros(2, 2))
    plan = Plan({"0#1": SiteParams(torch.tensor(5.0))})
    measured = Bench(graph, [torch.tensor([[1.0, 0.0], [0.0, 1.0]])], 2, 2).measure(plan)
    assert 1000 < measured.distance < np.inf


def test_the_table_changes_one_site_at_a_time() -> None:
    graph, plan = converted("mlp")
    bench = Bench(graph, calibration("mlp"), 24, 4)
    before = bench.measure(plan)
    names = [site.name for site in graph.sites]
    twice = {n: replace(plan.sites[n], threshold=plan.sites[n].threshold * 2) for n in names}
    distances, spikes = bench.table(plan, {n: [plan.sites[n], twice[n]] for n in names}, before)
    for i, name in enumerate(names):
        alone = bench.measure(replace(plan, sites={**plan.sites, name: twice[name]}))
        assert distances[i] == [before.distance, alone.distance] and spikes[i] == [before.spikes[name], alone.spikes[name]]
    assert distances[0][1] != distances[1][1]


def test_beyond_the_limit_the_later_options_of_a_site_are_not_simulated() -> None:
    graph, plan = converted("mlp")
    bench = Bench(graph, calibration("mlp"), 24, 4)
    first = graph.sites[0].name
    options = [replace(plan.sites[first], threshold=plan.sites[first].threshold * k) for k in (1, 30, 40)]
    distances, _ = bench.table(plan, {first: options}, bench.measure(plan), limit=0.0)
    assert np.isfinite(distances[0][0]) and distances[0][1:] == [np.inf, np.inf]


def test_parallel_neurons_are_measured_like_any_other() -> None:
    graph, plan = converted("residual")
    parallel = replace(plan, sites={n: replace(p, kind=NeuronKind.PARALLEL) for n, p in plan.sites.items()})
    bench = Bench(graph, calibration("residual"), 24, 4)
    measured = bench.measure(parallel)
    run = simulate(graph, parallel, [torch.cat(calibration("residual"))], 4)
    with torch.no_grad():
        ann = make("residual")(torch.cat(calibration("residual")))
    assert measured.distance == pytest.approx(symmetric_kl(ann.numpy(), run.readout().numpy()), rel=1e-4)
    assert measured.spikes != bench.measure(plan).spikes

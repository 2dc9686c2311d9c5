"""The law's closed form against brute force, slopes against a read-out made to obey it, and the bisection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models import calibration, captured
from transpike.graph.batches import Batches
from transpike.methods._coarsening import Law, coarseness, last, probe, split
from transpike.methods._sensitivity import Bench
from transpike.methods.mmse import MMSE
from transpike.methods.spike_compression import scaled
from transpike.spiking.plan import Plan, SiteParams

LAW = Law({"a": 0.01, "b": 0.02, "c": 0.0005}, {"a": 50.0, "b": 20.0, "c": 10.0})


def cost(law: Law, ratios: Any) -> float:
    return sum(law.spikes[name] / ratio for name, ratio in ratios.items())


def loss(law: Law, ratios: Any) -> float:
    return sum(law.error(name, ratio) for name, ratio in ratios.items())


def test_no_other_ratios_have_less_error_for_as_few_spikes() -> None:
    random = np.random.default_rng(0)
    for ratios in LAW.path(8.0):
        for _ in range(300):
            other = {name: float(np.clip(ratio * np.exp(random.normal(0, 0.2)), 1, 8)) for name, ratio in ratios.items()}
            if cost(LAW, other) <= cost(LAW, ratios):
                assert loss(LAW, other) >= loss(LAW, ratios) * (1 - 1e-9) - 1e-12


def test_the_path_goes_from_no_scaling_to_the_largest_ratios_in_steps_of_a_percent() -> None:
    path = LAW.path(8.0)
    assert set(path[0].values()) == {1.0} and list(path[-1].values()) == pytest.approx([8.0] * 3, rel=0.02)
    shares = np.array([cost(LAW, ratios) for ratios in path]) / 80
    assert -np.diff(shares).max() > 0.004 and -np.diff(shares).min() < 0.0201 and (np.diff(shares) < 0).all()


def test_sites_that_cannot_get_coarser_or_send_nothing_stay_as_they_are() -> None:
    path = Law({"a": np.inf, "b": 0.1, "c": 0.1}, {"a": 5.0, "b": 5.0, "c": 0.0}).path(4.0)
    assert all(ratios["a"] == ratios["c"] == 1.0 for ratios in path) and path[-1]["b"] == pytest.approx(4.0, rel=0.05)
    assert Law({"a": np.inf}, {"a": 5.0}).path(4.0) == [{"a": 1.0}]
    assert LAW.path(1.0) == [dict.fromkeys("abc", 1.0)]
    assert Law({"a": np.inf}, {"a": 5.0}).error("a", 1.0) == 0


class Made:
    """A bench whose read-out is the ANN's plus, for every site, independent noise as strong as its threshold."""

    def __init__(self, strength: dict[str, float]) -> None:
        self._strength = strength
        self._random = np.random.default_rng(0)

    def respond(self, plan: Plan) -> Any:
        noise = {name: self._random.normal(0, self._strength[name] * float(p.threshold), 200_000) for name, p in plan.sites.items()}
        return Found(sum(noise.values()), dict.fromkeys(noise, 1.0))

    def compare(self, found: Any) -> Any:
        found.error = float((found.readouts**2).mean())
        return found

    def error(self, found: Any, reference: Any) -> float:
        own = found.readouts - reference.readouts
        return float((own**2).mean())


class Found:
    def __init__(self, readouts: Any, spikes: dict[str, float]) -> None:
        self.readouts, self.spikes, self.error = readouts, spikes, 0.0


def test_slopes_are_the_power_of_every_sites_own_error() -> None:
    strength = {"a": 0.1, "b": 0.3}
    plan = Plan({name: SiteParams(torch.tensor(1.0)) for name in strength})
    bench: Any = Made(strength)
    law = probe(bench, plan, {name: (SiteParams(torch.tensor(2.0)), 2.0) for name in strength})
    assert law.slopes["b"] == pytest.approx((2 * 0.01 + 5 * 0.09) / 5, rel=0.05)  # the other site's noise is new as well
    assert law.slopes["a"] == pytest.approx((2 * 0.09 + 5 * 0.01) / 5, rel=0.05)


def test_probing_leaves_out_what_gets_no_coarser() -> None:
    graph = captured("residual")
    plan = MMSE(steps=4, cap=4).fit(graph, calibration("residual"))
    bench = Bench(graph, calibration("residual"), 12, 4)
    probes = {site.name: (scaled(site, plan.sites[site.name], 2.0), 2.0) for site in graph.sites}
    first = graph.sites[0].name
    law = probe(bench, plan, {**probes, first: (plan.sites[first], 1.0)})
    assert law.slopes[first] == np.inf and all(0 < s < np.inf for name, s in law.slopes.items() if name != first)
    assert law.spikes == bench.measure(plan).spikes


def test_coarseness_is_the_geometric_mean() -> None:
    assert coarseness(SiteParams(torch.tensor([1.0, 2.0])), SiteParams(torch.tensor([4.0, 2.0]))) == pytest.approx(2.0)
    assert coarseness(SiteParams(torch.tensor(3.0)), SiteParams(torch.tensor(3.0))) == 1.0


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_bisection_finds_the_last_that_passes(count: int) -> None:
    for wanted in {0, count // 3, count - 1}:
        asked: list[int] = []
        assert last(count, lambda k, wanted=wanted, asked=asked: asked.append(k) or k <= wanted) == wanted
        assert len(asked) <= int(np.ceil(np.log2(count))) + 1 and 0 not in asked


def test_nothing_is_used_twice_when_data_are_split() -> None:
    graph = captured("mlp")
    data = Batches(graph, calibration("mlp"))
    probing, judging, others = split(graph, data, 4, 5, 2, parts=4)
    assert (probing.samples, judging.samples) == (4, 5)
    whole = torch.cat(calibration("mlp"))
    assert torch.equal(torch.cat([inputs[0] for inputs in others]), whole[9:])
    probing, judging, others = split(graph, data, 100, 100, 2, parts=4)
    assert (probing.samples, judging.samples, sum(len(inputs[0]) for inputs in others)) == (6, 6, 12)

"""P-ADA-1 to P-ADA-3 (the burst neuron), then both searches: against uniform caps, brute force and budgets."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import batch_of, calibration, captured, eighths, make
from transpike.engines.executor import simulate
from transpike.engines.sweep import respond
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.capture import capture
from transpike.graph.ir import Graph, Site
from transpike.methods._sensitivity import Bench
from transpike.methods.adafire import AdaFire
from transpike.methods.mmse import MMSE
from transpike.spiking.plan import Granularity, Plan, SiteParams

SITE = Site("relu#1", "relu", (16,), 0)


def neuron(currents: torch.Tensor, cap: int | None, threshold: float = 0.5, v_init: float = 0.25) -> torch.Tensor:
    """Spike counts of a burst neuron for currents T N 16."""
    return respond(SITE, SiteParams(torch.tensor(threshold), torch.tensor(v_init), cap=cap), currents).spikes


# --- the neuron ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1, 2, 5])
def test_constant_input_gives_the_clipped_floor(cap: int) -> None:
    """P-ADA-1: n = clip(floor((T x + v0) / theta), 0, B T)."""
    steps = 7
    x = eighths(4, 16, low=-8, high=8 * cap)
    wanted = torch.clamp(torch.floor((steps * x + 0.25) / 0.5), 0, cap * steps)
    assert torch.equal(neuron(x.expand(steps, 4, 16), cap), wanted)


@pytest.mark.parametrize("cap", [2, 4])
def test_a_burst_neuron_is_an_if_neuron_with_more_and_smaller_steps(cap: int) -> None:
    """P-ADA-2: B T micro-steps of x / B, constant input."""
    x = eighths(4, 16, seed=1, low=-8, high=8 * cap)
    micro = neuron((x / cap).expand(5 * cap, 4, 16), 1)
    assert torch.equal(neuron(x.expand(5, 4, 16), cap), micro)


def test_charge_within_the_cap_is_counted_exactly_in_any_order() -> None:
    """P-ADA-3: all I(t) in [0, B theta] means n = floor((sum I + v0) / theta); cap 1 under-fires when charge comes late."""
    currents = eighths(6, 4, 16, seed=2, low=0, high=8)  # at most 1.0 = 2 theta a step
    wanted = torch.floor((currents.sum(0) + 0.25) / 0.5)
    for order in (range(6), reversed(range(6)), (3, 0, 5, 1, 4, 2)):
        assert torch.equal(neuron(currents[list(order)], 2), wanted)
    late = torch.zeros(6, 1, 16)
    late[-1] = 3.0
    assert torch.equal(neuron(late, 1), torch.ones(1, 16)) and torch.equal(neuron(late, None), torch.full((1, 16), 6.0))


def test_without_a_cap_the_potential_always_ends_below_the_threshold() -> None:
    currents = eighths(9, 4, 16, seed=3, low=-16, high=24)
    params = SiteParams(torch.tensor(0.5), torch.tensor(0.25), cap=None)
    for t in range(1, 10):
        assert bool((respond(SITE, params, currents[:t]).membrane < 0.5).all())


# --- the search ------------------------------------------------------------------------------------------------------


@cache
def fitted(model: str, **settings: Any) -> Plan:
    return AdaFire(**{"steps": 4, "samples": 24, **settings}).fit(captured(model), calibration(model))


def others() -> list[torch.Tensor]:
    """What thresholds come from while caps are chosen: 6 of the 24 samples probe the sites, 6 judge the whole."""
    return [torch.cat(calibration("residual"))[12:]]


def judging() -> Bench:
    graph = captured("residual")
    return Bench(graph, Batches(graph, calibration("residual")).after(6), 6, 4)


def caps(plan: Plan) -> list[int | None]:
    return [params.cap for params in plan.sites.values()]


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("cap", [1, 4])
def test_one_candidate_is_mmse_with_that_cap(cap: int, additive: bool) -> None:
    plan = fitted("residual", cap=cap, least=cap, budget=1.0, additive=additive)
    same = MMSE(steps=4, cap=cap).fit(captured("residual"), calibration("residual"))
    assert plan.tensors().keys() == same.tensors().keys()
    assert all(torch.equal(x, same.tensors()[key]) for key, x in plan.tensors().items())
    assert caps(plan) == caps(same)


def test_thresholds_are_those_of_the_chosen_caps() -> None:
    plan = fitted("residual", budget=0.75)
    assert len(set(caps(plan))) > 1
    for site in captured("residual").sites:
        params = plan.sites[site.name]
        same = MMSE(steps=4, cap=params.cap).fit(captured("residual"), calibration("residual")).sites[site.name]
        assert torch.equal(params.threshold, same.threshold) and torch.equal(params.v_init, same.v_init)


@pytest.mark.parametrize("budget", [0.3, 0.55, 0.8, 1.0])
def test_the_measured_spikes_keep_to_the_budget_and_no_other_choice_tried_is_better(budget: float) -> None:
    plan = fitted("residual", budget=budget)
    found, bench = plan.metadata["search"], judging()
    after = bench.measure(plan)
    assert found["spikes"]["chosen"] == after.total and found["error"]["chosen"] == after.error
    uniform = {cap: MMSE(steps=4, cap=cap).fit(captured("residual"), others()).sites for cap in (1, 2, 3, 4, 6, 8)}
    judged = bench.measure(Plan({name: uniform[cap][name] for name, cap in found["caps"].items()}))
    assert judged.total <= budget * found["spikes"]["target"]
    kept = [error for share, error in found["tried"].items() if float(share) <= budget]
    assert judged.error == pytest.approx(min(kept), rel=1e-3)
    assert len(found["tried"]) <= 9


@pytest.mark.parametrize("budget", [0.3, 0.55, 0.8])
def test_the_choice_is_among_the_best_that_there_are(budget: float) -> None:
    """All 216 combinations of caps, simulated whole on the samples that judged."""
    graph, bench, candidates = captured("residual"), judging(), (1, 2, 3, 4, 6, 8)
    uniform = {cap: MMSE(steps=4, cap=cap).fit(graph, others()).sites for cap in candidates}
    allowed = budget * bench.measure(Plan(uniform[8])).total
    errors = []
    for picks in product(candidates, repeat=3):
        measured = bench.measure(Plan({name: uniform[cap][name] for name, cap in zip(uniform[8], picks, strict=True)}))
        if measured.total <= allowed:
            errors.append(measured.error)
    found = fitted("residual", budget=budget).metadata["search"]["caps"]
    chosen = bench.measure(Plan({name: uniform[cap][name] for name, cap in found.items()})).error
    assert sum(error < 0.999 * chosen for error in errors) < 0.15 * len(errors)


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("budget", [0.6, 0.9])
def test_the_published_caps_are_the_brute_force_optimum_of_the_sums(refit: bool, budget: float) -> None:
    """Sensitivities and spikes measured here again, one site at a time, and every choice tried."""
    graph, data, candidates = captured("residual"), calibration("residual"), (1, 2, 3, 4, 6, 8)
    uniform = {cap: MMSE(steps=4, cap=cap).fit(graph, data).sites for cap in candidates}
    names, bench = list(uniform[8]), Bench(graph, data, 24, 4)

    def measured(name: str, cap: int) -> tuple[float, float]:
        own = uniform[cap][name]
        if not refit:
            own = SiteParams(uniform[8][name].threshold, uniform[8][name].v_init, cap=cap)
        found = bench.measure(Plan({**uniform[8], name: own}))
        return found.distance, found.spikes[name]

    table = {(name, cap): measured(name, cap) for name in names for cap in candidates}
    allowed = budget * sum(table[name, 8][1] for name in names)
    affordable = [
        picks
        for picks in product(candidates, repeat=len(names))
        if sum(table[pair][1] for pair in zip(names, picks, strict=True)) <= allowed
    ]
    best = min(affordable, key=lambda picks: sum(table[pair][0] for pair in zip(names, picks, strict=True)))
    found = fitted("residual", budget=budget, refit=refit, additive=True)
    assert [found.metadata["search"]["caps"][name] for name in names] == list(best) == caps(found)


def test_a_smaller_budget_never_spends_more_and_a_full_one_gets_no_worse_than_uniform_caps() -> None:
    spent = [fitted("residual", budget=budget).metadata["search"]["spikes"]["chosen"] for budget in (0.4, 0.7, 1.0)]
    assert spent == sorted(spent) and spent[0] < 0.5 * fitted("residual").metadata["search"]["spikes"]["highest cap"]
    found = fitted("residual", budget=1.0, target=4).metadata["search"]
    uniform = judging().measure(MMSE(steps=4, cap=4).fit(captured("residual"), others()))
    assert min(found["tried"].values()) <= uniform.error
    assert found["spikes"]["target"] == uniform.total


def test_candidates() -> None:
    assert AdaFire().candidates == (1, 2, 3, 4, 6, 8)
    assert AdaFire(cap=16, least=2).candidates == (2, 3, 4, 6, 8, 12, 16)
    assert AdaFire(cap=6).candidates == (1, 2, 3, 4, 6)
    assert AdaFire(cap=8, least=3).candidates == (3, 4, 6, 8)
    assert AdaFire(cap=1).candidates == (1,)
    assert AdaFire(cap=4, doubling=False).candidates == (1, 2, 3, 4)


@pytest.mark.parametrize("additive", [True, False])
def test_a_budget_that_no_choice_keeps_is_refused_and_the_smallest_that_is_kept_is_named(additive: bool) -> None:
    with pytest.raises(PlanError, match=r"smallest feasible budget is (0\.\d+)") as caught:
        fitted("residual", budget=0.01, additive=additive)
    smallest = float(str(caught.value).split("smallest feasible budget is ")[1].split(":")[0])
    assert 0.01 < smallest < 1
    assert set(caps(fitted("residual", budget=smallest, additive=additive))) == {1}
    with pytest.raises(PlanError, match="smallest feasible"):
        fitted("residual", budget=smallest - 0.001, additive=additive)


def test_what_was_measured_is_in_the_metadata() -> None:
    plan = fitted("residual", additive=True)
    found = plan.metadata["search"]
    assert list(found["sensitivities"]) == list(plan.sites) and {len(row) for row in found["sensitivities"].values()} == {6}
    after = Bench(captured("residual"), calibration("residual"), 24, 4).measure(plan)
    assert found["spikes"]["chosen"] == after.total and found["distance"]["chosen"] == after.distance
    assert found["samples"] == 24 and plan.metadata["samples"] == 24
    found = fitted("residual").metadata["search"]
    assert list(found["slopes"]) == list(plan.sites) and found["samples"] == {"probing": 6, "held out": 6}
    few = AdaFire(steps=4, samples=5, held_out=3).fit(captured("mlp"), calibration("mlp")).metadata
    assert few["samples"] == 24 and few["search"]["samples"] == {"probing": 5, "held out": 3}


def test_fewer_samples_than_parts_do_everything_together() -> None:
    plan = AdaFire(steps=4).fit(captured("residual"), [calibration("residual")[0][:2]])
    assert plan.metadata["search"]["samples"] == {"probing": 2, "held out": 2}


def test_spending_beyond_the_budget_is_noted() -> None:
    """The published sum does not know how sites change each other's spikes."""
    plan = fitted("residual", budget=0.7, additive=True)
    spikes = plan.metadata["search"]["spikes"]
    beyond = spikes["chosen"] / spikes["target"] > 0.71
    assert beyond == any("lower the budget" in note for note in plan.notes)


def test_the_result_does_not_depend_on_how_the_samples_are_batched() -> None:
    whole = torch.cat(calibration("residual"))
    wanted = fitted("residual")
    for size in (1, 7, 24):
        found = AdaFire(steps=4, samples=24).fit(captured("residual"), list(whole.split(size)))
        assert caps(found) == caps(wanted)
        for key, x in found.tensors().items():
            torch.testing.assert_close(x, wanted.tensors()[key], rtol=1e-5, atol=0)


@pytest.mark.parametrize("granularity", Granularity)
def test_granularity_reaches_the_thresholds(granularity: Granularity) -> None:
    plan = fitted("mlp", granularity=granularity)
    wanted = {Granularity.LAYER: (), Granularity.CHANNEL: (16,), Granularity.UNIT: (16,)}[granularity]
    assert tuple(next(iter(plan.sites.values())).threshold.shape) == wanted


def test_neurons_that_are_dead_on_the_data_send_no_spurious_spikes() -> None:
    """9.C-12: a threshold of 0 would."""
    graph = dead_graph()
    plan = AdaFire(steps=4, samples=8).fit(graph, [torch.rand(8, 3)])
    site = graph.sites[0].name
    assert bool((plan.sites[site].threshold > 0).all())
    assert any("never seen activity" in note for note in plan.notes)
    assert np.isfinite(plan.metadata["search"]["distance"]["chosen"])
    assert float(simulate(graph, plan, [torch.zeros(1, 3)], 4).spikes[site].sum()) == 0


@cache
def dead_graph() -> Graph:
    class Dead(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x * torch.tensor([1.0, 1.0, 0.0]))

    return capture(nn.Sequential(Dead(), nn.Linear(3, 2)).eval(), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"shift": 1.0}, "shift"),
        ({"least": 9}, "1 <= least <= cap"),
        ({"least": 0}, "1 <= least <= cap"),
        ({"cap": None}, "1 <= least <= cap"),
        ({"target": 5}, "1, 2, 3, 4, 6, 8"),
        ({"budget": 0.0}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"samples": 0}, "samples"),
        ({"held_out": 0}, "held_out"),
        ({"refit": False}, "additive=True"),
    ],
)
def test_senseless_settings_are_refused_before_data_is_read(settings: dict[str, Any], words: str) -> None:
    def unread() -> Any:
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=words):
        AdaFire(**settings).fit(captured("mlp"), unread())


def test_bursts_come_closer_to_the_ann_than_single_spikes_at_few_steps() -> None:
    graph = capture(make("residual"), batch_of("residual", 2))
    data = calibration("residual")
    bench = Bench(graph, data, 24, 4)
    burst, single = (m.fit(graph, data) for m in (AdaFire(steps=4, samples=24), MMSE(steps=4)))
    assert bench.measure(burst).distance < 0.2 * bench.measure(single).distance

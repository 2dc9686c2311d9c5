"""P-ADA-6 (what scaling does), then the measured choice, the published one against brute force, and the clip."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from models import calibration, captured
from transpike.engines.executor import simulate
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Site
from transpike.methods._sensitivity import Bench, Measured
from transpike.methods.mmse import MMSE
from transpike.methods.spike_compression import SpikeCompression, scaled
from transpike.spiking.plan import NeuronKind, Plan, SiteParams

SITE = Site("relu#1", "relu", (2, 3), 0)
CLIPPED = replace(SITE, ceiling=6.0)


@cache
def start(model: str = "residual", steps: int = 8, cap: int = 4) -> Plan:
    return MMSE(steps=steps, cap=cap).fit(captured(model), calibration(model))


@cache
def compressed(**settings: Any) -> Plan:
    method = SpikeCompression(**{"largest": 3.0, "samples": 24, **settings})
    return method.fit(captured("residual"), calibration("residual"), start())


def ratios(plan: Plan) -> list[float]:
    return list(plan.metadata["compression"]["ratios"].values())


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_a_ratio_divides_the_spikes_and_keeps_the_mean_output() -> None:
    """P-ADA-6: nothing saturates, so spikes fall as 1 / rho and the averages stay."""
    graph, plan = captured("residual"), start(steps=64)
    inputs = [torch.cat(calibration("residual"))]
    spikes, outputs = [], []
    for rho in (1.0, 2.0, 4.0):
        sites = {site.name: scaled(site, plan.sites[site.name], rho) for site in graph.sites}
        run = simulate(graph, replace(plan, sites=sites), inputs, 64)
        spikes.append(sum(float(count.sum()) for count in run.spikes.values()))
        outputs.append(run.readout())
    assert spikes[0] / spikes[1] == pytest.approx(2, rel=0.05) and spikes[0] / spikes[2] == pytest.approx(4, rel=0.1)
    for output in outputs[1:]:
        assert float((output.mean(0) - outputs[0].mean(0)).norm() / outputs[0].mean(0).norm()) < 0.05


def test_potential_and_worth_scale_with_the_threshold_and_current_stays() -> None:
    params = SiteParams(
        torch.tensor([1.0, 2.0]),
        torch.tensor([0.5, 0.5]),
        torch.tensor([0.1, 0.2]),
        cap=3,
        signed=True,
        amplitude=torch.tensor(4.0),
    )
    found = scaled(SITE, params, 1.5)
    assert found.threshold.tolist() == [1.5, 3.0] and found.v_init.tolist() == [0.75, 0.75]
    assert found.amplitude is not None and found.amplitude.tolist() == 6.0
    assert torch.equal(found.current, params.current) and (found.cap, found.signed, found.kind) == (3, True, params.kind)


def test_a_clipped_rectifier_is_scaled_up_to_its_clip() -> None:
    params = SiteParams(torch.tensor([1.0, 2.5]), torch.tensor([0.5, 1.25]), cap=2)
    found = scaled(CLIPPED, params, 2.0)
    assert found.threshold.tolist() == [2.0, 3.0] and found.v_init.tolist() == [1.0, 1.5]  # cap x 3 = 6
    beyond = SiteParams(torch.tensor([4.0, 1.0]), cap=2)  # already past the clip: left, not lowered
    assert scaled(CLIPPED, beyond, 2.0).threshold.tolist() == [4.0, 2.0]
    worth = SiteParams(torch.tensor(1.0), torch.tensor([0.5, 1.0]), cap=1, amplitude=torch.tensor([2.0, 4.0]))
    found = scaled(CLIPPED, worth, 4.0)
    assert found.amplitude is not None and found.amplitude.tolist() == [6.0, 6.0]
    assert found.threshold.tolist() == [3.0, 1.5] and found.v_init.tolist() == [1.5, 1.5]
    free = scaled(CLIPPED, SiteParams(torch.tensor(5.0), cap=None), 10.0)
    assert float(free.threshold) == 50.0


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("other", [(), (2,), (2, 3)])
@pytest.mark.parametrize("site", [SITE, CLIPPED], ids=["plain", "clipped"])
def test_shapes_mix(shape: tuple[int, ...], other: tuple[int, ...], site: Site) -> None:
    params = SiteParams(torch.ones(shape), torch.full(other, 0.5), cap=1, amplitude=torch.full(other, 2.0))
    found = scaled(site, params, 2.0)
    for x, value in ((found.threshold, 2.0), (found.v_init, 1.0), (found.amplitude, 4.0)):
        assert x is not None and bool((x == value).all()) and tuple(x.shape) in ((), (2,), (2, 3))


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_published_ratios_are_the_brute_force_optimum_of_what_was_measured() -> None:
    graph, plan, candidates = captured("residual"), start(), (1.0, 1.5, 2.0, 2.5, 3.0)
    bench, names = Bench(graph, calibration("residual"), 24, 8), [site.name for site in graph.sites]

    def measured(site: Site, rho: float) -> tuple[float, float]:
        own = plan.sites[site.name]
        own = replace(own, threshold=own.threshold * rho, v_init=own.v_init * rho)
        found = bench.measure(replace(plan, sites={**plan.sites, site.name: own}))
        return found.distance, found.spikes[site.name]

    table = {(site.name, rho): measured(site, rho) for site in graph.sites for rho in candidates}
    bound = 1.3 * len(names) * bench.measure(plan).distance
    allowed = [
        picks
        for picks in product(candidates, repeat=len(names))
        if sum(table[pair][0] for pair in zip(names, picks, strict=True)) <= bound
    ]
    best = min(allowed, key=lambda picks: sum(table[pair][1] for pair in zip(names, picks, strict=True)))
    assert ratios(compressed(tolerance=1.3)) == list(best)
    assert max(best) > 1


def test_a_higher_tolerance_saves_more_spikes() -> None:
    saved = [compressed(tolerance=t).metadata["compression"]["spikes"] for t in (1.0, 1.5, 4.0)]
    after = [spikes["after"] for spikes in saved]
    assert after == sorted(after, reverse=True) and after[-1] < 0.8 * saved[-1]["before"]


def test_the_chosen_ratios_are_in_the_thresholds_of_their_sites() -> None:
    """9.C-3: published ratios are applied to the wrong layers."""
    plan = compressed(tolerance=2.0)
    assert len(set(ratios(plan))) > 1
    for name, rho in plan.metadata["compression"]["ratios"].items():
        torch.testing.assert_close(plan.sites[name].threshold, start().sites[name].threshold * rho)
        torch.testing.assert_close(plan.sites[name].v_init, start().sites[name].v_init * rho)


def judging() -> Bench:
    """The samples that decide how far to go: half of the data."""
    graph = captured("residual")
    return Bench(graph, Batches(graph, calibration("residual")).after(12), 12, 8)


@pytest.mark.parametrize("rise", [0.0, 0.3, 1.0, 5.0])
def test_the_compressed_network_as_a_whole_keeps_to_the_rise(rise: float) -> None:
    plan, bench = compressed(rise=rise, largest=10.0), judging()
    before, after = bench.measure(start()), bench.measure(plan)
    assert after.error <= (1 + rise) * before.error
    found = plan.metadata["compression"]
    assert found["error"] == {"before": before.error, "after": after.error}
    assert found["moved"] == {"before": before.moved, "after": after.moved}
    assert found["spikes"]["after"] == pytest.approx(after.total) and after.total <= before.total


def test_moved_probability_is_bounded_too() -> None:
    bench = judging()
    before, free = bench.measure(start()), bench.measure(compressed(rise=1000.0))
    bound = (free.moved - before.moved) / 3
    kept = bench.measure(compressed(rise=1000.0, moved=bound))
    assert before.moved < kept.moved <= before.moved + bound < free.moved and kept.total > free.total


def test_a_larger_rise_saves_more_spikes() -> None:
    saved = [compressed(rise=r, largest=10.0).metadata["compression"]["spikes"]["after"] for r in (0.0, 0.3, 1.0, 5.0)]
    assert saved == sorted(saved, reverse=True) and saved[-1] < 0.5 * saved[0]


def test_one_ratio_for_all_sites_saves_less_for_the_same_error() -> None:
    graph, bench = captured("residual"), judging()
    found = bench.measure(compressed(rise=5.0, largest=10.0))

    def uniform(rho: float) -> Measured:
        return bench.measure(replace(start(), sites={s.name: scaled(s, start().sites[s.name], rho) for s in graph.sites}))

    tried = [uniform(1 + k / 20) for k in range(1, 80)]
    assert min(m.total for m in tried if m.error <= found.error) > found.total


def test_half_of_the_samples_probe_and_the_others_judge() -> None:
    assert compressed().metadata["samples"] == 24
    method = SpikeCompression(largest=1.5, samples=5, held_out=3)
    assert method.fit(captured("residual"), calibration("residual"), start()).metadata["samples"] == 8


def test_a_tolerance_that_no_choice_keeps_is_refused_and_the_smallest_that_is_kept_is_named() -> None:
    with pytest.raises(PlanError, match="smallest feasible tolerance is") as caught:
        compressed(tolerance=0.01)
    smallest = float(str(caught.value).split("smallest feasible tolerance is ")[1].split(",")[0])
    assert 0.01 < smallest <= 1
    compressed(tolerance=smallest)


def test_little_saved_is_noted() -> None:
    assert any("less than 1 %" in note for note in compressed(largest=1.0).notes)
    assert set(ratios(compressed(largest=1.0))) == {1.0}


def test_metadata_of_the_plan_before_is_kept_below_the_methods_own() -> None:
    given = replace(start(), metadata={**start().metadata, "search": {"caps": 4}}, notes=("a note",))
    plan = SpikeCompression(largest=1.5, samples=8, tolerance=1.0).fit(captured("residual"), calibration("residual"), given)
    assert plan.metadata["search"] == {"caps": 4} and plan.metadata["method"] == "SpikeCompression"
    assert plan.metadata["samples"] == 8 and plan.notes[0] == "a note"


def test_parallel_plans_are_compressed() -> None:
    graph, data = captured("residual"), calibration("residual")
    plan = MMSE(steps=8).fit(graph, data)
    plan = replace(plan, sites={n: replace(p, kind=NeuronKind.PARALLEL) for n, p in plan.sites.items()})
    found = SpikeCompression(largest=3.0).fit(graph, data, plan)
    assert {p.kind for p in found.sites.values()} == {NeuronKind.PARALLEL}
    spikes = found.metadata["compression"]["spikes"]
    assert spikes["after"] < 0.9 * spikes["before"]


def test_ratios_are_those_published() -> None:
    assert SpikeCompression().ratios == tuple(1 + k / 2 for k in range(19))
    assert SpikeCompression(largest=1.3, increment=0.1).ratios == pytest.approx((1.0, 1.1, 1.2, 1.3))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"samples": 0},
        {"largest": 0.5},
        {"increment": 0.0},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
        {"rise": -0.1},
        {"rise": float("inf")},
        {"moved": -0.1},
        {"held_out": 0},
    ],
)
def test_senseless_settings_are_refused_before_data_is_read(settings: dict[str, Any]) -> None:
    def unread() -> Any:
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=next(iter(settings))):
        SpikeCompression(**settings).fit(captured("residual"), unread(), start())

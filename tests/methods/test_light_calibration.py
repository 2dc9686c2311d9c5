"""P-CAL-2 to 4: light calibration against one simulation a layer with the slow reference simulator, and its closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import reference
from models import CASES, EarlyShortcut, batch_of, calibration, captured, converted, dyadic, eighths, make
from transpike.engines.executor import simulate
from transpike.engines.sweep import respond
from transpike.errors import DataError, PlanError
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph
from transpike.methods import _calibration
from transpike.methods._calibration import shifted
from transpike.methods.chain import Chain
from transpike.methods.light_calibration import LightCalibration, Shift
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import Granularity, NeuronKind, Plan, SiteParams, expand

STEPS = 8


def sequential() -> nn.Module:
    """Two convolutions and a hidden linear layer."""
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)],
    )


NETWORKS = {"sequential": sequential, "residual": EarlyShortcut}


def network(name: str, shift: float = 0.5, **neuron: Any) -> tuple[nn.Module, Graph, Plan, torch.Tensor]:
    """A network in double precision whose numbers, sums and means over 8 samples and 8 steps are exact."""
    torch.manual_seed(1)
    model = dyadic(NETWORKS[name]().double().eval(), scale=2)
    x = eighths(8, 3, 8, 8).double()
    graph = capture(model, x[:2])
    sites = {}
    for k, site in enumerate(graph.sites):
        theta = eighths(site.channels, seed=k, low=6, high=14).double()
        sites[site.name] = SiteParams(theta, theta * shift, **neuron)
    return model, graph, Plan(sites), x


def activations(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model's ReLU modules give, by site name; in the order of the calls."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, path=path: found.__setitem__(f"{path}#1", out.detach().clone()))
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def over_channels(x: torch.Tensor) -> torch.Tensor:
    """Mean over samples and space. N C ... -> C"""
    return x.transpose(0, 1).flatten(1).mean(1)


def published(model: nn.Module, plan: Plan, x: torch.Tensor, iterations: int = 1) -> dict[str, SiteParams]:
    """The paper's loop: for every layer simulate the whole network with the reference simulator, correct the bias."""
    wanted, sites = activations(model, x), dict(plan.sites)
    for name, a in wanted.items():
        for _ in range(iterations):
            neurons = reference.simulate(model, sites, x, STEPS).neurons[name]
            theta = neurons._spread(sites[name].threshold, neurons.net)
            r = theta * neurons.net / STEPS
            sites[name] = replace(sites[name], current=sites[name].current + over_channels(a) - over_channels(r))
    return sites


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("neuron", [{}, {"cap": 3}, {"signed": True}, {"cap": None, "signed": True}], ids=str)
def test_one_sweep_gives_the_numbers_of_one_simulation_per_layer(name: str, iterations: int, neuron: dict[str, Any]) -> None:
    model, graph, plan, x = network(name, **neuron)
    wanted = published(model, plan, x, iterations)
    found = LightCalibration(steps=STEPS, samples=8, iterations=iterations).fit(graph, [x], plan)
    assert len(found.sites) == len(wanted) >= 3
    for site, params in wanted.items():
        assert bool((params.current != 0).any()), "the test network leaves a gap at every site"
        torch.testing.assert_close(found.sites[site].current, params.current, rtol=0, atol=1e-12)
        assert torch.equal(found.sites[site].v_init, params.v_init) and torch.equal(found.sites[site].threshold, params.threshold)
        assert (found.sites[site].cap, found.sites[site].signed) == (params.cap, params.signed)
    assert found.params == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_trickled_form_is_the_papers_neuron(name: str) -> None:
    model, graph, plan, x = network(name)
    begin = {
        site: replace(
            p, v_init=torch.zeros(4 if p.threshold.numel() == 4 else len(p.threshold)).double(), current=p.threshold / (2 * STEPS)
        )
        for site, p in plan.sites.items()
    }
    wanted = published(model, Plan(begin), x)
    found = LightCalibration(steps=STEPS, samples=8, iterations=1, shift=Shift.TRICKLED).fit(graph, [x], plan)
    for site, params in wanted.items():
        assert not bool(found.sites[site].v_init.any())
        torch.testing.assert_close(found.sites[site].current, params.current, rtol=0, atol=1e-12)


def rectifier(*shape: int, act: nn.Module | None = None) -> Graph:
    """A network whose only site sees its input."""
    act = act or nn.ReLU()
    return capture(nn.Sequential(act, nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2)).eval(), torch.zeros(2, *shape))


def only(plan: Plan) -> SiteParams:
    (params,) = plan.sites.values()
    return params


def single(threshold: torch.Tensor, v_init: float = 0.0, **more: Any) -> Plan:
    return Plan({"0#1": SiteParams(threshold, threshold * v_init, **more)})


def test_repeating_the_update_contracts_the_gap_of_every_channel_and_one_does_not_close_it() -> None:
    """P-CAL-2: Gaussian inputs, 8 steps, no shift."""
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.5, 2.0])
    graph, plan = rectifier(3), single(x.amax(0))
    gaps = []
    for k in range(5):
        refined = plan if k == 0 else LightCalibration(steps=8, samples=4000, iterations=k).fit(graph, [x], plan)
        run = simulate(graph, refined, [x], 8)
        r = run.net["0#1"] * only(refined).threshold / 8
        gaps.append((x.clamp(min=0).mean(0) - r.mean(0)).abs())
    assert all(bool((after < before).all()) for before, after in pairwise(gaps)), gaps
    assert bool((gaps[1] > 0.3 * gaps[0]).all()) and bool((gaps[4] < 0.6 * gaps[0]).all()), gaps


def test_a_trickled_shift_gives_the_same_final_count_as_an_initial_potential_and_other_prefixes() -> None:
    """P-CAL-3, to the bit: constant dyadic inputs, 16 steps."""
    x = eighths(64, 5, low=-4, high=12)
    graph = rectifier(5)
    initial = single(torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5]), 0.5)
    site = graph.sites[0]
    trickled = Plan({"0#1": shifted(site, only(initial), Shift.TRICKLED, 16)})
    torch.testing.assert_close(only(trickled).current, only(initial).threshold / 32, rtol=0, atol=0)
    assert not bool(only(trickled).v_init.any())
    counts = [torch.stack([simulate(graph, plan, [x], t).net["0#1"] for t in range(1, 17)]) for plan in (initial, trickled)]
    assert torch.equal(counts[0][-1], counts[1][-1])
    assert not torch.equal(counts[0][:-1], counts[1][:-1])
    assert bool((counts[1] <= counts[0]).all())  # trickled comes later


def test_a_trickled_shift_leaves_a_trickled_plan_as_it_is() -> None:
    params = SiteParams(torch.ones(3), torch.full((3,), 0.5), torch.full((3,), 0.25))
    site = rectifier(3).sites[0]
    once = shifted(site, params, Shift.TRICKLED, 8)
    twice = shifted(site, once, Shift.TRICKLED, 8)
    assert torch.equal(once.current, torch.full((3,), 0.3125)) and torch.equal(twice.current, once.current)
    assert shifted(site, params, Shift.INITIAL, 8) is params


def test_a_single_constant_neuron_gets_what_it_lacks() -> None:
    """z = 5/8, theta = 1, v(0) = 0, T = 4: floor(2.5) spikes make r = 1/2, so the correction is 1/8."""
    plan = LightCalibration(steps=4).fit(rectifier(1), [torch.full((3, 1), 0.625)], single(torch.ones(1)))
    assert only(plan).current.tolist() == [0.125]


def test_the_anns_clip_is_part_of_the_reference() -> None:
    """An input far beyond ReLU6's clip: both give 6, there is nothing to correct."""
    plan = LightCalibration(steps=4).fit(rectifier(2, act=nn.ReLU6()), [torch.full((3, 2), 20.0)], single(torch.full((2,), 6.0)))
    assert only(plan).current.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("granularity", Granularity)
def test_the_correction_has_the_shape_of_the_granularity_and_adds_to_what_is_there(granularity: Granularity) -> None:
    x = eighths(8, 3, 4, low=-4, high=12)
    graph, base = rectifier(3, 4), torch.tensor([0.25, 0.0, -0.25])
    plan = LightCalibration(steps=4, iterations=1, granularity=granularity).fit(graph, [x], single(torch.ones(3), current=base))
    z = x + base[:, None]
    r = torch.stack([((t + 1) * z.clamp(0, 1)).floor() - (t * z.clamp(0, 1)).floor() for t in range(4)]).mean(0)
    axes = {Granularity.LAYER: (0, 1, 2), Granularity.CHANNEL: (0, 2), Granularity.UNIT: (0,)}[granularity]
    gap = (x.clamp(min=0) - r).mean(axes)
    wanted = gap + (base[:, None] if granularity is Granularity.UNIT else base)
    torch.testing.assert_close(only(plan).current, wanted, rtol=1e-6, atol=1e-7)


def test_groups_of_samples_average_their_corrections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group k corrects what is left with weight 1/k, so that a single site's correction follows the closed recursion."""
    x = torch.cat([torch.full((2, 1), 0.625), torch.full((2, 1), 0.375), torch.full((2, 1), 0.875)])
    monkeypatch.setattr(_calibration, "_GROUP_BYTES", 2 * 4 * 4)  # two samples of one unit at 4 steps
    found = only(LightCalibration(steps=4, iterations=1).fit(rectifier(1), [x], single(torch.ones(1)))).current
    current = 0.0
    for k, z in enumerate((0.625, 0.375, 0.875), 1):
        current += (z - int(4 * (z + current) + 1e-6) / 4) / k
    assert float(found) == pytest.approx(current, abs=1e-6)
    monkeypatch.setattr(_calibration, "_GROUP_BYTES", 1)  # not even one sample: one at a time
    assert len(_calibration.sample_groups(rectifier(1), [x], 100, 4)) == 6


def test_only_the_first_samples_count_however_they_are_batched() -> None:
    graph, plan = converted("residual")
    whole = torch.cat(calibration("residual", batches=4, n=10))
    method = LightCalibration(steps=8, samples=23)
    wanted = method.fit(graph, [whole[:23]], plan)
    assert wanted.metadata["samples"] == 23
    for batches in ([whole], list(whole.split(10)), list(whole.split(7))):
        found = method.fit(graph, batches, plan)
        assert all(torch.equal(x, wanted.tensors()[key]) for key, x in found.tensors().items())
    other = method.fit(graph, [whole.flip(0)], plan)
    assert not all(torch.equal(x, wanted.tensors()[key]) for key, x in other.tensors().items())


def test_the_ann_and_the_given_plan_are_left_as_they_are() -> None:
    """P-CAL-4: the reference is the network with its original weights, before and after."""
    graph, plan = converted("residual")
    x = batch_of("residual", 6)
    weights, before = {name: w.clone() for name, w in graph.params.items()}, forward(graph, [x])
    kept = {key: t.clone() for key, t in plan.tensors().items()}
    refined = LightCalibration(steps=8).fit(graph, [x], plan)
    assert all(torch.equal(w, weights[name]) for name, w in graph.params.items())
    assert torch.equal(forward(graph, [x]), before)
    assert all(torch.equal(t, kept[key]) for key, t in plan.tensors().items())
    assert refined.params == {}


@pytest.mark.parametrize(
    "neuron",
    [{"cap": 1}, {"cap": 4}, {"cap": 1, "signed": True}, {"cap": None, "signed": True}, {"kind": NeuronKind.PARALLEL}],
    ids=str,
)
@pytest.mark.parametrize("name", ["residual", "depthwise", "fire"])
def test_the_gap_shrinks_whatever_the_neuron(name: str, neuron: dict[str, Any]) -> None:
    graph, base = converted(name)
    data = calibration(name)
    plan = Plan({site: replace(params, **neuron) for site, params in base.sites.items()})
    refined = LightCalibration(steps=8, iterations=2).fit(graph, data, plan)
    x = torch.cat(data)
    gaps = []
    for here in (plan, refined):
        run, total = simulate(graph, here, [x], 8), 0.0

        def look(site: Any, z: torch.Tensor, run: Any = run, here: Plan = here) -> torch.Tensor:
            nonlocal total
            a = z.clamp(0, site.ceiling)
            r = run.net[site.name] * expand(here.sites[site.name].threshold, site) / 8
            axes = [axis for axis in range(a.dim()) if axis != site.channel_axis + 1]
            total += float((a - r).mean(axes).abs().sum() / a.mean().clamp(min=1e-6))
            return a

        forward(graph, [x], look)
        gaps.append(total)
    assert gaps[1] < 0.8 * gaps[0], gaps


@pytest.mark.parametrize("name", CASES)
def test_runs_on_every_network(name: str) -> None:
    graph = captured(name)
    plan = Chain(MaxNorm(), LightCalibration(steps=3)).fit(graph, calibration(name, batches=2, n=3))
    assert list(plan.sites) == [site.name for site in graph.sites]


@pytest.mark.parametrize("name", ["residual", "fire", "depthwise"])
def test_the_mean_read_out_comes_nearer_to_the_anns(name: str) -> None:
    graph, x = captured(name), torch.cat(calibration(name, batches=2, n=32))
    plan = MaxNorm(v_init=0.0).fit(graph, [x])
    refined = LightCalibration(steps=8, iterations=2).fit(graph, [x], plan)
    wanted = forward(graph, [x]).mean(0)
    error = [float((simulate(graph, p, [x], 8).readout().mean(0) - wanted).norm()) for p in (plan, refined)]
    assert error[1] < 0.7 * error[0], error


def test_notes_say_for_how_many_steps_and_a_group_fits_the_memory() -> None:
    graph, plan = converted("residual")
    refined = LightCalibration(steps=12).fit(graph, calibration("residual"), plan)
    assert any("12 steps" in note for note in refined.notes) and set(plan.notes) <= set(refined.notes)
    largest = max(site.units for site in graph.sites)
    steps = _calibration._GROUP_BYTES // (4 * largest * 8)
    groups = _calibration.sample_groups(graph, calibration("residual"), 20, steps)
    assert [len(inputs[0]) for inputs in groups] == [7, 7, 6]


@pytest.mark.parametrize("settings", [{"steps": 0}, {"samples": 0}, {"iterations": 0}, {"granularity": "channel"}])
def test_settings_out_of_range_are_refused_before_data_is_read(settings: dict[str, Any]) -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=next(iter(settings))):
        LightCalibration(**settings).fit(rectifier(1), unread(), single(torch.ones(1)))


def test_no_data_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no batch"):
        LightCalibration().fit(rectifier(1), [], single(torch.ones(1)))


def test_dead_and_saturated_channels_get_finite_corrections_bounded_by_their_gap() -> None:
    x = torch.tensor([[-3.0, 5.0]]).repeat(4, 1)
    plan = LightCalibration(steps=4, iterations=1).fit(rectifier(2), [x], single(torch.ones(2), 0.5))
    assert only(plan).current.tolist() == [0.0, 4.0]
    assert respond(rectifier(2).sites[0], only(plan), x.expand(4, 4, 2)).spikes.tolist() == [[0.0, 4.0]] * 4


def test_networks_of_the_table_stay_as_they_were_made() -> None:
    model = make("residual")
    state = {name: x.clone() for name, x in model.state_dict().items()}
    graph = capture(model, batch_of("residual", 2))
    Chain(MaxNorm(), LightCalibration(steps=4)).fit(graph, calibration("residual"))
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())

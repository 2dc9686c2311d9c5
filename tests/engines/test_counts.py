"""P-PAR-3, P-PAR-8, P-SGN-1: one pass of counts equals the network run frame by frame."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import transpike
from models import batch_of, captured, dyadic, eighths, make
from transpike.engines.counts import Whole, counts_serve, in_counts
from transpike.errors import DataError, SpecError
from transpike.graph.capture import Pooling, capture
from transpike.graph.ir import Graph, Site
from transpike.spiking.plan import NeuronKind, Plan, SiteParams

STEPS = 8


def dyadic_plan(graph: Graph, **settings: object) -> Plan:
    """Thresholds 1, shifts of -1/8 .. 1/4 per channel."""
    sites = {}
    for site in graph.sites:
        shift = torch.arange(site.channels) % 4 / 8 - 0.125
        theta = torch.ones(site.channels)
        sites[site.name] = SiteParams(theta, theta / 2, current=shift, **settings)  # type: ignore[arg-type]
    return Plan(sites)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("cap", [1, 2, None])
@pytest.mark.parametrize("name", ["deep_pool", "fire", "shared_relu", "conv1d"])
def test_parallel_neurons_frame_by_frame_and_in_counts(name: str, cap: int | None, late: bool) -> None:
    graph = capture(dyadic(make(name)), batch_of(name, 2))
    x = eighths(3, *graph.inputs[0].shape)
    plan = dyadic_plan(graph, cap=cap, kind=NeuronKind.PARALLEL, late=late)
    run = transpike.simulate(transpike.build(graph, plan), x, STEPS)
    seen: dict[str, torch.Tensor] = {}

    def look(site: Site, mean: torch.Tensor, n: torch.Tensor) -> None:
        seen[site.name] = n

    means = in_counts(graph, plan, [x], STEPS, look)
    assert sum(float(n.sum()) for n in seen.values()) > 0
    for name_, n in seen.items():
        assert torch.equal(n, run.spikes[name_]), name_
    torch.testing.assert_close(run.readout(), means, rtol=0, atol=1e-5)


def test_uncapped_signed_neurons_stand_where_counts_say_after_every_step() -> None:
    graph = capture(dyadic(make("fire")), batch_of("fire", 2))
    x = eighths(3, *graph.inputs[0].shape)
    plan = dyadic_plan(graph, cap=None, signed=True)
    run = transpike.simulate(transpike.build(graph, plan), x, STEPS)
    for t in (1, 2, 4, 8):
        torch.testing.assert_close(in_counts(graph, plan, [x], t), run.readout(t), rtol=0, atol=1e-5)


def test_neurons_that_care_about_timing_are_refused() -> None:
    graph = captured("residual")
    for settings in ({}, {"signed": True}, {"cap": None}):
        with pytest.raises(SpecError, match="choose engine='dense'"):
            in_counts(graph, dyadic_plan(graph, **settings), [eighths(1, *graph.inputs[0].shape)], STEPS)


def test_pooling_of_currents_is_refused() -> None:
    currents, rates = captured("deep_pool", Pooling.CURRENT), captured("deep_pool")
    assert not counts_serve(currents, dyadic_plan(currents, kind=NeuronKind.PARALLEL))
    assert counts_serve(rates, dyadic_plan(rates, kind=NeuronKind.PARALLEL))


def test_integrate_and_fire_is_not_what_counts_give() -> None:
    """The comparison above can fail: on the same currents ordinary neurons, deeper in, fire other counts."""
    graph = captured("residual")
    x = eighths(8, *graph.inputs[0].shape)
    plan = dyadic_plan(graph, kind=NeuronKind.PARALLEL)
    fire = replace(plan, sites={n: replace(p, kind=NeuronKind.INTEGRATE_AND_FIRE) for n, p in plan.sites.items()})
    ordinary = transpike.simulate(transpike.build(graph, fire), x, STEPS)
    parallel = transpike.simulate(transpike.build(graph, plan), x, STEPS)
    first, *_, last = plan.sites
    assert torch.equal(ordinary.spikes[first], parallel.spikes[first])
    assert not torch.equal(ordinary.spikes[last], parallel.spikes[last])


@pytest.mark.parametrize("name", ["fire", "deep_pool"])
@pytest.mark.parametrize("options", [{"kind": NeuronKind.PARALLEL}, {"cap": None, "signed": True}])
def test_the_engine_gives_what_frames_give_at_the_steps_asked_for(name: str, options: dict[str, object]) -> None:
    graph = capture(dyadic(make(name)), batch_of(name, 2))
    net = transpike.build(graph, dyadic_plan(graph, **options))
    x = eighths(3, *graph.inputs[0].shape)
    run = transpike.simulate(net, x, engine="counts", at=[8, 1, 4])
    assert run.steps == 8 and len(run.outputs) == 3
    for t in (1, 4, 8):
        frames = transpike.simulate(net, x, t, engine="dense")
        torch.testing.assert_close(run.readout(t), frames.readout(), rtol=0, atol=1e-5)
    for site in run.net:
        assert torch.equal(run.net[site], frames.net[site])
    net.steps = 4  # calling the network takes the short way
    torch.testing.assert_close(net(x), run.readout(4), rtol=0, atol=0)


def test_a_batch_in_parts_is_a_batch() -> None:
    graph = captured("fire")
    net = transpike.build(graph, dyadic_plan(graph, kind=NeuronKind.PARALLEL))
    x = eighths(5, *graph.inputs[0].shape)
    whole = transpike.simulate(net, x, 8, engine="counts")
    parts = transpike.simulate(net, x, 8, engine="counts", max_memory=400_000)
    torch.testing.assert_close(whole.readout(), parts.readout())
    assert all(len(n) == 5 for n in parts.spikes.values())


def test_what_the_count_engine_cannot_do_is_said() -> None:
    graph = captured("residual")
    x = eighths(1, *graph.inputs[0].shape)
    net = transpike.build(graph, dyadic_plan(graph, kind=NeuronKind.PARALLEL))
    run = transpike.simulate(net, x, 8, engine="counts")
    with pytest.raises(DataError, match="ask for others with at="):
        run.readout(4)
    with pytest.raises(DataError, match="ask for others with at="):
        run.readout(8, start=2)
    with pytest.raises(DataError, match="at least one step"):
        transpike.simulate(net, x, engine="counts", at=[0, 4])
    with pytest.raises(SpecError, match="without a clock"):
        transpike.simulate(net, x, engine="counts", chunk=2)
    with pytest.raises(SpecError, match="is for engine='counts'"):
        transpike.simulate(net, x, at=[4])


@pytest.mark.parametrize(
    ("cap", "steps", "size"), [(1, 255, 1), (1, 256, 2), (3, 10_000, 2), (3, 20_000, 4), (None, 8, 2), (None, 100_000, 4)]
)
def test_counts_are_kept_in_as_few_bytes_as_hold_them_and_read_as_numbers(cap: int | None, steps: int, size: int) -> None:
    graph = captured("residual")
    plan = dyadic_plan(graph, kind=NeuronKind.PARALLEL, cap=cap)
    plan = Plan({name: replace(p, threshold=p.threshold / 8) for name, p in plan.sites.items()})  # many reach the cap
    x = eighths(3, *graph.inputs[0].shape)
    wanted: dict[str, torch.Tensor] = {}
    in_counts(graph, plan, [x], steps, lambda site, _, n: wanted.update({site.name: n.clone()}))
    run = transpike.simulate(transpike.build(graph, plan), x, steps, engine="counts")
    assert list(run.spikes) == list(wanted) and len(run.spikes) == len(wanted)
    for name, n in wanted.items():
        assert torch.equal(run.spikes[name], n) and run.spikes[name].dtype == torch.float32
    assert cap is None or max(float(n.max()) for n in wanted.values()) == cap * steps
    assert isinstance(run.spikes, Whole) and {x.element_size() for x, *_ in run.spikes._kept.values()} == {size}


def test_numbers_that_are_written_to_count_at_once() -> None:
    graph = captured("residual")
    net = transpike.build(graph, dyadic_plan(graph, kind=NeuronKind.PARALLEL))
    x = eighths(2, *graph.inputs[0].shape)
    before = transpike.simulate(net, x, 8, engine="counts").readout()
    state = {name: x.clone() for name, x in net.state_dict().items()}
    for params in net.plan.sites.values():
        params.threshold.mul_(4)
    changed = transpike.simulate(net, x, 8, engine="counts").readout()
    assert not torch.equal(before, changed)
    assert torch.equal(changed, transpike.simulate(copy.deepcopy(net), x, 8, engine="counts").readout())
    net.load_state_dict(state)
    assert torch.equal(before, transpike.simulate(net, x, 8, engine="counts").readout())

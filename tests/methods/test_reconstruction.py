"""Learning numbers: it lowers the error it is defined by, and leaves alone what it should."""

from __future__ import annotations

import pytest
import torch

import transpike
from models import calibration, captured, make
from transpike.engines.counts import in_counts
from transpike.errors import PlanError
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.methods.chain import Chain
from transpike.methods.max_norm import MaxNorm
from transpike.methods.mmse import MMSE
from transpike.methods.parallel import Calibration, Parallel
from transpike.methods.reconstruction import Reconstruction, _Numbers
from transpike.spiking.plan import NeuronKind, Plan, SiteParams

QUICK = Reconstruction(steps=2, iterations=20, batch=16, rate=0.02, weight_rate=0)


def mismatch(graph: Graph, plan: Plan, x: torch.Tensor, steps: int) -> float:
    """The objective written down again: relative squared error of every site and of the output, from spike counts."""
    wanted: dict[str, torch.Tensor] = {}

    def show(site: Site, z: torch.Tensor) -> torch.Tensor:
        wanted[site.name] = z.clamp(min=0)
        return wanted[site.name].clone()

    ann = forward(graph, [x], show)
    run = transpike.simulate(transpike.build(graph, plan), x, steps)
    total = float((run.readout() - ann).square().mean() / ann.square().mean())
    for site in graph.sites:
        worth = plan.sites[site.name].worth
        worth = worth.view(site.channel_shape()) if worth.dim() == 1 else worth
        sent = run.spikes[site.name] * worth / steps
        total += float((sent - wanted[site.name]).square().mean() / wanted[site.name].square().mean())
    return total


@pytest.mark.parametrize("name", ["mlp", "residual", "conv1d"])
@pytest.mark.parametrize("weight_rate", [0.0, 0.01])
def test_lowers_the_error_of_what_the_network_really_does(name: str, weight_rate: float) -> None:
    graph, data = captured(name), calibration(name, batches=4, n=50)
    before = Chain(MaxNorm(), Parallel(2, Calibration.NONE)).fit(graph, data)
    method = Reconstruction(steps=2, iterations=80, batch=50, rate=0.02, weight_rate=weight_rate)
    after = method.fit(graph, data, before)
    fresh = torch.cat(calibration(name, batches=5, n=50)[4:])
    assert mismatch(graph, after, fresh, 2) < 0.8 * mismatch(graph, before, fresh, 2)
    assert bool(after.params) == (weight_rate > 0)
    judges = torch.cat(data)[160:]  # the fifth that was held out
    before_and_after = [sum(mismatch(graph, p, x, 2) * len(x) for x in judges.split(32)) / 40 for p in (before, after)]
    assert [after.metadata["error"][key] for key in ("before", "after")] == pytest.approx(before_and_after, rel=1e-4)


def test_keeps_the_plan_where_nothing_better_is_found() -> None:
    graph, data = captured("mlp"), calibration("mlp", batches=4, n=50)
    before = Parallel(2).fit(graph, data)
    after = Reconstruction(steps=2, iterations=3, rate=5.0).fit(graph, data, before)  # far too large steps
    assert after.sites is before.sites and "the plan is unchanged" in after.notes[-1]


def test_the_forward_of_the_surrogate_is_the_neurons_count() -> None:
    site = Site("s", "s", (4, 5), 0)
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(4, generator=generator) + 0.5
    params = SiteParams(theta, theta / 3, theta / 7, cap=2, kind=NeuronKind.PARALLEL, amplitude=theta * 1.5)
    z = torch.randn(50, 4, 5, generator=generator) * 2
    rate = _Numbers(site, params, 3).rate(z).detach()
    n = ((z + theta[:, None] / 7) * 3 + theta[:, None] / 3).div(theta[:, None]).floor().clamp(0, 6)
    torch.testing.assert_close(rate, n * (1.5 * theta / 3)[:, None], rtol=1e-5, atol=1e-6)


def test_gradients_pass_the_floor_inside_and_stop_outside() -> None:
    site = Site("s", "s", (3,), 0)
    params = SiteParams(torch.ones(3), torch.full((3,), 0.5), kind=NeuronKind.PARALLEL)
    z = torch.tensor([[-0.5, 0.25, 1.6]], requires_grad=True)  # below, at the first jump (u = 1), above at 2 steps
    numbers = _Numbers(site, params, 2)
    numbers.rate(z).sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[0.0, 2.0, 0.0]]
    log_theta, log_ratio, shift = (x.grad for x in numbers.learnable)
    assert log_ratio is not None and log_ratio.tolist() == [0.0, 0.5, 1.0]  # d rate / d log A = rate
    assert shift is not None and shift.tolist() == [0.0, 2.0, 0.0]
    assert log_theta is not None  # the rate for the amplitude, less 2 z for the jump
    torch.testing.assert_close(log_theta, torch.tensor([0.0, 0.5 - 2 * 0.25, 1.0]))


def test_neurons_keep_their_kind_cap_and_sign() -> None:
    graph, data = captured("residual"), calibration("residual")
    before = MMSE(steps=64, cap=2, signed=True).fit(graph, data)
    after = QUICK.fit(graph, data, before)
    assert {(p.kind, p.cap, p.signed) for p in after.sites.values()} == {(NeuronKind.INTEGRATE_AND_FIRE, 2, True)}
    assert after.metadata["method"] == "Reconstruction" and not after.params


def test_the_seed_decides() -> None:
    graph, data = captured("mlp"), calibration("mlp", batches=4, n=50)
    before = Chain(MaxNorm(), Parallel(2, Calibration.NONE)).fit(graph, data)
    one, again = QUICK.fit(graph, data, before), QUICK.fit(graph, data, before)
    other = Reconstruction(steps=2, iterations=20, batch=16, rate=0.02, weight_rate=0, seed=1).fit(graph, data, before)
    same = [torch.equal(x, again.tensors()[key]) for key, x in one.tensors().items()]
    assert all(same)
    assert not all(torch.equal(x, other.tensors()[key]) for key, x in one.tensors().items())


def test_per_unit_numbers_of_a_plan_are_kept_per_unit() -> None:
    graph, data = captured("conv1d"), calibration("conv1d")
    before = Parallel(2).fit(graph, data)
    sites = {}
    for site in graph.sites:
        p = before.sites[site.name]
        sites[site.name] = SiteParams(p.threshold, torch.rand(site.shape) * 0.1, p.current, kind=p.kind, amplitude=p.amplitude)
    after = QUICK.fit(graph, data, Plan(sites))
    for site in graph.sites:
        assert tuple(after.sites[site.name].v_init.shape) == site.shape
    assert torch.isfinite(in_counts(graph, after, [data[0]], 2)).all()


def test_without_a_plan_and_with_bad_settings_nothing_is_read() -> None:
    def unread():
        raise AssertionError("data was read")
        yield

    graph = captured("mlp")
    with pytest.raises(PlanError, match="refines a plan and was given none"):
        Reconstruction().fit(graph, unread())
    for wrong in ({"steps": 0}, {"iterations": 0}, {"batch": 0}, {"samples": 0}, {"rate": -1.0}, {"weight_rate": -1.0}):
        with pytest.raises(PlanError, match="at least 1"):
            Reconstruction(**wrong).fit(graph, unread(), Parallel(2).fit(graph, calibration("mlp")))  # type: ignore[arg-type]


def test_the_callers_weights_do_not_learn() -> None:
    model = make("residual")
    before = {key: x.clone() for key, x in model.state_dict().items()}
    graph, data = captured("residual"), calibration("residual")
    kept = {key: x.clone() for key, x in graph.params.items()}
    Reconstruction(steps=2, iterations=3, weight_rate=0.1).fit(graph, data, Parallel(2).fit(graph, data))
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert all(torch.equal(x, kept[key]) and not x.requires_grad for key, x in graph.params.items())

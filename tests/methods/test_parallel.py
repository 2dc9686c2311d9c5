"""P-PAR-6 and P-PAR-10, and what each calibration makes of known activations."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import transpike
from models import batch_of, calibration, captured, make
from transpike.engines.counts import in_counts
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.methods.chain import Chain
from transpike.methods.max_norm import MaxNorm
from transpike.methods.parallel import Calibration, Parallel
from transpike.spiking.plan import NeuronKind, SiteParams


@cache
def rectifier(units: int) -> Graph:
    """A network whose only site sees its input."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(units, units, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(units))
    return capture(model.eval(), torch.zeros(2, units))


def half_normal(n: int = 4000, units: int = 3) -> torch.Tensor:
    scales = torch.tensor([0.1, 1.0, 20.0])[:units]
    return torch.randn(n, units, generator=torch.Generator().manual_seed(1)) * scales


def rates(site: SiteParams, z: torch.Tensor, steps: int) -> torch.Tensor:
    """The two-threshold neuron written down again, in double precision: (theta + phi) / T clip(floor(...), 0, T)."""
    theta, psi, worth = (x.double() for x in (site.threshold, site.current, site.worth))
    return worth / steps * torch.clamp(torch.floor(((z.double() + psi) * steps + theta / 2) / theta), 0, steps)


@pytest.mark.parametrize("steps", [1, 3, 4, 16])
@pytest.mark.parametrize("mode", [Calibration.AUTHORS, Calibration.EXACT, Calibration.SEQUENTIAL])
def test_the_network_computes_the_two_threshold_formula(mode: Calibration, steps: int) -> None:
    x = half_normal()
    plan = Parallel(steps, mode).fit(rectifier(3), [x])
    net = transpike.build(rectifier(3), plan)
    site = plan.sites["0#1"]
    wanted = rates(site, x[:200], steps).float()
    torch.testing.assert_close(transpike.simulate(net, x[:200], steps).readout(), wanted, rtol=1e-5, atol=1e-6)


def test_none_takes_the_plans_thresholds_and_makes_them_parallel() -> None:
    graph = captured("residual")
    before = MaxNorm().fit(graph, calibration("residual"))
    after = Parallel(4, Calibration.NONE, late=True).fit(graph, calibration("residual"), before)
    for name, site in after.sites.items():
        assert torch.equal(site.threshold, before.sites[name].threshold)
        assert torch.equal(site.v_init, site.threshold / 2)
        assert (site.kind, site.late, site.amplitude) == (NeuronKind.PARALLEL, True, None)


def test_none_without_a_plan_says_what_to_do() -> None:
    def unread():  # a generator that must not be asked
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match="Chain\\(QCFS\\(\\), Parallel"):
        Parallel(calibration=Calibration.NONE).fit(rectifier(3), unread())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"samples": 0}, {"momentum": 1.0}, {"momentum": -0.1}, {"cap": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="at least 1"):
        Parallel(**wrong).fit(rectifier(3), [half_normal()])  # type: ignore[arg-type]


def test_exact_nulls_the_mean_gap_of_every_channel() -> None:
    x = half_normal()
    site = Parallel(4, Calibration.EXACT).fit(rectifier(3), [x]).sites["0#1"]
    found = rates(site, x[:512], 4).mean(0)  # it looks at 512 samples
    torch.testing.assert_close(found, x[:512].clamp(min=0).double().mean(0), rtol=1e-5, atol=0)


def test_authors_moving_average_leaves_the_fixed_point_of_the_analysis() -> None:
    """phi* = (E a - theta r) / (1 + r) with the mean rate r; the gap that is left is phi* itself."""
    x = half_normal(400)
    theta = x.clamp(min=0).amax(0).double()
    site = Parallel(4, Calibration.AUTHORS, momentum=0.9).fit(rectifier(3), [x] * 300).sites["0#1"]
    rate = rates(SiteParams(theta, worth_one(theta)), x, 4).mean(0) / theta
    a = x.clamp(min=0).double().mean(0)
    phi = (a - theta * rate) / (1 + rate)
    torch.testing.assert_close(site.worth.double() - theta, phi, rtol=1e-3, atol=1e-6)
    gap = a - rates(site, x, 4).mean(0)
    torch.testing.assert_close(gap, phi, rtol=1e-2, atol=1e-6)


def worth_one(theta: torch.Tensor) -> torch.Tensor:
    return theta / 2


def test_sequential_is_least_squares_over_the_grid() -> None:
    x = half_normal(512)
    steps = 4
    site = Parallel(steps).fit(rectifier(3), [x]).sites["0#1"]
    for c in range(3):
        z = x[:, c].double()
        a = z.clamp(min=0)
        errors = []
        for k in range(41):
            theta = a.max() * (1.1 - 0.025 * k)
            q = torch.clamp(torch.floor(z * steps / theta + 0.5), 0, steps) / steps
            amplitude = (q * a).sum() / (q * q).sum()
            errors.append((float(((amplitude * q - a) ** 2).mean()), float(theta), float(amplitude)))
        least, theta, amplitude = min(errors)
        found = float(((rates(site, x, steps)[:, c] - a) ** 2).mean())
        assert found <= least * 1.001
        assert float(site.threshold[c]) == pytest.approx(theta, rel=1e-3)
        assert float(site.worth[c]) == pytest.approx(amplitude, rel=1e-3)


def test_sequential_fits_better_than_the_authors_rule() -> None:
    graph, data = captured("residual"), calibration("residual")
    x = torch.cat(data)
    with torch.no_grad():
        wanted = make("residual")(x)

    def error(mode: Calibration) -> float:
        found = in_counts(graph, Parallel(4, mode).fit(graph, data), [x], 4)
        return float((found - wanted).norm() / wanted.norm())

    assert error(Calibration.SEQUENTIAL) < error(Calibration.AUTHORS)


def test_each_layer_is_fitted_on_what_the_layers_before_it_send() -> None:
    """The shift of the second layer is the mean gap that the first layer, fitted, leaves: computed from its spikes."""
    model = make("mlp")
    graph, x = captured("mlp"), batch_of("mlp", 256)
    plan = Parallel(2).fit(graph, [x])
    first, second = graph.sites[:2]
    run = transpike.simulate(transpike.build(graph, plan), x, 2)
    sent = run.spikes[first.name] * plan.sites[first.name].worth / 2
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        gap = layers[1](torch.relu(layers[0](x))) - layers[1](sent)
    torch.testing.assert_close(plan.sites[second.name].current, gap.mean(0), rtol=1e-4, atol=1e-5)


def test_dead_channels_keep_a_positive_threshold() -> None:
    x = half_normal() - torch.tensor([0.0, 100.0, 0.0])
    for mode in (Calibration.AUTHORS, Calibration.EXACT, Calibration.SEQUENTIAL):
        site = Parallel(4, mode).fit(rectifier(3), [x]).sites["0#1"]
        assert bool((site.threshold > 0).all()) and bool((site.worth > 0).all()), mode


def test_a_chain_keeps_the_thresholds_it_starts_from_in_exact_mode() -> None:
    graph, data = captured("mlp"), calibration("mlp")
    wanted = MaxNorm(v_init=0.25).fit(graph, data)
    plan = Chain(MaxNorm(v_init=0.25), Parallel(4, Calibration.EXACT)).fit(graph, data)
    for name, site in plan.sites.items():
        assert torch.equal(site.threshold, wanted.sites[name].threshold)

"""The chosen fraction is the best of the nine, computed again with the closed form; potentials keep their shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import calibration, captured
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.methods.initial_potential import InitialPotential
from transpike.methods.max_norm import MaxNorm
from transpike.methods.mmse import MMSE
from transpike.spiking.plan import Granularity


def test_is_the_best_fraction_of_constant_currents() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2)).eval()
    graph = capture(model, torch.zeros(2, 2))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 2, generator=generator) * torch.tensor([0.3, 3.0])
    plan = MaxNorm().fit(graph, [x])
    x[0] = torch.tensor([0.9, 9.0])  # beyond the thresholds of the plan
    after = InitialPotential(steps=4).fit(graph, [x], plan)
    theta = plan.sites["0#1"].threshold
    for c in range(2):
        errors = {}
        for k in (4, 3, 5, 2, 6, 1, 7, 0, 8):
            n = torch.floor((4 * x[:, c] + k / 8 * theta[c]) / theta[c]).clamp(0, 4)
            errors[k] = float((n * theta[c] / 4 - x[:, c]).square().mean())
        least = min(errors.values())
        chosen = round(float(after.sites["0#1"].v_init[c] / theta[c]) * 8)
        assert errors[chosen] <= least * (1 + 1e-5)


@pytest.mark.parametrize("granularity", Granularity)
def test_serves_every_granularity(granularity: Granularity) -> None:
    graph, data = captured("residual"), calibration("residual")
    before = MMSE(steps=4, granularity=granularity).fit(graph, data)
    after = InitialPotential(steps=4).fit(graph, data, before)
    fractions = [after.sites[site.name].v_init.max() / before.sites[site.name].threshold.max() for site in graph.sites]
    assert any(abs(float(f) - 0.5) > 0.1 for f in fractions)
    for site in graph.sites:
        v, theta = after.sites[site.name].v_init, before.sites[site.name].threshold
        assert torch.equal(after.sites[site.name].threshold, theta)
        wanted = site.shape if granularity is Granularity.UNIT else (site.channels,)
        assert tuple(v.shape) == wanted
        assert bool((v >= 0).all()) and float(v.max()) <= float(theta.max())


def test_without_a_plan_nothing_is_read() -> None:
    def unread():  # type: ignore[no-untyped-def]
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match="refines a plan"):
        InitialPotential().fit(captured("mlp"), unread())
    for wrong in ({"steps": 0}, {"samples": 0}):
        with pytest.raises(PlanError, match="at least 1"):
            InitialPotential(**wrong).fit(captured("mlp"), unread(), MaxNorm().fit(captured("mlp"), calibration("mlp")))

"""P-LTB-1 to 6: local threshold balancing against autograd, closed forms and a plain torch version."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.methods.ltb import LTB, update
from transpike.spiking.plan import Granularity


@cache
def rectifier(*shape: int, ceiling: bool = False) -> Graph:
    """A network whose only site sees its input."""
    act = nn.ReLU6() if ceiling else nn.ReLU()
    return capture(nn.Sequential(act, nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2)).eval(), torch.zeros(2, *shape))


def fitted(x: torch.Tensor, iterations: int, eta: float = 1.0, granularity: Granularity = Granularity.CHANNEL) -> torch.Tensor:
    """Thresholds after so many updates on the same batch."""
    method = LTB(iterations=iterations, eta=eta, granularity=granularity)
    return method.fit(rectifier(*x.shape[1:]), [x]).sites["0#1"].threshold


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.5])
def test_the_step_is_minus_the_gradient_of_the_squared_clipping_error(theta: float) -> None:
    """P-LTB-1, in double precision: d/dtheta sum (clip(z, 0, theta) - ReLU(z))^2 = -2 sum (z - theta)+."""
    z = normal(500, 3).double()
    level = torch.full((3,), theta, dtype=torch.float64, requires_grad=True)
    loss = ((torch.minimum(z.clamp(min=0), level) - z.clamp(min=0)) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, level)
    torch.testing.assert_close(gradient, -2 * (z - theta).clamp(min=0).sum(0), rtol=1e-12, atol=1e-12)
    new, _, _ = update(z.clone()[:, :, None], level.detach(), 0.7)
    torch.testing.assert_close(new, theta - 0.7 * gradient / len(z), rtol=1e-12, atol=1e-12)


def test_the_first_threshold_is_twice_the_mean_activation() -> None:
    x = normal(64, 3, 4)
    torch.testing.assert_close(fitted(x, 1), 2 * x.clamp(min=0).mean((0, 2)), rtol=1e-6, atol=0)


def test_thresholds_never_fall() -> None:
    x = normal(40, 3, 4)
    sequence = torch.stack([fitted(x, k) for k in range(1, 30)])
    assert bool((sequence.diff(dim=0) >= 0).all()) and bool((sequence[-1] > sequence[0]).all())


def test_permuted_channels_have_permuted_thresholds_to_the_bit() -> None:
    x, order = normal(40, 5, 4) * torch.arange(1, 6)[:, None], torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(fitted(x[:, order].contiguous(), 20), fitted(x, 20)[order])


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_thresholds_scale_with_the_activations_to_the_bit(factor: float) -> None:
    x = normal(40, 3, 4)
    assert torch.equal(fitted(factor * x, 20), factor * fitted(x, 20))


def test_on_a_fixed_batch_the_limit_is_the_maximum() -> None:
    x = normal(30, 2, 3)
    torch.testing.assert_close(fitted(x, 2000, eta=0.25), x.amax((0, 2)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("m", [1, 3])
def test_the_last_gap_contracts_by_one_minus_two_m_over_n(m: int) -> None:
    """P-LTB-3: m of n elements above the threshold, all equal to the maximum."""
    n = 32
    x = torch.zeros(n, 1)
    x[:m] = 4.0
    gaps = [4.0 - float(fitted(x, k)) for k in (1, 2, 7)]
    shrink = 1 - 2 * m / n
    np.testing.assert_allclose(gaps, [4 * shrink, 4 * shrink**2, 4 * shrink**7], rtol=1e-5)


def test_a_constant_channel_overshoots_once_and_stays() -> None:
    """P-LTB-4: z = 1 gives 0, 2, 2, 2 ... with eta = 1."""
    assert [float(fitted(torch.ones(8, 1), k)) for k in (1, 2, 3, 10)] == [2.0] * 4


@pytest.mark.parametrize("eta", [0.125, 0.5])
def test_up_to_half_a_step_size_it_never_passes_the_maximum(eta: float) -> None:
    assert max(float(fitted(torch.ones(8, 1), k, eta)) for k in range(1, 12)) <= 1.0
    x = normal(20, 3) + 1
    assert all(bool((fitted(x, k, eta) <= x.amax(0)).all()) for k in (1, 3, 10, 100))


@pytest.mark.parametrize(("p", "s"), [(0.3, 1.0), (0.05, 2.0)])
def test_an_exponential_tail_gives_a_logarithm_of_the_iterations(p: float, s: float) -> None:
    """P-LTB-5: P(z > u) = p exp(-u / s) gives theta(K) = s ln(1 + 2 p K)."""
    n = 40000
    ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = torch.where(ranks < p, -s * torch.log(ranks / p), -1.0).float()[:, None]
    assert float((z > s).double().mean()) == pytest.approx(p * math.exp(-1), rel=1e-3)
    for iterations in (100, 1000):
        assert float(fitted(z, iterations)) == pytest.approx(s * math.log(1 + 2 * p * iterations), rel=0.03)


def test_no_number_of_steps_enters_the_thresholds() -> None:
    """P-LTB-6: one calibration serves every number of steps."""
    assert "steps" not in {field.name for field in dataclasses.fields(LTB)}
    model, x = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).eval(), normal(20, 3)
    nets = [transpike.convert(model, LTB(iterations=10), [x]) for _ in range(2)]
    for net, steps in zip(nets, (2, 64), strict=True):
        transpike.simulate(net, x, steps)
    assert torch.equal(*(net.plan.sites["0#1"].threshold for net in nets))


def test_exactly_as_many_updates_as_asked_for_going_round_the_batches() -> None:
    a, b = torch.zeros(4, 1), torch.zeros(4, 1)
    a[0], b[0] = 4.0, 8.0  # one of four exceeds: the gap to the batch's maximum halves
    method = LTB(iterations=5)
    plan = method.fit(rectifier(1), [a, b])
    theta = 0.0
    for top in (4.0, 8.0, 4.0, 8.0, 4.0):
        theta += 2 * max(top - theta, 0.0) / 4
    assert float(plan.sites["0#1"].threshold) == theta
    assert plan.metadata["samples"] == 20


def test_few_iterations_are_noted_and_many_are_not() -> None:
    x = normal(50, 2, 4)
    few, many = (LTB(iterations=k).fit(rectifier(2, 4), [x]) for k in (2, 400))
    assert any("not converged after 2 iterations" in note and "0#1" in note for note in few.notes)
    assert many.notes == ()


def test_the_clip_of_relu6_bounds_the_threshold_and_the_activation_beyond_it_is_not_missed() -> None:
    x = 20 * normal(50, 3).abs() + 1
    plan = LTB(iterations=500).fit(rectifier(3, ceiling=True), [x])
    assert float(plan.sites["0#1"].threshold.max()) == pytest.approx(6.0) and plan.notes == ()
    low = LTB(iterations=1).fit(rectifier(3, ceiling=True), [x / 8]).sites["0#1"].threshold
    torch.testing.assert_close(low, (2 * (x / 8).clamp(max=6).mean(0)).clamp(max=6), rtol=1e-6, atol=0)


class TwoLayers(nn.Module):
    """Two convolutions whose activation function may be another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3), nn.Linear(3 * 9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.with_activation(x, lambda _, z: torch.relu(z))

    def with_activation(self, x: torch.Tensor, act: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return self.c(act(1, self.b(act(0, self.a(x)))).flatten(1))


@pytest.mark.parametrize("granularity", Granularity)
def test_every_layer_is_balanced_on_what_the_layers_before_it_let_through(granularity: Granularity) -> None:
    """Against the rule written in plain torch: update with the current batch, then clip with the new threshold."""
    axes = {Granularity.LAYER: (0, 1, 2, 3), Granularity.CHANNEL: (0, 2, 3), Granularity.UNIT: (0,)}[granularity]
    model = TwoLayers().eval()
    batches = [normal(6, 2, 5, 5, seed=seed) for seed in range(3)]
    theta: dict[int, torch.Tensor] = {}

    def balance(layer: int, z: torch.Tensor) -> torch.Tensor:
        old = theta.get(layer, torch.zeros(()))
        theta[layer] = old + 2 * (z - old).clamp(min=0).mean(axes, keepdim=True)
        return torch.minimum(torch.relu(z), theta[layer])

    with torch.no_grad():
        for k in range(7):
            model.with_activation(batches[k % 3], balance)
    graph = capture(model, batches[0])
    plan = LTB(iterations=7, granularity=granularity).fit(graph, batches)
    for layer, site in enumerate(graph.sites):
        found = plan.sites[site.name].threshold
        wanted = theta[layer].reshape(found.shape)
        wanted = torch.where(wanted > 0, wanted, wanted.max())  # units that never were active
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [LTB(iterations=0), LTB(eta=0.0), LTB(eta=-1.0)])
def test_settings_out_of_range_are_refused(method: LTB) -> None:
    with pytest.raises(PlanError, match="must be positive"):
        method.fit(rectifier(1), [torch.ones(2, 1)])

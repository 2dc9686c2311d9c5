"""P-CAL-1 and P-CAL-3: the grid search against a brute-force one in numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from models import calibration, captured
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.methods import Method
from transpike.methods.adafire import AdaFire
from transpike.methods.mmse import MMSE
from transpike.spiking.plan import Granularity, Plan, SiteParams


@cache
def rectifier(*shape: int) -> Graph:
    """A network whose only site sees its input: thresholds of known activations."""
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2))
    return capture(model.eval(), torch.zeros(2, *shape))


def fitted(method: MMSE, x: torch.Tensor, parts: int = 1) -> torch.Tensor:
    return method.fit(rectifier(*x.shape[1:]), list(x.chunk(parts))).sites["0#1"].threshold


def brute_force(x: np.ndarray, steps: int, cap: float = 1, shift: float = 0.0) -> float:
    """The V of the 95-point grid with the least squared error, in double precision, one candidate after the other."""
    x = np.maximum(x.astype(np.float64).ravel(), 0)
    best, least = 0.0, np.inf
    for i in range(95):
        v = x.max() * (1 - 0.01 * i) / (1 if np.isinf(cap) else cap)
        levels = np.minimum(np.floor(np.clip(x / v, 0, cap) * steps + shift), cap * steps)
        error = float(np.mean((v / steps * levels - x) ** 2))
        if error < least:  # strictly: ties stay with the larger V
            best, least = v, error
    return best


def activations(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("steps", [1, 4, 16, 64])
def test_equals_the_brute_force_argmin_of_every_channel(steps: int) -> None:
    x = activations(400, 3, 5) * torch.tensor([0.1, 1.0, 30.0])[:, None]
    wanted = [brute_force(x[:, c].numpy(), steps) for c in range(3)]
    np.testing.assert_allclose(fitted(MMSE(steps=steps), x).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("cap", [2, 4])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_bursts_shrink_the_grid_and_shift_enters_the_quantiser(cap: int, shift: float) -> None:
    x = activations(600, 3, 5)
    wanted = [brute_force(x[:, c].numpy(), 4, cap, shift) for c in range(3)]
    found = fitted(MMSE(steps=4, cap=cap, shift=shift), x).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert (found <= x.amax((0, 2)).numpy() / cap * (1 + 1e-6)).all()


def test_without_a_cap_nothing_is_clipped_and_the_finest_grid_wins() -> None:
    x = activations(600, 2, 5)
    wanted = [brute_force(x[:, c].numpy(), 4, np.inf) for c in range(2)]
    np.testing.assert_allclose(fitted(MMSE(steps=4, cap=None), x).numpy(), wanted, rtol=1e-6)


def test_rounding_to_nearest_asks_for_higher_thresholds_than_rounding_down() -> None:
    x = activations(2000, 1)
    assert float(fitted(MMSE(steps=8, shift=0.5), x)) > float(fitted(MMSE(steps=8), x))


def test_the_threshold_rises_with_steps_as_published() -> None:
    """Half-normal activations: 0.46, 0.57, 0.70, 0.79 of the maximum at T = 4, 8, 16, 32 (20,000 of them)."""
    x = activations(20_000, 1)
    shares = [float(fitted(MMSE(steps=steps), x)) / float(x.max()) for steps in (4, 8, 16, 32)]
    assert shares == sorted(shares)
    np.testing.assert_allclose(shares, [0.46, 0.57, 0.70, 0.79], atol=0.08)


def test_ties_go_to_the_larger_threshold() -> None:
    x = torch.tensor([[1.0], [0.5]])  # T = 1: V = 1 loses 0.5 on the second, V = 0.5 loses 0.5 on the first
    error = {v: sum((v * np.floor(min(a / v, 1.0)) - a) ** 2 for a in (1.0, 0.5)) for v in (1.0, 0.75, 0.5, 0.25)}
    assert error[1.0] == error[0.5] < min(error[0.75], error[0.25])
    assert float(fitted(MMSE(steps=1), x)) == 1.0


def test_data_in_one_part_or_many_gives_one_error_over_all_of_it() -> None:
    x = activations(90, 3, 5) * torch.linspace(0.1, 2.0, 90)[:, None, None]  # parts of different range
    whole = fitted(MMSE(steps=8), x)
    for parts in (2, 9, 90):
        torch.testing.assert_close(fitted(MMSE(steps=8), x, parts), whole, rtol=1e-6, atol=0)


def test_layer_and_unit_thresholds_equal_brute_force_on_images() -> None:
    x = activations(200, 2, 3, 3) * torch.tensor([1.0, 3.0])[:, None, None]
    layer, unit = (fitted(MMSE(steps=8, granularity=g), x) for g in (Granularity.LAYER, Granularity.UNIT))
    assert float(layer) == pytest.approx(brute_force(x.numpy(), 8), rel=1e-6)
    wanted = [[[brute_force(x[:, c, h, w].numpy(), 8) for w in range(3)] for h in range(3)] for c in range(2)]
    np.testing.assert_allclose(unit.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", [MMSE, partial(AdaFire, cap=2)])
def test_signed_neurons_get_thresholds_for_rounding_unless_told_otherwise(kind: Callable[..., Method]) -> None:
    graph, data = captured("residual"), calibration("residual")
    for signed, shift in ((True, 0.5), (False, 0.0)):
        of = partial(kind, steps=4, signed=signed)
        ours, told, other = (method.fit(graph, data).tensors() for method in (of(), of(shift=shift), of(shift=0.25)))
        assert ours.keys() == told.keys() and all(torch.equal(x, told[key]) for key, x in ours.items())
        assert any(not torch.equal(x, other[key]) for key, x in ours.items())


@pytest.mark.parametrize("method", [MMSE(steps=0), MMSE(shift=-0.1), MMSE(shift=1.0)])
def test_settings_out_of_range_are_refused(method: MMSE) -> None:
    with pytest.raises(PlanError, match="steps is at least 1"):
        fitted(method, torch.ones(2, 1))


def test_a_shift_per_step_ends_like_half_a_threshold_at_the_start_but_gets_there_differently() -> None:
    """P-CAL-3: current theta / (2 T) at every step against v(0) = theta / 2, constant input, dyadic numbers."""
    steps, graph = 8, rectifier(16)
    x = torch.arange(16.0)[None] / 16
    half, one = torch.tensor(0.5), torch.tensor(1.0)
    start = transpike.build(graph, Plan({"0#1": SiteParams(one, v_init=half)}))
    drip = transpike.build(graph, Plan({"0#1": SiteParams(one, current=half / steps)}))
    counts = [[transpike.simulate(net, x, t).spikes["0#1"] for net in (start, drip)] for t in range(1, steps + 1)]
    assert torch.equal(*counts[-1])
    assert any(not torch.equal(a, b) for a, b in counts[:-1])

"""The streaming percentile against numpy's exact one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.methods.percentile import Percentile
from transpike.spiking.plan import Granularity


@cache
def rectifier(*shape: int) -> Graph:
    """A network whose only site sees its input: thresholds of known activations."""
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2))
    return capture(model.eval(), torch.zeros(2, *shape))


def fitted(x: torch.Tensor, q: float, parts: int = 1, granularity: Granularity = Granularity.CHANNEL) -> torch.Tensor:
    plan = Percentile(q=q, granularity=granularity).fit(rectifier(*x.shape[1:]), list(x.chunk(parts)))
    return plan.sites["0#1"].threshold


def heavy_tailed(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator) * torch.randn(n, *shape, generator=generator).exp()


@pytest.mark.parametrize("q", [60.0, 90.0, 99.0, 99.9, 100.0])
def test_within_one_per_cent_of_the_exact_percentile_per_channel(q: float) -> None:
    x = heavy_tailed(4000, 3, 4)
    exact = np.percentile(x.clamp(min=0).numpy(), q, axis=(0, 2), method="inverted_cdf")
    np.testing.assert_allclose(fitted(x, q).numpy(), exact, rtol=0.01)


def test_within_one_per_cent_per_layer_and_unit_of_images() -> None:
    x = heavy_tailed(3000, 2, 3, 3)
    a = x.clamp(min=0).numpy()
    layer, unit = (fitted(x, 99.0, 3, g).numpy() for g in (Granularity.LAYER, Granularity.UNIT))
    np.testing.assert_allclose(layer, np.percentile(a, 99.0, method="inverted_cdf"), rtol=0.01)
    np.testing.assert_allclose(unit, np.percentile(a, 99.0, axis=0, method="inverted_cdf"), rtol=0.01)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_few_scattered_values_stay_within_one_per_cent(scale: float) -> None:
    values = torch.linspace(1.0, 2.0, 97)[:, None] * scale  # one value a bin or none: interpolation has nothing to go by
    for q in (10.0, 33.0, 50.0, 90.0):
        exact = np.percentile(values.numpy(), q, method="inverted_cdf")
        np.testing.assert_allclose(fitted(values, q).numpy(), exact, rtol=0.01)


def test_zeros_count() -> None:
    x = torch.cat([torch.zeros(90), torch.arange(1.0, 11.0)])[:, None]  # the 95th percentile is the 5th of ten values
    assert float(fitted(x, 95.0)) == pytest.approx(5.0, rel=0.01)
    assert float(fitted(x[90:], 50.0)) == pytest.approx(5.0, rel=0.01)
    x[:90] = -3.0  # a rectified value is a zero
    assert float(fitted(x, 95.0)) == pytest.approx(5.0, rel=0.01)


def test_order_and_chunks_of_the_data_do_not_change_a_bit() -> None:
    x = heavy_tailed(600, 3, 4)
    whole = fitted(x, 99.0)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    for again in (fitted(x, 99.0, 7), fitted(x.flip(0), 99.0, 20), fitted(shuffled, 99.0, 3)):
        assert torch.equal(whole, again)


def test_a_sparse_channel_keeps_its_maximum() -> None:
    x = torch.zeros(5000, 2)
    x[7, 0], x[:, 1] = 3.25, 1.0  # channel 0 fires once in 5000
    threshold = fitted(x, 99.9)
    assert float(threshold[0]) == 3.25
    assert float(threshold[1]) == pytest.approx(1.0, rel=0.01)


def test_never_above_the_largest_activation() -> None:
    x = heavy_tailed(500, 3, 4, seed=3)
    assert bool((fitted(x, 99.99) <= x.clamp(min=0).amax((0, 2))).all())
    assert torch.equal(fitted(x, 100.0), x.clamp(min=0).amax((0, 2)))


def test_values_beyond_the_histogram_are_clipped_to_the_maximum_not_lost() -> None:
    tiny, huge = torch.full((10, 1), 1e-8), torch.full((10, 1), 1e8)
    assert float(fitted(tiny, 99.0)) == pytest.approx(1e-8)
    assert float(fitted(huge, 99.0)) == pytest.approx(1e8)


@pytest.mark.parametrize("q", [0.0, -1.0, 100.1, float("nan")])
def test_what_is_not_a_percentage_is_refused(q: float) -> None:
    with pytest.raises(PlanError, match="percentage"):
        Percentile(q=q).fit(rectifier(1), [torch.ones(2, 1)])

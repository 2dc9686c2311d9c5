"""The compiled kernels against torch."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from transpike.engines.kernels import threads_for
from transpike.methods._statistics import clip, histogram, mean_overflow, quantisation_errors

SHAPES = [(5, 3, 1), (9000, 2, 1), (7, 3, 50), (1, 4, 333), (33, 1, 2)]  # fewer and more rows than jobs, long float sums
TYPES = [(torch.float32, 2e-6), (torch.float64, 1e-12)]


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_mean_overflow(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    z, theta = normal(shape, dtype), torch.linspace(0, 1, shape[1], dtype=dtype)
    over, full = mean_overflow(z.numpy(), theta.numpy())
    exact = z.double()
    np.testing.assert_allclose(over, (exact - theta.double()[:, None]).clamp(min=0).mean((0, 2)), rtol=tolerance)
    np.testing.assert_allclose(full, exact.clamp(min=0).mean((0, 2)), rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_clip_works_in_place_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    z, theta = normal(shape, dtype), torch.linspace(0.1, 1, shape[1], dtype=dtype)
    wanted = torch.minimum(z.clamp(min=0), theta[:, None])
    clip(z.numpy(), theta.numpy())
    assert torch.equal(z, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_histogram_counts_every_value_in_the_bin_of_its_leading_bits(shape: tuple[int, ...]) -> None:
    x, shift = normal(shape).clamp(min=0), 20  # 8 bins per factor of two
    base = int(np.float32(0.25).view(np.int32) >> shift) - 1
    counts = np.zeros((shape[1], 26), np.int64)
    histogram(x.numpy().view(np.int32), counts, shift, base)
    octaves = [2.0**k * (1 + i / 8) for k in (-2, -1, 0) for i in range(8)]  # 0.25 to 1.875
    edges = np.array([-np.inf, np.nextafter(0, 1), *octaves[1:], 2.0, np.inf])  # zero; up to the second edge; ...; the rest
    for group in range(shape[1]):
        wanted, _ = np.histogram(x[:, group].double().numpy(), edges)
        assert counts[group].tolist() == wanted.tolist()


@pytest.mark.parametrize("cap", [1.0, 3.0, np.inf])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_quantisation_errors(cap: float, shift: float) -> None:
    x, steps = normal((40, 3, 5)).clamp(min=0), 4
    grid = torch.linspace(0.2, 2.0, 7)[None].repeat(3, 1) * torch.tensor([1.0, 2.0, 0.7])[:, None]
    f = np.float32
    found = quantisation_errors(x.numpy(), grid.numpy(), f(steps), f(cap), f(shift))
    for k in range(7):
        v = grid[:, k, None]
        q = torch.floor((x / v).clamp(max=cap) * steps + shift).clamp(max=cap * steps) * (v / steps)
        np.testing.assert_allclose(found[:, k], ((q - x) ** 2 * (x > 0)).double().sum((0, 2)), rtol=1e-5)


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    z, theta = normal((500, 3, 7)).numpy(), np.zeros(3, np.float32)
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    found = []
    try:
        for threads in {1, min(2, most), most}:
            numba.set_num_threads(threads)
            found.append(mean_overflow(z, theta))
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found)


def test_threads_are_given_to_large_arrays_only_and_the_setting_comes_back() -> None:
    before = numba.get_num_threads()
    with threads_for(10):
        assert numba.get_num_threads() == 1
    with threads_for(1 << 24):
        assert numba.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), threads_for(10):
        raise ZeroDivisionError
    assert numba.get_num_threads() == before

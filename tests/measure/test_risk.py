"""The bound on the accuracy lost: closed forms, an independent enumeration, and validity by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transpike.measure.risk import _difference_cdf, binomial_upper, loss_p_value, samples_needed


def difference_pmf(samples: int, p: float, q: float) -> np.ndarray:
    """P(lost - won = k) for k = -samples..samples, by convolution of one sample after another."""
    pmf = np.ones(1)
    for _ in range(samples):
        pmf = np.convolve(pmf, [q, 1 - p - q, p])
    return pmf


@pytest.mark.parametrize(("samples", "p", "q"), [(1, 0.2, 0.1), (12, 0.3, 0.05), (60, 0.02, 0.0), (200, 0.02, 0.01)])
def test_the_distribution_of_the_difference_equals_convolution(samples: int, p: float, q: float) -> None:
    cdf = difference_pmf(samples, p, q).cumsum()
    for k in range(-samples, samples + 1):
        assert _difference_cdf(k, samples, p, q) == pytest.approx(cdf[k + samples], abs=1e-12)


@pytest.mark.parametrize(("count", "samples", "error"), [(0, 10, 0.05), (3, 40, 0.1), (39, 40, 0.05), (7, 2000, 0.005)])
def test_clopper_pearson_is_where_so_few_would_be_as_rare_as_the_error(count: int, samples: int, error: float) -> None:
    u = binomial_upper(count, samples, error)
    tail = sum(math.comb(samples, i) * u**i * (1 - u) ** (samples - i) for i in range(count + 1))
    assert tail == pytest.approx(error, rel=1e-6)
    assert binomial_upper(0, 10, 0.05) == pytest.approx(1 - 0.05 ** (1 / 10))
    assert binomial_upper(samples, samples, error) == 1.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    samples=st.integers(50, 400),
    loss=st.sampled_from([0.01, 0.03, 0.1]),
    lost=st.integers(0, 30),
    won=st.integers(0, 20),
    share=st.floats(0, 1),
    more=st.floats(0, 1),
)
def test_no_probabilities_that_lose_so_much_make_the_data_likelier(samples, loss, lost, won, share, more) -> None:
    """The supremum is where the module says: any other p - q >= loss within the bound on p + q gives less."""
    value = loss_p_value(lost, won, samples, loss)
    upper = binomial_upper(lost + won, samples, 0.005)
    if upper < loss or value >= 1:
        return
    q = share * (upper - loss) / 2
    p = loss + q + more * (upper - loss - 2 * q)
    cdf = difference_pmf(samples, p, q).cumsum()[lost - won + samples]
    assert value >= cdf - 1e-9


def test_more_lost_or_fewer_won_is_weaker_evidence_and_more_samples_stronger() -> None:
    values = [loss_p_value(lost, 4, 2000, 0.01) for lost in range(25)]
    assert values == sorted(values) and values[0] < 0.01 and values[-1] > 0.3
    assert loss_p_value(16, 4, 2000, 0.01) < loss_p_value(16, 2, 2000, 0.01) < loss_p_value(16, 0, 2000, 0.01)
    assert loss_p_value(0, 0, 1000, 0.01) < loss_p_value(0, 0, 300, 0.01) < loss_p_value(0, 0, 100, 0.01)


def test_no_change_of_any_answer_in_many_samples_is_only_the_spare() -> None:
    assert loss_p_value(0, 0, 10_000, 0.01, 0.05) == pytest.approx(0.005)
    assert loss_p_value(0, 0, 10, 0.01) > 0.5  # ten samples show nothing
    assert loss_p_value(600, 590, 2000, 0.01) == 1.0  # more than half of the answers may change


@pytest.mark.parametrize(("loss", "error"), [(0.01, 0.05), (0.05, 0.05), (0.003, 0.1), (0.2, 0.01)])
def test_fewer_samples_than_needed_show_nothing_whatever_they_are(loss: float, error: float) -> None:
    needed = samples_needed(loss, error)
    assert loss_p_value(0, 0, needed, loss, error) <= error < loss_p_value(0, 0, needed - 1, loss, error)
    assert needed >= math.log(error) / math.log(1 - loss)  # no test can do with fewer


@pytest.mark.parametrize(
    ("p", "q", "loss"), [(0.01, 0.0, 0.01), (0.013, 0.003, 0.01), (0.05, 0.04, 0.01), (0.2, 0.15, 0.05), (0.002, 0.0, 0.002)]
)
@pytest.mark.parametrize("samples", [100, 500, 2000])
def test_networks_that_lose_exactly_the_loss_are_accepted_in_at_most_five_percent(p, q, loss, samples) -> None:
    """Bernoulli data at the edge of the hypothesis: 4,000 draws of a calibration set each, within three standard errors."""
    generator = np.random.default_rng(0)
    draws = generator.multinomial(samples, [p, q, 1 - p - q], size=4000)
    outcomes, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    accepted = sum(c for (lost, won), c in zip(outcomes, counts) if loss_p_value(int(lost), int(won), samples, loss) <= 0.05)
    assert accepted / 4000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_the_test_has_power() -> None:
    """Losing 0.3 points where 1 is allowed is shown by 2,000 samples in most draws; Hoeffding's inequality needs 60,000."""
    draws = np.random.default_rng(1).multinomial(2000, [0.005, 0.002, 0.993], size=500)
    accepted = np.mean([loss_p_value(int(lost), int(won), 2000, 0.01) <= 0.05 for lost, won, _ in draws])
    assert accepted > 0.85

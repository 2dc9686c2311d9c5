"""P-ADA-4: the front against every choice there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from transpike.methods._pareto import pareto_front


def brute_force(costs: np.ndarray, losses: np.ndarray, budget: float) -> tuple[float, tuple[int, ...]] | None:
    """The least loss within ``budget`` and its picks, by trying every choice."""
    best = None
    for picks in product(*(range(len(row)) for row in costs)):
        cost = sum(row[k] for row, k in zip(costs, picks, strict=True))
        loss = sum(row[k] for row, k in zip(losses, picks, strict=True))
        if cost <= budget and (best is None or loss < best[0]):
            best = (loss, picks)
    return best


def tables(seed: int, layers: int = 5, options: int = 4, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Random costs and losses; ``whole``: small whole numbers, so that there are ties in both."""
    random = np.random.default_rng(seed)
    if whole:
        return random.integers(0, 4, (layers, options)).astype(float), random.integers(0, 4, (layers, options)).astype(float)
    return random.random((layers, options)), random.random((layers, options))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_last_choice_of_the_front_is_the_brute_force_optimum(seed: int, whole: bool) -> None:
    costs, losses = tables(seed, whole=whole)
    low, high = costs.min(1).sum(), costs.max(1).sum()
    for share in (0.0, 0.1, 0.35, 0.6, 1.0):
        budget = low + share * (high - low)
        front = pareto_front(costs.tolist(), losses.tolist(), budget)
        wanted = brute_force(costs, losses, budget * (1 + 1e-12))
        assert wanted is not None
        assert front.losses[-1] == pytest.approx(wanted[0], abs=1e-12)


@pytest.mark.parametrize("whole", [False, True])
def test_every_choice_has_the_cost_and_loss_it_says_and_none_undercuts_another(whole: bool) -> None:
    costs, losses = tables(3, whole=whole)
    front = pareto_front(costs.tolist(), losses.tolist(), 1e9)
    layers = np.arange(5)
    for cost, loss, picks in zip(front.costs, front.losses, front.picks, strict=True):
        assert costs[layers, picks].sum() == pytest.approx(cost) and losses[layers, picks].sum() == pytest.approx(loss)
        assert brute_force(costs, losses, cost * (1 + 1e-12))[0] == pytest.approx(loss)  # type: ignore[index]
    assert (np.diff(front.costs) > 0).all() and (np.diff(front.losses) < 0).all()
    assert front.costs[0] == pytest.approx(costs.min(1).sum()) and front.losses[-1] == pytest.approx(losses.min(1).sum())


def test_a_budget_below_the_cheapest_choice_leaves_nothing_and_the_cheapest_itself_is_kept() -> None:
    costs, losses = tables(5)
    cheapest = float(costs.min(1).sum())
    assert len(pareto_front(costs.tolist(), losses.tolist(), cheapest * 0.999)) == 0
    front = pareto_front(costs.tolist(), losses.tolist(), cheapest)
    assert len(front) == 1 and front.picks[0].tolist() == costs.argmin(1).tolist()


def test_picks_are_in_the_order_of_the_layers() -> None:
    """9.C-3: published ratios come back last layer first."""
    front = pareto_front([[0.0, 9.0], [0.0, 1.0], [9.0, 0.0]], [[0.0, 0.0], [5.0, 0.0], [0.0, 0.0]], 1.0)
    assert front.picks[-1].tolist() == [0, 1, 1]


def test_of_equal_choices_the_earlier_option_is_taken() -> None:
    assert pareto_front([[1.0, 1.0]] * 3, [[2.0, 2.0]] * 3, 3.0).picks.tolist() == [[0, 0, 0]]


def test_layers_may_have_different_numbers_of_options_and_unaffordable_ones() -> None:
    front = pareto_front([[1.0], [2.0, np.inf, 1.0]], [[1.0], [0.0, -5.0, 3.0]], 10.0)
    assert front.losses.tolist() == [4.0, 1.0] and front.picks.tolist() == [[0, 2], [0, 0]]


def test_a_thinned_front_keeps_the_budget_and_comes_close() -> None:
    costs, losses = tables(7, layers=12, options=6)
    exact = pareto_front(costs.tolist(), losses.tolist(), 5.0, most=10**7)
    thin = pareto_front(costs.tolist(), losses.tolist(), 5.0, most=20)
    assert len(exact) > 20 >= len(thin)
    assert thin.costs[-1] <= 5.0
    assert exact.losses[-1] <= thin.losses[-1] <= exact.losses[-1] + 0.1 * (exact.losses[0] - exact.losses[-1])

"""The cheapest choice of one option for each of many layers: dynamic programming over the Pareto front.

    minimise sum_i loss_i(k_i)   subject to   sum_i cost_i(k_i) <= budget

Layer by layer every partial choice is extended by every option; of the results only those stay that no other undercuts
in both cost and loss, and that can still be completed within the budget. What is left after the last layer is the
whole trade-off, from the cheapest choice to the one of least loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Front", "pareto_front"]


@dataclass(frozen=True, eq=False)
class Front:
    """Choices of which none is better than another in both: cost rises, loss falls strictly.

    Args:
        costs: total cost of each choice, ascending. losses: total loss, strictly descending.
        picks: the option of every layer. choices x layers
    """

    costs: Any
    losses: Any
    picks: Any

    def __len__(self) -> int:
        return len(self.costs)


def pareto_front(
    costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float, *, most: int = 20_000
) -> Front:
    """The choices within ``budget`` that are not undercut; empty if there is none. The last one has the least loss.

    Args:
        costs: of every option of every layer, not negative. losses: the same shape.
        budget: the largest total cost.
        most: where a front grows longer, its costs are divided into as many equal parts and each keeps its choice of
            least loss: the budget is still kept to the letter, a choice dearer by a part in ``most`` may be better.

    Returns:
        The front; of choices with the same cost and loss, the one with the earlier options.
    """
    rest = [0.0]
    for options in reversed(costs):
        rest.append(rest[-1] + min(options))
    rest.reverse()  # rest[i]: the least that layers i.. cost
    total, loss = np.zeros(1), np.zeros(1)
    steps: list[tuple[Any, Any]] = []
    slack = 1e-12 * abs(budget)  # sums in another order may differ by rounding
    for i, (own_costs, own_losses) in enumerate(zip(costs, losses, strict=True)):
        options = len(own_costs)
        total = (total[:, None] + np.asarray(own_costs, np.float64)).ravel()
        loss = (loss[:, None] + np.asarray(own_losses, np.float64)).ravel()
        order = np.lexsort((loss, total))
        order = order[total[order] + rest[i + 1] <= budget + slack]
        order = order[_falling(loss[order])]
        if len(order) > most:
            order = _thinned(order, total[order], most)
        steps.append((order // options, order % options))
        total, loss = total[order], loss[order]
    picks = np.zeros((len(total), len(costs)), np.int64)
    at = np.arange(len(total))
    for i in reversed(range(len(costs))):
        parents, options_taken = steps[i]
        picks[:, i] = options_taken[at]
        at = parents[at]
    return Front(total, loss, picks)


def _falling(loss: Any) -> Any:
    """Where ``loss`` is below everything before it."""
    if not len(loss):
        return np.zeros(0, bool)
    lowest = np.minimum.accumulate(loss)
    return np.concatenate([[True], loss[1:] < lowest[:-1]])


def _thinned(order: Any, total: Any, most: int) -> Any:
    """The last (least loss) of every one of ``most`` equal parts of the costs."""
    part = np.minimum(((total - total[0]) / (total[-1] - total[0]) * most).astype(np.int64), most - 1)
    return order[np.append(part[1:] != part[:-1], True)]

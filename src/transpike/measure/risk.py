"""Is the accuracy that early exits lose at most so much? A test that holds for a finite number of samples.

Of n independent samples, ``lost`` are right after all steps and wrong at their exit, ``won`` the other way round:
trinomial with probabilities p and q, and the loss of accuracy is R = p - q. The hypothesis R > loss is rejected at
level d if its p-value is at most d, where (Berger and Boos)

    p-value = g + sup of P(lost' - won' <= lost - won) over all R >= loss, p + q <= U,     g = d / 10,

and U is the Clopper-Pearson upper bound of p + q with confidence 1 - g. The supremum is at p - q = loss, p + q = U:
a smaller p lowers R; and adding e to both p and q changes the probability by n e times P(D = k + 1) - P(D = k), where
k = lost - won and D is the difference of n - 1 samples. For p + q <= 1/2 the generating polynomial of a sample has
real roots, so D is, shifted, a sum of independent Bernoulli variables, and increases up to the integer part of its
mean (n - 1) loss (Darroch): as k + 1 is at most that, the change is not negative. Elsewhere we do not reject.

References: Berger and Boos, J. Am. Stat. Assoc. 89, 1994, doi:10.1080/01621459.1994.10476836; Darroch, Ann. Math. Stat. 35,
1964, doi:10.1214/aoms/1177703287; Clopper and Pearson, Biometrika 26, 1934, doi:10.1093/biomet/26.4.404.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, betaincinv, gammaln, xlog1py, xlogy

__all__ = ["binomial_upper", "loss_p_value", "samples_needed"]

_SHARE = 0.1  # of the error probability, for not knowing how many answers change


def binomial_upper(count: int, samples: int, error: float) -> float:
    """The Clopper-Pearson upper bound of a probability: wrong with probability ``error`` at most."""
    return 1.0 if count >= samples else float(betaincinv(count + 1, samples - count, 1 - error))


def loss_p_value(lost: int, won: int, samples: int, loss: float, error: float = 0.05) -> float:
    """How unlikely the data are if the accuracy lost is ``loss`` or more; valid for any number of samples.

    Args:
        lost, won: samples whose answer turned from right to wrong, and from wrong to right.
        loss: the greatest loss allowed, > 0.
        error: the level the result is compared with; it fixes ``g`` beforehand.
    """
    spare, k = error * _SHARE, lost - won
    changed = binomial_upper(lost + won, samples, spare)  # U
    if changed < loss:
        return spare
    if changed > 0.5 or k > math.floor((samples - 1) * loss) - 1:
        return 1.0
    return min(1.0, spare + _difference_cdf(k, samples, (changed + loss) / 2, (changed - loss) / 2))


def samples_needed(loss: float, error: float = 0.05) -> int:
    """The fewest samples that can show anything: those with which not one changed answer is evidence enough."""
    low, high = 0, 1  # too few, enough
    while loss_p_value(0, 0, high, loss, error) > error:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss_p_value(0, 0, middle, loss, error) <= error else (middle, high)
    return high


def _difference_cdf(k: int, samples: int, p: float, q: float) -> float:
    """``P(lost - won <= k)``: of m changed answers, binomial, ``lost`` are binomial again, and at most (m + k) / 2."""
    m = np.arange(samples + 1)
    changed = gammaln(samples + 1) - gammaln(m + 1) - gammaln(samples - m + 1) + xlogy(m, p + q) + xlog1py(samples - m, -(p + q))
    return float(np.exp(changed) @ _binomial_cdf((m + k) // 2, m, p / (p + q)))


def _binomial_cdf(k: np.ndarray, n: np.ndarray, p: float) -> np.ndarray:
    inside = (k >= 0) & (k < n)
    safe_k, safe_n = np.where(inside, k, 0), np.where(inside, n, 1)
    return np.where(inside, betainc(safe_n - safe_k, safe_k + 1, 1 - p), np.where(k < 0, 0.0, 1.0))

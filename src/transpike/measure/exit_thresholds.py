"""Three ways to choose the thresholds of an early exit, from labelled samples that nothing was fitted to.

- `paper_thresholds`: the authors' rule. With E_t the mean normalised entropy of the samples that are right at step t,

      c_t = alpha + beta exp(min_t E_t - E_t)    from alpha + beta / e to alpha + beta, highest where the entropy is least

- `calibrated`: one threshold for all steps, the lowest that costs at most so much accuracy on these samples.
- `risk_controlled`: the same, and with the confidence asked for the accuracy it costs on *new* samples is at most so
  much. Thresholds are tested from the highest down, each at level 1 - confidence, until the first that cannot be shown
  to cost at most ``loss`` (fixed-sequence testing): the probability that any accepted one costs more is at most
  1 - confidence, whatever the network and the data. The test is exact: `transpike.measure.risk`.

The accuracy that is lost is that after all steps less that at the exits. The guarantee is over the draw of the
calibration samples, which must be independent draws of what the network will see (sampling a finite set without
replacement is close to it), and chosen neither for training nor for anything the policy depends on. It says nothing
about one class, or about data that drift.

References: Wang et al., AAAI 2025, arXiv:2412.16219 (`paper_thresholds`; by the authors' code); Angelopoulos et al.,
"Learn then Test", arXiv:2110.01052 (fixed-sequence testing).
Departures: the papers on early exit know no guarantee. Thresholds come from a fixed grid, finer towards 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from transpike.errors import DataError
from transpike.measure.early_exit import Certainty, ExitPolicy, Statistic, Trace
from transpike.measure.risk import loss_p_value

__all__ = ["calibrated", "paper_thresholds", "risk_controlled"]

# 1 - threshold: fixed before any data is seen, from hardly ever leaving to leaving at once
_GRID = tuple(10 ** (-k / 20) for k in range(240, -1, -1))


def paper_thresholds(trace: Trace, certainty: Certainty, *, alpha: float = 0.6, beta: float = 0.4) -> ExitPolicy:
    """The authors' thresholds for every step; where no sample is right, 1.

    The entropy is taken of the read-out that ``certainty`` names, whatever its statistic. At the step of the least
    entropy, usually the last, the threshold is ``alpha + beta``: with a sum of 1 nobody leaves there.

    Args:
        alpha, beta: 0.6 and 0.4 for CIFAR, 0.995 and 0.005 for ImageNet, by the authors.

    Raises:
        DataError: ``alpha`` and ``beta`` give thresholds outside of 0..1, or ``start`` leaves no step.
    """
    if not (alpha >= 0 and beta >= 0 and alpha + beta <= 1):
        raise DataError(f"alpha {alpha} and beta {beta} give thresholds outside of 0 to 1: at most 1 together, neither negative")
    _check_start(trace, certainty)
    entropy = 1 - Certainty(Statistic.ENTROPY, certainty.readout, certainty.start).over_time(trace.outputs)
    right = certainty.totals(trace.outputs).argmax(-1) == trace.targets
    means = [float(e[r].mean()) if bool(r.any()) else math.inf for e, r in zip(entropy, right, strict=True)]
    least = min(means)
    found = [1.0 if math.isinf(mean) else alpha + beta * math.exp(least - mean) for mean in means]
    origin = {"rule": "paper", "alpha": alpha, "beta": beta, "samples": trace.samples}
    return ExitPolicy(certainty, (*[1.0] * certainty.start, *(min(1.0, c) for c in found)), origin)


def calibrated(trace: Trace, certainty: Certainty, *, loss: float = 0.01) -> ExitPolicy:
    """The lowest threshold that loses at most ``loss`` of the accuracy on these samples, as all higher ones do. No guarantee.

    Raises:
        DataError: ``loss`` is not from 0 to below 1, or ``start`` leaves no step.
    """
    if not 0 <= loss < 1:
        raise DataError(f"loss is {loss}: the share of the samples whose answer may be lost is from 0 to below 1")
    best = None
    for choice in _choices(trace, certainty):
        if choice.lost - choice.won > loss * trace.samples:
            break
        best = choice
    return _policy(trace, certainty, best, {"rule": "calibrated", "loss": loss}, ())


def risk_controlled(trace: Trace, certainty: Certainty, *, loss: float = 0.01, confidence: float = 0.95) -> ExitPolicy:
    """The lowest threshold that can be shown to lose at most ``loss`` of the accuracy.

    ``P(accuracy after all steps - accuracy at the exits <= loss) >= confidence`` over the draw of the calibration
    samples. Where none can be shown to (too few samples), the policy never lets a sample leave early and a note says so.

    Raises:
        DataError: ``loss`` or ``confidence`` is not between 0 and 1, or ``start`` leaves no step.
    """
    if not (0 < loss < 1 and 0 < confidence < 1):
        raise DataError(f"loss {loss} and confidence {confidence} are shares between 0 and 1, as 0.01 and 0.95")
    best, shown = None, None
    for choice in _choices(trace, certainty):
        p_value = loss_p_value(choice.lost, choice.won, trace.samples, loss, 1 - confidence)
        if p_value > 1 - confidence:
            break
        best, shown = choice, p_value
    origin = {"rule": "risk-controlled", "loss": loss, "confidence": confidence, "p_value": shown}
    if best is None:
        note = (
            f"{trace.samples} samples are too few to show that exits lose at most {loss:.2%} with {confidence:.0%} confidence: "
            f"nobody leaves early; give more calibration samples (about {math.ceil(-math.log(1 - confidence) / loss)} at the least)"
        )
    else:
        note = (
            f"with {confidence:.0%} confidence over the draw of the {trace.samples} calibration samples, exits lose at most "
            f"{loss:.2%} of the accuracy of {trace.steps} steps on data like these"
        )
    return _policy(trace, certainty, best, origin, (note,))


@dataclass(frozen=True)
class _Choice:
    """One threshold and what it does to the samples: answers lost and won against all steps, and the mean exit."""

    threshold: float
    lost: int
    won: int
    mean_steps: float


def _choices(trace: Trace, certainty: Certainty) -> Iterator[_Choice]:
    """Every threshold of the grid, from the highest down."""
    _check_start(trace, certainty)
    surest = certainty.over_time(trace.outputs)[:-1].cummax(0).values  # steps start + 1 .. T - 1
    right = certainty.totals(trace.outputs).argmax(-1) == trace.targets
    for gap in _GRID:
        steps = (surest <= 1 - gap).sum(0)  # before the exit
        here = right.gather(0, steps[None])[0]
        lost, won = int((right[-1] & ~here).sum()), int((here & ~right[-1]).sum())
        yield _Choice(1 - gap, lost, won, float(steps.double().mean()) + certainty.start + 1)


def _policy(trace: Trace, certainty: Certainty, choice: _Choice | None, origin: dict, notes: tuple[str, ...]) -> ExitPolicy:
    found = {"threshold": 1.0, "lost": 0, "won": 0, "mean_steps": float(trace.steps)} if choice is None else vars(choice)
    threshold = 1.0 if choice is None else choice.threshold
    thresholds = (*[1.0] * certainty.start, *[threshold] * (trace.steps - certainty.start))
    return ExitPolicy(certainty, thresholds, {**origin, "samples": trace.samples, **found}, notes)


def _check_start(trace: Trace, certainty: Certainty) -> None:
    if not 0 <= certainty.start < trace.steps:
        raise DataError(f"start is {certainty.start}: the read-out may leave out 0 to {trace.steps - 1} of {trace.steps} steps")

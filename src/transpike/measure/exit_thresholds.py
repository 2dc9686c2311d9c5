"""How the thresholds of an early exit are chosen, from labelled samples.

Candidates come as a `Family`, ordered from hardly ever leaving to leaving at once:

- `constant`: one threshold for all steps. Good where the read-out leaves out the first steps, which are sure and wrong.
- `levelled`: a threshold for every step, such that of the samples that leave there at most a share ``eps`` loses its
  right answer; ``eps`` numbers the candidates. Made from samples of its own, which may be training data.

Of a family, `calibrated` takes the last candidate that costs at most so much accuracy on the samples given, and
`risk_controlled` the last that with the confidence asked for costs at most so much on *new* samples. Candidates are
tested in order, each at level 1 - confidence, until the first that cannot be shown to cost at most ``loss``
(fixed-sequence testing): the probability that any accepted one costs more is at most 1 - confidence, whatever the
network and the data. The test is exact for any number of samples: `transpike.measure.risk`.

What is lost is the accuracy after all steps less that at the exits. The guarantee is over the draw of the samples that
`risk_controlled` is given: independent draws of what the network will see (sampling a finite set without replacement
comes to the same), not used for training nor for the family. It says nothing about one class, or data that drift.

`paper_thresholds` is the authors' rule. With E_t the mean normalised entropy of the samples that are right at step t,

    c_t = alpha + beta exp(min_t E_t - E_t)    from alpha + beta / e to alpha + beta, highest where the entropy is least

References: Wang et al., AAAI 2025, arXiv:2412.16219 (the authors' rule, by their code); Angelopoulos et al., "Learn then
Test", arXiv:2110.01052 (fixed-sequence testing).
Departures: the papers on early exit know no guarantee, and their rule is easiest on the earliest steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from transpike.errors import DataError
from transpike.measure.early_exit import Certainty, ExitPolicy, Statistic, Trace
from transpike.measure.risk import loss_p_value, samples_needed

__all__ = ["Family", "calibrated", "constant", "levelled", "paper_thresholds", "risk_controlled"]

_GAPS = tuple(10 ** (-k / 20) for k in range(240, -1, -1))  # 1 - threshold
_SHARES = tuple(10 ** (-k / 20) for k in range(80, 9, -1))  # eps, from 0.0001 to 0.35


@dataclass(frozen=True)
class Family:
    """Candidates for the thresholds, each T long, ordered from hardly ever leaving to leaving at once.

    For `risk_controlled` it must not depend on the samples that are given there.
    """

    name: str
    certainty: Certainty
    candidates: tuple[tuple[float, ...], ...]


def constant(certainty: Certainty, steps: int) -> Family:
    """One threshold for all steps, on a fixed grid that is finer towards 1."""
    _check_start(certainty, steps)
    return Family("constant", certainty, tuple((1 - gap,) * steps for gap in _GAPS))


def levelled(trace: Trace, certainty: Certainty) -> Family:
    """Thresholds for every step that level the loss: of the samples that leave at a step, ``(lost + 1) / count <= eps``.

    Step by step the lowest threshold is taken for which this holds, among the samples still there; ``lost`` are right
    after all steps and wrong at this one (those won do not make up for them: that levels less evenly on few samples).
    One more is added because few samples prove little.

    Raises:
        DataError: ``start`` leaves no step.
    """
    _check_start(certainty, trace.steps)
    sure, right = certainty.over_time(trace.outputs), _right(trace, certainty)
    lost = (right[-1] & ~right).int()
    found = []
    for eps in _SHARES:
        there = torch.ones(trace.samples, dtype=torch.bool)
        thresholds = [1.0] * certainty.start
        for k in range(len(sure) - 1):
            thresholds.append(_level(sure[k][there], lost[k][there], eps))
            there = there & (sure[k] <= thresholds[-1])
        found.append((*thresholds, 1.0))
    return Family("levelled", certainty, tuple(found))


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
    _check_start(certainty, trace.steps)
    entropy = 1 - Certainty(Statistic.ENTROPY, certainty.readout, certainty.start).over_time(trace.outputs)
    means = [float(e[r].mean()) if bool(r.any()) else math.inf for e, r in zip(entropy, _right(trace, certainty), strict=True)]
    found = [1.0 if math.isinf(mean) else alpha + beta * math.exp(min(means) - mean) for mean in means]
    origin = {"rule": "paper", "alpha": alpha, "beta": beta, "samples": trace.samples}
    return ExitPolicy(certainty, (*[1.0] * certainty.start, *(min(1.0, c) for c in found)), origin)


def calibrated(trace: Trace, family: Family, *, loss: float = 0.01) -> ExitPolicy:
    """The last candidate that, as all before it, loses at most ``loss`` of the accuracy on these samples. No guarantee.

    Raises:
        DataError: ``loss`` is not from 0 to below 1, or the family is for another number of steps.
    """
    if not 0 <= loss < 1:
        raise DataError(f"loss is {loss}: the share of the samples whose answer may be lost is from 0 to below 1")
    trial, best = _Trial(trace, family), None
    for candidate in family.candidates:
        outcome = trial.of(candidate)
        if outcome.lost - outcome.won > loss * trace.samples:
            break
        best = outcome
    return _policy(trace, family, best, {"rule": "calibrated", "loss": loss}, ())


def risk_controlled(trace: Trace, family: Family, *, loss: float = 0.01, confidence: float = 0.95) -> ExitPolicy:
    """The last candidate that, as all before it, can be shown to lose at most ``loss`` of the accuracy.

    ``P(accuracy after all steps - accuracy at the exits <= loss) >= confidence`` over the draw of the samples. Where
    nothing can be shown (too few samples), the policy lets no sample leave early and a note says so.

    Raises:
        DataError: ``loss`` or ``confidence`` is not between 0 and 1, or the family is for another number of steps.
    """
    if not (0 < loss < 1 and 0 < confidence < 1):
        raise DataError(f"loss {loss} and confidence {confidence} are shares between 0 and 1, as 0.01 and 0.95")
    trial, best, shown = _Trial(trace, family), None, None
    for candidate in family.candidates:
        outcome = trial.of(candidate)
        p_value = loss_p_value(outcome.lost, outcome.won, trace.samples, loss, 1 - confidence)
        if p_value > 1 - confidence:
            break
        best, shown = outcome, p_value
    origin = {"rule": "risk-controlled", "loss": loss, "confidence": confidence, "p_value": shown}
    if best is None:
        note = (
            f"{trace.samples} samples do not show that exits lose at most {loss:.2%} with {confidence:.0%} confidence: no sample "
            f"leaves early; give more than {samples_needed(loss, 1 - confidence)}, the fewest that can show anything"
        )
    else:
        note = (
            f"with {confidence:.0%} confidence over the draw of the {trace.samples} calibration samples, exits lose at most "
            f"{loss:.2%} of the accuracy of {trace.steps} steps on data like these"
        )
    return _policy(trace, family, best, origin, (note,))


@dataclass(frozen=True)
class _Outcome:
    """What thresholds do to the samples: answers lost and won against all steps, and the mean exit."""

    thresholds: tuple[float, ...]
    lost: int
    won: int
    mean_steps: float


class _Trial:
    """Certainties and right answers of a trace, to try candidates on."""

    def __init__(self, trace: Trace, family: Family) -> None:
        if wrong := [c for c in family.candidates if len(c) != trace.steps]:
            raise DataError(f"the family has thresholds for {len(wrong[0])} steps, the samples were simulated for {trace.steps}")
        _check_start(family.certainty, trace.steps)
        self._start = family.certainty.start
        self._sure, self._right = family.certainty.over_time(trace.outputs), _right(trace, family.certainty)

    def of(self, thresholds: tuple[float, ...]) -> _Outcome:
        leaving = self._sure > torch.tensor(thresholds[self._start :], dtype=torch.float64)[:, None]
        leaving[-1] = True
        index = leaving.int().argmax(0)  # the first step
        here, late = self._right.gather(0, index[None])[0], self._right[-1]
        mean = float(index.double().mean()) + self._start + 1
        return _Outcome(thresholds, int((late & ~here).sum()), int((here & ~late).sum()), mean)


def _level(sure: torch.Tensor, lost: torch.Tensor, eps: float) -> float:
    """The lowest threshold above which ``(lost + 1) / count <= eps``, 1 if there is none. N"""
    order = sure.argsort(descending=True)
    count = torch.arange(1, len(order) + 1)
    allowed = (lost[order].cumsum(0) + 1 <= eps * count).nonzero().flatten()
    if not len(allowed):
        return 1.0
    last = int(allowed[-1])
    return float(sure[order[last + 1]]) if last + 1 < len(order) else 0.0


def _right(trace: Trace, certainty: Certainty) -> torch.Tensor:
    """Which samples are right at steps ``start + 1 .. T``. T-start N"""
    return certainty.totals(trace.outputs).argmax(-1) == trace.targets


def _policy(trace: Trace, family: Family, best: _Outcome | None, origin: dict[str, Any], notes: tuple[str, ...]) -> ExitPolicy:
    best = best or _Outcome((1.0,) * trace.steps, 0, 0, float(trace.steps))
    measured = {"samples": trace.samples, "lost": best.lost, "won": best.won, "mean_steps": best.mean_steps}
    return ExitPolicy(family.certainty, best.thresholds, {**origin, "family": family.name, **measured}, notes)


def _check_start(certainty: Certainty, steps: int) -> None:
    if not 0 <= certainty.start < steps:
        raise DataError(f"start is {certainty.start}: the read-out may leave out 0 to {steps - 1} of {steps} steps")

"""Families of thresholds, the authors' rule (P-ADA-5), and the guarantee by simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transpike.errors import DataError
from transpike.measure.early_exit import Certainty, ExitPolicy, ReadOut, Statistic, Trace
from transpike.measure.exit_thresholds import Family, calibrated, constant, levelled, paper_thresholds, risk_controlled

STEPS, CLASSES = 8, 5
ENTROPY = Certainty()


def synthetic(samples: int, seed: int, steps: int = STEPS) -> Trace:
    """Classifiers that get better with time: the right class is ahead by a margin of the sample's own, in noise."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (samples,), generator=g)
    ahead = 2.5 * torch.rand(samples, generator=g)
    noise = 2.0 * torch.randn(steps, samples, CLASSES, generator=g)
    return Trace(noise + ahead[:, None] * torch.nn.functional.one_hot(targets, CLASSES), targets)


@cache
def population() -> Trace:
    return synthetic(20_000, 0)


def outcome(policy: ExitPolicy, data: Trace) -> tuple[int, int, float]:
    """Answers lost and won against all steps, mean exit: straight from the definition."""
    lost = won = 0
    exits = policy.exits(data.outputs)
    start = policy.certainty.start
    totals = data.outputs[start:].double().cumsum(0)
    here = totals[exits - 1 - start, torch.arange(data.samples)].argmax(1) == data.targets
    late = totals[-1].argmax(1) == data.targets
    lost, won = int((late & ~here).sum()), int((here & ~late).sum())
    return lost, won, float(exits.double().mean())


def test_the_papers_thresholds_by_hand() -> None:
    """Two steps, two classes; right samples only: certain at step 2, not at step 1."""
    first = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    second = torch.tensor([[0.0, 5.0], [5.0, 0.0], [9.0, 0.0]])
    trace = Trace(torch.stack([first, second]), torch.tensor([1, 0, 1]))  # the last one is wrong
    policy = paper_thresholds(trace, Certainty(readout=ReadOut.SUM), alpha=0.6, beta=0.4)

    def entropy(gap: float) -> float:
        p = 1 / (1 + math.exp(-gap))
        return -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)

    assert policy.thresholds == (pytest.approx(0.6 + 0.4 * math.exp(entropy(6) - entropy(1))), 1.0)
    mean = paper_thresholds(trace, Certainty(readout=ReadOut.MEAN), alpha=0.5, beta=0.3).thresholds
    assert mean == (pytest.approx(0.5 + 0.3 * math.exp(entropy(3) - entropy(1))), pytest.approx(0.8))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), beta=st.floats(0.01, 0.4), readout=st.sampled_from(ReadOut), statistic=st.sampled_from(Statistic)
)
def test_the_papers_thresholds_lie_where_they_must(seed, beta, readout, statistic) -> None:
    """P-ADA-5: c_t in (alpha + beta / e, alpha + beta], maximal at the step of least entropy."""
    trace, alpha = synthetic(30, seed, steps=5), 0.6
    certainty = Certainty(statistic, readout)
    found = paper_thresholds(trace, certainty, alpha=alpha, beta=beta).thresholds
    assert all(alpha + beta / math.e < c <= alpha + beta + 1e-12 for c in found)
    right = trace.outputs.double().cumsum(0).argmax(-1) == trace.targets
    entropy = 1 - Certainty(Statistic.ENTROPY, readout).over_time(trace.outputs)
    means = [float(e[r].mean()) for e, r in zip(entropy, right)]
    assert int(np.argmax(found)) == int(np.argmin(means)) and max(found) == pytest.approx(alpha + beta)


def test_where_no_sample_is_right_nobody_leaves() -> None:
    outputs = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    assert paper_thresholds(Trace(outputs, torch.tensor([1])), ENTROPY, alpha=0.5, beta=0.2).thresholds == (1.0, pytest.approx(0.7))
    assert paper_thresholds(Trace(outputs[:1], torch.tensor([1])), ENTROPY).thresholds == (1.0,)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("kind", ["constant", "levelled"])
def test_a_family_goes_from_hardly_ever_leaving_to_leaving_at_once(kind: str, start: int) -> None:
    certainty, trace = Certainty(start=start), synthetic(400, 1)
    family = constant(certainty, STEPS) if kind == "constant" else levelled(trace, certainty)
    assert family.name == kind and all(len(c) == STEPS for c in family.candidates)
    means = [outcome(ExitPolicy(certainty, c), trace)[2] for c in family.candidates]
    assert means[0] == STEPS and means[-1] < start + 0.6 * (STEPS - start)
    assert all(a >= b - 0.3 for a, b in pairwise(means))  # levelled ones nearly in order


def test_levelled_thresholds_level_the_loss_at_every_step() -> None:
    """Independently: no lower threshold of a step keeps its share, and the one taken does."""
    trace = synthetic(500, 2)
    family = levelled(trace, ENTROPY)
    sure = ENTROPY.over_time(trace.outputs).numpy()
    right = (trace.outputs.double().cumsum(0).argmax(-1) == trace.targets).numpy()
    for eps, candidate in zip(10 ** (-np.arange(80, 9, -1) / 20), family.candidates, strict=True):
        there = np.ones(500, bool)
        for k in range(STEPS - 1):
            costs = []
            for c in [0.0, *sure[k][there], 1.0]:
                going = there & (sure[k] > c)
                lost = int((right[-1] & ~right[k] & going).sum())
                if going.sum() == 0 or lost + 1 <= eps * going.sum():
                    costs.append(c)
            assert candidate[k] == min(c for c in costs if (there & (sure[k] > c)).any() or c == 1.0)
            there &= sure[k] <= candidate[k]


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
def test_calibrated_takes_the_last_candidate_before_the_first_that_costs_too_much(loss: float, start: int) -> None:
    certainty, trace = Certainty(Statistic.MARGIN, start=start), synthetic(700, 3)
    family = constant(certainty, STEPS)
    chosen = calibrated(trace, family, loss=loss)
    drops = []
    for c in family.candidates:
        lost, won, _ = outcome(ExitPolicy(certainty, c), trace)
        drops.append(lost - won)
    last = next(k for k, drop in enumerate(drops) if drop > loss * 700) - 1
    assert chosen.thresholds == family.candidates[last]
    lost, won, mean = outcome(chosen, trace)
    assert (chosen.origin["lost"], chosen.origin["won"]) == (lost, won) and chosen.origin["mean_steps"] == pytest.approx(mean)
    assert chosen.origin["rule"] == "calibrated" and chosen.origin["family"] == "constant"


def test_risk_control_is_stricter_than_calibration_and_says_what_it_promises() -> None:
    trace, family = synthetic(2000, 4), constant(ENTROPY, STEPS)
    safe, bold = risk_controlled(trace, family, loss=0.02), calibrated(trace, family, loss=0.02)
    assert bold.origin["mean_steps"] < safe.origin["mean_steps"] < STEPS
    assert safe.origin["p_value"] <= 0.05 and "95% confidence" in safe.notes[0] and "2.00%" in safe.notes[0]
    surer = risk_controlled(trace, family, loss=0.02, confidence=0.999)
    assert surer.origin["mean_steps"] > safe.origin["mean_steps"]


def test_too_few_samples_let_nobody_leave_and_say_so() -> None:
    policy = risk_controlled(synthetic(50, 5), constant(ENTROPY, STEPS), loss=0.01)
    assert policy.thresholds == (1.0,) * STEPS
    assert policy.exits(population().outputs).tolist() == [STEPS] * population().samples
    assert "50 samples do not show" in policy.notes[0] and "408" in policy.notes[0]


@pytest.mark.parametrize("kind", ["constant", "levelled"])
@pytest.mark.parametrize("samples", [500, 1500])
def test_the_promise_holds_in_at_least_the_share_of_draws_that_was_asked_for(kind: str, samples: int) -> None:
    """The true loss, over the population that calibration sets are drawn from, is at most the one asked for."""
    whole, loss, confidence, draws = population(), 0.02, 0.8, 150
    family = constant(ENTROPY, STEPS) if kind == "constant" else levelled(synthetic(1000, 6), ENTROPY)
    generator = torch.Generator().manual_seed(7)
    held, bold_held, left = 0, 0, 0
    true: dict[tuple[float, ...], float] = {}

    def true_loss(policy: ExitPolicy) -> float:
        if policy.thresholds not in true:
            lost, won, _ = outcome(policy, whole)
            true[policy.thresholds] = (lost - won) / whole.samples
        return true[policy.thresholds]

    for _ in range(draws):
        rows = torch.randint(0, whole.samples, (samples,), generator=generator)
        drawn = Trace(whole.outputs[:, rows], whole.targets[rows])
        safe = risk_controlled(drawn, family, loss=loss, confidence=confidence)
        held += true_loss(safe) <= loss
        left += safe.origin["mean_steps"] < STEPS
        bold_held += true_loss(calibrated(drawn, family, loss=loss)) <= loss
    assert held / draws >= confidence - 0.05  # one and a half standard errors
    assert left / draws > 0.9  # not by never letting anyone leave
    assert bold_held / draws < confidence  # without the bound it would not hold


def test_what_makes_no_sense_is_refused() -> None:
    trace, family = synthetic(40, 8), constant(ENTROPY, STEPS)
    for alpha, beta in ((0.7, 0.4), (-0.1, 0.2), (0.5, -0.1)):
        with pytest.raises(DataError, match="alpha"):
            paper_thresholds(trace, ENTROPY, alpha=alpha, beta=beta)
    for loss, confidence in ((0.0, 0.95), (1.0, 0.95), (0.01, 1.0), (0.01, 0.0)):
        with pytest.raises(DataError, match="shares between 0 and 1"):
            risk_controlled(trace, family, loss=loss, confidence=confidence)
    with pytest.raises(DataError, match=r"loss is -0\.1"):
        calibrated(trace, family, loss=-0.1)
    for choose in (calibrated, risk_controlled):
        with pytest.raises(DataError, match="thresholds for 8 steps, the samples were simulated for 5"):
            choose(synthetic(40, 8, steps=5), family)
    late = replace(ENTROPY, start=STEPS)
    for wrong in (lambda: constant(late, STEPS), lambda: levelled(trace, late), lambda: paper_thresholds(trace, late)):
        with pytest.raises(DataError, match="start is 8"):
            wrong()


def test_one_step_is_a_run_to_the_end() -> None:
    trace = synthetic(500, 9, steps=1)
    for family in (constant(ENTROPY, 1), levelled(trace, ENTROPY), Family("mine", ENTROPY, ((0.5,),))):
        assert calibrated(trace, family).exits(trace.outputs).tolist() == [1] * 500

"""P-ADA-5, policies against the definition, and runs that really stop against offline choice."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import transpike
from models import batch_of, calibration, make
from transpike.errors import DataError, PlanError
from transpike.measure.accuracy import Classification
from transpike.measure.early_exit import Certainty, ExitPolicy, ReadOut, Statistic, record, run_with_exit
from transpike.methods.max_norm import MaxNorm
from transpike.network import SpikingNetwork
from transpike.spiking.plan import NeuronKind, Plan

STEPS = 12
EVERY = [Certainty(statistic, readout, start) for statistic in Statistic for readout in ReadOut for start in (0, 3)]


@cache
def network(name: str = "mlp") -> SpikingNetwork:
    return transpike.convert(make(name), MaxNorm(), calibration(name))


def policy(certainty: Certainty, c: float = 0.3) -> ExitPolicy:
    return ExitPolicy(certainty, (c,) * STEPS)


def logits(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(statistic: Statistic, y: np.ndarray) -> float:
    p = np.exp(y - y.max())
    p = np.sort(p / p.sum())
    if statistic is Statistic.ENTROPY:
        return 1 + float(sum(v * math.log(v) for v in p if v > 0)) / math.log(len(p))
    return float(p[-1]) if statistic is Statistic.CONFIDENCE else float(p[-1] - p[-2])


@pytest.mark.parametrize("certainty", EVERY, ids=str)
def test_certainty_is_its_formula(certainty: Certainty) -> None:
    totals, t = logits(0, 20, 7, scale=5), 5
    y = totals if certainty.readout is ReadOut.SUM else totals / (t - certainty.start)
    wanted = [by_hand(certainty.statistic, row.numpy()) for row in y]
    np.testing.assert_allclose(certainty.of(totals, t), wanted, atol=1e-12)


def test_certainty_of_a_uniform_and_of_a_decided_read_out() -> None:
    same, decided = torch.zeros(1, 4), torch.tensor([[1e4, 0.0, 0.0, 0.0]])
    for statistic, least in ((Statistic.ENTROPY, 0.0), (Statistic.CONFIDENCE, 0.25), (Statistic.MARGIN, 0.0)):
        assert float(Certainty(statistic).of(same, 1)) == pytest.approx(least, abs=1e-12)
        assert float(Certainty(statistic).of(decided, 1)) == 1.0  # and not NaN, though three probabilities underflow


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    y=st.lists(st.floats(-50, 50), min_size=2, max_size=12),
    factors=st.lists(st.floats(0, 40), min_size=2, max_size=6),
    statistic=st.sampled_from(Statistic),
)
def test_certainty_is_from_0_to_1_and_grows_as_logits_are_scaled_up(y, factors, statistic) -> None:
    """P-ADA-5: normalised entropy in [0, 1], entropy of softmax(c y) non-increasing in c: the sum sharpens with t."""
    scaled = torch.tensor(sorted(factors), dtype=torch.float64)[:, None] * torch.tensor(y, dtype=torch.float64)
    found = Certainty(statistic).of(scaled, 1)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert bool((found.diff() >= -1e-9).all())


def test_a_threshold_of_1_never_triggers_and_equality_does_not() -> None:
    decided = torch.tensor([[1e4, 0.0, 0.0, 0.0]] * 2)
    assert not bool(policy(Certainty(), 1.0).decide(decided, 3).any())
    exactly = float(Certainty().of(torch.ones(1, 4), 1))
    assert not bool(policy(Certainty(), exactly).decide(torch.ones(2, 4), 1).any())
    assert bool(policy(Certainty(), 0.999).decide(decided, 3).all())
    assert bool(policy(Certainty(), 1.0).decide(decided, STEPS).all())  # at the last step all leave


@pytest.mark.parametrize("certainty", EVERY, ids=str)
def test_each_sample_leaves_at_the_first_step_that_is_sure(certainty: Certainty) -> None:
    outputs = logits(1, STEPS, 40, 5)
    shares = torch.linspace(0.9, 0.6, STEPS - certainty.start, dtype=torch.float64)
    sure = certainty.over_time(outputs)
    thresholds = [0.5] * certainty.start + [float(s.quantile(share)) for s, share in zip(sure, shares, strict=True)]
    found = ExitPolicy(certainty, tuple(thresholds)).exits(outputs)
    wanted = []
    for n in range(40):
        for t in range(certainty.start + 1, STEPS + 1):
            total = outputs[certainty.start : t, n].numpy().sum(0)
            y = total if certainty.readout is ReadOut.SUM else total / (t - certainty.start)
            if t == STEPS or by_hand(certainty.statistic, y) > thresholds[t - 1]:
                wanted.append(t)
                break
    assert found.tolist() == wanted and len(set(wanted)) > 2


@pytest.mark.parametrize("certainty", EVERY, ids=str)
@pytest.mark.parametrize("chunk", [1, 5])
def test_a_run_with_exits_does_what_was_chosen_offline(certainty: Certainty, chunk: int) -> None:
    net, x = network(), batch_of("mlp", 32)
    full = transpike.simulate(net, x, STEPS).outputs
    sure = certainty.over_time(full).flatten()
    chosen = policy(certainty, float(sure[sure < 1].quantile(0.7)))
    run = run_with_exit(net, x, chosen, chunk=chunk)
    assert torch.equal(run.exits, chosen.exits(full)) and len(run.exits.unique()) > 2
    for n, t in enumerate(run.exits.tolist()):
        torch.testing.assert_close(run.readout[n], full[certainty.start : t, n].double().mean(0), atol=1e-5, rtol=1e-5)


def test_the_logits_of_several_outputs_are_found() -> None:
    net, x = network("two_outputs"), batch_of("two_outputs", 16)
    run = run_with_exit(net, x, policy(Certainty(), 0.05), task=Classification(0))
    full = transpike.simulate(net, x, STEPS).outputs[0]
    assert torch.equal(run.exits, policy(Certainty(), 0.05).exits(full))
    assert [y.shape for y in run.readout] == [(16, 4), (16, 8)]


def test_two_inputs_go_in_as_for_simulate() -> None:
    net = network("two_inputs")
    image, vector = batch_of("two_inputs", 6)
    run = run_with_exit(net, (image, vector), policy(Certainty(), 0.0))
    assert run.exits.tolist() == [1] * 6
    y = torch.zeros(6, dtype=torch.int64)
    assert record(net, [((image, vector), y)], STEPS).outputs.shape == (STEPS, 6, 3)


def test_a_trace_is_a_run_to_the_end_with_its_targets() -> None:
    x, y = batch_of("mlp", 10), torch.arange(10) % 4
    trace = record(network(), [(x[:7], y[:7]), (x[7:], y[7:])], STEPS)
    torch.testing.assert_close(trace.outputs, transpike.simulate(network(), x, STEPS).outputs)
    assert torch.equal(trace.targets, y) and (trace.steps, trace.samples) == (STEPS, 10)
    even, odd = trace.halves()
    assert torch.equal(even.targets, y[::2]) and torch.equal(odd.outputs, trace.outputs[:, 1::2])


def test_a_policy_says_what_it_is() -> None:
    given_ = ExitPolicy(Certainty(Statistic.MARGIN, ReadOut.SUM, 2), (1.0, 1.0, 0.5), {"rule": "mine"}, ("a note",))
    assert given_.steps == 3 and given_.to_dict() == {
        "statistic": "margin",
        "readout": "sum",
        "start": 2,
        "thresholds": [1.0, 1.0, 0.5],
        "origin": {"rule": "mine"},
        "notes": ["a note"],
    }


@pytest.mark.parametrize("thresholds", [(0.5, 1.5), (-0.1, 0.5), (math.nan, 0.5)])
def test_thresholds_out_of_range_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="from 0 to 1"):
        ExitPolicy(Certainty(), thresholds)


def test_a_start_that_leaves_no_step_is_refused() -> None:
    for start, thresholds in ((0, ()), (2, (0.5, 0.5)), (-1, (0.5, 0.5))):
        with pytest.raises(DataError, match="one for each step"):
            ExitPolicy(Certainty(start=start), thresholds)


def test_outputs_that_are_no_logits_are_refused() -> None:
    pixels = transpike.convert(make("upsampling"), MaxNorm(), calibration("upsampling"))
    with pytest.raises(DataError, match="early exit takes logits"):
        run_with_exit(pixels, batch_of("upsampling", 2), policy(Certainty()))
    with pytest.raises(DataError, match="early exit takes logits"):
        record(pixels, [(batch_of("upsampling", 2), torch.zeros(2, dtype=torch.int64))], 2)


def test_parallel_neurons_are_refused() -> None:
    net = network()
    sites = {n: replace(p, kind=NeuronKind.PARALLEL) for n, p in net.plan.sites.items()}
    with pytest.raises(PlanError, match="parallel neurons"):
        run_with_exit(transpike.build(net.graph, Plan(sites)), batch_of("mlp", 2), policy(Certainty()))


def test_data_without_targets_is_refused() -> None:
    with pytest.raises(DataError, match="no targets"):
        record(network(), [batch_of("mlp", 4)], 2)
    with pytest.raises(DataError, match="no batch"):
        record(network(), [], 2)

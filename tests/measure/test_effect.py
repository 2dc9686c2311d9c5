"""What lower precision did, against numbers computed by hand and against two separate simulations."""

from __future__ import annotations

import json

import pytest
import torch

import transpike
from models import batch_of, calibration, make
from transpike.engines.run import Run
from transpike.engines.trace import Layer, Trace
from transpike.errors import SpecError
from transpike.measure.accuracy import Classification
from transpike.measure.effect import Effect, effect_of
from transpike.methods.max_norm import MaxNorm


def run_of(outputs: list[list[list[float]]], spikes: float, trace: Trace) -> Run:
    counts = {"relu#1": torch.full((2, 3), spikes)}
    return Run(len(outputs), torch.tensor(outputs, dtype=torch.float32), counts, counts, counts, trace)


def test_the_closed_form() -> None:
    """Two steps, two samples, two classes; means (1, 2), (3, 0) against (1, 2), (0, 4)."""
    trace = Trace({"a": Layer("a", 1, precision="int8"), "b": Layer("b", 1, precision="float32 (reads no whole spikes)")})
    low = run_of([[[0, 4], [0, 0]], [[2, 0], [6, 0]]], 3.0, trace)
    full = run_of([[[1, 2], [0, 4]], [[1, 2], [0, 4]]], 4.0, Trace())
    found = effect_of("int8", Classification(), low, full)
    assert found == Effect("int8", 2, 2, 1, 4.0, 5.0 / 21**0.5, 0.5, -0.25)
    for words in ("2 samples", "4 at most", "109.109%", "50.00% same", "-25.000% spikes", "1 of 2 layers stayed float32"):
        assert words in str(found)


def test_a_silent_network_has_no_relative_difference() -> None:
    nothing = run_of([[[0.0, 0.0], [0.0, 0.0]]], 0.0, Trace())
    found = effect_of("bfloat16", Classification(), nothing, nothing)
    assert (found.largest, found.relative, found.spikes) == (0, 0, 0)


@pytest.mark.parametrize("low", ["bfloat16", "int8"])
def test_evaluate_compares_the_first_batch_with_float32(low: str) -> None:
    net = transpike.convert(make("residual"), MaxNorm(), calibration("residual"))
    x, y = batch_of("residual", 12), torch.arange(12) % 3
    report = transpike.evaluate(net, [(x[:8], y[:8]), (x[8:], y[8:])], 16, precision=low)
    mine, full = (transpike.simulate(net, x[:8], 16, precision=p, engine="dense").readout().double() for p in (low, "float32"))
    assert report.effect is not None and report.effect.precision == low and report.effect.samples == 8
    assert report.effect.largest == pytest.approx(float((mine - full).abs().max()), rel=1e-4)
    assert report.effect.relative == pytest.approx(float((mine - full).norm() / full.norm()), rel=1e-4)
    assert report.effect.same_answer == float((mine.argmax(1) == full.argmax(1)).double().mean())
    assert report.effect.largest > 0 and report.origin["precision"] == low
    assert str(report.effect) in str(report)
    assert json.loads(json.dumps(report.to_dict()))["precision"] == vars(report.effect)
    assert {row["precision"] for row in report.profile} == {low, "float32 (behind all neurons)"}


def test_float32_has_nothing_to_compare() -> None:
    net = transpike.convert(make("mlp"), MaxNorm(), calibration("mlp"))
    report = transpike.evaluate(net, [(batch_of("mlp", 4), torch.zeros(4).long())], 2)
    assert report.effect is None and report.to_dict()["precision"] is None and "against float32" not in str(report)
    with pytest.raises(SpecError, match="no precision"):
        transpike.evaluate(net, [(batch_of("mlp", 4), torch.zeros(4).long())], 2, precision="fp8")

"""One pass of evaluate against separate simulations, and every way in which data can be wrong."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from models import batch_of, calibration, dyadic, eighths, make
from transpike.errors import DataError
from transpike.graph.capture import capture
from transpike.measure.accuracy import Classification
from transpike.measure.report import Report
from transpike.methods.max_norm import MaxNorm
from transpike.network import SpikingNetwork
from transpike.spiking.plan import Plan, SiteParams

STEPS, SAMPLES = 9, 23


@cache
def network(name: str = "mlp") -> SpikingNetwork:
    return transpike.convert(make(name), MaxNorm(), calibration(name))


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = batch_of("mlp", SAMPLES)
    right = ann(x).argmax(1)
    wrong = torch.arange(SAMPLES) % 3 == 0
    return x, torch.where(wrong, (right + 1) % 4, right)  # an ANN accuracy of two thirds


def ann(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return make("mlp")(x)


@cache
def report() -> Report:
    x, y = data()
    return transpike.evaluate(network(), [(x, y)], STEPS, starts=(3,))


def accuracy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(np.mean(np.argmax(logits.numpy(), 1) == targets.numpy()))


def test_the_metric_at_every_step_is_that_of_a_separate_simulation() -> None:
    x, y = data()
    for t in range(1, STEPS + 1):
        alone = transpike.simulate(network(), x, steps=t).readout()
        assert report().at(t) == pytest.approx(accuracy(alone, y))
        assert report().agreement["plain"][t - 1] == pytest.approx(accuracy(alone, ann(x).argmax(1)))
    assert len(set(report().curves["plain"]["top1"])) > 1  # the steps do differ


@pytest.mark.parametrize("window", ["delayed", "estimate", "start3"])
def test_delayed_curves_are_those_of_the_delayed_read_out(window: str) -> None:
    x, y = data()
    run, delay = transpike.simulate(network(), x, STEPS), math.ceil(report().delay)
    assert 1 <= delay < STEPS
    for t in range(1, STEPS + 1):
        late = {"delayed": max(0, min(delay, t - 4)), "estimate": delay, "start3": 3}[window]
        start = late if late < t else 0
        read = run.outputs[start:t].double().mean(0)
        assert report().at(t, window) == pytest.approx(accuracy(read, y))
        assert report().agreement[window][t - 1] == pytest.approx(accuracy(read, ann(x).argmax(1)))


def test_the_ann_is_measured_on_the_same_samples() -> None:
    x, y = data()
    assert report().ann["top1"] == pytest.approx(accuracy(ann(x), y)) == pytest.approx(15 / 23)
    assert report().ann["top5"] == 1.0  # four classes
    assert (report().samples, report().steps, report().network) == (SAMPLES, STEPS, "Sequential")


def test_the_account_of_operations_is_that_of_energy() -> None:
    x, _ = data()
    e = transpike.energy(network(), [x], STEPS)
    np.testing.assert_allclose(report().energy.sops, e.sops, rtol=1e-6)
    assert report().energy.by_layer == pytest.approx(e.by_layer)


def same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key != "seconds":
                same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == (pytest.approx(b, rel=1e-6) if isinstance(b, float) else b)


@pytest.mark.parametrize("sizes", [[1] * SAMPLES, [10, 10, 3], [2, 20, 1]])
def test_how_the_data_is_cut_into_batches_does_not_change_the_report(sizes: list[int]) -> None:
    model = dyadic(make("mlp"))  # sums are exact, whatever the batch
    x, y = eighths(SAMPLES, 6), data()[1]
    graph = capture(model, x[:2])
    sites = {site.name: SiteParams(torch.tensor(4.0), torch.tensor(2.0)) for site in graph.sites}
    net = transpike.build(graph, Plan(sites))
    whole = transpike.evaluate(net, [(x, y)], STEPS, starts=(2,))
    parts = transpike.evaluate(net, list(zip(x.split(sizes), y.split(sizes), strict=True)), STEPS, starts=(2,))
    same(whole.to_dict(), parts.to_dict())
    assert whole.delay > 0 and whole.energy.sops[-1] > 0


def test_what_is_held_in_memory_does_not_change_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpike.measure.evaluate._HELD_BYTES", 1)  # one sample at a time
    x, y = data()
    seen: list[int] = []
    again = transpike.evaluate(network(), [(x, y)], STEPS, starts=(3,), progress=seen.append)
    assert seen == list(range(1, SAMPLES + 1))
    same(report().to_dict()["curves"], again.to_dict()["curves"])


def test_a_generator_of_batches_serves_too() -> None:
    x, y = data()
    again = transpike.evaluate(network(), ((x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)), STEPS)
    assert again.samples == SAMPLES and again.at(STEPS) == pytest.approx(report().at(STEPS))


def test_silent_and_saturated_channels_of_a_constructed_network() -> None:
    """Channel 0 never reaches its threshold, 1 fires at every step, 2 at every other step, 3 only in one of 4 samples."""
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    net = transpike.build(capture(model, torch.zeros(2, 4, 2, 2)), Plan({"0#1": SiteParams(torch.ones(()))}))
    x = torch.tensor([0.0, 1.0, 0.5, 0.0])[None, :, None, None].repeat(4, 1, 2, 2)
    x[2, 3] = 0.5
    found = transpike.evaluate(net, [(x, torch.zeros(4, dtype=torch.int64))], steps=8)
    assert found.silent == {"0#1": 1} and found.saturated == {"0#1": 1} and found.channels == {"0#1": 4}
    assert found.rates == {"0#1": pytest.approx((1 + 0.5 + 0.5 / 4) / 4)}


def test_bursts_saturate_at_their_cap_and_never_without_one() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2)).eval()
    graph, x = capture(model, torch.zeros(2, 2)), torch.tensor([[1.0, 5.0]])
    for cap, wanted in ((1, 2), (3, 1), (5, 1), (6, 0), (None, 0)):
        net = transpike.build(graph, Plan({"0#1": SiteParams(torch.ones(()), cap=cap)}))
        assert transpike.evaluate(net, [(x, torch.tensor([0]))], steps=4).saturated == {"0#1": wanted}


def test_another_output_can_be_measured() -> None:
    net, x = network("two_outputs"), batch_of("two_outputs", 5)
    y = make("two_outputs")(x)[1].argmax(1)
    found = transpike.evaluate(net, [(x, y)], steps=4, task=Classification(output=1))
    assert found.ann["top1"] == 1.0


def test_two_inputs_and_their_targets() -> None:
    image, vector = batch_of("two_inputs", 5)
    y = make("two_inputs")(image, vector).argmax(1)
    found = transpike.evaluate(network("two_inputs"), [(image, vector, y)], steps=4)
    assert found.ann["top1"] == 1.0 and found.samples == 5


X, Y = batch_of("mlp", 4), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([], "no batch"),
        (iter(()), "no batch"),
        ([X], "no targets"),
        ([(X,)], "no targets"),
        ([(X, Y[:3])], "4 samples and 3 targets"),
        ([(X, torch.cat([Y, Y]))], "4 samples and 8 targets"),
        ([(X, 3)], "one target per sample"),
        ([(X, torch.tensor(3))], "one target per sample"),
        ([(X, Y + 1)], "classes 0 to 3"),
        ([(X, Y.float())], "class number"),
        ([(X.masked_fill(X > 1, torch.nan), Y)], "NaN or infinite"),
        ([(X, Y), (X / 0, Y)], "NaN or infinite"),
        ([(torch.zeros(4, 3, 32, 32), Y)], r"shape \(4, 3, 32, 32\), Sequential was captured for \(N, 6\)"),
        ([(X[:0], Y[:0])], "empty batch"),
        (17, "iterable"),
    ],
)
def test_data_that_cannot_be_used_is_one_clear_line(loader: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        transpike.evaluate(network(), loader, steps=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("starts", [[-1], [4], [0, 9]])
def test_a_read_out_that_starts_outside_of_the_run_is_refused(starts: list[int]) -> None:
    with pytest.raises(DataError, match="starts"):
        transpike.evaluate(network(), [(X, Y)], steps=4, starts=starts)


def test_no_steps_are_refused() -> None:
    with pytest.raises(DataError, match="at least one step"):
        transpike.evaluate(network(), [(X, Y)], steps=0)


def test_the_report_says_where_the_numbers_come_from() -> None:
    origin = report().origin
    assert origin["method"] == "MaxNorm" and origin["engine"] == "auto" and len(origin["weights"]) == 64
    assert {"python", "torch", "transpike"} <= set(origin["versions"])
    assert report().notes == network().plan.notes

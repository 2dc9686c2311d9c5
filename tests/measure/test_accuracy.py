"""Read-out windows (P-IF-8) and top-k accuracy against plain arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from transpike.errors import DataError
from transpike.graph.capture import capture
from transpike.measure.accuracy import Classification, Window, read_outs, windows_of
from transpike.spiking.plan import Plan, SiteParams


def means_of(y: Any, window: Window, steps: int) -> list[Any]:
    """The read-out at every step."""
    found = dict(read_outs(y, [(window.start(t), t) for t in range(1, steps + 1)]))
    return [found[window.start(t), t] for t in range(1, steps + 1)]


def steps_read(window: Window, t: int) -> list[int]:
    return list(range(window.start(t) + 1, t + 1))


def test_the_plain_window_reads_every_step() -> None:
    assert all(steps_read(Window("plain"), t) == list(range(1, t + 1)) for t in range(1, 20))


@pytest.mark.parametrize("delay", [0, 1, 3, 9, 100])
def test_the_papers_rule_reads_the_steps_behind_the_delay_but_at_least_four(delay: int) -> None:
    """Algorithm 2 of Bu et al. 2025: ``if t0 > T - 4: t0 = T - 4``; add up the steps t > t0."""
    window = Window("delayed", delay, 4)
    for t in range(1, 30):
        t0 = t - 4 if delay > t - 4 else delay
        assert steps_read(window, t) == [step for step in range(1, t + 1) if step > t0]
    assert steps_read(Window("delayed", 100, 4), 16) == [13, 14, 15, 16]  # T-3 .. T
    assert steps_read(Window("delayed", 100, 4), 3) == [1, 2, 3]


def test_a_fixed_start_stands_in_with_the_plain_read_out_until_it_is_passed() -> None:
    window = Window("start5", 5)
    assert [steps_read(window, t) for t in (4, 5, 6, 8)] == [[1, 2, 3, 4], [1, 2, 3, 4, 5], [6], [6, 7, 8]]


def test_the_windows_of_a_report() -> None:
    windows = windows_of([0, 16], 2.3)
    assert [(w.name, w.delay, w.minimum) for w in windows] == [
        ("plain", 0, None),
        ("delayed", 3, 4),  # whole steps, rounded up
        ("estimate", 3, None),
        ("start0", 0, None),
        ("start16", 16, None),
    ]


@pytest.mark.parametrize("window", windows_of([5], 2.3), ids=lambda w: w.name)
def test_window_means_are_the_means_over_the_window(window: Window) -> None:
    y = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(0))
    means = means_of(y, window, 12)
    for t in range(1, 13):
        wanted = y[window.start(t) : t].double().mean(0)
        torch.testing.assert_close(means[t - 1], wanted, rtol=1e-12, atol=1e-12)


def test_read_outs_of_several_outputs_keep_their_structure() -> None:
    y = {"a": torch.randn(6, 2, 3), "b": [torch.randn(6, 2, 4, 4)]}
    found = list(read_outs(y, [(0, 2), (3, 6), (0, 6)]))
    assert [pair for pair, _ in found] == [(0, 2), (0, 6), (3, 6)]
    torch.testing.assert_close(found[2][1]["b"][0], y["b"][0][3:].double().mean(0))
    torch.testing.assert_close(found[0][1]["a"], y["a"][:2].double().mean(0))


def test_a_late_window_keeps_its_precision_after_large_early_outputs() -> None:
    y = torch.cat([torch.full((1, 1, 1), 1e7), torch.full((9, 1, 1), 0.1)])
    assert float(means_of(y, Window("start5", 5), 10)[-1]) == pytest.approx(0.1, rel=1e-6)


def test_the_delayed_read_out_is_the_rate_less_what_the_membrane_kept() -> None:
    """P-IF-8: r(t0, T) = W r - (v(T) - v(t0)) / (T - t0) for a neuron layer as read-out; dyadic numbers, exact."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randint(-4, 5, (3, 4), generator=torch.Generator().manual_seed(2)) / 4)
        model[1].bias.copy_(torch.tensor([0.25, 0.0, -0.25]))
    graph = capture(model, torch.zeros(2, 4))
    net = transpike.build(graph, Plan({site.name: SiteParams(torch.ones(()), torch.tensor(0.5)) for site in graph.sites}))
    x = torch.tensor([[0.75, 0.25, 0.5, 0.875]])
    end, start = transpike.simulate(net, x, 12), transpike.simulate(net, x, 8)
    inner, outer = (site.name for site in graph.sites)
    rate = (end.spikes[inner] - start.spikes[inner]) / 4
    wanted = model[1](rate).detach() - (end.membranes[outer] - start.membranes[outer]) / 4
    assert torch.equal(end.readout(12, start=8), wanted)
    assert torch.equal(means_of(end.outputs, Window("delayed", 8, 4), 12)[-1].float(), wanted)


def test_top1_and_top5_against_sorting_in_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(7, 40, 9, generator=generator), torch.randint(0, 9, (40,), generator=generator)
    found = Classification().correct(logits, targets)
    ranks = np.argsort(-logits.numpy(), axis=-1)
    for metric, k in (("top1", 1), ("top5", 5)):
        wanted = [sum(int(targets[n]) in ranks[t, n, :k] for n in range(40)) for t in range(7)]
        assert found[metric].tolist() == wanted
    assert torch.equal(Classification().decide(logits), torch.from_numpy(ranks[..., 0]))


def test_with_fewer_than_five_classes_top5_is_always_right() -> None:
    found = Classification().correct(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert int(found["top5"]) == 6


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (None, "no targets"),
        (torch.tensor([0, 1]), "one class number per sample"),
        (torch.tensor([0.0, 1.0, 2.0]), "one class number per sample"),
        (torch.zeros(3, 4, dtype=torch.int64), "one class number per sample"),
        (torch.tensor([0, 1, 4]), "classes 0 to 3"),
        (torch.tensor([0, -1, 2]), "from -1 to 2"),
        (["cat", "dog", "cow"], "class numbers"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Classification().check(torch.zeros(3, 4), targets)


def test_targets_may_be_a_list_of_numbers() -> None:
    assert Classification().check(torch.zeros(3, 4), [0, 3, 1]).tolist() == [0, 3, 1]


@pytest.mark.parametrize("shape", [(3,), (3, 4, 8, 8)])
def test_outputs_that_are_no_logits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"logits \(N, classes\)"):
        Classification().check(torch.zeros(shape), torch.tensor([0, 1, 2]))


def test_logits_are_found_by_position_or_key() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert Classification().readout(a) is a
    assert Classification().readout((a, b)) is a and Classification(1).readout([a, b]) is b
    assert Classification().readout({"out": a, "aux": b}) is a and Classification("aux").readout({"out": a, "aux": b}) is b
    assert Classification(1).readout({"out": a, "aux": b}) is b


@pytest.mark.parametrize(("output", "outputs"), [(2, (0, 1)), ("aux", (0, 1)), ("auxx", {"out": 0, "aux": 1}), (5, {"out": 0})])
def test_a_missing_output_is_refused_with_a_choice(output: int | str, outputs: Any) -> None:
    with pytest.raises(DataError, match=r"no output .* choose from"):
        Classification(output).readout(outputs)

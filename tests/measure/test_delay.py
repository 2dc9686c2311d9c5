"""The estimated delay by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.measure.delay import estimate_delay
from transpike.spiking.plan import Plan, SiteParams


def two_layers() -> Graph:
    """relu(x) -> [[1, 0], [1, 1]] -> relu -> sum."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        model[3].weight.fill_(1.0)
    return capture(model, torch.zeros(2, 2))


def plan(*thetas: torch.Tensor, start: float = 0.5) -> Plan:
    return Plan({name: SiteParams(theta, theta * start) for name, theta in zip(("0#1", "2#1"), thetas, strict=True)})


X = torch.tensor([[0.2, 0.6], [0.4, -1.0]])  # means of ReLU: 0.3, 0.3


def test_two_layers_by_hand() -> None:
    # layer 1: thresholds 1 and 2, from half: waits 0.5/0.3 and 1/0.3; the fastest counts
    # layer 2 sees [0.2, 0.6] and [0.4, 0]: z = [0.2, 0.8], [0.4, 0.4], means 0.3 and 0.6; waits 0.5/0.3 and 1.5/0.6
    thetas = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert estimate_delay(two_layers(), plan(*thetas), [X]) == pytest.approx(0.5 / 0.3 + 0.5 / 0.3)


def test_a_scalar_threshold_gives_equation_19() -> None:
    """(theta - v(0)) / max_i E ReLU(z_i), summed over layers."""
    found = estimate_delay(two_layers(), plan(torch.tensor(1.0), torch.tensor(2.0), start=0.25), [X])
    assert found == pytest.approx(0.75 * 1 / 0.3 + 0.75 * 2 / 0.6)


def test_deeper_layers_see_clipped_activations_but_a_neuron_is_charged_by_all_it_gets() -> None:
    # theta 0.3 clips layer 1 to [0.2, 0.3], [0.3, 0]: z = [0.2, 0.5], [0.3, 0.3], means 0.25 and 0.4
    # but layer 1 itself is charged 0.3 on average: E ReLU(z), not of what it passes on
    found = estimate_delay(two_layers(), plan(torch.tensor(0.3), torch.tensor(1.0)), [X])
    assert found == pytest.approx(0.15 / 0.3 + 0.5 / 0.4)


def test_bursts_raise_the_clip() -> None:
    thetas = {"0#1": SiteParams(torch.tensor(0.3), cap=4), "2#1": SiteParams(torch.tensor(1.0))}
    assert estimate_delay(two_layers(), Plan(thetas), [X]) == pytest.approx(0.3 / 0.3 + 1.0 / 0.6)
    unlimited = {"0#1": SiteParams(torch.tensor(0.01), cap=None), "2#1": SiteParams(torch.tensor(1.0))}
    assert estimate_delay(two_layers(), Plan(unlimited), [X]) == pytest.approx(0.01 / 0.3 + 1.0 / 0.6)


def test_a_silent_layer_and_a_charged_one_wait_for_nothing() -> None:
    assert estimate_delay(two_layers(), plan(torch.tensor(1.0), torch.tensor(1.0)), [-X.abs()]) == 0.0
    assert estimate_delay(two_layers(), plan(torch.tensor(1.0), torch.tensor(1.0), start=1.0), [X]) == 0.0


def test_weights_that_the_plan_replaces_are_used() -> None:
    doubled = Plan(plan(torch.tensor(1.0), torch.tensor(1.0)).sites, {"1.weight": 2 * two_layers().params["1.weight"]})
    assert estimate_delay(two_layers(), doubled, [X]) == pytest.approx(0.5 / 0.3 + 0.5 / 1.2)


def test_a_network_without_neurons_has_no_delay() -> None:
    assert estimate_delay(capture(nn.Linear(2, 1).eval(), X), Plan({}), [X]) == 0.0

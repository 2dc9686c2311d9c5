"""One neuron against closed forms, bit for bit on dyadic numbers (names of properties: algorithms.md 10)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from models import eighths
from transpike.spiking.neurons import differential, step

STEPS = 40
CAPS = (1, 2, 4, None)

thresholds = st.integers(1, 24).map(lambda k: k / 8)
fractions = st.integers(0, 7).map(lambda k: k / 8)  # of the threshold: 0 <= v0 < theta
currents = st.integers(-32, 32).map(lambda k: k / 8)
trains = st.lists(currents, min_size=1, max_size=STEPS)
caps = st.sampled_from(CAPS)


def _run(train: list[float], theta: float, v0: float, cap: int | None = 1, signed: bool = False) -> tuple[list[int], list[float]]:
    """Spikes and potentials of every step."""
    v, sent = torch.tensor([v0]), torch.zeros(1)
    spikes, potentials = [], []
    for current in train:
        s, v, sent = step(v, sent, torch.tensor([current]), torch.tensor(theta), cap, signed)
        spikes.append(int(s.item()))
        potentials.append(v.item())
    assert int(sent.item()) == sum(spikes)
    return spikes, potentials


def _clip(x: float, high: float) -> float:
    return min(max(x, 0), high)


@pytest.mark.parametrize("cap", CAPS)
def test_a_constant_current_gives_the_clipped_floor_at_every_step(cap):  # P-IF-1, P-ADA-1; all currents, ties included
    x, theta, part = torch.cartesian_prod(torch.arange(-8, 25) / 8, torch.arange(1, 17) / 8, torch.arange(8) / 8).unbind(1)
    v, sent = part * theta, torch.zeros_like(x)
    for t in range(1, STEPS + 1):
        _, v, sent = step(v, sent, x, theta, cap)
        wanted = torch.floor((t * x.double() + part * theta) / theta).clamp(min=0)
        assert torch.equal(sent.double(), wanted if cap is None else wanted.clamp(max=cap * t))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(train=trains, theta=thresholds, part=fractions, cap=caps, signed=st.booleans())
def test_charge_is_conserved(train, theta, part, cap, signed):  # P-IF-2, P-SGN-3
    spikes, potentials = _run(train, theta, part * theta, cap, signed)
    assert potentials[-1] == part * theta + sum(train) - theta * sum(spikes)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(train=trains, theta=thresholds, part=fractions)
def test_the_count_is_the_floor_of_the_charge_exactly_where_the_potential_ends_below_the_threshold(train, theta, part):  # P-IF-2
    spikes, potentials = _run(train, theta, part * theta)
    assert (sum(spikes) == math.floor((sum(train) + part * theta) / theta)) == (0 <= potentials[-1] < theta)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=st.integers(1, 32).map(lambda k: k / 8), theta=thresholds, part=fractions)
def test_the_first_spike_comes_when_the_charge_reaches_the_threshold(x, theta, part):  # P-IF-10
    first = max(1, math.ceil((theta - part * theta) / x))
    spikes, _ = _run([x] * (first + 1), theta, part * theta)
    assert spikes.index(1) + 1 == first


@settings(max_examples=30, deadline=None, derandomize=True)
@given(x=currents, theta=thresholds, part=fractions, cap=st.sampled_from([2, 4, 8]))
def test_a_burst_neuron_counts_like_a_faster_plain_one(x, theta, part, cap):  # P-ADA-2
    spikes, _ = _run([x] * 8, theta, part * theta, cap)
    micro, _ = _run([x / cap] * (8 * cap), theta, part * theta)
    assert sum(spikes) == sum(micro)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(st.integers(0, 8), min_size=1, max_size=STEPS), theta=thresholds, part=fractions, cap=st.sampled_from([1, 3]))
def test_the_count_does_not_depend_on_timing_if_no_step_brings_more_than_a_burst(parts, theta, part, cap):  # P-ADA-3
    train = [k / 8 * cap * theta for k in parts]
    for order in (train, sorted(train), sorted(train, reverse=True)):
        spikes, _ = _run(order, theta, part * theta, cap)
        assert sum(spikes) == math.floor((sum(train) + part * theta) / theta)


def test_a_plain_neuron_fires_too_little_when_its_charge_comes_late():  # P-ADA-3, the other half
    late, early = [0.0] * 6 + [4.0] * 2, [1.0] * 8
    assert sum(_run(late, 1.0, 0.0)[0]) == 2 and sum(_run(early, 1.0, 0.0)[0]) == 8
    assert sum(_run(late, 1.0, 0.0, cap=None)[0]) == 8


@settings(max_examples=100, deadline=None, derandomize=True)
@given(train=trains, theta=thresholds, part=fractions)
def test_a_signed_neuron_without_cap_has_the_right_count_at_every_step_of_any_train(train, theta, part):  # P-SGN-1
    spikes, _ = _run(train, theta, part * theta, None, True)
    charge = part * theta
    for count, current in zip(itertools.accumulate(spikes), train, strict=True):
        charge += current
        assert count == max(0, math.floor(charge / theta))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=st.integers(0, 32).map(lambda k: k / 8), theta=thresholds, part=fractions, cap=caps)
def test_a_signed_neuron_equals_an_unsigned_one_under_constant_drive(x, theta, part, cap):  # P-SGN-2
    assert _run([x] * STEPS, theta, part * theta, cap, True) == _run([x] * STEPS, theta, part * theta, cap)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(train=trains, theta=thresholds, part=fractions, cap=caps)
def test_a_signed_neuron_takes_back_only_what_it_sent_and_owes_nothing_while_it_has_sent(train, theta, part, cap):  # P-SGN-3
    spikes, potentials = _run(train, theta, part * theta, cap, True)
    sent = 0
    for s, v in zip(spikes, potentials, strict=True):
        sent += s
        assert sent >= 0
        assert cap is None or s <= cap
        assert v < theta or s == cap
        assert sent == 0 or v >= 0


def test_thresholds_broadcast_over_channels():
    v, theta = torch.full((2, 3, 4), 2.0), torch.tensor([1.0, 2.0, 4.0]).view(3, 1)
    s, left, sent = step(v, torch.zeros_like(v), torch.zeros_like(v), theta, None)
    assert s[0, :, 0].tolist() == [2, 1, 0] and left[0, :, 0].tolist() == [0, 0, 2] and torch.equal(s, sent)


def test_a_step_leaves_its_arguments_alone():
    arguments = [eighths(4, seed=k) for k in range(3)] + [torch.tensor(0.5)]
    before = [x.clone() for x in arguments]
    step(*arguments, cap=2, signed=True)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@pytest.mark.parametrize(
    ("function", "homogeneous"),
    [
        (lambda x: F.max_pool1d(x, 2), True),
        (lambda x: x.softmax(-1), False),
        (lambda x: F.layer_norm(x, (6,)), False),
        (lambda x: (x * 3).round(), False),
        (lambda x: x.square().cumsum(-1), False),
    ],
)
def test_the_mean_of_the_differential_combinator_is_the_function_of_the_mean_at_every_step(function, homogeneous):
    x = torch.randn(12, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums, before, emitted = (torch.zeros(3, 6, dtype=torch.float64),), None, []
    for t, frame in enumerate(x, 1):
        y, sums, before = differential(function, sums, [frame], before, t, homogeneous)
        emitted.append(y)
        torch.testing.assert_close(torch.stack(emitted).mean(0), function(x[:t].mean(0)))

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
from transpike.spiking.neurons import differential, parallel, parallel_count, step

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


# parallel neurons


@given(st.data())
def test_parallel_counts_any_train_by_its_whole_charge(data: st.DataObject) -> None:
    """P-PAR-1 and P-PAR-2: n = clip(floor((sum I + psi) / theta), 0, B T), the train sorted, order in time irrelevant."""
    steps, cap = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    charges = data.draw(st.lists(st.integers(-40, 60), min_size=steps, max_size=steps))
    theta, psi = data.draw(st.integers(1, 24)), data.draw(st.integers(-8, 24))
    n = parallel_count(torch.tensor([sum(charges) / 8]), torch.tensor(psi / 8), torch.tensor(theta / 8), steps, cap)
    wanted = min(max((sum(charges) + psi) // theta, 0), cap * steps)
    assert n.tolist() == [wanted]
    early, late = parallel(n, steps, cap), parallel(n, steps, cap, late=True)
    assert early.shape == (steps, 1) and float(early.sum()) == wanted
    assert early[:, 0].tolist() == sorted(early[:, 0].tolist(), reverse=True)
    assert late[:, 0].tolist() == sorted(early[:, 0].tolist())
    assert max(early[:, 0].tolist()) <= cap


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_parallel_is_the_papers_matrix_form(steps: int) -> None:
    """P-PAR-4: step x compares ``sum_j I_j / (T - x + 1) + psi / (T - x + 1)`` with theta, and that matrix is post @ pre."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    pre = torch.full((steps, steps), 1 / steps, dtype=torch.float64)
    post = torch.tril((steps / (t * (steps - t + 1)))[:, None].expand(steps, steps))
    matrix = (1 / (steps - t + 1))[:, None].expand(steps, steps)
    torch.testing.assert_close(post @ pre, matrix, rtol=1e-12, atol=0)
    currents = torch.randn(200, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))
    theta, psi = 0.37, 0.185
    fires = (currents @ matrix.T + psi / (steps - t + 1) >= theta).double()  # N T
    n = parallel_count(currents.sum(1), torch.tensor(psi), torch.tensor(theta), steps)
    assert torch.equal(parallel(n, steps, late=True).T, fires)


@pytest.mark.parametrize("steps", [1, 3, 8, 32])
def test_first_firing_step_is_found_by_halving(steps: int) -> None:
    """P-PAR-5: late trains are sorted, so ceil(log2(T + 1)) probes find the first spike, at T - n + 1."""
    for n in range(steps + 1):
        train = parallel(torch.tensor([float(n)]), steps, late=True)[:, 0]
        low, high, probes = 0, steps, 0  # the first spike is at index low..high, high = none
        while low < high:
            middle, probes = (low + high) // 2, probes + 1
            low, high = (low, middle) if train[middle] > 0 else (middle + 1, high)
        assert low + 1 == steps - n + 1 and probes <= math.ceil(math.log2(steps + 1))


def test_max_pooling_sorted_frames_is_max_pooling_counts() -> None:
    """P-PAR-7, and that it fails for trains that are not sorted."""
    counts = torch.randint(0, 9, (4, 2, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    pool = torch.nn.MaxPool2d(2)
    for late in (False, True):
        frames = torch.stack([pool(frame) for frame in parallel(counts, 8, late=late)])
        assert torch.equal(frames, parallel(pool(counts), 8, late=late))
    shuffled = parallel(counts, 8)[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    rolled = torch.stack([frame.roll(k, -1) for k, frame in enumerate(shuffled)])
    assert not torch.equal(torch.stack([pool(f) for f in rolled]).sum(0), pool(rolled.sum(0)))


def test_without_a_cap_everything_is_sent_at_once() -> None:
    n = parallel_count(torch.tensor([7.0, -1.0]), torch.tensor(0.5), torch.tensor(1.0), 2, None)
    assert n.tolist() == [7.0, 0.0]
    assert parallel(n, 2, None).tolist() == [[7.0, 0.0], [0.0, 0.0]]
    assert parallel(n, 2, None, late=True).tolist() == [[0.0, 0.0], [7.0, 0.0]]

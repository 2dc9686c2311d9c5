"""Spikes as bits: numbers, sums and neighbours made of them are those of the tensors, and networks run on them exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import dyadic, eighths
from transpike.engines.emitted import Emitted, Worth, frames_of
from transpike.engines.event_vectors import NOTHING, SPARE
from transpike.engines.events import Synapse
from transpike.engines.executor import simulate
from transpike.engines.vectors import LANES
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.spiking.plan import Plan, SiteParams

CHANNELS = 2 * LANES
SHAPE = (CHANNELS, 3, 5)


def emitted(frames: int, worth: torch.Tensor, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[Emitted, torch.Tensor]:
    """Random spikes as bits, and as numbers (frames, channels first)."""
    lit = torch.rand(frames, *shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    found = Emitted(shape, frames, Worth(frames_of_one(worth.expand(shape)), shape[0]), several=False)
    found.bits[:-SPARE] = np.packbits(lit.movedim(1, -1).flatten().numpy(), bitorder="little")
    return found, lit * worth


def frames_of_one(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(frames_of(x[None]).copy())


def test_numbers_are_what_the_spikes_are_worth() -> None:
    worth = eighths(*SHAPE, low=1, high=9)
    found, wanted = emitted(4, worth)
    assert torch.equal(found.numbers(), wanted) and found.dim() == 4 and len(found) == 4


def test_sums_go_on_from_those_before_sample_by_sample() -> None:
    steps, samples = 3, 2
    found, numbers = emitted(steps * samples, eighths(CHANNELS, 1, 1, low=1, high=9))
    before = eighths(samples, *SHAPE, seed=3)
    wanted = before + numbers.view(steps, samples, *SHAPE).cumsum(0)
    assert torch.equal(found.sums(before, steps).view(steps, samples, *SHAPE), wanted)
    assert torch.equal(found.sums(found.nothing(steps), steps).view(wanted.shape), wanted - before)


def test_bits_of_pixels_make_the_same_spikes_again() -> None:
    found, numbers = emitted(4, eighths(CHANNELS, 1, 1, low=1, high=9))
    again = Emitted.made_of(found.pixels(), found.worth)
    assert torch.equal(again.numbers(), numbers) and np.array_equal(again.bits[:-SPARE], found.bits[:-SPARE])


def test_spikes_as_whole_numbers_of_bfloat16() -> None:
    found, numbers = emitted(3, torch.ones(1))
    assert found.halves().dtype == torch.bfloat16 and torch.equal(found.halves().float(), numbers)


def test_a_channel_has_a_worth_where_its_units_agree_and_fire_once() -> None:
    worth = eighths(CHANNELS, 1, 1, low=1, high=9)
    found, _ = emitted(1, worth)
    assert np.array_equal(found.by_channel, worth.flatten().numpy())
    assert emitted(1, eighths(*SHAPE, low=1, high=9))[0].by_channel is NOTHING
    assert Emitted(SHAPE, 1, found.worth, several=True).by_channel is NOTHING


def test_density_is_counted_in_bits() -> None:
    found, numbers = emitted(400, torch.ones(1), shape=(CHANNELS, 8, 8))
    lit, looked = found.looked()
    assert looked < numbers.numel() and abs(lit / looked - float(numbers.mean())) < 0.02
    few, numbers = emitted(1, torch.ones(1))
    assert few.looked() == (int(numbers.sum()), numbers.numel())


@pytest.mark.parametrize("groups", [1, 2, CHANNELS // 4])
@pytest.mark.parametrize("folded", [False, True])
def test_currents_of_bits_are_those_of_numbers(groups: int, folded: bool) -> None:
    """With groups of four channels bits do not begin with bytes: then numbers are read."""
    found, numbers = emitted(3, eighths(CHANNELS, 1, 1, low=1, high=9), shape=(CHANNELS, 6, 7))
    w = eighths(2 * CHANNELS, CHANNELS // groups, 3, 3, seed=1)
    synapse = Synapse("w", None, 6, 7, CHANNELS, 6, 7, 2 * CHANNELS, (3, 3), (1, 1), (1, 1), (1, 1), groups)
    weights = synapse.layout({"w": w})
    if folded and synapse.fits(found):
        weights = synapse.folded(weights, found.by_channel)
    assert synapse.fits(found) == (groups < CHANNELS // 4)
    assert torch.equal(synapse.currents(found, weights), F.conv2d(numbers, w, None, 1, 1, 1, groups))


class Branches(nn.Module):
    """Residual sum, concatenation, groups, pooling, a linear layer: every way in which spikes are read."""

    def __init__(self) -> None:
        super().__init__()
        c = CHANNELS
        self.stem, self.second = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.left, self.right = nn.Conv2d(c, LANES, 1), nn.Conv2d(c, c, 3, padding=1, groups=2)
        self.depthwise, self.last = nn.Conv2d(c + LANES, c + LANES, 3, groups=c + LANES), nn.Conv2d(c + LANES, c, 1)
        self.head = nn.Linear(c, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.second(x) + x)
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        x = F.max_pool2d(F.relu(self.depthwise(x)) + x[..., 1:-1, 1:-1], 2)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def branches() -> Graph:
    return capture(dyadic(Branches().eval()), torch.rand(2, 3, 10, 10))


@pytest.mark.parametrize("options", [{}, {"cap": 3}, {"signed": True}, {"per_unit": True}, {"amplitude": True}])
@pytest.mark.parametrize("chunk", [None, 2])
def test_networks_run_on_bits_as_on_numbers(branches: Graph, options: dict[str, Any], chunk: int | None) -> None:
    fields = {key: value for key, value in options.items() if key in ("cap", "signed")}
    sites = {}
    for k, site in enumerate(branches.sites):
        shape = tuple(site.shape) if "per_unit" in options else (site.channels,)
        theta, v = eighths(*shape, seed=k, low=3, high=11), eighths(site.channels, seed=k + 50, low=0, high=3)
        if "amplitude" in options:
            fields["amplitude"] = eighths(site.channels, seed=k + 70, low=1, high=9)
        sites[site.name] = SiteParams(theta, v, eighths(seed=k + 90, low=-1, high=1), **fields)
    plan, x, steps = Plan(sites), [eighths(3, 3, 10, 10)], 6
    dense = simulate(branches, plan, x, steps, engine="dense")
    events = simulate(branches, plan, x, steps, engine="events", chunk=chunk)
    assert all(float(n.sum()) > 0 for n in dense.spikes.values())
    for kind in ("spikes", "net", "membranes"):
        for name, found in getattr(dense, kind).items():
            assert torch.equal(found, getattr(events, kind)[name]), (kind, name)
    torch.testing.assert_close(events.outputs, dense.outputs, rtol=1e-6, atol=1e-6)


def test_probes_see_numbers(branches: Graph) -> None:
    plan = Plan({site.name: SiteParams(torch.tensor(0.5), torch.tensor(0.25)) for site in branches.sites})
    seen: dict[str, list[torch.Tensor]] = {"dense": [], "events": []}
    for engine, found in seen.items():
        simulate(
            branches, plan, [eighths(2, 3, 10, 10)], 4, engine=engine, probe=lambda node, x, *_, to=found: to.append(x.clone())
        )
    assert len(seen["dense"]) == len(seen["events"]) and all(map(torch.equal, *seen.values()))


class Shared(nn.Module):
    """One layer called twice, on spikes that are worth different amounts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.again(F.relu(self.stem(x))))
        return F.relu(self.again(x)).mean((2, 3))


def test_layers_that_share_weights_read_spikes_of_their_own_worth() -> None:
    graph, x = capture(dyadic(Shared().eval()), torch.rand(2, 3, 8, 8)), [eighths(2, 3, 8, 8)]
    sites = {
        site.name: SiteParams(eighths(site.channels, seed=k, low=3, high=11), eighths(site.channels, seed=k + 50, low=0, high=3))
        for k, site in enumerate(graph.sites)
    }
    dense, events = (simulate(graph, Plan(sites), x, 6, engine=engine) for engine in ("dense", "events"))
    assert all(float(n.sum()) > 0 for n in dense.spikes.values())
    assert all(torch.equal(n, events.spikes[name]) for name, n in dense.spikes.items())

"""Samples that leave change nothing for those that stay, and are computed no further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models import ANALOG, CASES, as_inputs, batch_of, converted, dyadic, eighths, make, tensors
from transpike.engines.executor import simulate
from transpike.engines.exits import ExitRun, Leave, simulate_until
from transpike.engines.samples import empty_like, keep_samples
from transpike.errors import DataError, MemoryBudgetError, PlanError, SpecError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph, Node
from transpike.spiking.plan import NeuronKind, Plan, SiteParams

STEPS, SAMPLES = 9, 11
EXACT = ("mlp", "deep_pool", "functional_relu", "shared_relu", "inplace_relu", "clamped", "stack", "input_skip",
         "two_outputs", "dict_output", "fire", "branched_stem", "conv3d_plain", "tokens_first", "rows")  # fmt: skip


class Rows(nn.Module):
    """Three rows of the batch axis belong to one sample; the neurons see them, a max pool behind them too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x.reshape(-1, 4)))
        return self.b(torch.max_pool1d(x[:, None], 2)[:, 0].reshape(-1, 9))


def model_and_inputs(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    if name == "rows":
        torch.manual_seed(0)
        return dyadic(Rows().eval()), (eighths(SAMPLES, 3, 4),)
    if name == "conv3d_plain":
        torch.manual_seed(0)
        layers = [nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 5, 1), nn.ReLU(), nn.Flatten()]
        return dyadic(nn.Sequential(*layers, nn.Linear(40, 3)).eval()), (eighths(SAMPLES, 2, 4, 4, 4),)
    return dyadic(make(name)), tuple(eighths(*x.shape, seed=k) for k, x in enumerate(as_inputs(batch_of(name, SAMPLES))))


def dyadic_plan(graph: Graph, cap: int | None, signed: bool) -> Plan:
    sites = {}
    for k, site in enumerate(graph.sites):
        theta, v = (eighths(site.channels, seed=k + j, low=low, high=high) for j, low, high in ((0, 3, 11), (100, 0, 3)))
        sites[site.name] = SiteParams(theta, v, eighths(seed=k + 200, low=-1, high=1), cap, signed)
    return Plan(sites)


def network(name: str, cap: int | None = 1, signed: bool = False) -> tuple[Graph, Plan, tuple[torch.Tensor, ...]]:
    model, x = model_and_inputs(name)
    graph = capture(model, x)
    return graph, dyadic_plan(graph, cap, signed), x


def leaves(totals: Any, batch_axis: int) -> torch.Tensor:
    """One number of each sample: the sum of its first output."""
    x = tensors(totals)[0]
    rows = x.movedim(batch_axis, 0).reshape(-1, x.numel() // x.shape[batch_axis])
    return rows.sum(1)


def remainders(axis: int) -> Leave:
    """An arbitrary rule that each sample's own totals decide: about a quarter leave at each step."""
    return lambda totals, t: (leaves(totals, axis) * 8).round().long() % 4 == t % 4


def expected(graph: Graph, plan: Plan, x: tuple[torch.Tensor, ...], leave: Leave, start: int = 0) -> tuple[torch.Tensor, Any]:
    """The same without exits: run to the end, then look at every step."""
    run = simulate(graph, plan, x, STEPS)
    exits = torch.zeros(SAMPLES, dtype=torch.int64)
    for t in range(start + 1, STEPS + 1):
        totals = [y[start:t].double().sum(0) for y in tensors(run.outputs)]
        going = leave(totals, t) if t < STEPS else torch.ones(SAMPLES, dtype=torch.bool)
        exits[(exits == 0) & going] = t
    return exits, run


def check(run: ExitRun, exits: torch.Tensor, full: Any, axis: int, start: int = 0) -> None:
    assert torch.equal(run.exits, exits)
    for found, y in zip(tensors(run.readout), tensors(full.outputs), strict=True):
        assert found.shape == y.shape[1:] and found.dtype == torch.float64
        for n, t in enumerate(exits.tolist()):
            wanted = y[start:t].double().sum(0) / (t - start)
            assert torch.equal(found.select(axis, n), wanted.select(axis, n))


@pytest.mark.parametrize("chunk", [1, 2, 4, STEPS])
@pytest.mark.parametrize("name", EXACT)
def test_exits_and_read_outs_are_those_of_a_run_to_the_end(name: str, chunk: int) -> None:
    graph, plan, x = network(name)
    axis = 1 if name == "tokens_first" else 0
    leave = remainders(axis)
    exits, full = expected(graph, plan, x, leave)
    assert len(set(exits.tolist())) > 2  # some leave early, at different steps
    run = simulate_until(graph, plan, x, STEPS, leave, chunk=chunk)
    check(run, exits, full, axis)
    through = [min(STEPS, -(-t // chunk) * chunk) for t in exits.tolist()]  # to the end of the chunk
    assert run.computed == sum(through) and run.steps == STEPS


@pytest.mark.parametrize(("cap", "signed"), [(1, True), (2, False), (None, True)])
@pytest.mark.parametrize("start", [0, 3])
def test_neurons_that_take_spikes_back_and_delayed_read_outs(cap: int | None, signed: bool, start: int) -> None:
    graph, plan, x = network("shared_relu", cap, signed)
    exits, full = expected(graph, plan, x, remainders(0), start)
    assert int(exits.min()) > start
    for chunk in (1, 4):
        check(simulate_until(graph, plan, x, STEPS, remainders(0), start=start, chunk=chunk), exits, full, 0, start)


@pytest.mark.parametrize("name", ["deep_pool", "fire"])
def test_samples_that_start_one_after_another_for_lack_of_memory_give_the_same(name: str) -> None:
    graph, plan, x = network(name)
    exits, full = expected(graph, plan, x, remainders(0))
    started: set[int] = set()

    def probe(node: Node, emitted: torch.Tensor, done: int, ids: torch.Tensor) -> None:
        if done == 0:
            started.add(int(ids[0]))

    for budget in range(20_000, 200_000, 2_000):
        started.clear()
        try:
            run = simulate_until(graph, plan, x, STEPS, remainders(0), max_memory=budget, probe=probe)
        except MemoryBudgetError:
            continue
        check(run, exits, full, 0)
        if len(started) > 1:
            return
    raise AssertionError("no budget made the samples start in groups")


@pytest.mark.parametrize("name", [name for name in CASES if name not in EXACT])
def test_every_other_network_gives_the_same_up_to_rounding(name: str) -> None:
    graph, plan = converted(name)
    x = as_inputs(batch_of(name, SAMPLES))
    schedule = torch.arange(SAMPLES) % STEPS + 1
    there = torch.arange(SAMPLES)

    def leave(totals: Any, t: int) -> torch.Tensor:
        nonlocal there
        going = schedule[there] == t
        there = there[~going]
        return going

    run = simulate_until(graph, plan, x, STEPS, leave)
    assert torch.equal(run.exits, schedule)
    full = simulate(graph, plan, x, STEPS)
    for found, y in zip(tensors(run.readout), tensors(full.outputs), strict=True):
        axis = y.shape.index(SAMPLES, 1)
        wanted = torch.stack([y[:t].double().mean(0).select(axis - 1, n) for n, t in enumerate(schedule.tolist())], axis - 1)
        assert (found - wanted).abs().mean() <= (0.02 if name not in ANALOG else 1e-3) * wanted.abs().mean() + 1e-5


def test_what_has_left_is_not_computed_and_what_stays_keeps_its_number() -> None:
    """Every frame that the neurons emit belongs to a sample that is there, and is that sample's own."""
    graph, plan, x = network("deep_pool")
    exits, _ = expected(graph, plan, x, remainders(0))
    full: dict[tuple[str, int, int], torch.Tensor] = {}

    def watch(node: Node, emitted: torch.Tensor, done: int, first: int) -> None:
        for k, frame in enumerate(emitted):
            full.update({(node.name, done + k + 1, first + n): sample for n, sample in enumerate(frame.clone())})

    simulate(graph, plan, x, STEPS, probe=watch)
    seen: set[tuple[str, int, int]] = set()

    def probe(node: Node, emitted: torch.Tensor, done: int, ids: torch.Tensor) -> None:
        assert emitted.shape[1] == len(ids)
        for n, frame in zip(ids.tolist(), emitted[0], strict=True):
            assert torch.equal(frame, full[node.name, done + 1, n])
            seen.add((node.name, done + 1, n))

    simulate_until(graph, plan, x, STEPS, remainders(0), probe=probe)
    assert seen == {key for key in full if key[1] <= int(exits[key[2]])}


@pytest.mark.parametrize(("first", "chunk"), [(4, 1), (5, 3), (STEPS, 2), (3, 4)])
def test_steps_before_the_first_exit_go_together_and_none_is_computed_for_nothing(first: int, chunk: int) -> None:
    graph, plan, x = network("deep_pool")

    def leave(totals: Any, t: int) -> torch.Tensor:
        return remainders(0)(totals, t) if t >= first else torch.zeros(len(totals), dtype=torch.bool)

    chunks: list[tuple[int, int]] = []

    def probe(node: Node, emitted: torch.Tensor, done: int, ids: torch.Tensor) -> None:
        if not chunks or chunks[-1][0] != done:
            chunks.append((done, len(emitted)))

    exits, full = expected(graph, plan, x, leave)
    run = simulate_until(graph, plan, x, STEPS, leave, first=first, chunk=chunk, probe=probe)
    check(run, exits, full, 0)
    assert chunks[0] == (0, max(chunk, min(first, 8))) and all(count <= max(chunk, first) for _, count in chunks)
    assert int(exits.min()) >= first
    if chunk == 1:
        assert run.computed == int(exits.sum())


def test_if_all_leave_at_once_nothing_more_is_computed() -> None:
    graph, plan, x = network("mlp")
    asked: list[int] = []

    def leave(totals: torch.Tensor, t: int) -> torch.Tensor:
        asked.append(t)
        return torch.full((len(totals),), t == 3)

    run = simulate_until(graph, plan, x, STEPS, leave)
    assert run.exits.tolist() == [3] * SAMPLES and run.computed == 3 * SAMPLES and asked == [1, 2, 3]


def test_the_last_step_needs_no_answer() -> None:
    graph, plan, x = network("mlp")
    asked: list[int] = []

    def leave(totals: torch.Tensor, t: int) -> torch.Tensor:
        asked.append(t)
        return torch.zeros(len(totals), dtype=torch.bool)

    run = simulate_until(graph, plan, x, STEPS, leave, start=2)
    assert run.exits.tolist() == [STEPS] * SAMPLES and asked == list(range(3, STEPS))


def test_what_makes_no_sense_is_refused_before_anything_runs() -> None:
    graph, plan, x = network("mlp")
    never: Leave = lambda totals, t: torch.zeros(len(totals), dtype=torch.bool)  # noqa: E731
    parallel = replace(plan, sites={n: replace(p, kind=NeuronKind.PARALLEL) for n, p in plan.sites.items()})
    with pytest.raises(PlanError, match="parallel neurons"):
        simulate_until(graph, parallel, x, STEPS, never)
    for start in (-1, STEPS):
        with pytest.raises(DataError, match="start is from 0"):
            simulate_until(graph, plan, x, STEPS, never, start=start)
    with pytest.raises(DataError, match="chunk is 0"):
        simulate_until(graph, plan, x, STEPS, never, chunk=0)
    with pytest.raises(SpecError, match="no engine"):
        simulate_until(graph, plan, x, STEPS, never, engine="magic")
    with pytest.raises(DataError, match="one bool for each"):
        simulate_until(graph, plan, x, STEPS, lambda totals, t: totals.argmax(1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_of_kept_samples_and_their_layout_in_memory(axis: int) -> None:
    x = torch.arange(6.0 * 4 * 5).view(6, 4, 5).movedim(0, axis)  # six rows: two of each of three samples
    kept = keep_samples(x, axis, torch.tensor([2, 0]), 3)
    assert torch.equal(kept.movedim(axis, 0), x.movedim(axis, 0)[[4, 5, 0, 1]])
    assert sorted(range(3), key=kept.stride) == sorted(range(3), key=x.stride)
    image = torch.zeros(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert empty_like(image, 0, 2).is_contiguous(memory_format=torch.channels_last)

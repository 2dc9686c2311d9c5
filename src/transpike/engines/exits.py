"""A simulation whose samples leave when they are sure: what has left is dropped from every state and costs nothing more.

What a sample gets until it leaves is what it would get among all the others to the end: dropping selects rows of the
neurons' state, of the differential combinator's means and of what was computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transpike.engines.allocator import keep_freed_memory
from transpike.engines.budget import chunking
from transpike.engines.executor import MicroBatch
from transpike.engines.program import Kept, Program, check_engine
from transpike.engines.samples import empty_like, keep_samples, rows_of
from transpike.errors import DataError, PlanError
from transpike.graph.batches import check_frames, checked_inputs
from transpike.graph.ir import Graph, Node, map_tree
from transpike.spiking.plan import Plan

__all__ = ["ExitRun", "Leave", "SampleProbe", "simulate_until"]

# the sum of the read-out of steps start + 1 .. t (the network's own output structure, N ...) and t -> who leaves. N
Leave = Callable[[Any, int], torch.Tensor]
# called with a node of the body, what it emits for a chunk [steps, samples, ...], the chunk's first step, and the
# numbers of these samples in the run
SampleProbe = Callable[[Node, torch.Tensor, int, torch.Tensor], None]

_AHEAD = 4  # as many times the samples that fit the cache start together, since most of them leave soon
_TOGETHER = 8  # the most steps that go through the network at once before anybody may leave


@dataclass(frozen=True, eq=False)
class ExitRun:
    """What a simulation with exits gave.

    Args:
        steps: the most steps a sample could take.
        exits: the step at which each sample left, 1..steps. N
        readout: the mean read-out of steps start + 1 .. exit of each sample, in the network's own output structure;
            float64, N ...
        computed: steps x samples that went through the network: the sum of ``exits`` if ``chunk`` is 1.
    """

    steps: int
    exits: torch.Tensor
    readout: Any
    computed: int


def simulate_until(
    graph: Graph,
    plan: Plan,
    inputs: Sequence[torch.Tensor],
    steps: int,
    leave: Leave,
    *,
    start: int = 0,
    first: int = 1,
    chunk: int = 1,
    engine: str = "auto",
    max_memory: int | None = None,
    probe: SampleProbe | None = None,
    kept: Kept | None = None,
) -> ExitRun:
    """Run a batch for at most ``steps`` time steps; samples that ``leave`` names are dropped.

    Args:
        leave: asked after every step from ``first`` to the last but one; what it says of samples that have left already
            is ignored.
        start: steps that the read-out leaves out; nobody leaves before step ``start + 1``.
        first: the first step at which anybody may leave; the steps before it go through the network several at once.
        chunk: steps that go through the network at once from then on. Exits and read-outs do not depend on it: with more
            than 1, the steps between a sample's exit and the end of its chunk are computed for nothing.
        probe: sees what neurons and analog operations emit, chunk by chunk; also of those steps.
        kept: by whoever runs the same network again.

    Raises:
        PlanError: parallel neurons, which fire after all steps. DataError: as for `simulate`, or a wrong ``start``.
        SpecError: there is no such engine. MemoryBudgetError: ``max_memory`` is too small.
    """
    check_engine(engine)
    if not 0 <= start < steps:
        raise DataError(f"no exit from {steps} steps with a read-out over steps {start + 1}..t: start is from 0 to below steps")
    if chunk < 1:
        raise DataError(f"chunk is {chunk}: at least one step goes through the network at once")
    if waiting := [name for name, params in plan.sites.items() if params.kind.all_at_once]:
        kind = plan.sites[waiting[0]].kind.value
        raise PlanError(
            f"{graph.name} has {kind} neurons ({waiting[0]} and {len(waiting) - 1} more sites), which need all steps at "
            "once: no sample can leave early, simulate fewer steps or calibrate with integrate-and-fire neurons"
        )
    keep_freed_memory()
    inputs = checked_inputs(graph, inputs)
    check_frames(graph, inputs, steps)
    program, samples = (kept or Kept()).program(graph, plan, engine, inputs[0]), len(inputs[0])
    first = max(first, start + 1)
    together = max(chunk, min(first, _TOGETHER))
    together, per_run, _ = chunking(graph, plan, samples, steps, together, max_memory, inputs[0].element_size())
    per_run = min(samples, per_run * _AHEAD) if max_memory is None else per_run
    clock = _Clock(steps, start, first, together, min(chunk, together))
    result = _Result(program, samples)
    with torch.no_grad():
        for low in range(0, samples, per_run):
            some = [x[low : low + per_run] for x in inputs]
            _Cohort(program, some, low, probe).run(clock, leave, result)
    return ExitRun(steps, result.exits, map_tree(lambda leaf: result.means[leaf.name], graph.outputs), result.computed)


@dataclass(frozen=True)
class _Clock:
    """Steps in all, left out of the read-out, before the first exit, and at once: before it and from then on."""

    steps: int
    start: int
    first: int
    together: int
    chunk: int

    def count(self, done: int) -> int:
        """How many steps come next after ``done``."""
        waiting = self.first - done  # to the end of the first step at which somebody may leave
        count = self.chunk if waiting < self.chunk else min(self.together, waiting)
        return min(count, self.steps - done)


class _Result:
    """Rooms for what every sample leaves with."""

    def __init__(self, program: Program, samples: int) -> None:
        self._axes, self._samples = program.batch_axes, samples
        self.exits = torch.zeros(samples, dtype=torch.int64)
        self.means: dict[str, torch.Tensor] = {}
        self.computed = 0

    def place(self, t: int, ids: torch.Tensor, means: dict[str, torch.Tensor]) -> None:
        """Samples ``ids`` leave at step ``t`` with ``means``."""
        self.exits[ids] = t
        for name, x in means.items():
            axis = self._axes[name]
            times = x.shape[axis] // len(ids)
            if name not in self.means:
                self.means[name] = empty_like(x, axis, self._samples * times)
            self.means[name].index_copy_(axis, rows_of(ids.to(x.device), times), x)


class _Cohort:
    """Samples that start together; ``ids`` are those still there."""

    def __init__(self, program: Program, inputs: Sequence[torch.Tensor], first: int, probe: SampleProbe | None) -> None:
        self.ids = torch.arange(first, first + len(inputs[0]))
        self._program = program
        self._totals: dict[str, torch.Tensor] = {}  # of the read-out, float64
        look = None if probe is None else lambda node, emitted, done, _: probe(node, emitted, done, self.ids)
        self._micro = MicroBatch(program, inputs, first, look)

    def run(self, clock: _Clock, leave: Leave, result: _Result) -> None:
        done = 0
        while len(self.ids):
            count = clock.count(done)
            read = self._micro.advance(done, count)
            result.computed += count * len(self.ids)
            here = torch.ones(len(self.ids), dtype=torch.bool)
            for t in range(max(done, clock.start) + 1, done + count + 1):
                self._add({name: y[t - done - 1] for name, y in read.items()})
                if t == clock.steps:
                    going = here
                elif t >= clock.first:
                    going = here & self._asked(leave, t)
                else:
                    continue
                if bool(going.any()):
                    means = {name: x / (t - clock.start) for name, x in self._rows(going).items()}
                    result.place(t, self.ids[going], means)
                    here = here & ~going
            done += count
            if not bool(here.all()):
                self._keep(here)

    def _add(self, read: dict[str, torch.Tensor]) -> None:
        for name, y in read.items():
            self._totals[name] = self._totals[name] + y.double() if name in self._totals else y.double()

    def _keep(self, here: torch.Tensor) -> None:
        self.ids = self.ids[here]
        if len(self.ids):
            self._totals = self._rows(here)
            self._micro.keep(here.nonzero().flatten())

    def _asked(self, leave: Leave, t: int) -> torch.Tensor:
        answer = leave(map_tree(lambda leaf: self._totals[leaf.name], self._program.graph.outputs), t)
        if answer.shape != (len(self.ids),) or answer.dtype != torch.bool:
            raise DataError(
                f"who leaves at step {t} was answered with {tuple(answer.shape)} of {answer.dtype}: give one bool for each of "
                f"the {len(self.ids)} samples"
            )
        return answer.cpu()

    def _rows(self, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        """The totals of the samples where ``chosen`` is true."""
        axes, kept = self._program.batch_axes, chosen.nonzero().flatten()
        return {name: keep_samples(x, axes[name], kept, len(chosen)) for name, x in self._totals.items()}

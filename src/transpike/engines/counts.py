"""The count engine: neurons that look at the whole charge need one pass of the network, whatever the number of steps.

    n = clip(floor((T (z + current) + v(0)) / theta), 0, B T),   next layer sees amplitude n / T

on means over time ``z``. This is what a parallel neuron does by definition, and where a signed neuron without a cap
stands after every step (0 <= n, no upper clip): linear operations pass means on, and the differential combinator makes
the mean of any other operation's output the function of the means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from transpike.engines.allocator import keep_freed_memory
from transpike.engines.budget import chunking
from transpike.engines.kernels import count_levels, threads_for
from transpike.engines.layout import logical, memory_order
from transpike.engines.run import Run
from transpike.errors import DataError, SpecError
from transpike.graph.batches import checked_inputs
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Role, Site, map_tree
from transpike.spiking.neurons import parallel_count
from transpike.spiking.plan import NeuronKind, Plan, SiteParams, expand

__all__ = ["CountRun", "count", "counts_serve", "in_counts", "simulate_counts"]

_FEWEST = 512  # numbers that a loop over units runs over, at least
_MANY = torch.iinfo(torch.int16).max  # spikes of a neuron without a cap: it is looked whether one fires more often
_NUMBERS: WeakKeyDictionary[SiteParams, dict[Any, Any]] = WeakKeyDictionary()
_NO_COUNTS = {dtype: torch.empty(0, 0, dtype=dtype).numpy() for dtype in (torch.float32, torch.float64)}


class Whole(Mapping[str, torch.Tensor]):
    """Spike counts by site: kept in as few bytes as hold the most there can be, read in the network's own number format.

    Writing them is a good part of a pass, and memory that is touched for the first time costs more than the products.
    """

    def __init__(self, dtype: torch.dtype, wide: bool = False) -> None:
        self._kept: dict[str, tuple[torch.Tensor, Site, tuple[int, ...]]] = {}
        self._dtype, self._wide = dtype, wide  # wide: neurons without a cap did fire more than `_MANY` times

    def __getitem__(self, name: str) -> torch.Tensor:
        flat, site, order = self._kept[name]
        return logical(flat, site.shape, order).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def room(self, site: Site, params: SiteParams, like: torch.Tensor, steps: int, samples: int) -> torch.Tensor:
        """Where the counts of all samples go (samples, units), units in memory order as in ``like`` (N *site)."""
        if site.name not in self._kept:
            most = params.cap * steps if params.cap is not None else _MANY if _fused(like) and not self._wide else math.inf
            fitting = [kind for kind in (torch.uint8, torch.int16) if most <= torch.iinfo(kind).max]
            flat = like.new_empty((samples, site.units), dtype=fitting[0] if fitting else like.dtype)
            self._kept[site.name] = flat, site, memory_order(like, 0, len(site.shape))
        return self._kept[site.name][0]


@dataclass(frozen=True, eq=False)
class CountRun(Run):
    """What passes in count space gave. ``outputs`` are mean read-outs, one row for each number of steps in ``at``.

    ``spikes`` and ``net`` are both the counts after the last of them: what a signed neuron sent too early and took back
    does not show. There are no membrane potentials.

    Args:
        at: the numbers of steps that were asked for, rising.
    """

    at: tuple[int, ...] = ()

    def readout(self, t: int | None = None, start: int = 0) -> Any:
        """The mean read-out after ``t`` steps, one of `at`.

        Raises:
            DataError: ``t`` was not asked for, or some steps are to be left out.
        """
        t = self.at[-1] if t is None else t
        if t not in self.at or start:
            raise DataError(
                f"no read-out over steps {start + 1}..{t}: in count space there are those from the first step to "
                f"{', '.join(map(str, self.at))}; ask for others with at=, or simulate with engine='dense'"
            )
        return map_tree(lambda y: y[self.at.index(t)], self.outputs)


def counts_serve(graph: Graph, plan: Plan) -> bool:
    """Is every neuron's count a function of the whole charge, and every other operation one of means?"""
    kinds = all(p.kind is NeuronKind.PARALLEL or (p.signed and p.cap is None) for p in plan.sites.values())
    return kinds and not graph.streamed and all(node.role is not Role.STEPWISE for node in graph.body)


def count(site: Site, params: SiteParams, mean: torch.Tensor, steps: int) -> torch.Tensor:
    """Spikes of all ``steps`` steps for the mean current ``mean`` (N *site)."""
    v_init, current, threshold = (expand(x, site) for x in (params.v_init, params.current, params.threshold))
    return parallel_count((mean + current).mul_(steps), v_init, threshold, steps, params.cap)


def in_counts(
    graph: Graph,
    plan: Plan,
    inputs: Sequence[torch.Tensor],
    steps: int,
    look: Callable[[Site, torch.Tensor, torch.Tensor], None] | None = None,
) -> Any:
    """The mean read-out after ``steps`` steps; ``look`` sees every site's mean current and spike count (N *site).

    Raises:
        SpecError: a neuron whose count depends on when its charge arrives.
    """
    _check_serves(graph, plan)

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        params = plan.sites[site.name]
        if look is None:
            return _levels(site, params, z, steps, None)
        n = count(site, params, z, steps)
        look(site, z, n)
        return n * (expand(params.worth, site) / steps)

    return forward(graph.with_params({**graph.params, **plan.params}), inputs, at_site)


def _check_serves(graph: Graph, plan: Plan) -> None:
    if not counts_serve(graph, plan):
        raise SpecError(
            "the count engine runs parallel neurons and signed neurons without a cap, and no pooling of currents: "
            "this network has others, choose engine='dense'"
        )


def _levels(site: Site, params: SiteParams, z: torch.Tensor, steps: int, counts: torch.Tensor | None) -> torch.Tensor:
    """The mean output for mean currents ``z`` (N *site, overwritten), the spikes into ``counts``: one pass over memory.

    Raises:
        OverflowError: ``counts`` does not hold so many spikes; ``z`` is lost.
    """
    order = memory_order(z, 0, len(site.shape))
    there = (0, *(axis + 1 for axis in order))
    if not _fused(z):
        n = count(site, params, z, steps)
        if counts is not None:
            counts.copy_(n.permute(there).reshape(len(n), -1))
        return n.mul_(expand(params.worth, site) / steps)
    inside = z.permute(there).reshape(len(z), -1)
    theta, worth, extra, v_init = _numbers(site, params, order, z.dtype)
    number = theta.dtype.type
    most = math.inf if params.cap is None else params.cap * steps
    limit = math.inf if counts is None or counts.is_floating_point() else torch.iinfo(counts.dtype).max
    with threads_for(z.numel()):
        lost = count_levels(
            inside.numpy(),
            theta,
            worth / number(steps),
            extra,
            v_init,
            number(steps),
            number(most),
            _NO_COUNTS[z.dtype] if counts is None else counts.numpy(),
            number(limit),
        )
    if lost:
        raise OverflowError(f"{lost} units of {site.name} have more than {limit} spikes")
    return logical(inside, site.shape, order)


def _fused(x: torch.Tensor) -> bool:
    """Is there a kernel where ``x`` is?"""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _numbers(site: Site, params: SiteParams, order: tuple[int, ...], dtype: torch.dtype) -> Any:
    """`_lines` of threshold, worth, current and initial potential, kept as long as ``params`` until one of them is written to."""
    fields = (params.threshold, params.worth, params.current, params.v_init)
    if any(x.is_inference() for x in fields):  # which do not say when they are written to
        return _lines(site, fields, order, dtype)
    written, kept = [x._version for x in fields], _NUMBERS.setdefault(params, {})
    key = site.shape, site.channel_axis, order, dtype  # sites may share their parameters
    if kept.get(key, (None,))[0] != written:
        kept[key] = written, _lines(site, fields, order, dtype)
    return kept[key][1]


def _lines(site: Site, fields: Sequence[torch.Tensor], order: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A row for each of ``fields`` in memory order: of all units, or of some pixels where all others repeat them.

    Parameters of channels, which lie innermost, stay in cache then.
    """
    channels, pixels = site.channels, site.units // site.channels
    if order[-1] != site.channel_axis or any(x.numel() not in (1, channels) for x in fields):
        return torch.stack([expand(x, site).permute(order).reshape(-1) for x in fields]).to(dtype).numpy()
    enough = next((k for k in range(-(-_FEWEST // channels), pixels) if pixels % k == 0), pixels)
    each = np.empty((len(fields), 1, channels), _NO_COUNTS[dtype].dtype)
    for row, x in zip(each, fields, strict=True):
        row[:] = x.to(dtype).numpy()
    rows = np.empty((len(fields), enough, channels), each.dtype)
    rows[:] = each
    return rows.reshape(len(fields), -1)


def simulate_counts(
    graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor], at: Sequence[int], *, max_memory: int | None = None
) -> CountRun:
    """The read-out after each number of steps in ``at``, one pass of the network for each.

    Parallel neurons are those of a conversion for that many steps; signed neurons without a cap stand after that many.

    Args:
        inputs: one tensor per input of the graph, batch first.
        max_memory: bytes that a pass may take; None: what stays in cache.

    Raises:
        SpecError: a neuron whose count depends on when its charge arrives.
        DataError: no steps, or inputs that do not fit.
        MemoryBudgetError: ``max_memory`` is too small.
    """
    if not at or min(at) < 1:
        raise DataError(f"steps are {list(at)}: ask for the read-out after at least one step")
    keep_freed_memory()
    _check_serves(graph, plan)
    times = tuple(sorted(set(at)))
    changed = graph.with_params({**graph.params, **plan.params}) if plan.params else graph
    inputs = checked_inputs(graph, inputs)
    samples = len(inputs[0])
    per_pass = chunking(graph, plan, samples, 1, None, max_memory, inputs[0].element_size(), numbers=4).samples
    dtype = next((x.dtype for x in inputs if x.is_floating_point()), torch.float32)
    try:
        counts = Whole(dtype)
        leaves = _passes(changed, plan, inputs, times, per_pass, counts)
    except OverflowError:
        counts = Whole(dtype, wide=True)
        leaves = _passes(changed, plan, inputs, times, per_pass, counts)
    width = len(leaves[0]) // -(-samples // per_pass)
    rows = [torch.stack([torch.cat(found[i::width]) for found in leaves]) for i in range(width)]
    means = iter(rows)
    return CountRun(times[-1], map_tree(lambda _: next(means), graph.outputs), counts, counts, {}, at=times)


def _passes(
    graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor], times: Sequence[int], per_pass: int, counts: Whole
) -> list[list[torch.Tensor]]:
    """For each number of steps the read-outs of ``per_pass`` samples after another; spikes of the last one into ``counts``."""
    samples = len(inputs[0])
    leaves: list[list[torch.Tensor]] = [[] for _ in times]
    for first in range(0, samples, per_pass):
        some = [x[first : first + per_pass] for x in inputs]

        def at_site(site: Site, z: torch.Tensor, t: int, first: int = first) -> torch.Tensor:
            if t < times[-1]:
                return _levels(site, plan.sites[site.name], z, t, None)
            room = counts.room(site, plan.sites[site.name], z, t, samples)
            return _levels(site, plan.sites[site.name], z, t, room[first : first + len(z)])

        for k, t in enumerate(times):
            read = forward(graph, some, lambda site, z, t=t: at_site(site, z, t))
            map_tree(leaves[k].append, read)
    return leaves

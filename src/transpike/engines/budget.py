"""How many steps and samples go through the network at once: as many as stay in cache and within the memory allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from transpike.errors import MemoryBudgetError
from transpike.graph.interpret import frees
from transpike.graph.ir import Graph, Node, Ref, Role, tree_refs
from transpike.graph.roles import SYNAPSES, base_name
from transpike.spiking.plan import Plan

__all__ = ["Chunks", "bytes_per_frame", "bytes_per_sample", "chunking"]

_CACHE_BYTES = 16 << 20  # the largest tensor of a chunk: beyond this a chunk leaves the last-level cache
_ASIDE = 16  # one part in so many of the memory allowed is left to what libraries and the allocator keep for themselves
_ENOUGH = 8  # steps of bits together, beyond which a chunk that could be longer gains nothing
_GPU_SHARE = 32  # on a GPU it takes this part of the memory: enough work for a launch, room for what is alive beside it


class Chunks(NamedTuple):
    """Steps of a chunk and samples of a micro-batch.

    Args:
        most: steps that later chunks may have at most: what memory allows for so many samples.
    """

    steps: int
    samples: int
    most: int

    def grown(self, largest: int) -> int:
        """Steps of later chunks, where the largest value of a step took ``largest`` bytes: bits take less than numbers."""
        return max(self.steps, min(self.most, _ENOUGH, _CACHE_BYTES // max(1, largest)))


@dataclass(frozen=True)
class _Needs:
    """Bytes that a run takes: of every sample its results, of samples on their way their state, of each frame its values."""

    result: int
    state: int
    frame: int
    fixed: int

    @staticmethod
    def of(graph: Graph, plan: Plan, steps: int, itemsize: int, numbers: int | None = None) -> _Needs:
        nodes = {node.name: node for node in graph.nodes}
        sites = sum(site.units * (3 if plan.sites[site.name].signed else 2) for site in graph.sites)
        outputs = steps * sum(nodes[name].numel() for name in tree_refs(graph.outputs) if name in nodes)
        state = sites + outputs
        for node in graph.body:
            if node.role is Role.ANALOG:
                state += node.numel() + sum(nodes[name].numel() for name in node.refs() if name in nodes)
        read = {name for node in graph.body for name in node.refs()}
        state += sum(node.numel() for node in graph.prefix if node.name in read and node.batch_axis is not None)
        state = max(state, _peak(graph.prefix, read)) + sum(math.prod(value.shape) for value in graph.inputs)
        frame = bytes_per_frame(graph, itemsize)
        units = sum(site.units for site in graph.sites)
        fixed = itemsize * (_numbers(graph, plan) + _weights(graph) if numbers is None else numbers * units)
        return _Needs((sites + outputs) * itemsize, state * itemsize, frame, fixed)


def _numbers(graph: Graph, plan: Plan) -> int:
    """What `transpike.engines.dense.DensePopulation` keeps for all samples: thresholds, and what is not the same or 0."""
    total = zeros = 0
    for site in graph.sites:
        params = plan.sites[site.name]
        total += site.units * (1 if params.amplitude is None else 2)
        if bool(params.current.any()):
            total += site.units
        elif site.units > zeros:  # a larger room for zeros is made, the smaller one serves the sites before it
            total, zeros = total + site.units, site.units
    return total


def _weights(graph: Graph) -> int:
    """Weights that the event engine lays out anew."""
    read = [node.args[1] for node in graph.body if base_name(node.op) in SYNAPSES and len(node.args) > 1]
    names = {ref.name for ref in read if isinstance(ref, Ref) and ref.name in graph.params}
    return sum(graph.params[name].numel() for name in names)


def bytes_per_sample(graph: Graph, plan: Plan, steps: int, itemsize: int = 4) -> int:
    """What a run holds for one sample: its results, and while it is on its way its state and its constant part."""
    needs = _Needs.of(graph, plan, steps, itemsize)
    return needs.result + needs.state


def bytes_per_frame(graph: Graph, itemsize: int = 4) -> int:
    """Peak of what one step of one sample needs while it passes through the body (results and scratch space)."""
    return _peak(graph.body, set(tree_refs(graph.outputs))) * itemsize


def _peak(nodes: Sequence[Node], keep: set[str]) -> int:
    """The most elements of one sample that are alive at once while ``nodes`` run."""
    sizes = {node.name: node.numel() for node in nodes}
    live = peak = 0
    for node, dead in zip(nodes, frees(nodes, keep), strict=True):
        live += sizes[node.name]
        scratch = sizes[node.name] + sum(sizes.get(name, 0) for name in node.refs())  # libraries reorder operands
        peak = max(peak, live + (2 * scratch if node.role is Role.ANALOG else scratch))
        live -= sum(sizes[name] for name in dead)
    return peak


def chunking(
    graph: Graph,
    plan: Plan,
    samples: int,
    steps: int,
    chunk: int | None,
    max_memory: int | None,
    itemsize: int,
    gpu_bytes: int | None = None,
    numbers: int | None = None,
    bits: bool = False,
) -> Chunks:
    """Steps per chunk and samples per micro-batch: the largest that stay in cache and within ``max_memory``.

    On a GPU as many samples as fit go together: its memory sets the limit, not a cache. Some kinds of neurons need all steps
    of a sample in one chunk. The state of a sample that is alone becomes its result.

    Args:
        gpu_bytes: memory of the GPU, None on the CPU.
        numbers: of each unit that the engine keeps for all samples; None: those of the dense engine.
        bits: spikes may be bits: a chunk is no longer than it takes for all samples to go together, and some steps at least.
    """
    whole = any(params.kind.all_at_once for params in plan.sites.values())
    if whole:
        chunk = steps
    grows = chunk is None and gpu_bytes is None
    largest = max((node.numel() for node in graph.body), default=1) * itemsize
    if gpu_bytes is None:
        together = min(samples, torch.get_num_threads())  # a thread works on a sample
        frames = max(together, _CACHE_BYTES // max(largest, 1))
    else:
        frames = max(1, gpu_bytes // _GPU_SHARE // max(largest, 1))
        together = min(samples, frames)
    longest = min(steps, max(_ENOUGH, frames // samples)) if bits and not whole else steps
    if max_memory is None:
        per_chunk = min(longest, frames // together) if chunk is None else min(steps, chunk)
        at_once = max(1, min(samples, frames // per_chunk))
        return Chunks(per_chunk, at_once, steps if grows else per_chunk)
    needs = _Needs.of(graph, plan, steps, itemsize, numbers)
    results = 0 if samples == 1 else samples * needs.result
    allowed = max_memory - max_memory // _ASIDE
    free = allowed - needs.fixed - results
    if free < needs.state + needs.frame:
        fitting = (allowed - needs.fixed - needs.state - needs.frame) // max(1, needs.result)
        raise MemoryBudgetError(
            f"{graph.name}: the results of {samples} samples x {steps} steps take {_mib(results)} and one sample "
            f"on its way {_mib(needs.fixed + needs.state + needs.frame)}, more than max_memory = {_mib(max_memory)} "
            f"less 1/{_ASIDE} for libraries: "
            + (f"give at most {fitting} samples at a time" if fitting > 0 else "allow more memory, or use smaller inputs")
        )
    fitting = (free - needs.state) // max(1, needs.frame)
    per_chunk = min(longest, max(1, frames // together), fitting) if chunk is None else min(steps, chunk, fitting)
    if whole and per_chunk < steps:
        raise MemoryBudgetError(
            f"{graph.name}: its neurons need all {steps} steps at once, "
            f"{_mib(needs.fixed + needs.state + steps * needs.frame)} for one sample; max_memory = {_mib(max_memory)} "
            f"allows {per_chunk}: allow more memory, or use fewer steps or inputs"
        )
    at_once = max(1, min(samples, frames // per_chunk, free // (needs.state + per_chunk * needs.frame)))
    most = (free // at_once - needs.state) // max(1, needs.frame)
    return Chunks(per_chunk, at_once, min(steps, most) if grows else per_chunk)


def _mib(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"

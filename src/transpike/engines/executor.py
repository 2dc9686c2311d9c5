"""The clock: walks the network by chunks of time steps and of samples. State lives and dies here.

What depends on the input alone runs once. Between two neuron layers a chunk is one batch of steps x samples
(steps outermost). Neurons and the differential combinator carry their state from chunk to chunk, so neither
the number of steps nor the size of a chunk changes a result.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from transpike.engines.allocator import keep_freed_memory
from transpike.engines.averages import RunningMean
from transpike.engines.bit_moves import moved
from transpike.engines.budget import Chunks, bytes_per_sample, chunking
from transpike.engines.dense import DensePopulation, takes_sums
from transpike.engines.emitted import Counted, Emitted, frames_of
from transpike.engines.event_kernels import looked
from transpike.engines.event_vectors import NOTHING
from transpike.engines.events import Synapse, Weights
from transpike.engines.population import NewPopulation, Population
from transpike.engines.precision import Arithmetic, Bfloat16, Float32, Sums, arithmetic_of, check_precision, label_of
from transpike.engines.program import ENGINES, Joined, Kept, Program, check_engine
from transpike.engines.run import Run, place, room_for
from transpike.engines.samples import keep_samples
from transpike.engines.trace import Layer, Trace
from transpike.engines.values import ChunkValues
from transpike.errors import DataError
from transpike.graph.batches import check_frames, checked_inputs
from transpike.graph.interpret import added_in_place, call, channels_last, interpret
from transpike.graph.ir import Graph, Node, Role, Site, map_tree, tree_refs
from transpike.spiking.plan import Plan

__all__ = ["ENGINES", "Probe", "Run", "bytes_per_sample", "simulate"]

# called with a node of the body, what it emits for a chunk [steps, samples, ...], the chunk's first step and sample
Probe = Callable[[Node, torch.Tensor, int, int], None]


def simulate(
    graph: Graph,
    plan: Plan,
    inputs: Sequence[torch.Tensor],
    steps: int,
    *,
    engine: str = "auto",
    precision: str = "float32",
    max_memory: int | None = None,
    chunk: int | None = None,
    probe: Probe | None = None,
    population: NewPopulation | None = None,
    whole: bool = False,
    kept: Kept | None = None,
) -> Run:
    """Run ``steps`` time steps on a batch; every input is presented unchanged at each step (direct encoding), or frame by frame.

    Args:
        inputs: one tensor per input of the graph, batch first; of a streamed graph the frames of the steps second.
        engine: "dense" computes every 0 too, "events" only what is not 0, wherever it has a kernel; "auto" takes for each
            layer and chunk of steps what its density makes cheaper.
        precision: "float32"; "bfloat16" or "int8" for the products of convolutions and linear layers, see
            `transpike.engines.precision`. With int8 the engine is "dense"; the trace names what each layer has.
        max_memory: bytes that activations, state and results may take together; None: no limit but the cache's.
        chunk: time steps per chunk; chosen from the sizes if None.
        probe: sees what neurons and analog operations emit, chunk by chunk.
        population: makes the neurons of a site; the engine is "dense" then.
        whole: all samples go through the network together, whatever the cache holds.
        kept: by whoever runs the same network again.

    Raises:
        DataError: wrong shapes, an empty batch, values that are not finite, no steps.
        SpecError: there is no such engine or precision, or they do not go together.
        MemoryBudgetError: ``max_memory`` is too small for even one step of one sample.
    """
    check_engine(engine)
    check_precision(precision, engine)
    if steps < 1:
        raise DataError(f"steps is {steps}: simulate at least one step")
    if chunk is not None and chunk < 1:
        raise DataError(f"chunk is {chunk}: at least one step goes through the network at once")
    keep_freed_memory()
    inputs = checked_inputs(graph, inputs)
    check_frames(graph, inputs, steps)
    arithmetic = arithmetic_of(graph, plan, precision, population is None and takes_sums(inputs[0]))
    dense = population is not None or precision == "int8"
    summed = {name: found.counting for name, found in arithmetic.items() if isinstance(found, (Bfloat16, Sums))}
    program = (kept or Kept()).program(graph, plan, "dense" if dense else engine, inputs[0], summed if population is None else {})
    samples = len(inputs[0])
    on_gpu = torch.cuda.get_device_properties(inputs[0].device).total_memory if inputs[0].is_cuda else None
    size, bits = inputs[0].element_size(), bool(program.synapses)
    chunks = chunking(graph, plan, samples, steps, chunk, max_memory, size, on_gpu, bits=bits)
    per_run = samples if whole else chunks.samples
    axes = [program.batch_axes[name] + 1 for name in tree_refs(graph.outputs)]
    result = None
    with torch.no_grad():
        for first in range(0, samples, per_run):
            some = [x[first : first + per_run] for x in inputs]
            part = MicroBatch(program, some, first, probe, population or DensePopulation, arithmetic).run(steps, chunks)
            if per_run >= samples:
                return part
            result = room_for(part, samples, axes) if result is None else result
            place(part, result, first, samples, axes)
            del part  # before the next one needs its room
    assert result is not None
    return result


class MicroBatch:
    """Some samples on their way through time."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[torch.Tensor],
        first: int,
        probe: Probe | None,
        new_population: NewPopulation = DensePopulation,
        arithmetic: Mapping[str, Arithmetic] | None = None,
    ) -> None:
        self._program, self._first_sample, self._new, self._probe = program, first, new_population, probe
        self._arithmetic = {} if arithmetic is None else arithmetic
        self._samples, self._device = len(inputs[0]), inputs[0].device
        self._populations: dict[str, Population] = {}
        self._averages: dict[str, RunningMean] = {}
        self._trace = Trace()
        self._done, self._steps = 0, 1  # steps before this chunk, steps of this chunk
        self._largest = 0  # bytes of a step's largest value in the last chunk
        self._constants: dict[str, Any] = dict(program.params)
        self._frames: dict[str, torch.Tensor] = {}  # streamed inputs. N T ...
        for value, x in zip(program.graph.inputs, inputs, strict=True):
            if value.varying:
                self._frames[value.name] = x
            else:
                self._constants[value.name] = channels_last(x)
        interpret(
            program.graph.prefix,
            self._constants,
            lambda node, env: call(node, env, self._samples, self._device),
            program.prefix_frees,
        )

    def run(self, steps: int, chunks: Chunks) -> Run:
        """All steps, so many at once."""
        graph = self._program.graph
        read: dict[str, torch.Tensor] = {}
        done = 0
        while done < steps:
            together = min(chunks.grown(self._largest) if done else chunks.steps, steps - done)
            for name, y in self.advance(done, together).items():
                if name not in read:
                    read[name] = y.new_empty((steps, *y.shape[1:]))
                read[name][done : done + len(y)] = y
            done += together
        sites = {site.node: site.name for site in graph.sites}
        return Run(
            steps,
            map_tree(lambda leaf: read[leaf.name], graph.outputs),
            {sites[node]: p.spikes() for node, p in self._populations.items()},
            {sites[node]: p.net() for node, p in self._populations.items()},
            {sites[node]: p.membrane() for node, p in self._populations.items()},
            self._trace,
        )

    def advance(self, done: int, steps: int) -> dict[str, torch.Tensor]:
        """Steps ``done + 1 .. done + steps``; their read-out by name. T N ..."""
        self._done, self._steps = done, steps
        graph = self._program.graph
        env = ChunkValues(self._constants, self._program.batch_axes, steps)
        for name, x in self._frames.items():
            env[name] = channels_last(x[:, done : done + steps].movedim(1, 0).flatten(0, 1))
        interpret(self._program.body, env, lambda node, _: self._handle(node, env), self._program.body_frees)
        self._largest = env.largest // steps
        return {name: self._steps_first(name, env[name]) for name in dict.fromkeys(tree_refs(graph.outputs))}

    def keep(self, kept: torch.Tensor) -> None:
        """Go on with the samples numbered ``kept`` alone: the others cost nothing any more."""
        axes = self._program.batch_axes
        for name, x in self._constants.items():
            if name in axes and isinstance(x, torch.Tensor):
                self._constants[name] = keep_samples(x, axes[name], kept, self._samples)
        self._frames = {name: x[kept.to(x.device)] for name, x in self._frames.items()}
        for population in self._populations.values():
            population.keep(kept)
        for name, average in self._averages.items():
            average.keep(kept, self._samples, axes, axes[name])
        self._samples = len(kept)

    def _handle(self, node: Node, env: ChunkValues) -> Any:
        if node.name in self._program.joined:
            result = self._receive(node, env)
        elif node.name in self._program.synapses:
            return self._send(node, env)
        elif node.name in self._arithmetic:
            return self._multiply(node, env, self._arithmetic[node.name])
        elif node.role is Role.NEURON:
            result = self._fire(node, env)
        elif node.role is Role.ANALOG:
            result = self._differential(node, env)
        elif (bits := moved(node, env.emitted, self._program.shared)) is not None:
            return bits
        else:
            result = added_in_place(node, env, self._program.own)
            return call(node, env, self._steps * self._samples, self._device) if result is None else result
        if self._probe is not None and node.floating:
            emitted = result.numbers() if isinstance(result, (Emitted, Counted)) else result
            self._probe(node, self._steps_first(node.name, emitted), self._done, self._first_sample)
        return result

    def _fire(self, node: Node, env: Mapping[str, Any]) -> torch.Tensor | Emitted:
        site, source, axis = self._program.sites[node.name], node.args[0].name, node.batch_axis
        assert axis is not None, "neurons have a batch axis (checked at capture)"
        constant = source in self._constants  # direct encoding: the same current at every step, not repeated
        current = self._constants[source] if constant else env[source]
        beside = env[self._program.beside[node.name]] if node.name in self._program.beside else None
        population = self._population(node, site, axis, current)
        return self._advance(node, population, current, beside, constant=constant, overwrite=source in self._program.own)

    def _advance(
        self,
        node: Node,
        population: Population,
        current: torch.Tensor,
        beside: torch.Tensor | None,
        *,
        constant: bool,
        overwrite: bool,
    ) -> torch.Tensor | Emitted:
        """What the neurons of ``node`` emit, as bits where a synapse may read them."""
        if node.name in self._program.heard and isinstance(population, DensePopulation):
            current = current if beside is None else current.add_(beside)
            return population.emit(current, self._steps, constant=constant, overwrite=overwrite)
        return population.advance(current, self._steps, constant=constant, overwrite=overwrite, beside=beside)

    def _population(self, node: Node, site: Site, axis: int, like: torch.Tensor) -> Population:
        population = self._populations.get(node.name)
        if population is None:
            population = self._new(site, self._program.plan.sites[site.name], self._samples, axis, like, self._program.shared)
            self._populations[node.name] = population
        return population

    def _send(self, node: Node, env: ChunkValues) -> torch.Tensor:
        """The currents of a synapse, by events if they are cheaper."""
        program, x = self._program, env.emitted(node.args[0].name)
        synapse, arithmetic = program.synapses[node.name], self._arithmetic.get(node.name)
        with self._trace.timed(node.name, synapse.macs, self._steps * self._samples, label_of(arithmetic)) as layer:
            if self._by_events(synapse, x, layer, arithmetic):
                return synapse.currents(x, self._weights(synapse, node.args[0].name, x, arithmetic))
            return self._currents(node, env, arithmetic)

    def _currents(self, node: Node, env: ChunkValues, arithmetic: Arithmetic | None) -> torch.Tensor:
        """The currents of a synapse, densely."""
        source = node.args[0].name
        if arithmetic is None or isinstance(arithmetic, Float32):
            return call(node, env, self._steps * self._samples, self._device)
        return arithmetic.currents(env.emitted(source) if isinstance(arithmetic, (Bfloat16, Sums)) else env[source])

    def _multiply(self, node: Node, env: ChunkValues, arithmetic: Arithmetic) -> torch.Tensor:
        """The currents of a synapse with an arithmetic of its own."""
        with self._trace.timed(node.name, arithmetic.macs, self._steps * self._samples, arithmetic.label):
            return self._currents(node, env, arithmetic)

    def _absorb(self, node: Node, env: ChunkValues, joined: Joined, arithmetic: Bfloat16 | Sums) -> torch.Tensor | Counted:
        """What neurons emit that make their currents of sums themselves."""
        other = None if joined.other is None else env.emitted(joined.other)
        with self._trace.timed(node.name, arithmetic.macs, self._steps * self._samples, arithmetic.label):
            sums = arithmetic.sums(env.emitted(joined.synapse.args[0].name))
            like = torch.empty_like(sums[:1], dtype=torch.float32)
            neurons, heard = self._population(node, self._program.sites[node.name], 0, like), node.name in self._program.counted
            assert isinstance(neurons, DensePopulation)
            return neurons.absorb(sums, arithmetic.bias, other, self._steps, heard=heard)

    def _receive(self, node: Node, env: ChunkValues) -> torch.Tensor | Emitted | Counted:
        """What neurons emit that have taken their synapse over."""
        program, joined = self._program, self._program.joined[node.name]
        arithmetic = self._arithmetic.get(joined.synapse.name)
        site = program.sites[node.name]
        several = program.plan.sites[site.name].several
        if isinstance(arithmetic, (Bfloat16, Sums)) and (joined.synapse.name not in program.synapses or several):
            return self._absorb(node, env, joined, arithmetic)
        synapse = program.synapses[joined.synapse.name]
        source, frames = joined.synapse.args[0].name, self._steps * self._samples
        x = env.emitted(source)
        constant = joined.other in self._constants
        other = None if joined.other is None else self._constants[joined.other] if constant else env.emitted(joined.other)
        with self._trace.timed(node.name, synapse.macs, frames, label_of(arithmetic)) as layer:
            if self._by_events(synapse, x, layer, arithmetic):
                like = synapse.logical(torch.empty(1, site.units), len(joined.synapse.shape or ()))
                neurons = self._population(node, site, 0, like)
                assert isinstance(neurons, DensePopulation)
                weights = self._weights(synapse, source, x, arithmetic)
                return neurons.receive(synapse, weights, x, other, self._steps, constant=constant)
            current = env.seen(self._currents(joined.synapse, env, arithmetic))
            beside = None if joined.other is None else env[joined.other]
            return self._advance(node, self._population(node, site, 0, current), current, beside, constant=False, overwrite=True)

    def _by_events(self, synapse: Synapse, x: torch.Tensor | Emitted, layer: Layer, arithmetic: Arithmetic | None) -> bool:
        """Look at some inputs, spread over the chunk, and take what costs less. Rounded weights take in what a spike is worth."""
        marked, share = isinstance(x, Emitted) and synapse.fits(x), 1.0
        if isinstance(arithmetic, Bfloat16):
            share = arithmetic.dense_share
            if not isinstance(x, Emitted) or not marked or not len(x.by_channel):
                return False
        found, total = x.looked() if isinstance(x, Emitted) else looked(frames_of(x))
        layer.nonzeros, layer.looked = layer.nonzeros + found, layer.looked + total
        if self._program.engine == "auto" and synapse.event_cost(found / total, marked) > share * synapse.dense_cost():
            return False
        layer.events += len(x)
        return True

    def _weights(self, synapse: Synapse, source: str, x: torch.Tensor | Emitted, arithmetic: Arithmetic | None) -> Weights:
        """As the kernels read them, once for all: what ``source`` emits is worth the same at all times.

        Layers that share weights are one synapse, but what they read may be worth something else.
        """
        shared, params = self._program.shared, self._program.params
        worth = x.by_channel if isinstance(x, Emitted) and synapse.fits(x) else NOTHING
        folded, dtype = len(worth) > 0, torch.bfloat16 if isinstance(arithmetic, Bfloat16) else torch.float32
        key = (synapse, source if folded else None, dtype)
        if key not in shared:
            weights = synapse.layout(params)
            shared[key] = synapse.folded(weights, worth, dtype) if folded else weights
        return shared[key]

    def _differential(self, node: Node, env: ChunkValues) -> torch.Tensor:
        summed = node.name in self._program.summed
        average = self._averages.setdefault(node.name, RunningMean(summed))
        varying = [name for name in dict.fromkeys(node.refs()) if name in self._program.averaged]
        means = {}
        for name in varying:
            emitted = env.emitted(name)
            if summed and isinstance(emitted, Emitted) and not emitted.several:
                means[name] = average.add_spikes(name, emitted, self._steps)
                continue
            means[name] = torch.empty_like(env[name])
            average.add(name, self._steps_first(name, env[name]), self._steps_first(name, means[name]), self._done)
        total = call(node, ChainMap(means, env), self._steps * self._samples, self._device)  # type: ignore[arg-type]
        if not node.floating:
            return total  # a mask or an index of the means: what reads it takes it as it is
        change = torch.empty_like(total)
        average.differences(self._steps_first(node.name, total), self._steps_first(node.name, change), self._done)
        return change

    def _steps_first(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A view with the steps as first axis and samples on the batch axis. T ... N ..."""
        axis = self._program.batch_axes[name]
        return x.unflatten(axis, (self._steps, -1)).movedim(axis, 0)

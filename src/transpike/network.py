"""The converted network: a graph and a plan as one `nn.Module` that drops into existing evaluation code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transpike.engines import counts, executor, exits
from transpike.engines.executor import Probe, Run
from transpike.engines.exits import ExitRun, Leave, SampleProbe
from transpike.engines.precision import check_precision
from transpike.engines.program import Kept
from transpike.errors import DataError, SpecError
from transpike.graph import serial
from transpike.graph.batches import inputs_of
from transpike.graph.interpret import laid_out
from transpike.graph.ir import Graph
from transpike.graph.streaming import streamed
from transpike.spiking.plan import Plan, versions
from transpike.spiking.store import write_tensors

__all__ = ["FILE_FORMAT", "FILE_KIND", "SpikingNetwork", "simulate", "simulate_until"]

FILE_KIND = "spiking network"
FILE_FORMAT = 2  # raised when an older `transpike.load` could not read the file; 1 had no precision

_SEPARATOR = "/"  # buffer names may hold no dots


class SpikingNetwork(nn.Module):
    """A spiking network. Calling it simulates ``steps`` steps and returns the mean read-out.

    The output has the structure of the original network's (tensor, tuple, list or dict). No state is kept from call
    to call, so there is nothing to reset. Weights and plan are buffers: ``.to(device)``, ``state_dict`` and
    ``copy.deepcopy`` work as for any module.

    Args:
        graph: the captured network. plan: its numbers.
        steps: time steps of a call. start: steps that the read-out leaves out (delayed evaluation).
        engine, precision, max_memory: as for `simulate`.

    Raises:
        PlanError: the plan does not fit the graph.
        SpecError: there is no such precision, or the engine has float32 alone.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        *,
        steps: int = 32,
        start: int = 0,
        engine: str = "auto",
        precision: str = "float32",
        max_memory: int | None = None,
    ) -> None:
        super().__init__()
        check_precision(precision, engine)
        self.steps, self.start, self.engine, self.precision, self.max_memory = steps, start, engine, precision, max_memory
        self._graph, self._plan, self._kept = graph, plan.validate(graph), Kept()
        self._weights, self._numbers = nn.Module(), nn.Module()
        for module, tensors in ((self._weights, laid_out(graph)), (self._numbers, plan.tensors())):
            for name, tensor in tensors.items():
                module.register_buffer(name.replace(".", _SEPARATOR + _SEPARATOR), tensor.detach().clone())
        self.eval()
        self._bind()
        self.register_load_state_dict_post_hook(_rebind)  # load_state_dict(assign=True) puts other tensors in place

    @property
    def graph(self) -> Graph:
        """The captured network with the current weights."""
        return self._graph

    @property
    def plan(self) -> Plan:
        """The numbers of the conversion."""
        return self._plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mean read-out over steps ``start + 1 .. steps``."""
        x = kwargs or (args[0] if len(args) == 1 else args)
        free = self.engine == "auto" and self.precision == "float32" and not self.start
        engine = "counts" if free and counts.counts_serve(self._graph, self._plan) else self.engine
        run = simulate(self, x, self.steps, engine=engine, precision=self.precision, max_memory=self.max_memory)
        return run.readout(start=self.start)

    def streamed(self) -> SpikingNetwork:
        """The same network for recordings: inputs have frames N T ..., and step t sees frame t.

        Calibrate on single inputs, whose place the mean of the frames so far takes. `evaluate` gives the ANN the mean of
        all frames.
        """
        return SpikingNetwork(streamed(self._graph), self._plan, **self._options())

    def save(self, path: Path | str) -> Path:
        """Write everything to one file that needs neither pickle nor the original class, see `transpike.load`.

        Raises:
            ArtifactError: the file cannot be written.
        """
        header = {
            "kind": FILE_KIND,
            "format": FILE_FORMAT,
            "versions": versions(),
            "graph": serial.header(self._graph),
            "plan": self._plan.header(),
            "run": self._options(),
        }
        tensors = {f"weight/{name}": x for name, x in self._graph.params.items()}
        tensors.update((f"plan/{name}", x) for name, x in self._plan.tensors().items())
        return write_tensors(path, tensors, header)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps", "start", "engine", "precision", "max_memory")}

    def extra_repr(self) -> str:
        method = self._plan.metadata.get("method", "?")
        low = "" if self.precision == "float32" else f", precision={self.precision}"
        return f"{self._graph.name}, {len(self._graph.sites)} sites, method={method}, steps={self.steps}{low}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SpikingNetwork:
        super()._apply(fn, recurse)
        self._bind()
        return self

    def _bind(self) -> None:
        """Let graph and plan hold the module's own buffers."""

        def names(module: nn.Module) -> dict[str, torch.Tensor]:
            return {name.replace(_SEPARATOR + _SEPARATOR, "."): x for name, x in module.named_buffers()}

        weights = names(self._weights)
        inputs = self._graph.inputs
        floats = {x.dtype for x in weights.values() if x.is_floating_point()}
        if len(floats) == 1:  # .double() moves the inputs' type too
            inputs = tuple(replace(value, dtype=next(iter(floats))) for value in inputs)
        self._graph = replace(self._graph, params=weights, inputs=inputs)
        self._plan = self._plan.with_tensors(names(self._numbers))


def _rebind(net: nn.Module, _: Any) -> None:
    assert isinstance(net, SpikingNetwork)
    net._bind()


def simulate(
    net: SpikingNetwork,
    x: Any,
    steps: int = 32,
    *,
    engine: str = "auto",
    precision: str = "float32",
    max_memory: int | None = None,
    chunk: int | None = None,
    at: Sequence[int] | None = None,
    probe: Probe | None = None,
) -> Run:
    """Run the network for ``steps`` time steps on a batch; the input is presented unchanged at every step, unless streamed.

    Args:
        x: a tensor N ..., a tuple or dict of tensors for several inputs, or a pair (input, target); N T ... for a
            network that is `SpikingNetwork.streamed`.
        steps: time steps T.
        engine: "auto", "dense" or "events", see `transpike.engines.executor.simulate`; "counts": parallel neurons, and
            signed ones without a cap, in one pass of the network for each number of steps in ``at``.
        precision: "float32", "bfloat16" or "int8" for the products of convolutions and linear layers behind neurons; what is
            rounded: `transpike.engines.precision`; what each layer had: ``run.trace``. The engine is "dense" then.
        at: "counts" only: the numbers of steps to read out after, ``steps`` alone if None.
        max_memory: bytes that activations, state and results may take together, None: no limit.
        chunk: steps that go through the network at once; changes speed and memory, never a spike.

    Returns:
        `Run` with the read-out of every step, spike counts and final membrane potentials.

    Raises:
        DataError: wrong shapes, an empty batch, values that are not finite.
        MemoryBudgetError: ``max_memory`` is too small.
        SpecError: there is no such engine or precision, or they do not go together.

    Example:
        >>> run = transpike.simulate(net, images, steps=32)  # doctest: +SKIP
        >>> run.readout(32).argmax(1), run.readout(32, start=16), run.spikes["relu#1"]  # doctest: +SKIP
    """
    inputs = _inputs(net, x)
    check_precision(precision, engine)
    if engine == "counts":
        if chunk is not None or probe is not None:
            raise SpecError("engine='counts' goes through the network without a clock: chunk and probe are for the others")
        return counts.simulate_counts(net.graph, net.plan, inputs, (steps,) if at is None else at, max_memory=max_memory)
    if at is not None:
        raise SpecError(f"at={list(at)} is for engine='counts': engine={engine!r} gives the read-out of every step")
    options = {"engine": engine, "precision": precision, "max_memory": max_memory, "chunk": chunk, "probe": probe}
    return executor.simulate(net.graph, net.plan, inputs, steps, kept=net._kept, **options)


def simulate_until(
    net: SpikingNetwork,
    x: Any,
    steps: int,
    leave: Leave,
    *,
    start: int = 0,
    first: int = 1,
    engine: str = "auto",
    max_memory: int | None = None,
    chunk: int = 1,
    probe: SampleProbe | None = None,
) -> ExitRun:
    """Run for at most ``steps`` steps; the samples that ``leave`` names are simulated no further.

    The arguments are those of `simulate` and of `transpike.engines.exits.simulate_until`.
    `transpike.measure.early_exit.run_with_exit` calls it with what an exit policy says.
    """
    return exits.simulate_until(
        net.graph,
        net.plan,
        _inputs(net, x),
        steps,
        leave,
        start=start,
        first=first,
        chunk=chunk,
        engine=engine,
        max_memory=max_memory,
        probe=probe,
        kept=net._kept,
    )


def _inputs(net: SpikingNetwork, x: Any) -> list[torch.Tensor]:
    if not isinstance(net, SpikingNetwork):
        raise DataError(f"simulate takes a SpikingNetwork, got {type(net).__name__}: convert the model first")
    return _named(net.graph, x) if isinstance(x, Mapping) else inputs_of(x, len(net.graph.inputs))


def _named(graph: Graph, x: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    missing = [str(value.key) for value in graph.inputs if value.key not in x]
    if missing:
        raise DataError(f"the input lacks {', '.join(missing)}: {graph.name} takes {[value.key for value in graph.inputs]}")
    return [x[str(value.key)] for value in graph.inputs]

"""What a conversion is worth: the task's metric at every step in one pass, agreement with the ANN, rates, energy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from transpike.engines.executor import bytes_per_sample
from transpike.engines.precision import check_precision
from transpike.engines.trace import Trace
from transpike.errors import DataError, SpecError
from transpike.graph.batches import checked_inputs, inputs_of, peek, target_of
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph
from transpike.measure.accuracy import Classification, windows_of
from transpike.measure.delay import estimate_delay
from transpike.measure.effect import effect_of
from transpike.measure.energy import Meter, by_channel
from transpike.measure.report import Report
from transpike.measure.tally import Tally, Task
from transpike.network import SpikingNetwork, simulate
from transpike.spiking.plan import versions

__all__ = ["evaluate"]

_HELD_BYTES = 512 << 20  # what the state of the samples that are simulated together may take

_DELAY_SAMPLES = 128  # the paper takes one batch of 100


def evaluate(
    net: SpikingNetwork,
    loader: Iterable[Any],
    steps: int = 32,
    *,
    task: Task | None = None,
    starts: Sequence[int] = (),
    engine: str = "auto",
    precision: str = "float32",
    max_memory: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Measure a spiking network on labelled data.

    One simulation of ``steps`` steps gives the metric at every t, for the plain read-out and for delayed ones: by the
    estimated delay with at least 4 steps read (the paper's rule), by the estimate alone, and from every fixed
    step in ``starts``.

    Args:
        loader: pairs (input, target).
        task: what is measured, `Classification` by default.
        engine: as for `simulate`, but for "counts", which has no steps to measure between (`count_curve` does without).
        precision: as for `simulate`; below float32 the first samples are simulated in float32 too, and `Report.effect`
            says how far apart the two are.
        progress: called with the number of samples done.

    Raises:
        DataError: no data, no targets, data that does not fit the network, or a start outside of the steps.

    Example:
        >>> report = transpike.evaluate(net, loader, steps=32)  # doctest: +SKIP
        >>> print(report); report.save("report/")  # doctest: +SKIP
    """
    if steps < 1:
        raise DataError(f"steps is {steps}: simulate at least one step")
    if engine == "counts":
        raise SpecError("evaluate measures every step, engine='counts' has none: use count_curve, or another engine")
    check_precision(precision, engine)
    if wrong := [s for s in starts if not 0 <= s < steps]:
        raise DataError(f"starts {wrong}: the read-out may leave out 0 to {steps - 1} of {steps} steps")
    task = task or Classification()
    graph, plan, count = net.graph, net.plan, len(net.graph.inputs)
    _, batches = peek(loader)
    delay = estimate_delay(graph, plan, _first_samples(graph, batches))
    windows = windows_of(starts, delay)
    meter = Meter(graph, plan, steps)
    tally = Tally(task, windows, steps)
    held = max_memory or _HELD_BYTES
    at_once = max(1, held // max(1, 2 * bytes_per_sample(graph, plan, steps)))
    saturated: dict[str, torch.Tensor] = {}
    clock, trace = {"ann": 0.0, "snn": 0.0}, Trace()
    samples, effect = 0, None
    for batch in batches:
        inputs = checked_inputs(graph, inputs_of(batch, count))
        targets = _targets(batch, count, len(inputs[0]))
        for low in range(0, len(inputs[0]), at_once):
            part = [x[low : low + at_once] for x in inputs]
            began = time.perf_counter()
            ann = task.readout(forward(graph, part))
            clock["ann"] += time.perf_counter() - began
            wanted = task.check(ann, None if targets is None else targets[low : low + at_once])
            began = time.perf_counter()
            x = tuple(part) if count > 1 else part[0]
            run = simulate(net, x, steps, engine=engine, precision=precision, max_memory=max_memory, probe=meter.probe)
            clock["snn"] += time.perf_counter() - began
            if precision != "float32" and effect is None:
                effect = effect_of(precision, task, run, simulate(net, x, steps, engine="dense", max_memory=max_memory))
            trace.add(run.trace)
            tally.add(ann, task.readout(run.outputs), wanted, len(part[0]))
            for site in graph.sites:
                full = _saturated(run.spikes[site.name], plan.sites[site.name].cap, steps).sum(0)
                saturated[site.name] = saturated.get(site.name, torch.zeros_like(full)) + full
            samples += len(part[0])
            if progress is not None:
                progress(samples)
    meter.samples = samples
    channels = {
        site.name: int((by_channel(site, saturated[site.name]).float().mean(1) > 0.01 * samples).sum()) for site in graph.sites
    }
    return Report(
        network=graph.name,
        task=task.name,
        metrics=task.metrics,
        better=task.better,
        steps=steps,
        samples=samples,
        ann=tally.ann(),
        curves=tally.curves(),
        agreement=tally.agreement(),
        windows={w.name: {"delay": w.delay, "minimum": w.minimum} for w in windows},
        delay=delay,
        rates=meter.rates(),
        silent=meter.silent_channels(),
        saturated=channels,
        channels={site.name: site.channels for site in graph.sites},
        energy=meter.energy(),
        seconds=clock,
        origin={**plan.metadata, "engine": engine, "precision": precision, "versions": versions()},
        notes=plan.notes,
        measured=tally.measured,
        step_ms=task.step_ms,
        profile=tuple(trace.rows()),
        effect=effect,
    )


def _first_samples(graph: Graph, batches: Iterable[Any]) -> list[torch.Tensor]:
    """The inputs that the delay is estimated from: the same samples however the data is cut into batches."""
    parts: list[list[torch.Tensor]] = []
    for batch in batches:
        parts.append(checked_inputs(graph, inputs_of(batch, len(graph.inputs))))
        if sum(len(part[0]) for part in parts) >= _DELAY_SAMPLES:
            break
    return [torch.cat(x)[:_DELAY_SAMPLES] for x in zip(*parts, strict=True)]


def _targets(batch: Any, count: int, samples: int) -> Any:
    """The targets of a batch, one per sample, None where there are none."""
    targets = target_of(batch, count)
    if targets is None:
        return None
    try:
        found = len(targets)
    except TypeError:
        raise DataError(f"the targets of a batch are one {type(targets).__name__}: give one target per sample") from None
    if found != samples:
        raise DataError(f"a batch has {samples} samples and {found} targets: give one target per sample")
    return targets


def _saturated(spikes: torch.Tensor, cap: int | None, steps: int) -> torch.Tensor:
    """Units that fired as much as they could: at every step, as many spikes as the cap allows."""
    return spikes >= (math.inf if cap is None else cap * steps)

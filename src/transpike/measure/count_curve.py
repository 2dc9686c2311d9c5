"""The metric at a few numbers of steps, a pass of the network for each: for networks whose counts do not depend on timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from transpike.engines.counts import CountRun
from transpike.errors import DataError
from transpike.graph.batches import checked_inputs, inputs_of, peek, target_of
from transpike.graph.interpret import forward
from transpike.measure.accuracy import Classification
from transpike.network import SpikingNetwork, simulate

__all__ = ["CountCurve", "count_curve"]


@dataclass(frozen=True)
class CountCurve:
    """What a network is worth after some numbers of steps. Shares are from 0 to 1.

    Args:
        at: numbers of steps. values: by metric, one value for each of them. ann: the original network's metrics.
        agreement: the share of samples given the ANN's class, for each number of steps.
        seconds: spent in the ANN and in the passes.
    """

    network: str
    samples: int
    at: tuple[int, ...]
    ann: Mapping[str, float]
    values: Mapping[str, tuple[float, ...]]
    agreement: tuple[float, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        metrics = list(self.values)
        lines = [
            f"{self.network}: {self.samples} samples, in count space",
            "  " + "steps".rjust(9) + "".join(f"{m:>10}" for m in metrics),
        ]
        for k, t in enumerate(self.at):
            lines.append(f"  {t:>9}" + "".join(f"{self.values[m][k]:>10.2%}" for m in metrics))
        lines.append("  " + "ANN".rjust(9) + "".join(f"{self.ann[m]:>10.2%}" for m in metrics))
        lines.append(f"  time: ANN {self.seconds['ann']:.1f} s, {len(self.at)} passes {self.seconds['snn']:.1f} s")
        return "\n".join(lines)


def count_curve(
    net: SpikingNetwork,
    loader: Iterable[Any],
    at: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    task: Classification | None = None,
    max_memory: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> CountCurve:
    """Measure parallel neurons, or signed ones without a cap, at the numbers of steps in ``at``.

    Parallel neurons are those of a conversion for that many steps. Each number costs one pass, whatever it is.

    Args:
        loader: pairs (input, class number). progress: called with the number of samples done.

    Raises:
        SpecError: a neuron whose count depends on when its charge arrives.
        DataError: no data, no targets, or data that does not fit the network.
    """
    task = task or Classification()
    if not isinstance(task, Classification):
        raise DataError("count_curve measures one class per sample: use evaluate for other tasks")
    graph, count = net.graph, len(net.graph.inputs)
    times = tuple(sorted(set(at)))
    right: dict[str, list[int]] = {metric: [0] * len(times) for metric in task.metrics}
    ann_right: dict[str, int] = dict.fromkeys(task.metrics, 0)
    same, samples = [0] * len(times), 0
    clock = {"ann": 0.0, "snn": 0.0}
    _, batches = peek(loader)
    for batch in batches:
        inputs = checked_inputs(graph, inputs_of(batch, count))
        began = time.perf_counter()
        ann = task.readout(forward(graph, inputs))
        clock["ann"] += time.perf_counter() - began
        targets = task.check(ann, target_of(batch, count))
        began = time.perf_counter()
        run = simulate(net, tuple(inputs) if count > 1 else inputs[0], engine="counts", at=times, max_memory=max_memory)
        clock["snn"] += time.perf_counter() - began
        assert isinstance(run, CountRun)
        for metric, hits in task.correct(ann, targets).items():
            ann_right[metric] += int(hits)
        for k, t in enumerate(times):
            logits: torch.Tensor = task.readout(run.readout(t))
            for metric, hits in task.correct(logits, targets).items():
                right[metric][k] += int(hits)
            same[k] += int((task.decide(logits) == task.decide(ann)).sum())
        samples += len(targets)
        if progress is not None:
            progress(samples)
    return CountCurve(
        graph.name,
        samples,
        times,
        {metric: hits / samples for metric, hits in ann_right.items()},
        {metric: tuple(n / samples for n in found) for metric, found in right.items()},
        tuple(n / samples for n in same),
        clock,
    )

"""Early exit: a sample leaves the simulation at the first step at which the read-out is sure enough.

    Y_t = sum of the read-out of steps start + 1 .. t (or its mean),   p = softmax(Y_t),   C classes
    certainty:  1 - H(p) / ln C  (entropy),   max p  (confidence),   p_1st - p_2nd  (margin);   all from 0 to 1
    leave at the first t with certainty > c_t, else at T;   the answer is arg max Y_t

It is no part of the neurons: a policy reads the network's output and the executor drops the samples that leave. How
the thresholds c_t are chosen: `transpike.measure.exit_thresholds`.

Reference: Wang et al., "Adaptive Calibration", AAAI 2025, arXiv:2412.16219 (input-aware adaptive timesteps; entropy and
confidence of the sum).
Departures: the mean of the read-out beside the sum. The sum is t times the mean, so its softmax sharpens with t: after
some steps the certainty of most samples is 1 in floating point, and no threshold tells them apart. Samples that have
left really are computed no further.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from transpike.engines.exits import ExitRun, SampleProbe
from transpike.errors import DataError
from transpike.graph.batches import checked_inputs, inputs_of, peek, target_of
from transpike.measure.accuracy import Classification
from transpike.network import SpikingNetwork, simulate, simulate_until

__all__ = ["Certainty", "ExitPolicy", "ReadOut", "Statistic", "Trace", "record", "run_with_exit"]


class Statistic(enum.Enum):
    """How sure a distribution over the classes is."""

    ENTROPY = "entropy"  # 1 - H(p) / ln C
    CONFIDENCE = "confidence"  # the largest probability
    MARGIN = "margin"  # the largest less the second largest


class ReadOut(enum.Enum):
    """What the softmax is taken of."""

    SUM = "sum"  # of the read-out so far: the authors' choice
    MEAN = "mean"  # keeps its scale from step to step


@dataclass(frozen=True)
class Certainty:
    """How sure the read-out of steps ``start + 1 .. t`` is, from 0 to 1.

    Args:
        statistic: of the softmax. readout: what the softmax is taken of.
        start: steps that the read-out leaves out (delayed evaluation).
    """

    statistic: Statistic = Statistic.ENTROPY
    readout: ReadOut = ReadOut.MEAN
    start: int = 0

    def of(self, totals: torch.Tensor, t: int) -> torch.Tensor:
        """Certainties at step ``t`` from the sums of the read-out. N C -> N"""
        logits = totals.double() if self.readout is ReadOut.SUM else totals.double() / (t - self.start)
        p = logits.softmax(-1)
        if self.statistic is Statistic.ENTROPY:
            return (1 - torch.special.entr(p).sum(-1) / math.log(p.shape[-1])).clamp(0, 1)
        first, second = p.topk(2, -1).values.unbind(-1)
        return first if self.statistic is Statistic.CONFIDENCE else first - second

    def totals(self, outputs: torch.Tensor) -> torch.Tensor:
        """Sums of the read-out over steps ``start + 1 .. t`` for t = start + 1 .. T. T N C -> T-start N C"""
        return outputs[self.start :].cumsum(0, dtype=torch.float64)

    def over_time(self, outputs: torch.Tensor) -> torch.Tensor:
        """Certainties at steps ``start + 1 .. T``. T N C -> T-start N"""
        return torch.stack([self.of(total, self.start + 1 + k) for k, total in enumerate(self.totals(outputs))])


@dataclass(frozen=True)
class ExitPolicy:
    """When samples leave: at the first step whose certainty is greater than the threshold of the step, at the last at latest.

    Args:
        certainty: what is compared.
        thresholds: c_t of step t = 1..T, from 0 to 1; 1 is never exceeded. Those of steps 1 .. start are not used.
        origin: how they were chosen, for reports. notes: what a user should know about it.

    Raises:
        DataError: no thresholds, one outside of 0..1, or a start that leaves no step.
    """

    certainty: Certainty
    thresholds: tuple[float, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [c for c in self.thresholds if not 0 <= c <= 1]:
            raise DataError(f"exit thresholds are from 0 to 1, got {wrong[0]}: 1 never lets a sample leave")
        if not 0 <= self.certainty.start < self.steps:
            raise DataError(f"{self.steps} exit thresholds, one for each step, with start {self.certainty.start}: give more steps")

    @property
    def steps(self) -> int:
        """The most steps T that a sample takes."""
        return len(self.thresholds)

    @property
    def first(self) -> int:
        """The first step at which a sample may leave."""
        start = self.certainty.start
        return next((t for t, c in enumerate(self.thresholds[start:], start + 1) if c < 1), self.steps)

    def decide(self, totals: torch.Tensor, t: int) -> torch.Tensor:
        """Which samples leave at step ``t``? ``totals`` are sums over steps start + 1 .. t. N C -> N"""
        if t >= self.steps:
            return torch.ones(len(totals), dtype=torch.bool, device=totals.device)
        return self.certainty.of(totals, t) > self.thresholds[t - 1]

    def exits(self, outputs: torch.Tensor) -> torch.Tensor:
        """The step at which each sample leaves, from the read-out of all steps: what a run with exits does. T N C -> N"""
        start = self.certainty.start
        sure = torch.stack([self.decide(total, start + 1 + k) for k, total in enumerate(self.certainty.totals(outputs))])
        return sure.int().argmax(0) + start + 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "statistic": self.certainty.statistic.value,
            "readout": self.certainty.readout.value,
            "start": self.certainty.start,
            "thresholds": list(self.thresholds),
            "origin": dict(self.origin),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Trace:
    """Labelled samples that were simulated to the end, to choose exits from afterwards.

    Args:
        outputs: logits of every step. T N C
        targets: class numbers. N
    """

    outputs: torch.Tensor
    targets: torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.outputs)

    @property
    def samples(self) -> int:
        return len(self.targets)

    def halves(self) -> tuple[Trace, Trace]:
        """Every second sample, and the others: one to make candidates from, one to choose among them."""
        return Trace(self.outputs[:, ::2], self.targets[::2]), Trace(self.outputs[:, 1::2], self.targets[1::2])


def record(net: SpikingNetwork, loader: Iterable[Any], steps: int = 32, *, task: Classification | None = None) -> Trace:
    """Simulate labelled samples to the end and keep the logits of every step.

    Raises:
        DataError: no data, no targets, data that does not fit, or an output that is not logits N x classes.
    """
    task, count = task or Classification(), len(net.graph.inputs)
    _, batches = peek(loader)
    outputs, targets = [], []
    for batch in batches:
        x = checked_inputs(net.graph, inputs_of(batch, count))
        logits = task.readout(simulate(net, tuple(x) if count > 1 else x[0], steps).outputs)
        check_logits(logits[-1])
        targets.append(task.check(logits[-1], target_of(batch, count)).cpu())
        outputs.append(logits.cpu())
    return Trace(torch.cat(outputs, 1), torch.cat(targets))


def run_with_exit(
    net: SpikingNetwork,
    x: Any,
    policy: ExitPolicy,
    *,
    task: Classification | None = None,
    chunk: int = 2,
    max_memory: int | None = None,
    probe: SampleProbe | None = None,
) -> ExitRun:
    """Simulate a batch; the samples that leave are computed no further.

    Args:
        chunk: steps that go through the network at once; changes speed, neither exits nor results. The state of the
            neurons is larger than a cache: two steps at once are faster than one, though some are computed for nothing.

    Raises:
        DataError: data that does not fit, or an output that is not logits N x classes. PlanError: parallel neurons.

    Example:
        >>> run = run_with_exit(net, images, policy)  # doctest: +SKIP
        >>> run.readout.argmax(1), run.exits.float().mean()  # doctest: +SKIP
    """
    task = task or Classification()

    def leave(totals: Any, t: int) -> torch.Tensor:
        return policy.decide(check_logits(task.readout(totals)), t)

    start, first = policy.certainty.start, policy.first
    return simulate_until(net, x, policy.steps, leave, start=start, first=first, chunk=chunk, max_memory=max_memory, probe=probe)


def check_logits(logits: torch.Tensor) -> torch.Tensor:
    """The same logits, if they are N x classes."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise DataError(
            f"the output has shape {tuple(logits.shape)}: early exit takes logits (N, classes) of at least two classes; "
            "choose the output with Classification(output=...)"
        )
    return logits

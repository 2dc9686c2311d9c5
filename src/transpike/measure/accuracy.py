"""Which steps a read-out averages, and classification: accuracy at every number of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transpike.errors import DataError
from transpike.graph.ir import map_tree

__all__ = ["Classification", "Window", "output_of", "read_outs", "windows_of"]


@dataclass(frozen=True)
class Window:
    """Which steps the read-out at step t averages: ``start(t) + 1 .. t``.

    With ``minimum = 4`` and the estimated delay this is the rule of Bu et al. (CVPR 2025, arXiv:2409.03368,
    algorithm 2): ``start(t) = min(delay, t - 4)``, at least 0.

    Args:
        name: as it stands in reports.
        delay: steps to leave out.
        minimum: the shortest window; where t is too early for ``delay``, the last ``minimum`` steps are read.
            None: where t <= delay there is no read-out yet, and the plain one stands in.
    """

    name: str
    delay: int = 0
    minimum: int | None = None

    def start(self, t: int) -> int:
        """Steps left out of the read-out at step ``t``."""
        if self.minimum is not None:
            return max(0, min(self.delay, t - self.minimum))
        return self.delay if t > self.delay else 0


@dataclass(frozen=True)
class Classification:
    """Top-1 and top-5 accuracy of logits N x classes. Targets are class numbers.

    Args:
        output: which tensor of the network's output holds the logits (position, or key of a dict).
        step_ms: milliseconds of a time step where the input is a recording, for accuracy against time; None: no real time.
    """

    output: int | str = 0
    step_ms: float | None = None

    name = "classification"
    metrics = ("top1", "top5")
    better = "top1"

    def readout(self, outputs: Any) -> torch.Tensor:
        """The logits among the network's outputs."""
        return output_of(outputs, self.output, type(self).__name__)

    def answer(self, readout: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return readout

    def measured(self, steps: int) -> Sequence[int]:
        """Every step."""
        return range(1, steps + 1)

    def score(self) -> _Right:
        """Nothing counted yet."""
        return _Right(self)

    def check(self, logits: torch.Tensor, targets: Any) -> torch.Tensor:
        """Targets as class numbers on the logits' device.

        Raises:
            DataError: no targets, or targets that do not fit the logits.
        """
        if logits.dim() != 2:
            raise DataError(f"the output has shape {tuple(logits.shape)}: classification takes logits (N, classes)")
        if targets is None:
            raise DataError("the data has no targets: give pairs (input, class number)")
        try:
            targets = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"targets are a {type(targets).__name__} that is no tensor ({error}): give class numbers") from error
        if targets.dim() != 1 or len(targets) != logits.shape[-2] or targets.is_floating_point():
            raise DataError(f"targets have shape {tuple(targets.shape)} and dtype {targets.dtype}: one class number per sample")
        if bool((targets < 0).any() | (targets >= logits.shape[-1]).any()):
            raise DataError(
                f"targets go from {int(targets.min())} to {int(targets.max())}, the network has classes 0 to {logits.shape[-1] - 1}"
            )
        return targets.to(logits.device)

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """How many samples are right by each metric. ... N classes -> ..."""
        best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        hits = best == targets[..., None]
        return {"top1": hits[..., 0].sum(-1), "top5": hits.any(-1).sum(-1)}

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """The class that each sample is given. ... N classes -> ... N"""
        return logits.argmax(-1)

    def agreement(self, answer: torch.Tensor, ann: torch.Tensor) -> torch.Tensor:
        """1 for each sample that is given the ANN's class, else 0. N"""
        return (self.decide(answer) == self.decide(ann)).double()


class _Right:
    """Right answers so far, by metric."""

    def __init__(self, task: Classification) -> None:
        self._task, self._samples = task, 0
        self._right: dict[str, int] = dict.fromkeys(task.metrics, 0)

    def add(self, answer: torch.Tensor, targets: torch.Tensor, ann: torch.Tensor) -> None:
        self._samples += len(targets)
        for metric, right in self._task.correct(answer, targets).items():
            self._right[metric] += int(right)

    def values(self) -> dict[str, float]:
        return {metric: right / self._samples for metric, right in self._right.items()}


def output_of(outputs: Any, output: int | str, task: str) -> torch.Tensor:
    """The tensor at position or key ``output`` of what a network returns; a tensor is taken as it is.

    Raises:
        DataError: there is no such output; ``task`` is where to choose another.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    try:
        found = outputs[output]
    except (KeyError, IndexError, TypeError):
        keys = list(outputs) if isinstance(outputs, dict) else range(len(outputs))
        if not (isinstance(outputs, dict) and isinstance(output, int) and 0 <= output < len(keys)):
            raise DataError(
                f"the network has no output {output!r}: choose from {', '.join(map(repr, keys))} with {task}(output=...)"
            ) from None
        found = outputs[keys[output]]  # a position among the keys
    return output_of(found, output, task)


def read_outs(outputs: Any, pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Any]]:
    """The mean read-out over steps ``start + 1 .. t`` for every (start, t) in ``pairs``, in the order of t.

    Args:
        outputs: a tensor T N ..., or a tuple, list or dict of them.

    Yields:
        the pair, and means in the structure of ``outputs``, in float64. N ...
    """
    leaves: list[torch.Tensor] = []
    map_tree(leaves.append, outputs)
    totals = [torch.zeros_like(y[0], dtype=torch.float64) for y in leaves]
    last = {start: max(t for s, t in pairs if s == start) for start, _ in pairs}
    before = {0: totals}
    for t in range(1, len(leaves[0]) + 1):
        totals = [total + y[t - 1] for total, y in zip(totals, leaves, strict=True)]
        if t in last:
            before[t] = totals
        for start in sorted({s for s, end in pairs if end == t}):
            means = iter([(now - then) / (t - start) for now, then in zip(totals, before[start], strict=True)])
            yield (start, t), map_tree(lambda _, means=means: next(means), outputs)
            if last[start] == t:  # totals of dense predictions are large
                del before[start]


def windows_of(starts: Sequence[int], delay: float) -> tuple[Window, ...]:
    """Plain, the paper's rule with the estimated delay, the estimate alone, and every fixed start asked for."""
    estimate = math.ceil(delay)
    fixed = tuple(Window(f"start{s}", s) for s in starts)
    return (Window("plain"), Window("delayed", estimate, 4), Window("estimate", estimate), *fixed)

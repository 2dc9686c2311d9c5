"""A metric as a curve over time: one state per step and read-out, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from transpike.measure.accuracy import Window, read_outs

__all__ = ["Score", "Tally", "Task"]


class Score(Protocol):
    """What a metric has seen so far."""

    def add(self, answer: Any, targets: Any, ann: Any, /) -> None:
        """Take in one batch: the network's answers, what `Task.check` made of the targets, the ANN's answers."""
        ...

    def values(self) -> dict[str, float]:
        """Every metric of the task on all that was added."""
        ...


class Task(Protocol):
    """What is measured, and how. `Classification` is one; others are in `transpike.tasks`.

    outputs --readout--> what is averaged over time --answer--> what a metric judges

    The average comes first, so the step from read-out to answer may be anything: class maps, decoded boxes,
    suppression of overlaps. It is the analog post-processing, and happens once per read-out.
    """

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def better(self) -> str: ...  # the metric that matters most
    @property
    def step_ms(self) -> float | None: ...  # milliseconds of a step where the input is a recording, else None

    def readout(self, outputs: Any, /) -> Any:
        """What is measured among the network's outputs: a tensor, or a tuple, list or dict of tensors."""
        ...

    def answer(self, readout: Any, /) -> Any:
        """The analog post-processing of a mean read-out. N ..."""
        ...

    def check(self, readout: Any, targets: Any, /) -> Any:
        """Targets in the form that scores take; DataError where they do not fit."""
        ...

    def measured(self, steps: int, /) -> Sequence[int]:
        """The steps at which the metric is computed, in order: all of them, or fewer where that takes long."""
        ...

    def score(self) -> Score:
        """A state that has seen nothing."""
        ...

    def agreement(self, answer: Any, ann: Any, /) -> torch.Tensor:
        """How far the answer to each sample is the ANN's, from 0 to 1. N"""
        ...


class Tally:
    """Scores of the ANN and of every read-out (start, t); windows that read the same steps share one."""

    def __init__(self, task: Task, windows: Sequence[Window], steps: int) -> None:
        self.measured = tuple(task.measured(steps))
        self._task, self._windows, self._samples = task, windows, 0
        self._ann = task.score()
        pairs = sorted({(w.start(t), t) for w in windows for t in self.measured})
        self._scores = {pair: task.score() for pair in pairs}
        self._same = dict.fromkeys(pairs, 0.0)

    def add(self, ann: Any, outputs: Any, targets: Any, samples: int) -> None:
        """Take in one batch. ``ann`` N ..., ``outputs`` T N ..."""
        self._samples += samples
        wanted = self._task.answer(ann)
        self._ann.add(wanted, targets, wanted)
        for pair, readout in read_outs(outputs, list(self._scores)):
            answer = self._task.answer(readout)
            self._scores[pair].add(answer, targets, wanted)
            self._same[pair] += float(self._task.agreement(answer, wanted).sum())

    def ann(self) -> dict[str, float]:
        """The ANN's metrics."""
        return self._ann.values()

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """By window and metric, the value at every measured step."""
        found = {pair: score.values() for pair, score in self._scores.items()}
        return {
            w.name: {metric: [found[w.start(t), t][metric] for t in self.measured] for metric in self._task.metrics}
            for w in self._windows
        }

    def agreement(self) -> dict[str, list[float]]:
        """By window, the mean agreement with the ANN at every measured step."""
        return {w.name: [self._same[w.start(t), t] / self._samples for t in self.measured] for w in self._windows}

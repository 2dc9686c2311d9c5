"""What can go wrong, from the general to the particular.

TranspikeError
├── CaptureError      the network cannot be captured (every reason at once)
├── PlanError         numbers that do not fit the network
├── DataError         calibration or test data that cannot be used
├── TrainingError     training that cannot go on
├── MemoryBudgetError the run does not fit into ``max_memory``
├── ArtifactError     a file that cannot be read, written or trusted
└── SpecError         a name or setting given as text (command line) that means nothing

Every message says what happened, where, why, and what to do next. Mistakes of the library itself are
assertions, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ArtifactError",
    "CaptureError",
    "DataError",
    "MemoryBudgetError",
    "PlanError",
    "SpecError",
    "TrainingError",
    "TranspikeError",
]


class TranspikeError(Exception):
    """Base of all errors that a user can cause and mend."""


class CaptureError(TranspikeError):
    """The network cannot be captured. ``problems`` holds every reason found, one line each."""

    def __init__(self, model: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
        super().__init__(f"{model} cannot be converted, {count}:{lines}")


class PlanError(TranspikeError):
    """A plan's numbers are invalid or do not fit the network."""


class DataError(TranspikeError):
    """Data that cannot be used: empty, of the wrong shape, not finite, not readable."""


class TrainingError(TranspikeError):
    """Training that cannot go on: the loss is not finite."""


class MemoryBudgetError(TranspikeError):
    """A run cannot be made to fit into the memory it was given."""


class ArtifactError(TranspikeError):
    """A file is missing, truncated, tampered with, of another version, or cannot be written."""


class SpecError(TranspikeError):
    """A model, data set, method or setting named as text does not exist."""

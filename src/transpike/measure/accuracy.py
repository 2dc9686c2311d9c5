"""Classification accuracy at every number of steps, for the plain and for delayed read-outs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transpike.errors import DataError

__all__ = ["Classification", "Window", "window_means", "windows_of"]


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
    """

    output: int | str = 0

    name = "classification"
    metrics = ("top1", "top5")
    better = "top1"

    def logits(self, outputs: Any) -> torch.Tensor:
        """The logits among the network's outputs."""
        if isinstance(outputs, torch.Tensor):
            return outputs
        try:
            found = outputs[self.output]
        except (KeyError, IndexError, TypeError):
            keys = list(outputs) if isinstance(outputs, dict) else range(len(outputs))
            if not (isinstance(outputs, dict) and isinstance(self.output, int) and 0 <= self.output < len(keys)):
                raise DataError(
                    f"the network has no output {self.output!r}: choose from {', '.join(map(repr, keys))} "
                    "with Classification(output=...)"
                ) from None
            found = outputs[keys[self.output]]  # a position among the keys
        return self.logits(found)

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
        """The class that each sample is given; compared with the ANN's for the agreement."""
        return logits.argmax(-1)


def window_means(outputs: torch.Tensor, window: Window) -> torch.Tensor:
    """The read-out at every step. T N ... -> T N ..."""
    total = torch.cat([torch.zeros_like(outputs[:1]), outputs]).cumsum(0, dtype=torch.float64)
    steps = range(1, len(outputs) + 1)
    starts = [window.start(t) for t in steps]
    lengths = torch.tensor([t - s for t, s in zip(steps, starts, strict=True)], dtype=torch.float64, device=outputs.device)
    return (total[1:] - total[starts]) / lengths.view(-1, *[1] * (outputs.dim() - 1))


def windows_of(starts: Sequence[int], delay: float) -> tuple[Window, ...]:
    """Plain, the paper's rule with the estimated delay, the estimate alone, and every fixed start asked for."""
    estimate = math.ceil(delay)
    fixed = tuple(Window(f"start{s}", s) for s in starts)
    return (Window("plain"), Window("delayed", estimate, 4), Window("estimate", estimate), *fixed)

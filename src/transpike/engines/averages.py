"""State of the differential combinator for one operation (see `transpike.spiking.neurons.differential`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from transpike.engines.emitted import Emitted
from transpike.engines.samples import keep_samples

__all__ = ["RunningMean"]


class RunningMean:
    """Means of what an operation reads, and what it gave so far. ``homogeneous``: works on sums instead of means."""

    def __init__(self, homogeneous: bool) -> None:
        self._homogeneous = homogeneous
        self._sums: dict[str, torch.Tensor] = {}
        self._before: torch.Tensor | None = None

    def add(self, name: str, x: torch.Tensor, out: torch.Tensor, done: int) -> None:
        """Write the mean (or sum) over all steps so far into ``out``, for every step of the chunk. T ..."""
        total = self._sums.get(name)
        total = torch.zeros_like(x[0]) if total is None else total
        if self._homogeneous:
            for frame, so_far in zip(x, out, strict=True):
                total = torch.add(total, frame, out=so_far)
            self._sums[name] = total.clone()  # the chunk's memory is another's soon
            return
        for k, frame in enumerate(x):
            torch.div(total.add_(frame), done + k + 1, out=out[k])
        self._sums[name] = total

    def add_spikes(self, name: str, x: Emitted, steps: int) -> torch.Tensor:
        """As `add` where sums will do: what was emitted so far, after every step of the chunk."""
        total = self._sums.get(name)
        sums = x.sums(x.nothing(steps) if total is None else total, steps)
        self._sums[name] = sums[-(len(x) // steps) :].clone()
        return sums

    def differences(self, total: torch.Tensor, out: torch.Tensor, done: int) -> None:
        """Write ``t f_t - (t-1) f_(t-1)`` into ``out`` (with sums: ``f_t - f_(t-1)``). T ..."""
        before = torch.zeros_like(total[0]) if self._before is None else self._before
        for k, frame in enumerate(total):
            now = frame if self._homogeneous else frame * (done + k + 1)
            torch.sub(now, before, out=out[k])
            before = now
        self._before = before.clone() if self._homogeneous else before

    def keep(self, kept: torch.Tensor, samples: int, axes: Mapping[str, int], own: int) -> None:
        """Forget all samples but ``kept``. ``axes``, ``own``: batch axes of what is read and of the result."""
        self._sums = {name: keep_samples(x, axes[name], kept, samples) for name, x in self._sums.items()}
        if self._before is not None:
            self._before = keep_samples(self._before, own, kept, samples)

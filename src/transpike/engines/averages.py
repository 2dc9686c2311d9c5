"""State of the differential combinator for one operation (see `transpike.spiking.neurons.differential`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

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
        for k, frame in enumerate(x):
            total = frame.clone() if total is None else total + frame
            torch.div(total, 1 if self._homogeneous else done + k + 1, out=out[k])
        assert total is not None
        self._sums[name] = total

    def differences(self, total: torch.Tensor, out: torch.Tensor, done: int) -> None:
        """Write ``t f_t - (t-1) f_(t-1)`` into ``out`` (with sums: ``f_t - f_(t-1)``). T ..."""
        for k, frame in enumerate(total):
            now = frame.clone() if self._homogeneous else frame * (done + k + 1)
            torch.sub(now, torch.zeros_like(now) if self._before is None else self._before, out=out[k])
            self._before = now

    def keep(self, kept: torch.Tensor, samples: int, axes: Mapping[str, int], own: int) -> None:
        """Forget all samples but ``kept``. ``axes``, ``own``: batch axes of what is read and of the result."""
        self._sums = {name: keep_samples(x, axes[name], kept, samples) for name, x in self._sums.items()}
        if self._before is not None:
            self._before = keep_samples(self._before, own, kept, samples)

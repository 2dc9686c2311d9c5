"""The values of a chunk of steps, by name, while the network is walked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from transpike.engines.emitted import Counted, Emitted

__all__ = ["ChunkValues"]


class ChunkValues(dict[str, Any]):
    """What was computed once is repeated for every step when it is read; spikes that are bits or counts become numbers.

    Attributes:
        largest: bytes of the largest value so far.
    """

    def __init__(self, constants: Mapping[str, Any], batch_axes: Mapping[str, int], steps: int) -> None:
        super().__init__()
        self._constants, self._batch_axes, self._steps = constants, batch_axes, steps
        self.largest = 0

    def seen(self, value: Any) -> Any:
        """The value, its size noted."""
        if isinstance(value, (torch.Tensor, Emitted, Counted)):
            self.largest = max(self.largest, value.nbytes)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, self.seen(value))

    def emitted(self, name: str) -> Any:
        """The value without that: spikes may be bits or counts."""
        return super().__getitem__(name)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return self.seen(value.numbers()) if isinstance(value, (Emitted, Counted)) else value

    def __missing__(self, name: str) -> Any:
        value, axis = self._constants[name], self._batch_axes.get(name)
        if axis is None or not isinstance(value, torch.Tensor):
            return value
        sizes = [-1] * (value.dim() + 1)
        sizes[axis] = self._steps
        return self.seen(value.unsqueeze(axis).expand(sizes).flatten(axis, axis + 1))

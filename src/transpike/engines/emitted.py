"""What neurons behind an event-driven synapse emit: where they emit is a bit each; numbers are made when they are asked for.

A spike of a neuron that fires once at most is worth the same whenever it comes, so that its bit says it all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from transpike.engines.event_kernels import SPARE, numbers
from transpike.engines.kernels import threads_for

__all__ = ["Emitted", "frames_of"]

_LOOKS, _LOOKED = 16, 128  # parts of the bits whose density is measured, and how many bytes each has


class Emitted:
    """The spikes of one layer in a chunk.

    Args:
        shape: of one frame, channels first. frames: steps x samples.
        worth: of one spike of each unit, in memory order (channels last).
        several: may a neuron emit anything but one spike? Then numbers are kept beside the bits.

    Attributes:
        bits: frames NHWC, and `SPARE` bytes. by_channel: what a spike of each channel is worth, where its units agree and no
            neuron emits several, else nothing.
    """

    def __init__(self, shape: tuple[int, ...], frames: int, worth: torch.Tensor, several: bool) -> None:
        self._shape, self._frames, self.worth = shape, frames, worth
        units = worth.numel()
        self.bits = np.empty(frames * units // 8 + SPARE, np.uint8)
        self.flat = torch.empty(frames, units) if several else None
        rows = worth.view(-1, shape[0])
        agree = not several and bool((rows == rows[0]).all())
        self.by_channel: Any = rows[0].numpy() if agree else np.empty(0, np.float32)

    def __len__(self) -> int:
        return self._frames

    def dim(self) -> int:
        """As for a tensor of the frames."""
        return 1 + len(self._shape)

    def numbers(self) -> torch.Tensor:
        """Spikes times what they are worth, frames first, channels innermost in memory."""
        if self.flat is None:
            self.flat = torch.empty(self._frames, self.worth.numel())
            with threads_for(self.flat.numel()):
                numbers(self.bits, self.worth.numpy(), self.flat.view(-1).numpy(), self._frames)
        channels, *rest = self._shape
        return self.flat.view(-1, *rest, channels).movedim(-1, 1)

    def looked(self) -> tuple[int, int]:
        """How many units emit something, of those that were looked at, spread over the chunk."""
        bits = self.bits[:-SPARE]
        apart = max(_LOOKED, len(bits) // _LOOKS)
        parts = np.concatenate([bits[first : first + _LOOKED] for first in range(0, len(bits), apart)])
        return int(np.unpackbits(parts).sum()), 8 * len(parts)


def frames_of(x: torch.Tensor) -> Any:
    """Frames flat in the order NHWC, without a copy where they lie so already."""
    last = x.movedim(1, -1) if x.dim() > 2 else x
    return last.contiguous().view(-1).numpy()

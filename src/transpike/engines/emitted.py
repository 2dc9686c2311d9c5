"""What neurons behind an event-driven synapse emit: where they emit is a bit each; numbers are made when they are asked for.

A spike of a neuron that fires once at most is worth the same whenever it comes, so that its bit says it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from transpike.engines.count_kernels import numbers as numbers_of
from transpike.engines.event_kernels import numbers
from transpike.engines.event_vectors import NOTHING, SPARE
from transpike.engines.kernels import threads_for

__all__ = ["Counted", "Emitted", "Worth", "frames_of"]

_LOOKS, _LOOKED = 16, 128  # parts of the bits whose density is measured, and how many bytes each has


class Worth:
    """What one spike of each unit is worth, activation units.

    Attributes:
        units: in memory order, channels last. by_channel: of each channel, nothing where its units differ.
    """

    def __init__(self, units: torch.Tensor, channels: int) -> None:
        rows = units.view(-1, channels)
        self.units, self.channels = units, channels
        self.by_channel: Any = rows[0].numpy() if bool((rows == rows[0]).all()) else NOTHING


class Emitted:
    """The spikes of one layer in a chunk.

    Args:
        shape: of one frame, channels first. frames: steps x samples.
        several: may a neuron emit anything but one spike? Then numbers are kept beside the bits.

    Attributes:
        bits: frames NHWC, and `SPARE` bytes. flat: the numbers, None until they are asked for where bits say it all.
    """

    def __init__(self, shape: tuple[int, ...], frames: int, worth: Worth, several: bool) -> None:
        self._shape, self._frames, self.worth, self.several = shape, frames, worth, several
        units = worth.units.numel()
        self.bits = np.empty(frames * units // 8 + SPARE, np.uint8)
        self.flat = torch.empty(frames, units) if several else None
        self.by_channel = NOTHING if several else worth.by_channel

    @staticmethod
    def beside(parts: Sequence[Emitted], worth: Worth | None) -> Emitted:
        """The channels of all parts, of which none emits several spikes, one after another. ``worth``: as made before."""
        first = parts[0]
        if worth is None:
            rows = [part.worth.units.view(-1, part.worth.channels) for part in parts]
            worth = Worth(torch.cat(rows, 1).view(-1), sum(part.worth.channels for part in parts))
        both = Emitted((worth.channels, *first._shape[1:]), len(first), worth, several=False)
        pixels = [part.bits[:-SPARE].reshape(-1, part.worth.channels // 8) for part in parts]
        np.concatenate(pixels, 1, out=both.bits[:-SPARE].reshape(-1, worth.channels // 8))
        return both

    def __len__(self) -> int:
        return self._frames

    @property
    def nbytes(self) -> int:
        """Of its bits, and of its numbers if there are any."""
        return self.bits.nbytes + (0 if self.flat is None else self.flat.nbytes)

    def dim(self) -> int:
        """As for a tensor of the frames."""
        return 1 + len(self._shape)

    def numbers(self) -> torch.Tensor:
        """Spikes times what they are worth, frames first, channels innermost in memory."""
        if self.flat is None:
            self.flat = torch.empty(self._frames, self.worth.units.numel())
            self._count_into(self.flat, NOTHING, False, self._frames, 1)
        return self._logical(self.flat)

    def sums(self, before: torch.Tensor, steps: int) -> torch.Tensor:
        """What each sample has emitted after every step of the chunk, ``before`` it included (samples, logical)."""
        assert not self.several, "spikes that come one by one are bits"
        out = torch.empty(self._frames, self.worth.units.numel())
        self._count_into(out, frames_of(before), True, steps, len(before))
        return self._logical(out)

    def nothing(self, steps: int) -> torch.Tensor:
        """What samples have emitted before they begin."""
        return self._logical(torch.zeros(self._frames // steps, self.worth.units.numel()))

    def _count_into(self, out: torch.Tensor, before: Any, summed: bool, steps: int, samples: int) -> None:
        with threads_for(out.numel()):
            numbers(self.bits, self.worth.units.numpy(), before, summed, out.view(-1).numpy(), steps, samples)

    def _logical(self, flat: torch.Tensor) -> torch.Tensor:
        channels, *rest = self._shape
        return flat.view(-1, *rest, channels).movedim(-1, 1)

    def looked(self) -> tuple[int, int]:
        """How many units emit something, of those that were looked at, spread over the chunk."""
        bits = self.bits[:-SPARE]
        apart = max(_LOOKED, len(bits) // _LOOKS)
        parts = np.concatenate([bits[first : first + _LOOKED] for first in range(0, len(bits), apart)])
        return int(np.unpackbits(parts).sum()), 8 * len(parts)


class Counted:
    """The spikes of one layer in a chunk as whole numbers in bfloat16, which is what low precision multiplies.

    Args:
        spikes: frames first, channels innermost in memory.
    """

    def __init__(self, spikes: torch.Tensor, worth: Worth) -> None:
        self.spikes, self.worth = spikes, worth
        self._numbers: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Of the spikes, and of the numbers if they were asked for."""
        return self.spikes.nbytes + (0 if self._numbers is None else self._numbers.nbytes)

    def numbers(self) -> torch.Tensor:
        """Spikes times what they are worth, laid out as they are."""
        if self._numbers is None:
            last = self.spikes.movedim(1, -1)
            flat = numbers_of(last.reshape(len(last), -1), self.worth.units)
            self._numbers = flat.view(last.shape).movedim(-1, 1)
        return self._numbers


def frames_of(x: torch.Tensor | Emitted) -> Any:
    """Numbers of the frames, flat in the order NHWC, without a copy where they lie so already."""
    x = x.numbers() if isinstance(x, Emitted) else x
    last = x.movedim(1, -1) if x.dim() > 2 else x
    return last.contiguous().view(-1).numpy()

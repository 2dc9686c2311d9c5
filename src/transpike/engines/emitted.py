"""What neurons behind an event-driven synapse emit: where they emit is a bit each; numbers are made when they are asked for.

A spike of a neuron that fires once at most is worth the same whenever it comes, so that its bit says it all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from transpike.engines.count_kernels import marks
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
        alike = units.device.type == "cpu" and bool((rows == rows[0]).all())  # only events ask, and a GPU is not waited for
        self.by_channel: Any = rows[0].numpy() if alike else NOTHING


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
    def made_of(pixels: np.ndarray, worth: Worth) -> Emitted:
        """Of the bits of every pixel: frames x height x width x channels / 8, or frames x channels / 8."""
        frames, *map_size, octets = pixels.shape
        made = Emitted((8 * octets, *map_size), frames, worth, several=False)
        made.bits[:-SPARE].reshape(pixels.shape)[...] = pixels
        return made

    def pixels(self) -> np.ndarray:
        """The bits of every pixel, as for `made_of`."""
        channels, *map_size = self._shape
        return self.bits[:-SPARE].reshape(self._frames, *map_size, channels // 8)

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

    def halves(self) -> torch.Tensor:
        """The spikes as whole numbers in bfloat16, laid out as `numbers`."""
        assert not self.several, "spikes that come one by one are bits"
        flat = torch.empty(self._frames, self.worth.units.numel(), dtype=torch.bfloat16)
        with threads_for(flat.numel()):
            marks(self.bits, flat.view(torch.int16).view(-1).numpy())
        return self._logical(flat)

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


def frames_of(x: torch.Tensor | Emitted | Counted) -> Any:
    """Numbers of the frames, flat in the order NHWC, without a copy where they lie so already."""
    x = x if isinstance(x, torch.Tensor) else x.numbers()
    last = x.movedim(1, -1) if x.dim() > 2 else x
    return last.contiguous().view(-1).numpy()

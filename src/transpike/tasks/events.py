"""Event cameras: recordings (`transpike.tasks.recordings`) as count frames and voxel grids, to be repeated or streamed.

    count frames:  F[b, p, y, x] = number of events of polarity p in bin b
    voxel grid:    V[b, y, x] = sum over events of (2 p - 1) max(0, 1 - |b - t*|),   t* = (B - 1) t / duration

The voxel grid is that of Zhu et al., CVPR 2019, arXiv:1812.08156 (bilinear in time). Repeated, one grid is presented at
every step, as in the papers; streamed (`transpike.SpikingNetwork.streamed`), step b sees frame b: latency is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transpike.errors import DataError
from transpike.tasks.datasets import Prepared, class_folders
from transpike.tasks.recordings import SUFFIXES, Recording, read_recording

__all__ = [
    "Frames",
    "Still",
    "batches_of",
    "count_frames",
    "event_folder",
    "mean_frames",
    "voxel_grid",
]


def count_frames(recording: Recording, bins: int, size: tuple[int, int], duration: int) -> torch.Tensor:
    """Events of each pixel and polarity in ``bins`` equal parts of ``duration`` microseconds; later events are left out.

    Args:
        size: height and width of the sensor.

    Returns:
        bins 2 H W

    Raises:
        DataError: an event outside of the sensor.
    """
    _check_inside(recording, size)
    inside = recording.t < duration
    part = recording.t[inside] * bins // duration
    frames = np.zeros((bins, 2, *size), np.float32)
    np.add.at(frames, (part, recording.p[inside], recording.y[inside], recording.x[inside]), 1)
    return torch.from_numpy(frames)


def voxel_grid(recording: Recording, bins: int, size: tuple[int, int], duration: int) -> torch.Tensor:
    """Events with their sign, each shared out between the two bins nearest in time. bins H W

    Raises:
        DataError: an event outside of the sensor.
    """
    _check_inside(recording, size)
    inside = recording.t < duration
    place = recording.t[inside] * ((bins - 1) / duration)
    low = np.floor(place).astype(np.int64)
    sign, share = 2.0 * recording.p[inside] - 1, place - low
    grid = np.zeros((bins, *size), np.float32)
    np.add.at(grid, (low, recording.y[inside], recording.x[inside]), sign * (1 - share))
    np.add.at(grid, (np.minimum(low + 1, bins - 1), recording.y[inside], recording.x[inside]), sign * share)
    return torch.from_numpy(grid)


def _check_inside(recording: Recording, size: tuple[int, int]) -> None:
    if len(recording) and (
        recording.x.max() >= size[1] or recording.y.max() >= size[0] or min(recording.x.min(), recording.y.min()) < 0
    ):
        raise DataError(
            f"events lie at up to x = {recording.x.max()}, y = {recording.y.max()}, the sensor has {size[1]} x {size[0]} pixels: "
            "give its height and width"
        )


def mean_frames(images: torch.Tensor) -> torch.Tensor:
    """Frames whose mean over the steps 1..t is ``images[:, t]``, the input that an ANN would be given at that time. N T ...

        f_t = t I_t - (t - 1) I_(t-1)

    For inputs that are no sum of frames (normalised, clipped): a stream from what has happened so far, and nothing else.
    """
    t = torch.arange(1, images.shape[1] + 1, dtype=images.dtype).view(-1, *[1] * (images.dim() - 2))
    sums = images * t
    return torch.cat([sums[:, :1], sums[:, 1:] - sums[:, :-1]], 1)


@dataclass(frozen=True)
class Frames:
    """How recordings become inputs.

    Args:
        bins: parts of the duration: channels of a grid, or steps of a stream.
        size: height and width of the sensor.
        duration: microseconds from the first event on.
        stream: one frame per step, bins channels H W; else one input, channels H W.
        voxels: signed voxel grids instead of count frames.
    """

    bins: int
    size: tuple[int, int]
    duration: int
    stream: bool = False
    voxels: bool = False

    @property
    def step_ms(self) -> float | None:
        """Milliseconds of a step of a stream."""
        return self.duration / self.bins / 1000 if self.stream else None

    def input(self, recording: Recording) -> torch.Tensor:
        """A stream: bins C H W, C = 2 polarities, or 1 signed. One input: bins x C channels, H W."""
        make = voxel_grid if self.voxels else count_frames
        frames = make(recording, self.bins, self.size, self.duration)
        frames = frames[:, None] if self.voxels else frames
        return frames if self.stream else frames.flatten(0, 1)


def event_folder(
    folder: Path,
    frames: Frames,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    camera: str | None = None,
) -> Prepared:
    """A folder of recordings per class, as N-MNIST is laid out: pairs (input, class number).

    Args:
        camera: of ``.aedat`` files, see `transpike.tasks.recordings.read_recording`.

    Raises:
        DataError: it is not there, or has no recordings.
    """
    files, classes = class_folders(folder, SUFFIXES)

    def make(index: int) -> tuple[torch.Tensor, int]:
        x = frames.input(read_recording(files[index], camera))
        return (x if transform is None else transform(x)), classes[index]

    return Prepared(len(files), make)


def batches_of(recordings: Sequence[Any], labels: Sequence[int], frames: Frames, batch: int = 32) -> Iterator[Any]:
    """Pairs (inputs, class numbers) of recordings that are in memory, or of a data set of tonic."""
    for low in range(0, len(labels), batch):
        part = [recordings[i] for i in range(low, min(low + batch, len(labels)))]
        x = torch.stack([frames.input(r if isinstance(r, Recording) else Recording.of(r)) for r in part])
        yield x, torch.as_tensor(labels[low : low + batch])


class Still:
    """Batches of streams as single inputs, to calibrate on: the mean over the frames is what the ANN is given."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        for x, *rest in self._batches:
            yield (x.mean(1), *rest)

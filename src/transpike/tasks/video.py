"""Video classification: clips of frames, and one answer for a video by the votes of its clips.

    answer(video) = arg max over classes of sum over its clips of softmax(read-out)

as torchvision's reference evaluation does. Clips are taken at even distances over the video; `VideoAccuracy` reports the
accuracy of single clips beside that of videos. A folder per class holds videos as folders of frames, as ``.npy`` arrays
(T H W 3, bytes), or as files that PyAV decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from transpike.errors import DataError
from transpike.measure.accuracy import output_of
from transpike.tasks.datasets import PHOTOS, Prepared
from transpike.tasks.images import photo
from transpike.tasks.optional import needed

__all__ = ["Clips", "VideoAccuracy", "read_video", "video_folder"]

_FILES = (".npy", ".mp4", ".avi", ".mkv", ".webm", ".mov")


@dataclass(frozen=True)
class Clips:
    """How a video becomes clips 3 T H W.

    Args:
        frames: frames T of a clip. stride: every how many frames of the video. per_video: clips of each video.
        scale: the frame is scaled to this height and width, then ``crop`` x ``crop`` pixels are cut out of the middle.
        mean, std: of each channel (pixels from 0 to 1); those of torchvision's networks, trained on Kinetics-400.
    """

    frames: int = 16
    stride: int = 1
    per_video: int = 1
    scale: tuple[int, int] = (128, 171)
    crop: int = 112
    mean: tuple[float, ...] = (0.43216, 0.394666, 0.37645)
    std: tuple[float, ...] = (0.22803, 0.22145, 0.216989)

    def starts(self, length: int) -> list[int]:
        """The first frame of each clip of a video of ``length`` frames; a single clip is from the middle."""
        last = max(0, length - (self.frames - 1) * self.stride - 1)
        if self.per_video == 1:
            return [last // 2]
        return [round(last * k / (self.per_video - 1)) for k in range(self.per_video)]

    def clip(self, video: np.ndarray, start: int) -> torch.Tensor:
        """The clip from frame ``start`` on; a video that is too short goes on with its last frame. T H W 3 -> 3 T H W"""
        chosen = np.minimum(start + self.stride * np.arange(self.frames), len(video) - 1)
        x = torch.from_numpy(video[chosen]).permute(0, 3, 1, 2).float() / 255  # T 3 H W
        x = F.interpolate(x, self.scale, mode="bilinear", align_corners=False)
        top, left = ((size - self.crop) // 2 for size in self.scale)
        x = x[:, :, top : top + self.crop, left : left + self.crop]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((x - mean) / std).transpose(0, 1)


def read_video(path: Path) -> np.ndarray:
    """All frames: T H W 3, bytes.

    Raises:
        DataError: not readable; PyAV is not installed and the video is neither a folder of frames nor an ``.npy``.
    """
    if path.is_dir():
        frames = [np.asarray(photo(file).convert("RGB")) for file in sorted(path.iterdir()) if file.suffix.lower() in PHOTOS]
        if not frames:
            raise DataError(f"{path} has no frames: put images there, in the order of their names")
        return np.stack(frames)
    if path.suffix == ".npy":
        try:
            video = np.load(path)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a readable .npy file: {error}") from error
        if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8:
            raise DataError(f"{path} has shape {video.shape} and dtype {video.dtype}: a video is T x H x W x 3 bytes")
        return video
    av = needed("av", "a video file", extra="video")
    try:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is not a readable video: {error}") from error


def video_folder(folder: Path, clips: Clips, split: str = "test") -> Prepared:
    """A folder of videos per class (under ``folder/split``, where there is one): pairs (clip, [class, number of the video]).

    Raises:
        DataError: it is not there, or has no videos.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: check the path")
    root = folder / split if (folder / split).is_dir() else folder
    found: list[tuple[Path, int]] = []
    for number, name in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        inside = sorted(path for path in name.iterdir() if path.is_dir() or path.suffix.lower() in _FILES)
        found += [(path, number) for path in inside]
    if not found:
        raise DataError(f"{root} has no videos in folders of its own for each class: check the path")

    def make(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        number, k = divmod(index, clips.per_video)
        path, label = found[number]
        video = read_video(path)
        return clips.clip(video, clips.starts(len(video))[k]), torch.tensor([label, number])

    return Prepared(len(found) * clips.per_video, make)


@dataclass(frozen=True)
class VideoAccuracy:
    """Accuracy of videos, whose clips vote, and of single clips. Targets are (class, number of the video). N 2

    Args:
        output: which tensor of the network's output holds the logits (position, or key of a dict).
    """

    output: int | str = 0

    name = "video"
    metrics = ("video_top1", "clip_top1")
    better = "video_top1"
    step_ms = None

    def readout(self, outputs: Any) -> torch.Tensor:
        """The logits among the network's outputs."""
        return output_of(outputs, self.output, "VideoAccuracy")

    def answer(self, readout: torch.Tensor) -> torch.Tensor:
        """The vote of each clip. N classes"""
        return readout.softmax(-1)

    def check(self, readout: torch.Tensor, targets: Any) -> torch.Tensor:
        """Class and number of the video of each clip. N 2"""
        if readout.dim() != 2:
            raise DataError(f"the output has shape {tuple(readout.shape)}: video classification takes logits (N, classes)")
        if not isinstance(targets, torch.Tensor) or targets.dim() != 2 or targets.shape[1] != 2 or targets.is_floating_point():
            raise DataError("targets of clips are a tensor N x 2 of class and number of the video: `video_folder` gives them")
        labels = targets[:, 0]
        if bool((labels < 0).any() | (labels >= readout.shape[1]).any()):
            raise DataError(f"classes go from {int(labels.min())} to {int(labels.max())}, the network has {readout.shape[1]}")
        return targets.to(readout.device)

    def measured(self, steps: int) -> Sequence[int]:
        """Every step."""
        return range(1, steps + 1)

    def score(self) -> _Votes:
        """Nobody has voted yet."""
        return _Votes()

    def agreement(self, answer: torch.Tensor, ann: torch.Tensor) -> torch.Tensor:
        """1 for each clip that votes for the ANN's class, else 0. N"""
        return (answer.argmax(-1) == ann.argmax(-1)).double()


class _Votes:
    """Votes for each video so far, and right clips."""

    def __init__(self) -> None:
        self._votes: dict[int, torch.Tensor] = {}
        self._labels: dict[int, int] = {}
        self._clips = self._right = 0

    def add(self, answer: torch.Tensor, targets: torch.Tensor, ann: torch.Tensor) -> None:
        self._clips += len(answer)
        self._right += int((answer.argmax(-1) == targets[:, 0]).sum())
        for votes, (label, video) in zip(answer.cpu().double(), targets.tolist(), strict=True):
            self._votes[video] = self._votes.get(video, torch.zeros_like(votes)) + votes
            if self._labels.setdefault(video, label) != label:
                raise DataError(
                    f"video {video} has clips of the classes {self._labels[video]} and {label}: give each its own number"
                )

    def values(self) -> dict[str, float]:
        right = sum(int(votes.argmax()) == self._labels[video] for video, votes in self._votes.items())
        return {"video_top1": right / len(self._votes), "clip_top1": self._right / self._clips}

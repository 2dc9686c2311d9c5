"""The tasks by name: what `--task` means on the command line. A task says where data comes from, what is captured of a
network, what is measured, and what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from transpike.errors import SpecError
from transpike.measure.accuracy import Classification
from transpike.measure.tally import Task
from transpike.network import SpikingNetwork
from transpike.tasks import datasets, detectors, segmentation
from transpike.tasks.data import SOURCES, Preparation, Sources
from transpike.tasks.detection import Detection
from transpike.tasks.events import Frames, event_folder
from transpike.tasks.images import Fit
from transpike.tasks.pictures import activity, cloud, draw_classes, draw_detections, draw_masks, draw_parts, middle_frame
from transpike.tasks.pointcloud import mesh_folder, point_arrays
from transpike.tasks.video import Clips, VideoAccuracy, video_folder

__all__ = ["Kind", "Settings"]

# a network, a batch, steps, a file to write
Picture = Callable[[SpikingNetwork, Any, int, Path], Path]


@dataclass(frozen=True)
class Settings:
    """What `--option key=value` sets; each task reads its own.

    Args:
        output: which output of the network is measured (position, or key of a dict).
        all_steps: segmentation, parts and detection: measure at every step, not only at 1, 2, 4, ... and the last.
        ignore: segmentation and parts: the label of pixels or points that are not judged.
        align_corners: segmentation: how logits are resized to the masks.
        decoder: detection: torchvision:NAME, or package.module:function from a read-out to boxes.
        points: point clouds: points of a cloud. parts: a class for every point. classes_last: logits are N x P x classes.
        frames, stride, clips: video: frames of a clip, every how many of the video, clips of a video.
        bins, duration_ms, height, width: events: parts of a recording, its length, the sensor's pixels.
        stream: events: one part at each step, instead of all of them as channels. voxels: signed voxel grids, not counts.
        camera: events: what recorded files of AEDAT 2: davis_346, dvs_128 or dvs_346mini.
    """

    output: str = "0"
    all_steps: bool = False
    ignore: int = 255
    align_corners: bool = False
    decoder: str | None = None
    points: int = 1024
    parts: bool = False
    classes_last: bool = False
    frames: int = 16
    stride: int = 1
    clips: int = 1
    bins: int = 10
    duration_ms: float = 300.0
    height: int = 34
    width: int = 34
    stream: bool = False
    voxels: bool = False
    camera: str | None = None

    @property
    def place(self) -> int | str:
        """The output as a position or a key."""
        return int(self.output) if self.output.lstrip("-").isdigit() else self.output


@dataclass(frozen=True)
class Kind:
    """One task, made from settings.

    Args:
        sources: kinds of data, by name. task: what is measured. picture: draws a few samples, None: nothing to draw.
        core: the part of a network that is captured. collate: how samples become a batch.
        streamed: does the input vary in time?
    """

    sources: Sources
    task: Task
    picture: Picture | None = None
    core: Callable[[nn.Module], nn.Module] = lambda model: model
    collate: Callable[[Any], Any] | None = None
    streamed: bool = False


def _classification(settings: Settings, preparation: Preparation, decoder: Any) -> Kind:
    return Kind(SOURCES, Classification(settings.place))


def _fit(preparation: Preparation) -> Fit:
    return Fit((preparation.size, preparation.size), preparation.mean, preparation.std)


def _segmentation(settings: Settings, preparation: Preparation, decoder: Any) -> Kind:
    fit, ignore = _fit(preparation), settings.ignore
    task = segmentation.Segmentation(settings.place, fit.size, settings.align_corners, ignore, settings.all_steps)
    sources: Sources = {
        "voc": lambda where, prepared: datasets.voc(Path(where), fit, prepared.split, ignore=ignore),
        "coco": lambda where, prepared: datasets.coco_masks(where, fit, ignore=ignore),
        "masks": lambda where, prepared: datasets.mask_folder(Path(where), fit, ignore=ignore),
    }
    return Kind(sources, task, partial(draw_masks, task=task, fit=fit), segmentation.core)


def _detection(settings: Settings, preparation: Preparation, decoder: Any) -> Kind:
    fit, task = _fit(preparation), Detection(decoder or _no_decoder, all_steps=settings.all_steps)
    if isinstance(decoder, nn.Module):
        size = None if detectors.has_size(decoder) else fit.size
        fit, task = detectors.fit_of(decoder, size), detectors.detection_of(decoder, size, all_steps=settings.all_steps)
    sources: Sources = {"coco": lambda where, prepared: datasets.coco_boxes(where, fit)}
    return Kind(sources, task, partial(draw_detections, task=task, fit=fit), detectors.core, datasets.collate_boxes)


def _no_decoder(readout: Any) -> Any:
    raise SpecError("detection needs --option decoder=torchvision:NAME, or decoder=package.module:function of your own")


def _video(settings: Settings, preparation: Preparation, decoder: Any) -> Kind:
    clips = Clips(settings.frames, settings.stride, settings.clips)
    if preparation.size != Preparation.size:  # of torchvision's networks 112 is the rule, not 224
        crop = preparation.size
        clips = replace(clips, crop=crop, scale=(round(crop * 128 / 112), round(crop * 171 / 112)))
    task = VideoAccuracy(settings.place)
    sources: Sources = {"videofolder": lambda where, prepared: video_folder(Path(where), clips, prepared.split)}
    return Kind(sources, task, partial(draw_classes, task=task, show=middle_frame))


def _pointcloud(settings: Settings, preparation: Preparation, decoder: Any) -> Kind:
    sources: Sources = {
        "meshfolder": lambda where, prepared: mesh_folder(Path(where), prepared.split, settings.points),
        "npz": lambda where, prepared: point_arrays(Path(where), settings.points),
    }
    if settings.parts:
        parts = segmentation.Segmentation(
            settings.place, ignore=settings.ignore, all_steps=settings.all_steps, classes_last=settings.classes_last
        )
        return Kind({"npz": sources["npz"]}, parts, partial(draw_parts, task=parts))
    task = Classification(settings.place)
    return Kind(sources, task, partial(draw_classes, task=task, show=cloud))


def _events(settings: Settings, preparation: Preparation, decoder: Any) -> Kind:
    size, duration = (settings.height, settings.width), round(settings.duration_ms * 1000)
    frames = Frames(settings.bins, size, duration, settings.stream, settings.voxels)
    task = Classification(settings.place, step_ms=frames.step_ms)
    sources: Sources = {"eventfolder": lambda where, prepared: event_folder(Path(where), frames, camera=settings.camera)}
    return Kind(sources, task, partial(draw_classes, task=task, show=activity), streamed=settings.stream)


# by name: from settings, the preparation of images, and detection's decoder
TASKS: Mapping[str, Callable[[Settings, Preparation, Any], Kind]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "detection": _detection,
    "video": _video,
    "pointcloud": _pointcloud,
    "events": _events,
}

"""torchvision's one-stage detectors as a spiking core (backbone and head) and analog decoding on the averaged read-out.

RetinaNet, FCOS, SSD and SSDLite take lists of images of any size, make anchors in Python and suppress overlaps: nothing
that is linear over time. The core takes a batch of one size, so the anchors are the same for every image and are made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from transpike.errors import DataError
from transpike.tasks.detection import Boxes, Detection
from transpike.tasks.images import Fit

__all__ = ["core", "detection_of", "fit_of", "has_size", "is_known"]

_REGRESSION = "bbox_regression"  # torchvision's name of the box terms


class _Core(nn.Module):
    """Images N 3 H W, normalised, to the head's outputs: ``cls_logits``, ``bbox_regression`` and, for FCOS, centre-ness."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.train(model.training)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        found = self.backbone(images)
        return [found] if isinstance(found, torch.Tensor) else list(found.values())

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.head(self.features(images))


def core(model: nn.Module) -> nn.Module:
    """The part of a detector that spikes: backbone and head of torchvision's; any other network is its own core."""
    return _Core(model) if is_known(model) else model


@dataclass(frozen=True, eq=False)
class _Decoder:
    """Boxes from the head's mean outputs, by the detector's own code.

    Args:
        model: the detector; only its decoding is called, which has no weights.
        size: height and width of the images. anchors: A 4, in pixels. levels: anchors of each feature map.
    """

    model: Any
    size: tuple[int, int]
    anchors: torch.Tensor
    levels: tuple[int, ...]

    def __call__(self, readout: Mapping[str, torch.Tensor]) -> Sequence[Boxes]:
        outputs = {key: x.float() for key, x in readout.items()}
        samples = len(outputs[_REGRESSION])
        anchors, sizes = self.anchors.to(outputs[_REGRESSION].device), [self.size] * samples
        with torch.no_grad():
            if isinstance(self.model, SSD):
                return self.model.postprocess_detections(outputs, [anchors] * samples, sizes)
            by_level = {key: list(x.split(self.levels, 1)) for key, x in outputs.items()}
            return self.model.postprocess_detections(by_level, [list(anchors.split(self.levels))] * samples, sizes)


def detection_of(model: nn.Module, size: tuple[int, int] | None = None, *, all_steps: bool = False) -> Detection:
    """The task for one of torchvision's RetinaNet, FCOS, SSD or SSDLite: `Detection` with its anchors and thresholds.

    Args:
        size: height and width of the images; SSD and SSDLite have their own.
        all_steps: see `Detection`.

    Raises:
        DataError: another network, or no size.

    Example:
        >>> task = detection_of(model, (320, 320))  # doctest: +SKIP
        >>> net = transpike.convert(core(model), MMSE(), loader)  # doctest: +SKIP
        >>> report = transpike.evaluate(net, loader, steps=32, task=task)  # doctest: +SKIP
    """
    size = _size(model, size)
    part: Any = core(model)
    image = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    training = model.training
    try:
        with torch.no_grad():
            part.eval()
            features = part.features(image)
            anchors = model.anchor_generator(ImageList(image, [size]), features)[0]  # type: ignore[operator]
    finally:
        part.train(training)
    cells = [x.shape[-2] * x.shape[-1] for x in features]
    each = len(anchors) // sum(cells)  # of SSD the number differs from map to map, and its decoding does not ask
    return Detection(_Decoder(model, size, anchors, tuple(each * n for n in cells)), _REGRESSION, all_steps=all_steps)


def fit_of(model: nn.Module, size: tuple[int, int] | None = None) -> Fit:
    """How images are brought to the detector's core: its own normalisation, and its own shape where it has one.

    Raises:
        DataError: another network, or no size.
    """
    size = _size(model, size)
    transform: Any = model.transform
    return Fit(size, tuple(transform.image_mean), tuple(transform.image_std), stretch=isinstance(model, SSD))


def is_known(model: nn.Module) -> bool:
    """Is it one of torchvision's RetinaNet, FCOS, SSD and SSDLite?"""
    return isinstance(model, (RetinaNet, FCOS, SSD))


def has_size(model: nn.Module) -> bool:
    """Does the detector take images of one size only, as SSD?"""
    return isinstance(model, SSD)


def _size(model: nn.Module, size: tuple[int, int] | None) -> tuple[int, int]:
    if not is_known(model):
        raise DataError(
            f"{type(model).__name__} is none of torchvision's RetinaNet, FCOS, SSD and SSDLite: "
            "give Detection(decode=...) a function of your own that turns the read-out into boxes"
        )
    fixed = getattr(model.transform, "fixed_size", None)  # width and height
    size = size or (None if fixed is None else (fixed[1], fixed[0]))
    if size is None:
        raise DataError(f"{type(model).__name__} takes images of any size, a spiking network of one: give size=(height, width)")
    return size

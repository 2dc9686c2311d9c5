"""Semantic segmentation: a class for every pixel; mean intersection over union and pixel accuracy at every step.

    IoU_c = hits_c / (labelled_c + predicted_c - hits_c),   mIoU = mean over the classes c that occur in the targets

counted over all pixels of the data, as the PASCAL VOC challenge does (Everingham et al., IJCV 2010,
doi:10.1007/s11263-009-0275-4). Pixels labelled ``ignore`` count nowhere.

The spiking core is the network up to its low-resolution logits; resizing them to the image is linear, so it is done
once on the averaged read-out instead of at every step (`core`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3

from transpike.errors import DataError
from transpike.measure.accuracy import output_of
from transpike.measure.report import milestones
from transpike.tasks.optional import needed

__all__ = ["Segmentation", "core"]


@dataclass(frozen=True)
class Segmentation:
    """mIoU and pixel accuracy of logits N x classes x height x width, or of any further axes (points of a cloud).

    Args:
        output: which tensor of the network's output holds the logits (position, or key of a dict such as "out").
        size: height and width that the logits are resized to, bilinearly; None: they are as large as the targets.
        align_corners: how they are resized; torchvision's networks use False.
        ignore: the label of what is not judged.
        all_steps: measure at every step, not only at 1, 2, 4, ... and the last.
        classes_last: the logits are N ... classes, as PointNet's parts are.

    Raises:
        DataError: when measuring, targets that do not fit the logits.
    """

    output: int | str = 0
    size: tuple[int, int] | None = None
    align_corners: bool = False
    ignore: int = 255
    all_steps: bool = True
    classes_last: bool = False

    name = "segmentation"
    metrics = ("miou", "pixel_accuracy")
    better = "miou"
    step_ms = None

    def readout(self, outputs: Any) -> torch.Tensor:
        """The logits among the network's outputs."""
        return output_of(outputs, self.output, "Segmentation")

    def answer(self, readout: torch.Tensor) -> torch.Tensor:
        """The class of every pixel. N C ... -> N ..."""
        readout = self._classes_second(readout)
        if self.size is not None and readout.shape[2:] != self.size:
            readout = F.interpolate(readout.float(), self.size, mode="bilinear", align_corners=self.align_corners)
        return readout.argmax(1)

    def check(self, readout: torch.Tensor, targets: Any) -> torch.Tensor:
        """Masks as class numbers. N ..."""
        readout = self._classes_second(readout)
        if readout.dim() < 3:
            raise DataError(f"the output has shape {tuple(readout.shape)}: segmentation takes logits (N, classes, height, width)")
        if not isinstance(targets, torch.Tensor) or targets.is_floating_point():
            raise DataError(f"masks are {_kind(targets)}: give a tensor of class numbers, N x height x width")
        size = tuple(readout.shape[2:]) if self.size is None else self.size
        if tuple(targets.shape[1:]) != size:
            raise DataError(
                f"masks have shape {tuple(targets.shape[1:])}, logits {size}: resize the logits with "
                f"Segmentation(size={tuple(targets.shape[1:])}), or the masks"
            )
        known, classes = targets[targets != self.ignore], readout.shape[1]
        if len(known) and bool((known < 0).any() | (known >= classes).any()):
            raise DataError(
                f"masks have classes {int(known.min())} to {int(known.max())}, the network 0 to {classes - 1}: "
                f"give what is not judged the label {self.ignore}, or another with Segmentation(ignore=...)"
            )
        return targets.long().to(readout.device)

    def _classes_second(self, readout: torch.Tensor) -> torch.Tensor:
        return readout.movedim(-1, 1) if self.classes_last else readout

    def measured(self, steps: int) -> Sequence[int]:
        """Every step, or powers of two and the last."""
        return range(1, steps + 1) if self.all_steps else milestones(steps)

    def score(self) -> _Confusion:
        """Nothing counted yet."""
        return _Confusion(self)

    def agreement(self, answer: torch.Tensor, ann: torch.Tensor) -> torch.Tensor:
        """The share of the pixels that are given the ANN's class. N"""
        return (answer == ann).flatten(1).double().mean(1)


class _Confusion:
    """How often each class was given to pixels of each other."""

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._table: torch.Tensor | None = None  # target x answer

    def add(self, answer: torch.Tensor, targets: torch.Tensor, ann: torch.Tensor) -> None:
        function = needed("torchmetrics.functional.classification", "segmentation").multiclass_confusion_matrix
        known = targets[targets != self._task.ignore]
        classes = max(2, 1 + max(int(x.max()) for x in (answer, known) if x.numel()))  # two at least, or it counts thresholds
        table = function(answer, targets, classes, ignore_index=self._task.ignore, validate_args=False).cpu()
        self._table = table if self._table is None else _together(self._table, table)

    def values(self) -> dict[str, float]:
        table = torch.zeros(1, 1) if self._table is None else self._table.double()
        hits, labelled, answered = table.diag(), table.sum(1), table.sum(0)
        occurs = labelled > 0
        if not bool(occurs.any()):
            raise DataError(f"every pixel of every mask is labelled {self._task.ignore}, to be ignored: give masks with classes")
        iou = hits / (labelled + answered - hits)
        return {"miou": float(iou[occurs].mean()), "pixel_accuracy": float(hits.sum() / table.sum())}


def _together(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of tables of different size: a class that has not been seen yet has a count of 0."""
    size = max(len(a), len(b))
    return sum((F.pad(x, (0, size - len(x), 0, size - len(x))) for x in (a, b)), torch.zeros((), dtype=a.dtype))


def _kind(targets: Any) -> str:
    return f"a tensor of {targets.dtype}" if isinstance(targets, torch.Tensor) else f"a {type(targets).__name__}"


class _Core(nn.Module):
    """Backbone and classifier of a torchvision network, without the resizing of the logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = model.backbone, model.classifier
        self._one = not isinstance(model, LRASPP)  # LR-ASPP's classifier reads two depths
        self.train(model.training)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.backbone(image)
        return self.classifier(features["out"] if self._one else features)


def core(model: nn.Module) -> nn.Module:
    """The part of a network that spikes: torchvision's FCN, DeepLabV3 and LR-ASPP without their last resizing.

    Any other network is its own core. Use `Segmentation` with ``size``, the height and width of the images, for a core.
    """
    return _Core(model) if isinstance(model, (FCN, DeepLabV3, LRASPP)) else model

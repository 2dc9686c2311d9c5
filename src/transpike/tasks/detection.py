"""Object detection: COCO's average precision at chosen steps, and how far the box regression is from the ANN's.

    read-out (mean over time) --decode--> boxes, scores, classes --suppression--> detections

AP is COCO's (Lin et al., ECCV 2014, arXiv:1405.0312), computed by pycocotools: precision averaged over 101 recall levels
and the classes, at an overlap of 0.5 (``map50``) and over overlaps 0.5, 0.55 .. 0.95 (``map``), 100 detections an image.

    regression error = ||r - r_ANN|| / ||r_ANN||    over all box terms of all samples

Classes need an order only; box terms are continuous, and spikes quantise them. Backbone and head spike; anchors, decoding
and suppression are analog, on the averaged read-out (`transpike.tasks.detectors` for torchvision's networks).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.ops import box_iou

from transpike.errors import DataError
from transpike.measure.report import milestones
from transpike.tasks.optional import needed

__all__ = ["Answer", "Boxes", "Detection"]

# by name: boxes (M 4: corners x1, y1, x2, y2 in any one unit), labels (M), and of detections scores (M)
Boxes = Mapping[str, torch.Tensor]

_KEYS = ("boxes", "labels", "scores")


@dataclass(frozen=True, eq=False)
class Answer:
    """Detections of a batch, and the box terms that they come from. ``regression``: N ..., None where not asked for."""

    found: Sequence[Boxes]
    regression: torch.Tensor | None


@dataclass(frozen=True)
class Detection:
    """COCO's average precision of a network whose output ``decode`` turns into boxes.

    Args:
        decode: from the mean read-out (the network's own output structure, N ...) to one `Boxes` for each image.
        regression: where the box terms are: a key of the output's dict, or channels (start, stop) of its one tensor.
            None: their error is not measured.
        confident: agreement with the ANN compares detections of at least this score.
        all_steps: measure at every step, not only at 1, 2, 4, ... and the last: decoding and matching take long.
    """

    decode: Callable[[Any], Sequence[Boxes]]
    regression: str | tuple[int, int] | None = None
    confident: float = 0.3
    all_steps: bool = False

    name = "detection"
    better = "map50"
    step_ms = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("map50", "map") if self.regression is None else ("map50", "map", "regression_error")

    def readout(self, outputs: Any) -> Any:
        """All outputs: decoding sees them as the network gives them."""
        return outputs

    def answer(self, readout: Any) -> Answer:
        """Decoded boxes, and the box terms."""
        found = self.decode(readout)
        for boxes in found:
            if missing := [key for key in _KEYS if key not in boxes]:
                raise DataError(f"decode gave no {missing[0]}: it returns a dict of boxes (M 4), labels (M), scores (M) per image")
        return Answer(found, self._box_terms(readout))

    def _box_terms(self, readout: Any) -> torch.Tensor | None:
        if self.regression is None:
            return None
        if isinstance(self.regression, str):
            if not isinstance(readout, Mapping) or self.regression not in readout:
                keys = ", ".join(map(repr, readout)) if isinstance(readout, Mapping) else f"one {type(readout).__name__}"
                raise DataError(
                    f"the network has no output {self.regression!r}, it has {keys}: choose with Detection(regression=...)"
                )
            return readout[self.regression]
        low, high = self.regression
        return readout[:, low:high]

    def check(self, readout: Any, targets: Any) -> Sequence[Boxes]:
        """One dict of ``boxes`` (M 4) and ``labels`` (M) per image; ``iscrowd`` (M) where regions are not counted."""
        if isinstance(targets, (str, bytes, torch.Tensor)) or not isinstance(targets, Sequence):
            raise DataError(f"targets are a {type(targets).__name__}: give a list with a dict of boxes and labels for each image")
        for target in targets:
            if not isinstance(target, Mapping) or not {"boxes", "labels"} <= set(target):
                raise DataError("a target lacks boxes or labels: give a dict of boxes (M 4: x1, y1, x2, y2) and labels (M)")
            boxes, labels = target["boxes"], target["labels"]
            if boxes.shape != (len(labels), 4) or bool((boxes[:, 2:] < boxes[:, :2]).any()):
                raise DataError(
                    f"{len(labels)} labels with boxes of shape {tuple(boxes.shape)}: give corners x1, y1, x2, y2 for each label, "
                    "x1 <= x2 and y1 <= y2"
                )
        return targets

    def measured(self, steps: int) -> Sequence[int]:
        """Powers of two and the last step, or every step."""
        return range(1, steps + 1) if self.all_steps else milestones(steps)

    def score(self) -> _Found:
        """No image seen yet."""
        return _Found(self)

    def agreement(self, answer: Answer, ann: Answer) -> torch.Tensor:
        """F1 of the confident detections against the ANN's: same class, overlap at least 0.5. 1 where both have none. N"""
        pairs = zip(answer.found, ann.found, strict=True)
        return torch.tensor([_f1(*(self._sure(boxes) for boxes in pair)) for pair in pairs], dtype=torch.float64)

    def _sure(self, boxes: Boxes) -> Boxes:
        sure = boxes["scores"] >= self.confident
        return {key: boxes[key][sure] for key in _KEYS}


def _f1(a: Boxes, b: Boxes) -> float:
    """Twice the matches over all boxes; each box matches at most one, in the order of the scores."""
    total = len(a["labels"]) + len(b["labels"])
    if not total:
        return 1.0
    overlap = box_iou(a["boxes"].float(), b["boxes"].float()) * (a["labels"][:, None] == b["labels"])
    matches = 0
    for row in a["scores"].argsort(descending=True).tolist():
        if overlap.shape[1] and float(overlap[row].max()) >= 0.5:
            overlap[:, int(overlap[row].argmax())] = 0
            matches += 1
    return 2 * matches / total


class _Found:
    """Detections and true boxes of all images so far, and squared distances of the box terms."""

    def __init__(self, task: Detection) -> None:
        self._task = task
        self._found: list[Boxes] = []
        self._wanted: list[Boxes] = []
        self._error = self._size = 0.0

    def add(self, answer: Answer, targets: Sequence[Boxes], ann: Answer) -> None:
        self._found += [{key: boxes[key].detach().cpu() for key in _KEYS} for boxes in answer.found]
        self._wanted += targets
        if answer.regression is not None and ann.regression is not None:
            self._error += float((answer.regression - ann.regression).double().square().sum())
            self._size += float(ann.regression.double().square().sum())

    def values(self) -> dict[str, float]:
        mean, half = average_precision(self._found, self._wanted)
        found = {"map50": half, "map": mean}
        if self._task.regression is not None:
            found["regression_error"] = (self._error / self._size) ** 0.5 if self._size else 0.0
        return found


def average_precision(found: Sequence[Boxes], wanted: Sequence[Boxes]) -> tuple[float, float]:
    """COCO's AP over overlaps 0.5 to 0.95, and at 0.5: means over the classes in ``wanted``.

    Args:
        found: detections of each image. wanted: its true boxes.

    Raises:
        DataError: no image has a true box. pycocotools is not installed.
    """
    coco, evaluation = needed("pycocotools.coco", "detection"), needed("pycocotools.cocoeval", "detection")
    truth = coco.COCO()
    truth.dataset = _coco_form(wanted)
    if not truth.dataset["annotations"]:
        raise DataError("no image has a true box: average precision needs labelled objects")
    rows = [
        (image, *_corner_and_size(box), float(score), int(label))
        for image, boxes in enumerate(found, 1)
        for box, score, label in zip(boxes["boxes"].tolist(), boxes["scores"], boxes["labels"], strict=True)
    ]
    if not rows:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on itself
        truth.createIndex()
        judge = evaluation.COCOeval(truth, truth.loadRes(_results(rows)), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [100]
        judge.evaluate()
        judge.accumulate()
    precision = torch.as_tensor(judge.eval["precision"])[..., 0, 0]  # overlap recall class
    there = precision[0, 0] > -1  # classes without a true box have -1
    return float(precision[..., there].mean()), float(precision[0][:, there].mean())


def _corner_and_size(box: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1, y1, x2 - x1, y2 - y1


def _results(rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [{"image_id": image, "bbox": list(box), "score": score, "category_id": label} for image, *box, score, label in rows]


def _coco_form(wanted: Sequence[Boxes]) -> dict[str, Any]:
    """True boxes as the dict that COCO's files hold; areas and numbers count from 1."""
    annotations: list[dict[str, Any]] = []
    for image, target in enumerate(wanted, 1):
        crowd = target.get("iscrowd", torch.zeros(len(target["labels"]), dtype=torch.int64))
        for box, label, apart in zip(target["boxes"].tolist(), target["labels"].tolist(), crowd.tolist(), strict=True):
            x, y, width, height = _corner_and_size(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(apart),
                }
            )
    classes = sorted({annotation["category_id"] for annotation in annotations})
    return {
        "info": {},
        "images": [{"id": image} for image in range(1, len(wanted) + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in classes],
    }

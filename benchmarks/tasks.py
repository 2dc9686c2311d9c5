"""Tasks beyond classification on the zoo's real networks, against the bars. Resumable: finished rows are kept.

python -m benchmarks.tasks [ROW ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import pairs, read, record, zoo
from transpike import SpikingNetwork, convert, evaluate
from transpike.measure.accuracy import Classification
from transpike.measure.tally import Task
from transpike.methods import Method
from transpike.methods.chain import Chain
from transpike.methods.light_calibration import LightCalibration
from transpike.methods.mmse import MMSE
from transpike.methods.parallel import Calibration, Parallel
from transpike.methods.reconstruction import Reconstruction
from transpike.tasks.detection import Boxes, Detection
from transpike.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Row:
    """One conversion: case, method, data, and what is asked of it.

    ``drops`` are (steps, at most points below the ANN) for the task's main metric, plain read-out. ``streamed``: step t sees
    the events of the t-th part of the recording.
    """

    case: str
    method: Method
    steps: int
    samples: int
    calibration: int
    drops: tuple[tuple[int, float], ...] = ()
    streamed: bool = False


class LowResolution(nn.Module):
    """DeepLab up to its logits: the resizing that follows is linear and happens on the read-out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.local, self.overall, self.head = model.backbone, model.local, model.overall, model.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.backbone(x)
        overall = nn.functional.interpolate(self.overall(f), size=f.shape[2:], mode="bilinear", align_corners=True)
        return self.head(torch.cat((overall, self.local(f)), 1))


def decode(module: Any, readout: torch.Tensor) -> list[Boxes]:
    """FastestDet's boxes as fractions of the image, by the zoo's own decoding."""
    return [{"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long()} for found in module.boxes(readout.float())]


def corners(rows: torch.Tensor) -> Boxes:
    """Class, centre, width and height to labels and corners."""
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    return {"boxes": torch.cat((centre - half, centre + half), 1), "labels": rows[:, 0].long()}


@dataclass(frozen=True)
class Case:
    """A converted network with everything that `evaluate` needs."""

    net: SpikingNetwork
    batches: list[Any]
    task: Task


def segmentation(module: Any, row: Row) -> Case:
    case = module.load(row.case, row.samples)
    net = convert(LowResolution(case.model).eval(), row.method, module.calibration(row.case, row.calibration).split(2))
    task = Segmentation(size=(513, 513), align_corners=True, all_steps=False)
    return Case(net, pairs(case.inputs, case.targets, 2), task)


def detection(module: Any, row: Row) -> Case:
    case = module.load(row.case, row.samples)
    net = convert(case.model, row.method, module.calibration(row.case, row.calibration).split(4))
    targets = [corners(rows) for rows in case.targets]
    batches = [(case.inputs[i : i + 4], targets[i : i + 4]) for i in range(0, row.samples, 4)]
    return Case(net, batches, Detection(partial(decode, module), regression=(1, 5)))


def pointcloud(module: Any, row: Row) -> Case:
    case = module.load(row.case, row.samples)
    net = convert(case.model, row.method, module.calibration(row.case, row.calibration).split(20))
    return Case(net, pairs(case.inputs, case.targets, 20), Classification())


def events(module: Any, row: Row) -> Case:
    case = module.load(row.case, row.samples)
    net = convert(case.model, row.method, module.calibration(row.case, row.calibration).split(20))
    if not row.streamed:
        return Case(net, pairs(case.inputs, case.targets, 40), Classification())
    inputs = event_stream(module, row.samples, row.steps)
    return Case(net.streamed(), pairs(inputs, case.targets, 40), Classification(step_ms=300 / row.steps))


def event_stream(module: Any, samples: int, steps: int) -> torch.Tensor:
    """Counts of each part of a recording, smoothed and cropped as the static images; one scale, from the calibration data."""

    def smoothed(frames: torch.Tensor) -> torch.Tensor:
        images = nn.functional.avg_pool2d(frames.sum(2).flatten(0, 1)[:, None], 3, 1, 1)[..., 3:31, 3:31]
        return images.view(*frames.shape[:2], *images.shape[1:])

    scale = smoothed(module.frames(None, 1, calibration=True)).flatten(1).quantile(0.97, dim=1).mean()
    return (smoothed(module.frames(samples, steps)) * (steps / scale) - 0.1307) / 0.3081


CASES: dict[str, Callable[[Any, Row], Case]] = {
    "coco_deeplab": segmentation,
    "coco_fastestdet": detection,
    "modelnet_pointnet": pointcloud,
    "nmnist_cnn": events,
}

DEEPLAB, FASTEST, POINTNET, NMNIST = CASES
ROWS = {
    "deeplab MMSE(16) signed cap 4": Row(DEEPLAB, MMSE(steps=16, cap=4, signed=True), 16, 100, 28, ((16, 2.0),)),
    "fastestdet MMSE(16) signed cap 4": Row(FASTEST, MMSE(steps=16, cap=4, signed=True), 16, 100, 28, ((16, 3.0),)),
    "pointnet MMSE(32) signed cap 4": Row(POINTNET, MMSE(steps=32, cap=4, signed=True), 32, 200, 240, ((32, 1.0),)),
    "pointnet Parallel(8)": Row(POINTNET, Parallel(steps=8), 8, 718, 240, ((8, 1.0),)),
    "pointnet Parallel(8) + Reconstruction": Row(
        POINTNET, Chain(Parallel(steps=8), Reconstruction(steps=8, iterations=150)), 8, 718, 240, ((8, 1.0),)
    ),
    "pointnet MMSE(32) signed cap 4, all": Row(POINTNET, MMSE(steps=32, cap=4, signed=True), 32, 718, 240, ((32, 1.0),)),
    "pointnet Parallel(8) exact": Row(POINTNET, Parallel(steps=8, calibration=Calibration.EXACT), 8, 718, 240, ((8, 1.0),)),
    "nmnist MMSE(32), repeated grid": Row(NMNIST, MMSE(steps=32), 32, 880, 220, ((32, 1.0),)),
    "nmnist MMSE(32) signed, no cap, streamed": Row(
        NMNIST, MMSE(steps=32, cap=None, signed=True), 30, 880, 220, ((30, 3.0),), streamed=True
    ),
    "nmnist MMSE(32) signed cap 4, streamed": Row(
        NMNIST, MMSE(steps=32, cap=4, signed=True), 30, 880, 220, ((30, 3.0),), streamed=True
    ),
    "fastestdet MMSE(32) signed cap 4": Row(FASTEST, MMSE(steps=32, cap=4, signed=True), 32, 100, 28, ((32, 1.5),)),
    "deeplab MMSE(32) signed cap 4": Row(DEEPLAB, MMSE(steps=32, cap=4, signed=True), 32, 100, 28, ((32, 1.0),)),
    "fastestdet MMSE(64) signed": Row(FASTEST, MMSE(steps=64, signed=True), 64, 100, 28, ((64, 4.0),)),
    "deeplab MMSE(64) signed cap 4": Row(DEEPLAB, MMSE(steps=64, cap=4, signed=True), 32, 100, 28, ((32, 1.0),)),
    "deeplab MMSE(32) signed cap 4 + light": Row(
        DEEPLAB, Chain(MMSE(steps=32, cap=4, signed=True), LightCalibration(steps=32)), 32, 100, 28, ((32, 1.0),)
    ),
    "deeplab MMSE(64) signed": Row(DEEPLAB, MMSE(steps=64, signed=True), 64, 100, 28, ((64, 3.0),)),
    "fastestdet MMSE(64)": Row(FASTEST, MMSE(steps=64), 128, 100, 28),
    "deeplab MMSE(64)": Row(DEEPLAB, MMSE(steps=64), 128, 30, 28),
}


def measure(row: Row) -> dict[str, Any]:
    """Convert and evaluate one row."""
    began = time.perf_counter()
    case = CASES[row.case](zoo(), row)
    prepared = time.perf_counter() - began
    report = evaluate(case.net, case.batches, row.steps, task=case.task)
    ann = 100 * report.ann[report.better]
    checks = [
        {"steps": t, "measured": 100 * report.at(t), "bar": ann - drop, "met": 100 * report.at(t) >= ann - drop}
        for t, drop in row.drops
    ]
    return {
        "task": report.task,
        "metric": report.better,
        "ann": {metric: 100 * value for metric, value in report.ann.items()},
        "steps": row.steps,
        "samples": row.samples,
        "calibration": row.calibration,
        "measured": list(report.points),
        "curves": {
            w: {metric: [round(100 * v, 2) for v in values] for metric, values in curves.items()}
            for w, curves in report.curves.items()
        },
        "agreement": {w: [round(100 * v, 2) for v in values] for w, values in report.agreement.items()},
        "checks": checks,
        "sops": report.energy.sops,
        "ann_macs": report.energy.ann_macs,
        "delay": report.delay,
        "step_ms": report.step_ms,
        "conversion_seconds": prepared,
        "seconds": dict(report.seconds),
        "method": report.origin,
        "notes": list(report.notes),
    }


def main(names: list[str]) -> None:
    """Measure the rows named, or all that have no result yet."""
    if zoo() is None:
        print("skipped: there is no zoo beside the project")
        return
    for name in names or ROWS:
        if name in read("tasks").get("rows", {}) and not names:
            continue
        found = measure(ROWS[name])
        results = read("tasks") or {"rows": {}}  # another process may have added rows meanwhile
        results["rows"][name] = found
        record("tasks", results)
        metric = found["metric"]
        curve = dict(zip(found["measured"], found["curves"]["plain"][metric], strict=True))
        shown = {t: v for t, v in curve.items() if t in (1, 2, 4, 8, 16, 32, 64, 128)}
        print(f"{name}: {found['samples']} samples, ANN {metric} {found['ann'][metric]:.2f}, plain {shown}", flush=True)
        for check in found["checks"]:
            verdict = "met" if check["met"] else "MISSED"
            print(f"  at {check['steps']}: {check['measured']:.2f} (bar {check['bar']:.2f}) {verdict}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

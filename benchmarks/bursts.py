"""Bursts and compression: do AdaFire and SpikeCompression save spikes for half a point? Resumable, a row at a time.

python -m benchmarks.bursts [--only TEXT ...]      rows whose name holds every TEXT
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import cifar10_ready, pairs, read, record, zoo
from transpike import build, calibrate, capture, evaluate
from transpike.methods import Method
from transpike.methods.adafire import AdaFire
from transpike.methods.mmse import MMSE
from transpike.methods.spike_compression import SpikeCompression
from transpike.spiking.plan import Plan

STEPS = 8
STARTS: dict[str, Method] = {"MMSE cap 8": MMSE(steps=STEPS, cap=8), "AdaFire": AdaFire(steps=STEPS)}


@dataclass(frozen=True)
class Case:
    """A network of the zoo, how many samples judge it, and how many calibrate it in batches of ``batch``."""

    name: str
    samples: int
    calibration: int
    batch: int


CASES = (Case("cifar10_resnet20", 2000, 500, 100), Case("mnist_cnn", 2000, 500, 100), Case("imagenet_squeezenet", 20, 24, 4))


@dataclass(frozen=True)
class Row:
    """One conversion, and whether it is compressed afterwards."""

    case: Case
    start: str
    compressed: bool

    @property
    def name(self) -> str:
        return f"{self.case.name} / {self.start}{' + SpikeCompression' if self.compressed else ''}"


def rows() -> Iterator[Row]:
    for case in CASES:
        for start in STARTS:
            yield Row(case, start, compressed=False)
            yield Row(case, start, compressed=True)


class Workplace:
    """Plans made so far, so that a compressed row goes on with the plan of the row before, as a chain would."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, str], tuple[Plan, float]] = {}

    def measure(self, row: Row) -> dict[str, Any]:
        """Accuracy, agreement and spikes of one row at its last step."""
        module = zoo()
        assert module is not None
        case = module.load(row.case.name, row.case.samples)
        batches = module.calibration(row.case.name, row.case.calibration).split(row.case.batch)
        graph = capture(case.model, batches[0][:2])
        key = row.case.name, row.start
        if key not in self._plans:
            began = time.perf_counter()
            self._plans[key] = calibrate(graph, STARTS[row.start], batches), time.perf_counter() - began
        plan, seconds = self._plans[key]
        if row.compressed:
            began = time.perf_counter()
            plan = SpikeCompression(steps=STEPS).fit(graph, batches, plan)
            seconds = time.perf_counter() - began
        report = evaluate(build(graph, plan), pairs(case.inputs, case.targets, row.case.batch), STEPS)
        return {
            "case": row.case.name,
            "conversion": row.name.split(" / ")[1],
            "steps": STEPS,
            "samples": report.samples,
            "calibration": row.case.calibration,
            "ann": 100 * report.ann["top1"],
            "top1": 100 * report.curves["plain"]["top1"][-1],
            "spikes": sum(report.rates[site.name] * site.units for site in graph.sites) * STEPS,
            "sops": report.energy.at(STEPS)["sops"],
            "calibration_seconds": seconds,
            "settings": plan.metadata["settings"],
            "search": plan.metadata.get("search"),
            "compression": plan.metadata.get("compression"),
            "notes": list(plan.notes),
        }


def main(arguments: list[str]) -> None:
    if zoo() is None:
        print("skipped: there is no zoo beside the project")
        return
    wanted, workplace = [text for text in arguments if text != "--only"], Workplace()
    for row in rows():
        done = row.name in read("bursts").get("rows", {})
        if done or not all(text in row.name for text in wanted) or (row.case.name.startswith("cifar10") and not cifar10_ready()):
            continue
        torch.manual_seed(0)
        found = workplace.measure(row)
        results = read("bursts") or {"rows": {}}  # another process may have added rows meanwhile
        results["rows"][row.name] = found
        record("bursts", results)
        print(f"{row.name}: {found['top1']:.2f} (ANN {found['ann']:.2f}), {found['spikes'] / 1e3:.1f} k spikes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

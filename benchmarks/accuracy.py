"""Accuracy of the conversions on the zoo's real networks, against the bars. Resumable: finished rows are kept.

python -m benchmarks.accuracy [ROW ...]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.common import cifar10_ready, pairs, read, record, zoo
from transpike import convert, evaluate
from transpike.methods import Method
from transpike.methods.chain import Chain
from transpike.methods.light_calibration import LightCalibration
from transpike.methods.ltb import LTB
from transpike.methods.max_norm import MaxNorm
from transpike.methods.mmse import MMSE
from transpike.methods.parallel import Parallel
from transpike.methods.percentile import Percentile
from transpike.methods.reconstruction import Reconstruction


@dataclass(frozen=True)
class Row:
    """One conversion: network, method, data, and what is asked of it.

    ``bars`` are (window, steps, at least %); ``drops`` are (window, steps, at most points below the ANN).
    """

    case: str
    method: Method
    steps: int
    samples: int
    calibration: int
    bars: tuple[tuple[str, int, float], ...] = ()
    drops: tuple[tuple[str, int, float], ...] = ()


CIFAR, SQUEEZE, MOBILE = "cifar10_resnet20", "imagenet_squeezenet", "imagenet_mobilenetv1"
ROWS = {
    "resnet20 LTB": Row(CIFAR, LTB(), 64, 10_000, 50_000, (("plain", 32, 88.0), ("delayed", 32, 90.3), ("plain", 64, 91.0))),
    "resnet20 MMSE": Row(CIFAR, MMSE(), 32, 10_000, 2_000, (("plain", 32, 89.8), ("delayed", 32, 91.0))),
    "resnet20 MMSE signed": Row(CIFAR, MMSE(signed=True), 32, 10_000, 2_000, (("plain", 16, 90.3), ("plain", 32, 91.2))),
    "resnet20 MMSE signed cap 4": Row(
        CIFAR, MMSE(steps=4, cap=4, signed=True), 8, 10_000, 2_000, (("plain", 4, 90.6), ("plain", 8, 91.3))
    ),
    "resnet20 MMSE(32) signed cap 4": Row(
        CIFAR, MMSE(cap=4, signed=True), 8, 10_000, 2_000, (("plain", 4, 90.6), ("plain", 8, 91.3))
    ),
    **{
        f"resnet20 Parallel({t}) + Reconstruction": Row(
            CIFAR, Chain(Parallel(t), Reconstruction(t)), t, 10_000, 10_000, (("plain", t, bar),)
        )
        for t, bar in ((4, 86.0), (8, 90.5), (16, 91.0))
    },
    "mobilenetv1 MMSE signed cap 4": Row(MOBILE, MMSE(steps=16, cap=4, signed=True), 16, 800, 200, drops=(("plain", 16, 4.0),)),
    "mobilenetv1 MMSE signed": Row(MOBILE, MMSE(signed=True), 64, 800, 200, drops=(("plain", 64, 5.0),)),
    "mobilenetv1 MMSE(64) signed": Row(MOBILE, MMSE(steps=64, signed=True), 64, 400, 200, drops=(("plain", 64, 5.0),)),
    "squeezenet MMSE signed cap 4": Row(SQUEEZE, MMSE(steps=16, cap=4, signed=True), 16, 800, 200, drops=(("plain", 16, 4.0),)),
    "mobilenetv1 MMSE(64) signed + light": Row(
        MOBILE,
        Chain(MMSE(steps=64, signed=True), LightCalibration(steps=64)),
        64,
        400,
        200,
        drops=(("plain", 64, 5.0),),
    ),
    "squeezenet MMSE(64) signed + light": Row(
        SQUEEZE,
        Chain(MMSE(steps=64, signed=True), LightCalibration(steps=64)),
        64,
        100,
        60,
        drops=(("plain", 64, 5.0),),
    ),
    "mobilenetv1 MMSE": Row(MOBILE, MMSE(), 128, 200, 200),
    "mobilenetv1 Percentile": Row(MOBILE, Percentile(), 128, 200, 200),
    "squeezenet MMSE signed": Row(SQUEEZE, MMSE(signed=True), 64, 400, 200, drops=(("plain", 64, 5.0),)),
    "squeezenet MMSE": Row(SQUEEZE, MMSE(), 128, 100, 200),
    "resnet20 Percentile": Row(CIFAR, Percentile(), 32, 2_000, 2_000),
    "resnet20 MaxNorm": Row(CIFAR, MaxNorm(), 32, 2_000, 2_000),
}


def measure(row: Row) -> dict[str, Any]:
    module = zoo()
    assert module is not None
    case = module.load(row.case, row.samples)
    began = time.perf_counter()
    batch = 100 if row.case == CIFAR else 20
    net = convert(case.model, row.method, module.calibration(row.case, row.calibration).split(batch))
    calibration_seconds = time.perf_counter() - began
    report = evaluate(net, pairs(case.inputs, case.targets, batch), row.steps, starts=[s for s in (8, 16) if s < row.steps])
    ann = report.ann["top1"]
    checks = [
        {"window": w, "steps": t, "measured": 100 * report.at(t, w), "bar": bar, "met": 100 * report.at(t, w) >= bar - 1e-4}
        for w, t, bar in (*row.bars, *((w, t, 100 * ann - drop) for w, t, drop in row.drops))
    ]
    summary = report.to_dict()
    return {
        "ann": 100 * ann,
        "steps": row.steps,
        "samples": row.samples,
        "calibration": row.calibration,
        "checks": checks,
        "curves": {window: [round(100 * v, 2) for v in curve["top1"]] for window, curve in summary["curves"].items()},
        "sops": report.energy.sops,
        "calibration_seconds": calibration_seconds,
        "seconds": dict(report.seconds),
        "delay": report.delay,
        "method": report.origin,
        "notes": list(report.notes),
    }


def main(names: list[str]) -> None:
    if zoo() is None:
        print("skipped: there is no zoo beside the project")
        return
    for name in names or ROWS:
        if name in read("accuracy").get("rows", {}) and not names:
            continue
        if ROWS[name].case == CIFAR and not cifar10_ready():
            continue
        found = measure(ROWS[name])
        results = read("accuracy") or {"rows": {}}  # another process may have added rows meanwhile
        results["rows"][name] = found
        record("accuracy", results)
        curve = {t: found["curves"]["plain"][t - 1] for t in (1, 2, 4, 8, 16, 32, 64, 128) if t <= found["steps"]}
        print(f"{name}: ANN {found['ann']:.2f}, plain {curve}", flush=True)
        for check in found["checks"]:
            verdict = "met" if check["met"] else "MISSED"
            print(
                f"  {check['window']} at {check['steps']}: {check['measured']:.2f} (bar {check['bar']:.2f}) {verdict}", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])

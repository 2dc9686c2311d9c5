"""Peak memory of simulations of torchvision's dense networks at the papers' sizes, each in a process of its own.

python -m benchmarks.task_memory [NAME ...]

The increase is the highest resident size while `simulate` runs less the resident size before it (Linux: the high-water mark
is set back in between). The budget is kept if the increase is at most ``max_memory``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model

from benchmarks.common import ROOT, read, record
from transpike import convert, simulate
from transpike.methods.max_norm import MaxNorm
from transpike.tasks import detectors, segmentation

GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A network with random weights. ``size``: of the input, without batch and colours. ``budget``: bytes."""

    core: Callable[[Any], Any]
    size: tuple[int, ...]
    budget: int = 2 * GIB
    steps: int = 8
    options: tuple[str, ...] = ("weights", "weights_backbone")


_segmenter = partial(Case, segmentation.core, (513, 513))
_detector = partial(Case, detectors.core, (800, 1088), budget=4 * GIB, steps=4)
_video = partial(Case, lambda model: model, (16, 112, 112), options=("weights",))

CASES = {
    "r3d_18": _video(),
    "mc3_18": _video(),
    "r2plus1d_18": _video(),
    "fcn_resnet50": _segmenter(),
    "deeplabv3_resnet50": _segmenter(),
    "lraspp_mobilenet_v3_large": _segmenter(),
    "ssd300_vgg16": Case(detectors.core, (300, 300)),
    "ssdlite320_mobilenet_v3_large": Case(detectors.core, (320, 320)),
    "retinanet_resnet50_fpn": _detector(),
    "fcos_resnet50_fpn": _detector(),
}


def resident(kind: str) -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at most since the mark was set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))


def measure(name: str, steps: int | None = None, budget: int | None = None) -> dict[str, Any]:
    """Convert and simulate one network on one sample, in this process."""
    case = CASES[name]
    steps, budget = steps or case.steps, budget or case.budget
    torch.manual_seed(0)
    model = case.core(get_model(name, **dict.fromkeys(case.options)).eval())
    x = torch.randn(1, 3, *case.size)
    net = convert(model, MaxNorm(), x)
    del model
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the conversion has freed shall not serve the simulation
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.perf_counter()
    run = simulate(net, x, steps, max_memory=budget)
    seconds, peak = time.perf_counter() - began, resident("VmHWM")
    return {
        "input": [1, 3, *case.size],
        "steps": run.steps,
        "units": sum(site.units for site in net.graph.sites),
        "budget": budget,
        "before": before,
        "peak": peak,
        "increase": peak - before,
        "kept": peak - before <= budget,
        "seconds": seconds,
    }


def main(names: list[str]) -> None:
    """Measure the networks named, or all."""
    for name in names or CASES:
        script = f"import json; from benchmarks.task_memory import measure; print(json.dumps(measure({name!r})))"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:  # -9: the machine had too little memory
            print(f"{name}: failed with {done.returncode} {done.stderr[-300:]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rows = read("task_memory").get("rows", {})
        record("task_memory", {"rows": {**rows, name: row}})
        verdict = "kept" if row["kept"] else "NOT kept"
        print(f"{name}: {row['increase'] >> 20} MiB of {row['budget'] >> 20} MiB, {verdict}, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

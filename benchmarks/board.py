"""The board: every method and the useful chains on the zoo's classifiers, at 1, 2, 4, ... steps. Resumable, a row at a time.

python -m benchmarks.board [--only TEXT ...]      rows whose name holds every TEXT
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import cifar10_ready, pairs, read, record, zoo
from transpike import convert, evaluate
from transpike.errors import TranspikeError
from transpike.measure.energy import CONSTANTS
from transpike.methods import Method
from transpike.methods.adafire import AdaFire
from transpike.methods.advanced_calibration import AdvancedCalibration
from transpike.methods.auto import Auto
from transpike.methods.chain import Chain
from transpike.methods.initial_potential import InitialPotential
from transpike.methods.light_calibration import LightCalibration
from transpike.methods.ltb import LTB
from transpike.methods.max_norm import MaxNorm
from transpike.methods.mmse import MMSE
from transpike.methods.offset_spikes import OffsetSpikes
from transpike.methods.parallel import Calibration, Parallel
from transpike.methods.percentile import Percentile
from transpike.methods.reconstruction import Reconstruction
from transpike.methods.spike_compression import SpikeCompression


@dataclass(frozen=True)
class Case:
    """A network of the zoo, how many images judge it, and how many calibrate it in batches of ``batch``."""

    name: str
    samples: int
    calibration: int
    batch: int
    longest: int  # steps of methods that do not depend on the number of steps
    steps: tuple[int, ...] = (4, 8, 16, 32)  # of those that do: one conversion each
    later: tuple[int, ...] = ()  # further ones for the chains of the papers' tables (`LATER`)
    chains: tuple[str, ...] = ()  # these alone
    label: str = ""  # where one network has several tables

    @property
    def title(self) -> str:
        return self.label or self.name


CLOSE = (  # chains that a thousand images do not tell apart, and what Auto makes of the same neurons
    "LTB",
    "LTB + LightCalibration once",
    "LTB + LightCalibration",
    "LTB + AdvancedCalibration",
    "MMSE + LightCalibration once + AdvancedCalibration (replace)",
    "Auto cap 1 unsigned",
    "MMSE cap 4",
    "MMSE cap 4 + LightCalibration once",
    "MMSE cap 4 + LightCalibration",
    "Auto unsigned",
    "MMSE cap 8",
    "MMSE cap 8 signed",
    "MMSE cap 8 signed, shift 0",
    "Auto",
    "Parallel authors",
    "Parallel + Reconstruction",
    "Auto parallel",
    "MMSE signed + LightCalibration",
    "MMSE signed, shift 0 + LightCalibration once",
    "Auto cap 1",
)
PHOTOS = (  # the chains that are best for some kind of neuron on fewer photos, and what Auto makes of the same neurons
    "MMSE + LightCalibration once + AdvancedCalibration (replace)",
    "MMSE signed + LightCalibration",
    "MMSE cap 8",
    "MMSE cap 8 signed",
    "MMSE cap 8 signed + LightCalibration",
    "Parallel authors",
    "Parallel + Reconstruction",
    "Auto",
    "Auto cap 1",
    "Auto cap 1 unsigned",
    "Auto unsigned",
    "Auto parallel",
)

CASES = (
    Case("mnist_cnn", 2000, 500, 100, 128),
    Case("mnist_no_bias", 2000, 500, 100, 128),
    Case("nmnist_cnn", 880, 220, 110, 128),
    Case("cifar10_resnet20", 1000, 1000, 100, 128, later=(64, 128)),
    Case("cifar10_resnet20", 10_000, 1000, 100, 128, later=(64, 128), chains=CLOSE, label="cifar10_resnet20, all test images"),
    Case("modelnet_pointnet", 100, 64, 16, 64),
    Case("imagenet_mobilenetv1", 200, 200, 20, 128),
    Case("imagenet_mobilenetv1", 800, 200, 20, 128, chains=PHOTOS, label="imagenet_mobilenetv1, all photos"),
    Case("imagenet_squeezenet", 50, 60, 20, 64, (4, 8, 16)),
    Case("imagenet_squeezenet", 800, 60, 20, 64, (4, 8, 16), chains=PHOTOS, label="imagenet_squeezenet, all photos"),
)

ANY_STEPS: dict[str, Method] = {
    "MaxNorm": MaxNorm(),
    "Percentile": Percentile(),
    "LTB": LTB(iterations=300),
}


def _once(steps: int) -> Method:
    """One correction of every bias, on one batch, as published."""
    return LightCalibration(steps=steps, samples=128, iterations=1)


FOR_STEPS: dict[str, Callable[[int], Method]] = {
    "MMSE": lambda t: MMSE(steps=t),
    "MaxNorm + LightCalibration once": lambda t: Chain(MaxNorm(), _once(t)),
    "MaxNorm + LightCalibration": lambda t: Chain(MaxNorm(), LightCalibration(steps=t)),
    "LTB + LightCalibration once": lambda t: Chain(LTB(iterations=300), _once(t)),
    "LTB + LightCalibration": lambda t: Chain(LTB(iterations=300), LightCalibration(steps=t)),
    "LTB + AdvancedCalibration": lambda t: Chain(LTB(iterations=300), AdvancedCalibration(steps=t)),
    "MMSE + LightCalibration once": lambda t: Chain(MMSE(steps=t), _once(t)),
    "MMSE + LightCalibration": lambda t: Chain(MMSE(steps=t), LightCalibration(steps=t)),
    "MMSE + AdvancedCalibration": lambda t: Chain(MMSE(steps=t), AdvancedCalibration(steps=t)),
    "MMSE + LightCalibration once + AdvancedCalibration (replace)": lambda t: Chain(
        MMSE(steps=t), _once(t), AdvancedCalibration(steps=t, replace=True)
    ),
    "MMSE + LightCalibration + AdvancedCalibration (replace)": lambda t: Chain(
        MMSE(steps=t), LightCalibration(steps=t), AdvancedCalibration(steps=t, replace=True)
    ),
    "MMSE + InitialPotential": lambda t: Chain(MMSE(steps=t), InitialPotential(steps=t)),
    "MMSE + OffsetSpikes": lambda t: Chain(MMSE(steps=t), OffsetSpikes()),
    "MMSE signed": lambda t: MMSE(steps=t, signed=True),
    "MMSE signed + LightCalibration": lambda t: Chain(MMSE(steps=t, signed=True), LightCalibration(steps=t)),
    "MMSE signed, shift 0": lambda t: MMSE(steps=t, signed=True, shift=0),
    "MMSE signed, shift 0 + LightCalibration once": lambda t: Chain(MMSE(steps=t, signed=True, shift=0), _once(t)),
    "MMSE signed, shift 0 + LightCalibration": lambda t: Chain(MMSE(steps=t, signed=True, shift=0), LightCalibration(steps=t)),
    "MMSE cap 4": lambda t: MMSE(steps=t, cap=4),
    "MMSE cap 4 + LightCalibration once": lambda t: Chain(MMSE(steps=t, cap=4), _once(t)),
    "MMSE cap 4 + LightCalibration": lambda t: Chain(MMSE(steps=t, cap=4), LightCalibration(steps=t)),
    "MMSE cap 4 signed": lambda t: MMSE(steps=t, cap=4, signed=True),
    "MMSE cap 4 signed, shift 0": lambda t: MMSE(steps=t, cap=4, signed=True, shift=0),
    "MMSE cap 8": lambda t: MMSE(steps=t, cap=8),
    "MMSE cap 8 signed": lambda t: MMSE(steps=t, cap=8, signed=True),
    "MMSE cap 8 signed + LightCalibration": lambda t: Chain(MMSE(steps=t, cap=8, signed=True), LightCalibration(steps=t)),
    "MMSE cap 8 signed, shift 0": lambda t: MMSE(steps=t, cap=8, signed=True, shift=0),
    "MMSE cap 8 signed, shift 0 + LightCalibration once": lambda t: Chain(MMSE(steps=t, cap=8, signed=True, shift=0), _once(t)),
    "AdaFire": lambda t: AdaFire(steps=t),
    "AdaFire + SpikeCompression": lambda t: Chain(AdaFire(steps=t), SpikeCompression(steps=t)),
    "Parallel authors": lambda t: Parallel(t, Calibration.AUTHORS),
    "Parallel": lambda t: Parallel(t),
    "Parallel + Reconstruction without weights": lambda t: Chain(Parallel(t), Reconstruction(t, weight_rate=0)),
    "Parallel + Reconstruction": lambda t: Chain(Parallel(t), Reconstruction(t)),
    "Auto": lambda t: Auto(steps=t),
    "Auto cap 1": lambda t: Auto(steps=t, cap=1),
    "Auto cap 1 unsigned": lambda t: Auto(steps=t, cap=1, signed=False),
    "Auto unsigned": lambda t: Auto(steps=t, signed=False),
    "Auto parallel": lambda t: Auto(steps=t, cap=1, signed=False, parallel=True),
}
LATER = ("LTB + LightCalibration once", "LTB + LightCalibration", "LTB + AdvancedCalibration")


@dataclass(frozen=True)
class Row:
    """One conversion and how long it is simulated."""

    case: Case
    chain: str
    method: Method
    steps: int

    @property
    def name(self) -> str:
        return f"{self.case.title} / {self.chain} / {self.steps}"


def rows() -> Iterator[Row]:
    """All rows, cheap networks first."""
    for case in CASES:
        for name, method in ANY_STEPS.items():
            if name in (case.chains or ANY_STEPS):
                yield Row(case, name, method, case.longest)
        for name, of in FOR_STEPS.items():
            if name not in (case.chains or FOR_STEPS):
                continue
            for steps in case.steps + (case.later if name in LATER else ()):
                yield Row(case, name, of(steps), steps)


def measure(row: Row) -> dict[str, Any]:
    """Accuracy at every step, spikes, operations and energy of one row."""
    module = zoo()
    assert module is not None
    case = module.load(row.case.name, row.case.samples)
    batches = module.calibration(row.case.name, row.case.calibration).split(row.case.batch)
    model = case.model.cuda() if torch.cuda.is_available() else case.model
    began = time.perf_counter()
    try:
        net = convert(model, row.method, batches)
    except TranspikeError as error:
        return {"chain": row.chain, "case": row.case.title, "steps": row.steps, "refused": str(error)}
    seconds = time.perf_counter() - began
    report = evaluate(net, pairs(case.inputs, case.targets, row.case.batch), row.steps)
    final = report.energy.at(row.steps)
    units = sum(site.units for site in net.graph.sites)
    rate = sum(report.rates[site.name] * site.units for site in net.graph.sites) / max(units, 1)
    return {
        "chain": row.chain,
        "case": row.case.title,
        "steps": row.steps,
        "samples": report.samples,
        "calibration": row.case.calibration,
        "ann": 100 * report.ann["top1"],
        "plain": [round(100 * v, 2) for v in report.curves["plain"]["top1"]],
        "delayed": [round(100 * v, 2) for v in report.curves["delayed"]["top1"]],
        "spikes": rate * units * row.steps,
        "sops": final["sops"],
        "energy_mj": {c.name: final[c.name]["snn_mj"] for c in CONSTANTS},
        "ann_mj": {c.name: final[c.name]["ann_mj"] for c in CONSTANTS},
        "calibration_seconds": seconds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "method": report.origin,
        "notes": list(report.notes),
    }


def main(arguments: list[str]) -> None:
    if zoo() is None:
        print("skipped: there is no zoo beside the project")
        return
    wanted = [text for text in arguments if text != "--only"]
    for row in rows():
        if not all(text in row.name for text in wanted):
            continue
        if row.name in read("board").get("rows", {}):
            continue
        if row.case.name == "cifar10_resnet20" and not cifar10_ready():
            continue
        torch.manual_seed(0)
        found = measure(row)
        results = read("board") or {"rows": {}}  # another process may have added rows meanwhile
        results["rows"][row.name] = found
        record("board", results)
        last = f"{found['plain'][-1]:.2f} (ANN {found['ann']:.2f})" if "plain" in found else f"refused: {found['refused'][:80]}"
        print(f"{row.name}: {last}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The main job on a network that comes with the package: handwritten digits, every method, in a minute."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from transpike.convert import build, calibrate
from transpike.graph.capture import capture
from transpike.measure.evaluate import evaluate
from transpike.measure.report import Report, draw, milestones
from transpike.methods import Method, available
from transpike.methods.chain import Chain
from transpike.spiking.store import write_file
from transpike.tasks.data import digits

__all__ = ["DigitsNet", "Trial", "comparison", "demo_methods", "digits_net", "run_demo"]

BRIEF = {"LTB": {"iterations": 300}, "Reconstruction": {"iterations": 100}}  # a digit needs less than a photograph
WEIGHTS = Path(__file__).parent / "assets" / "digits.safetensors"


class DigitsNet(nn.Module):
    """Convolutions with batch norm, a residual sum and max pooling, for 1 x 8 x 8 digits (26 k parameters)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
        )
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.head = nn.Linear(48, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pool(self.relu(x + self.branch(x)))
        return self.head(self.deep(x).mean((2, 3)))


def digits_net() -> DigitsNet:
    """The trained network (made by ``examples/train_digits.py``)."""
    net = DigitsNet()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


@dataclass(frozen=True)
class Trial:
    """One way to convert: a name for tables, and the method."""

    name: str
    method: Method


def demo_methods() -> list[Trial]:
    """Every method for a network as it is, refinements after MMSE, and what signed neurons and bursts make of MMSE."""
    ready = {name: cls for name, cls in available().items() if not getattr(cls, "prepared_only", False)}
    methods = {name: cls for name, cls in ready.items() if cls is not Chain}
    mmse = methods["MMSE"]
    refined = {name for name, cls in methods.items() if getattr(cls, "refines", False)}
    made = {name: cls(**BRIEF.get(name, {})) for name, cls in methods.items()}
    trials = [Trial(name, Chain(mmse(), method) if name in refined else method) for name, method in made.items()]
    return [*trials, Trial("MMSE, signed", mmse(signed=True)), Trial("MMSE, signed, cap 4", mmse(steps=8, cap=4, signed=True))]


def run_demo(folder: Path, steps: int = 64, done: Callable[[Trial, Report], object] | None = None) -> Mapping[str, Report]:
    """Convert the digits network with every method, measure each, write reports and curves into ``folder``."""
    calibration = list(DataLoader(digits("train"), batch_size=100))
    test = list(DataLoader(digits("test"), batch_size=450))
    graph = capture(digits_net(), calibration[0][0])
    reports: dict[str, Report] = {}
    for trial in demo_methods():
        report = evaluate(build(graph, calibrate(graph, trial.method, calibration)), test, steps)
        reports[trial.name] = report
        report.save(folder / trial.name.lower().replace(", ", "-").replace(" ", "-"))
        if done is not None:
            done(trial, report)
    write_file(folder / "curves.png", lambda path: draw(list(reports.values()), path, list(reports)))
    summary: dict[str, Any] = {name: report.to_dict() for name, report in reports.items()}
    write_file(folder / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=1)))
    return reports


def comparison(reports: Mapping[str, Report], steps: int) -> tuple[Table, list[str]]:
    """One row a method, and what there is to say about the columns and the methods."""
    table = Table("method", box=None, pad_edge=False)
    for name in (*map(str, milestones(steps)), "rate", "MSOP", "saving*"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, report in reports.items():
        cells = [f"{100 * report.at(t):.1f}" for t in milestones(steps)]
        rate = sum(report.rates.values()) / max(1, len(report.rates))
        t = report.steps_to(0.99)
        factor = None if t is None else report.energy.at(t)["cmos45"]["saving"]
        saving = "-" if factor is None else f"{factor:.1f}x at {t}"
        table.add_row(name, *cells, f"{rate:.2f}", f"{report.energy.sops[-1] / 1e6:.1f}", saving)
    remarks = [
        "rate: spikes per neuron and step; MSOP: million synaptic operations of all steps",
        "* energy of the ANN over the SNN's where it first has 99 % of the ANN's accuracy (45 nm CMOS)",
    ]
    return table, remarks + [f"note: {name}: {note}" for name, report in reports.items() for note in report.notes]

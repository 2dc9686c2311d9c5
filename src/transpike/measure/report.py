"""A measured conversion as text, JSON and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpike.errors import DataError
from transpike.measure.effect import Effect
from transpike.measure.energy import CONSTANTS, Energy
from transpike.spiking.store import write_file

__all__ = ["Report"]


@dataclass(frozen=True, eq=False)
class Report:
    """What a spiking network is worth on some data. Shares are from 0 to 1; curves have one value per measured step.

    Args:
        ann: the original network's metrics on the same samples.
        curves: by window (plain, delayed, estimate, start...) and metric, the value at every measured step.
        agreement: by window, how far answers are the ANN's (the share of samples given its class), at every measured step.
        delay: the estimated delay in steps.
        rates: by site, spikes per neuron and step. silent, saturated: by site, channels that never fired; channels
            in which more than 1 % of the units fired as much as they could at every step.
        energy: operations and energy. seconds: time spent in the ANN and in the simulation.
        origin: method, settings, calibration samples, hash of the weights, versions, engine.
        notes: what a user should know (dead channels, thresholds that have not converged).
        measured: the steps at which metrics were computed, in order; empty: every step.
        step_ms: milliseconds of a step where the input is a recording; None: steps have no duration.
        profile: what ran where: by layer its engine, precision, seconds, density and operations.
        effect: what a precision below float32 did to the outputs, None in float32.
    """

    network: str
    task: str
    metrics: tuple[str, ...]
    better: str
    steps: int
    samples: int
    ann: Mapping[str, float]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    agreement: Mapping[str, Sequence[float]]
    windows: Mapping[str, Mapping[str, Any]]
    delay: float
    rates: Mapping[str, float]
    silent: Mapping[str, int]
    saturated: Mapping[str, int]
    channels: Mapping[str, int]
    energy: Energy
    seconds: Mapping[str, float]
    origin: Mapping[str, Any]
    notes: tuple[str, ...]
    measured: tuple[int, ...] = ()
    step_ms: float | None = None
    profile: tuple[Mapping[str, Any], ...] = ()
    effect: Effect | None = None

    @property
    def points(self) -> Sequence[int]:
        """The steps that the curves have values for."""
        return self.measured or range(1, self.steps + 1)

    def at(self, t: int, window: str = "plain", metric: str | None = None) -> float:
        """The metric at ``t`` steps.

        Raises:
            DataError: no such window or metric, or a step beyond what was simulated.
        """
        if window not in self.curves:
            raise DataError(f"there is no window {window!r}: choose from {', '.join(self.curves)}")
        if not 1 <= t <= self.steps:
            raise DataError(f"there is no step {t}: the report has 1 to {self.steps}")
        metric = self.better if metric is None else metric
        if metric not in self.curves[window]:
            raise DataError(f"there is no metric {metric!r}: choose from {', '.join(self.metrics)}")
        if t not in self.points:
            raise DataError(f"{metric} was not measured at step {t}: choose from {', '.join(map(str, self.points))}")
        return self.curves[window][metric][self.points.index(t)]

    def steps_to(self, share: float, window: str = "plain") -> int | None:
        """The fewest steps at which the metric reaches ``share`` of the ANN's, None if it never does."""
        goal = share * self.ann[self.better] - 1e-9  # reached is reached: 0.9 x 0.8 is above 0.72 by rounding
        return next((t for t in self.points if self.at(t, window) >= goal), None)

    def sops_to(self, share: float, window: str = "plain") -> float | None:
        """Synaptic operations per sample at ``steps_to(share)``: SOP90 and SOP95 of the literature."""
        t = self.steps_to(share, window)
        return None if t is None else self.energy.sops[t - 1]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "network": self.network,
            "task": self.task,
            "steps": self.steps,
            "samples": self.samples,
            "measured": list(self.points),
            "step_ms": self.step_ms,
            "ann": dict(self.ann),
            **{metric: list(self.curves["plain"][metric]) for metric in self.metrics},
            "curves": {w: {m: list(v) for m, v in metrics.items()} for w, metrics in self.curves.items()},
            "agreement": {w: list(v) for w, v in self.agreement.items()},
            "windows": {w: dict(v) for w, v in self.windows.items()},
            "delay": self.delay,
            "rates": dict(self.rates),
            "silent_channels": dict(self.silent),
            "saturated_channels": dict(self.saturated),
            "channels": dict(self.channels),
            "energy": self.energy.to_dict(),
            "targets": {name: self._target(share) for name, share in (("sop90", 0.90), ("sop95", 0.95))},
            "seconds": dict(self.seconds),
            "origin": dict(self.origin),
            "notes": list(self.notes),
            "profile": [dict(row) for row in self.profile],
            "precision": None if self.effect is None else vars(self.effect),
        }

    def _unit(self) -> str:
        """The heading of the column of times, where steps have a duration."""
        return "" if self.step_ms is None else "ms".rjust(10)

    def _target(self, share: float) -> dict[str, Any] | None:
        """Steps, operations, energy and frames per joule where ``share`` of the ANN's metric is reached."""
        t = self.steps_to(share)
        return None if t is None else self.energy.at(t)

    def __str__(self) -> str:
        method = self.origin.get("method", "?")
        lines = [
            f"{self.network}, {method}: {self.task}, {self.samples} samples, {self.steps} steps",
            f"  ANN {self.better} {self.ann[self.better]:.2%}; estimated delay {self.delay:.1f} steps",
            "  " + "steps".rjust(9) + "".join(f"{w:>10}" for w in self.curves) + f"{'as ANN':>10}{'MSOP':>10}{self._unit()}",
        ]
        shown = [t for t in milestones(self.steps) if t in self.points]
        for t in shown:
            values = "".join(f"{self.at(t, w):>10.2%}" for w in self.curves)
            same, sops = self.agreement["plain"][self.points.index(t)], self.energy.sops[t - 1] / 1e6
            time = "" if self.step_ms is None else f"{t * self.step_ms:>10.4g}"
            lines.append(f"  {t:>9}{values}{same:>10.2%}{sops:>10.2f}{time}")
        for metric in self.metrics:
            if metric != self.better:
                values = ", ".join(f"{t}: {self.at(t, metric=metric):.2%}" for t in shown)
                lines.append(f"  {metric}: ANN {self.ann[metric]:.2%}, plain by steps {values}")
        for name, share in (("SOP90", 0.90), ("SOP95", 0.95)):
            t, sops = self.steps_to(share), self.sops_to(share)
            reached = "not reached" if t is None or sops is None else f"{sops / 1e6:.2f} M synaptic operations at {t} steps"
            lines.append(f"  {name}: {reached}")
        lines += [f"  {line}" for line in str(self.energy).splitlines()]
        lines.append("  spikes per neuron and step, silent and saturated channels:")
        for site, rate in self.rates.items():
            lines.append(f"    {site:<40} {rate:7.4f}  {self.silent[site]:>4} {self.saturated[site]:>4} of {self.channels[site]}")
        lines.append(f"  time: ANN {self.seconds['ann']:.1f} s, simulation {self.seconds['snn']:.1f} s")
        lines += [] if self.effect is None else [f"  {self.effect}"]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def save(self, folder: Path | str) -> Path:
        """Write ``report.txt``, ``report.json`` and ``curves.png`` into ``folder``.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        folder = Path(folder)
        write_file(folder / "report.txt", lambda path: path.write_text(f"{self}\n", encoding="utf-8"))
        write_file(folder / "report.json", lambda path: path.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8"))
        write_file(folder / "curves.png", lambda path: draw([self], path))
        return folder


def milestones(steps: int) -> list[int]:
    """1, 2, 4, ... and the last step."""
    powers = [2**k for k in range(steps.bit_length()) if 2**k <= steps]
    return powers if powers[-1] == steps else [*powers, steps]


def draw(reports: Sequence[Report], path: Path, labels: Sequence[str] | None = None) -> None:
    """Metric against steps and against energy, and spike rates by site, as one PNG."""
    # imported here because it takes about as long as the rest of transpike, and most uses draw nothing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    by_steps, by_energy, by_site = figure.subplots(1, 3)
    first = reports[0]
    names = labels or [str(report.origin.get("method", "?")) for report in reports]
    for report, name in zip(reports, names, strict=True):
        steps = report.points
        windows = report.curves if len(reports) == 1 else {"plain": report.curves["plain"]}
        for window, metrics in windows.items():
            label = window if len(reports) == 1 else name
            by_steps.plot(steps, [100 * v for v in metrics[report.better]], label=label, linewidth=1.5)
        energy = [report.energy.snn_pj(t, CONSTANTS[0]) * 1e-6 for t in steps]
        by_energy.plot(energy, [100 * v for v in report.curves["plain"][report.better]], label=name, linewidth=1.5)
        by_site.plot(range(len(report.rates)), list(report.rates.values()), marker=".", label=name, linewidth=1)
    ann = 100 * first.ann[first.better]
    by_steps.axhline(ann, color="black", linestyle=":", label="ANN")
    by_energy.plot([first.energy.ann_pj(CONSTANTS[0]) * 1e-6], [ann], "k*", label="ANN")
    ticks = milestones(first.steps)
    times = [str(t) if first.step_ms is None else f"{t * first.step_ms:.4g}" for t in ticks]
    label = "time steps" if first.step_ms is None else "ms since the first event"
    by_steps.set(xscale="log", xlabel=label, ylabel=f"{first.better} (%)", title=f"{first.network}: {first.samples} samples")
    by_steps.set_xticks(ticks, times, minor=False)
    by_energy.set(
        xscale="log", xlabel="energy per sample (µJ, 45 nm CMOS)", ylabel=f"{first.better} (%)", title="accuracy and energy"
    )
    by_site.set(xlabel="site, from input to output", ylabel="spikes per neuron and step", title="activity")
    for axes in (by_steps, by_energy, by_site):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, format="png")

"""What an early exit is worth: accuracy, the distribution of the exits, operations and energy, against all steps.

    steps saved = 1 - mean exit / T,     E = e_SOP mean of SOP(exit of the sample) + e_MAC (MAC_constant + mean exit MAC_dense)

Every sample is simulated twice: once leaving early, which gives what is reported about the exits, and once to the
end for comparison. Synaptic operations are counted for each sample up to the step at which it leaves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transpike.graph.batches import checked_inputs, inputs_of, peek, target_of
from transpike.graph.interpret import forward
from transpike.graph.ir import Node
from transpike.measure.accuracy import Classification
from transpike.measure.early_exit import ExitPolicy, check_logits, run_with_exit
from transpike.measure.energy import CONSTANTS, Meter, account
from transpike.measure.operations import Drive
from transpike.measure.report import milestones
from transpike.network import SpikingNetwork, simulate
from transpike.spiking.plan import versions
from transpike.spiking.store import write_file

__all__ = ["ExitReport", "evaluate_exit"]


@dataclass(frozen=True, eq=False)
class ExitReport:
    """Early exit on some data. Shares are from 0 to 1; sequences have one value per step 1..T.

    Args:
        ann, accuracy: of the original network; of the spiking network at the exits. same samples
        curve: accuracy if every sample takes t steps; the last is that of all steps.
        exits: samples that left at each step. right: those of them that were given the right class.
        sops, events: synaptic operations per sample up to its exit; the same if a burst is one graded event.
        sops_at: synaptic operations per sample if every sample takes t steps.
        ann_macs, constant_macs, dense_macs: multiply-accumulates of the ANN; of the part computed once; of every step.
        computed: steps that went through the network, per sample.
        seconds: time of the simulation with exits and of that to the end.
        policy, origin: how exits are decided; where the network comes from. notes: what a user should know.
    """

    network: str
    steps: int
    samples: int
    ann: float
    accuracy: float
    curve: Sequence[float]
    exits: Sequence[int]
    right: Sequence[int]
    sops: float
    events: float
    sops_at: Sequence[float]
    ann_macs: int
    constant_macs: int
    dense_macs: int
    computed: float
    seconds: Mapping[str, float]
    policy: ExitPolicy
    origin: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def mean_steps(self) -> float:
        """The mean exit."""
        return sum(t * n for t, n in enumerate(self.exits, 1)) / self.samples

    @property
    def saved(self) -> float:
        """The share of the steps that is saved."""
        return 1 - self.mean_steps / self.steps

    @property
    def lost(self) -> float:
        """Accuracy of all steps less that at the exits; negative if exits are the better."""
        return self.curve[-1] - self.accuracy

    def energy(self) -> dict[str, Any]:
        """Operations and energy per sample at the exits, under both sets of constants."""
        macs = self.constant_macs + self.mean_steps * self.dense_macs
        return account(self.sops, self.events, macs, self.ann_macs)

    def energy_at(self, t: int) -> dict[str, Any]:
        """The same if every sample takes ``t`` steps (no graded events)."""
        found = account(self.sops_at[t - 1], 0.0, self.constant_macs + t * self.dense_macs, self.ann_macs)
        del found["events"]
        return found

    def quantile(self, share: float) -> int:
        """The step at which ``share`` of the samples have left."""
        left = 0
        for t, count in enumerate(self.exits, 1):
            left += count
            if left >= share * self.samples:
                return t
        return self.steps

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "network": self.network,
            "steps": self.steps,
            "samples": self.samples,
            "ann": self.ann,
            "accuracy": self.accuracy,
            "accuracy_all_steps": self.curve[-1],
            "lost": self.lost,
            "mean_steps": self.mean_steps,
            "saved": self.saved,
            "exits": list(self.exits),
            "right": list(self.right),
            "curve": list(self.curve),
            "sops_at": list(self.sops_at),
            "energy": self.energy(),
            "energy_all_steps": self.energy_at(self.steps),
            "constants": {c.name: {"sop_pj": c.sop_pj, "mac_pj": c.mac_pj, "source": c.source} for c in CONSTANTS},
            "computed": self.computed,
            "seconds": dict(self.seconds),
            "policy": self.policy.to_dict(),
            "origin": dict(self.origin),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rule = self.policy.origin.get("rule", "given")
        certainty = self.policy.certainty
        quantiles = ", ".join(f"{share:.0%} by {self.quantile(share)}" for share in (0.1, 0.5, 0.9))
        lines = [
            f"{self.network}: early exit, {rule} thresholds on the {certainty.statistic.value} of the read-out's "
            f"{certainty.readout.value}, {self.samples} samples",
            f"  accuracy {self.accuracy:.2%} at {self.mean_steps:.2f} steps in the mean ({quantiles}), {self.curve[-1]:.2%} at "
            f"all {self.steps}: {self.saved:.1%} of the steps saved; ANN {self.ann:.2%}",
            "  " + "step".rjust(9) + f"{'left':>10}{'right':>10}{'fixed':>10}{'MSOP':>10}",
        ]
        for low, high in _spans(self.steps):
            left, right = sum(self.exits[low - 1 : high]), sum(self.right[low - 1 : high])
            name = str(low) if low == high else f"{low}-{high}"
            share = f"{right / left:.2%}" if left else "-"
            fixed = f"{self.curve[high - 1]:>10.2%}{self.sops_at[high - 1] / 1e6:>10.2f}"
            lines.append(f"  {name:>9}{left / self.samples:>10.2%}{share:>10}{fixed}")
        lines.append("  left: share leaving then; right: of those; fixed, MSOP: accuracy and operations if all take so many steps")
        early, late = self.energy(), self.energy_at(self.steps)
        sops = f"{early['sops'] / 1e6:.3f} M synaptic operations a sample, {late['sops'] / 1e6:.3f} M"
        lines.append(f"  {sops} at all {self.steps} steps")
        for c in CONSTANTS:
            snn, full, ann = early[c.name]["snn_mj"], late[c.name]["snn_mj"], early[c.name]["ann_mj"]
            lines.append(f"  {c.name}: {snn:.4g} mJ, all steps {full:.4g} mJ, ANN {ann:.4g} mJ\n    {c.source}")
        seconds = f"{self.seconds['exit']:.1f} s, all steps {self.seconds['all']:.1f} s"
        lines.append(f"  time: {seconds}; {self.computed:.2f} steps computed a sample")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def save(self, folder: Path | str) -> Path:
        """Write ``exit.txt``, ``exit.json`` and ``exit.png`` into ``folder``.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        folder = Path(folder)
        write_file(folder / "exit.txt", lambda path: path.write_text(f"{self}\n", encoding="utf-8"))
        write_file(folder / "exit.json", lambda path: path.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8"))
        write_file(folder / "exit.png", lambda path: _draw(self, path))
        return folder


def evaluate_exit(
    net: SpikingNetwork,
    loader: Iterable[Any],
    policy: ExitPolicy,
    *,
    task: Classification | None = None,
    chunk: int = 2,
    max_memory: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ExitReport:
    """Measure ``policy`` on labelled data that it was not chosen on.

    Args:
        loader: pairs (input, class number).
        chunk: steps that go through the network at once, as for `run_with_exit`.
        progress: called with the number of samples done.

    Raises:
        DataError: no data, no targets, data that does not fit, or an output that is not logits N x classes.
        PlanError: parallel neurons.

    Example:
        >>> policy = risk_controlled(record(net, held_out, 32), loss=0.01)  # doctest: +SKIP
        >>> report = evaluate_exit(net, loader, policy)  # doctest: +SKIP
    """
    task, steps, count = task or Classification(), policy.steps, len(net.graph.inputs)
    _, batches = peek(loader)
    meter = Meter(net.graph, net.plan, steps)
    exits, right, curve = (torch.zeros(steps, dtype=torch.int64) for _ in range(3))
    at_exit, fixed = torch.zeros(2, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)  # operations and events
    samples = computed = ann = 0
    clock = {"exit": 0.0, "all": 0.0}
    for batch in batches:
        x = checked_inputs(net.graph, inputs_of(batch, count))
        logits = check_logits(task.readout(forward(net.graph, x)))
        targets = task.check(logits, target_of(batch, count))
        given = tuple(x) if count > 1 else x[0]
        early, late = (_Counts(meter, steps, len(targets)) for _ in range(2))
        began = time.perf_counter()
        run = run_with_exit(net, given, policy, task=task, chunk=chunk, max_memory=max_memory, probe=early.probe)
        clock["exit"] += time.perf_counter() - began
        began = time.perf_counter()
        outputs = task.readout(simulate(net, given, steps, max_memory=max_memory, probe=late.probe_all).outputs)
        clock["all"] += time.perf_counter() - began
        ann += int((logits.argmax(1) == targets).sum())
        hits = (task.readout(run.readout).argmax(1) == targets).cpu()
        exits += run.exits.bincount(minlength=steps + 1)[1:]
        right += run.exits[hits].bincount(minlength=steps + 1)[1:]
        start = policy.certainty.start
        totals = torch.cat([outputs[:start].cumsum(0, dtype=torch.float64), policy.certainty.totals(outputs)])
        curve += (totals.argmax(-1) == targets).sum(1).cpu()
        at_exit += early.until(run.exits)
        fixed += late.table[0].sum(1).cumsum(0)
        computed += run.computed
        samples += len(targets)
        if progress is not None:
            progress(samples)
    return ExitReport(
        network=net.graph.name,
        steps=steps,
        samples=samples,
        ann=ann / samples,
        accuracy=int(right.sum()) / samples,
        curve=[count / samples for count in curve.tolist()],
        exits=exits.tolist(),
        right=right.tolist(),
        sops=float(at_exit[0]) / samples,
        events=float(at_exit[1]) / samples,
        sops_at=(fixed / samples).tolist(),
        ann_macs=meter.operations.macs(),
        constant_macs=meter.operations.macs(Drive.CONSTANT),
        dense_macs=meter.operations.dense_work(),
        computed=computed / samples,
        seconds=clock,
        policy=policy,
        origin={**net.plan.metadata, "versions": versions()},
        notes=(*policy.notes, *net.plan.notes),
    )


class _Counts:
    """Synaptic operations and events of each step and sample of a batch. 2 T N"""

    def __init__(self, meter: Meter, steps: int, samples: int) -> None:
        self._meter = meter
        self.table = torch.zeros(2, steps, samples, dtype=torch.float64)

    def probe(self, node: Node, emitted: torch.Tensor, done: int, ids: torch.Tensor) -> None:
        counts = self._meter.count(node, emitted)
        if counts is not None:
            self.table[:, done : done + counts.shape[1], ids] += counts[[0, 2]]

    def probe_all(self, node: Node, emitted: torch.Tensor, done: int, first: int) -> None:
        counts = self._meter.count(node, emitted)
        if counts is not None:
            self.table[:, done : done + counts.shape[1], first : first + counts.shape[2]] += counts[[0, 2]]

    def until(self, exits: torch.Tensor) -> torch.Tensor:
        """Sums over samples of what they cost up to their exit, and nothing after it."""
        steps = torch.arange(1, self.table.shape[1] + 1)
        return (self.table * (steps[:, None] <= exits)).sum((1, 2))


def _spans(steps: int) -> list[tuple[int, int]]:
    """1, 2, 3-4, 5-8, ... up to ``steps``."""
    ends = milestones(steps)
    return [(low + 1, high) for low, high in zip([0, *ends[:-1]], ends, strict=True)]


def _draw(report: ExitReport, path: Path) -> None:
    """Distribution of the exits, and accuracy against energy beside that of fixed numbers of steps, as one PNG."""
    # imported here because it takes about as long as the rest of transpike, and most uses draw nothing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    when, worth = figure.subplots(1, 2)
    steps = range(1, report.steps + 1)
    wrong = [n - r for n, r in zip(report.exits, report.right, strict=True)]
    shares = [[100 * n / report.samples for n in counts] for counts in (report.right, wrong)]
    when.bar(steps, shares[0], label="right")
    when.bar(steps, shares[1], bottom=shares[0], label="wrong")
    when.axvline(report.mean_steps, color="black", linestyle=":", label=f"mean {report.mean_steps:.2f}")
    when.set(xlabel="exit (time step)", ylabel="samples (%)", title=f"{report.network}: {report.samples} samples")
    name = CONSTANTS[0].name
    energy = [report.energy_at(t)[name]["snn_mj"] * 1e3 for t in steps]
    worth.plot(energy, [100 * a for a in report.curve], ".-", linewidth=1, label="the same number of steps for all")
    worth.plot([report.energy()[name]["snn_mj"] * 1e3], [100 * report.accuracy], "k*", markersize=10, label="early exit")
    worth.axhline(100 * report.ann, color="black", linestyle=":", label="ANN")
    worth.set(xscale="log", xlabel="energy per sample (µJ, 45 nm CMOS)", ylabel="accuracy (%)", title="accuracy and energy")
    for axes in (when, worth):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, format="png")

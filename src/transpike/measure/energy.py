"""Energy of a spiking network against its ANN, under two published sets of constants.

    E_SNN(T) = e_SOP SOP(T) + e_MAC (MAC_constant + T MAC_dense),    E_ANN = e_MAC MAC

SOP are the exact synaptic operations of all steps up to T (a negative spike and each spike of a burst count).
The two sets disagree by a factor of 30 about what a spike saves: report both, always. Neuron updates and memory
traffic are in neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from transpike.engines.kernels import threads_for
from transpike.errors import DataError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph, Node, Site
from transpike.graph.roles import base_name
from transpike.measure._count import weigh
from transpike.measure.operations import Drive, Operations, count_operations, synaptic_operations
from transpike.network import SpikingNetwork, simulate
from transpike.spiking.plan import Plan

__all__ = ["CONSTANTS", "Constants", "Energy", "Meter", "account", "by_channel", "energy"]


@dataclass(frozen=True)
class Constants:
    """What an operation costs, and who says so."""

    name: str
    sop_pj: float
    mac_pj: float
    source: str


CONSTANTS = (
    Constants(
        "cmos45",
        0.9,
        4.6,
        "32-bit addition and multiply-add in 45 nm CMOS: Horowitz, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323",
    ),
    Constants(
        "neuromorphic",
        0.077,
        12.5,
        "77 fJ per synaptic operation: Qiao et al., Front. Neurosci. 2015, doi:10.3389/fnins.2015.00141; "
        "12.5 pJ per operation on a GPU: as in Bu et al., CVPR 2025, arXiv:2409.03368",
    ),
)


def account(sops: float, events: float, macs: float, ann_macs: int) -> dict[str, Any]:
    """Operations per sample and what they cost against the ANN under both sets of constants, ready for JSON."""
    table: dict[str, Any] = {"sops": sops, "events": events, "macs": macs}
    for c in CONSTANTS:
        snn, ann = c.sop_pj * sops + c.mac_pj * macs, c.mac_pj * ann_macs
        table[c.name] = {
            "snn_mj": snn * 1e-9,
            "ann_mj": ann * 1e-9,
            "saving": ann / snn if snn else None,  # JSON has no infinity
            "snn_frames_per_joule": 1e12 / snn if snn else None,
            "ann_frames_per_joule": 1e12 / ann if ann else None,
        }
    return table


@dataclass(frozen=True, eq=False)
class Energy:
    """Operations and energy per sample after every step.

    Args:
        samples: how many were measured.
        ann_macs, constant_macs, dense_macs: multiply-accumulates of the ANN; of the part computed once; of what
            stays dense work at every step.
        sops: synaptic operations of steps 1..t, per sample. index t-1
        events: the same if a burst is one graded event.
        by_layer: synaptic operations of all steps, per sample, by the layer they arrive at.
        spiking_share: share of the ANN's operations that spikes drive.
    """

    samples: int
    ann_macs: int
    constant_macs: int
    dense_macs: int
    sops: tuple[float, ...]
    events: tuple[float, ...]
    by_layer: Mapping[str, float]
    spiking_share: float

    def macs(self, t: int) -> int:
        """Multiply-accumulates of steps 1..t."""
        return self.constant_macs + t * self.dense_macs

    def snn_pj(self, t: int, constants: Constants) -> float:
        """Energy of ``t`` steps in picojoules."""
        return constants.sop_pj * self.sops[t - 1] + constants.mac_pj * self.macs(t)

    def ann_pj(self, constants: Constants) -> float:
        """Energy of one pass of the ANN in picojoules."""
        return constants.mac_pj * self.ann_macs

    def at(self, t: int) -> dict[str, Any]:
        """Everything about ``t`` steps, ready for JSON."""
        return {"steps": t, **account(self.sops[t - 1], self.events[t - 1], self.macs(t), self.ann_macs)}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "samples": self.samples,
            "ann_macs": self.ann_macs,
            "constant_macs": self.constant_macs,
            "dense_macs_per_step": self.dense_macs,
            "spiking_share": self.spiking_share,
            "sops": list(self.sops),
            "events": list(self.events),
            "sops_by_layer": dict(self.by_layer),
            "final": self.at(len(self.sops)),
            "constants": {c.name: {"sop_pj": c.sop_pj, "mac_pj": c.mac_pj, "source": c.source} for c in CONSTANTS},
        }

    def __str__(self) -> str:
        t = len(self.sops)
        lines = [
            f"energy per sample at {t} steps, {self.samples} samples, {self.spiking_share:.1%} of the operations spike-driven",
            f"  synaptic operations {self.sops[-1] / 1e6:.3f} M, multiply-accumulates {self.macs(t) / 1e6:.3f} M "
            f"({self.constant_macs / 1e6:.3f} M once, {self.dense_macs / 1e6:.3f} M per step), ANN {self.ann_macs / 1e6:.3f} M",
        ]
        for c in CONSTANTS:
            e = self.at(t)[c.name]
            lines.append(
                f"  {c.name}: SNN {e['snn_mj']:.4g} mJ, ANN {e['ann_mj']:.4g} mJ ({_shown(e['saving'], '.2f')} x), "
                f"{_shown(e['snn_frames_per_joule'])} against {_shown(e['ann_frames_per_joule'])} frames per joule\n    {c.source}"
            )
        return "\n".join(lines)


def _shown(ratio: float | None, form: str = ".4g") -> str:
    return "infinitely many" if ratio is None else format(ratio, form)


class Meter:
    """Counts what a simulation emits: give `probe` to `simulate`, then ask for `energy` and rates."""

    def __init__(self, graph: Graph, plan: Plan, steps: int) -> None:
        self._graph, self._steps = graph, steps
        self.operations: Operations = count_operations(graph, plan)
        self._fan_out = _fan_outs(graph, self.operations)
        self._per_unit: dict[tuple[str, bool], Any] = {}
        self._totals: dict[tuple[str, bool], Any] = {}  # activation per unit over samples and steps
        self._spikes = {name: torch.zeros(steps, dtype=torch.float64) for name in self.operations.sources}
        self._sops = torch.zeros(steps, dtype=torch.float64)
        self._events = torch.zeros(steps, dtype=torch.float64)
        self.samples = 0

    def probe(self, node: Node, emitted: torch.Tensor, done: int, first: int) -> None:
        """Called by the executor with what a node emits. T ... N ..."""
        counts = self.count(node, emitted)
        if counts is not None:
            sums, window = counts.sum(-1), slice(done, done + len(emitted))
            self._sops[window] += sums[0]
            self._spikes[node.name][window] += sums[1]
            self._events[window] += sums[2]

    def count(self, node: Node, emitted: torch.Tensor) -> torch.Tensor | None:
        """Synaptic operations, spikes and events of each step and sample (3 T N), None if the node is no source of spikes."""
        if node.name not in self._fan_out:
            return None
        if node.batch_axis:
            emitted = emitted.movedim(node.batch_axis + 1, 1)
        steps = len(emitted)
        frames = emitted.flatten(0, 1).reshape(-1, *_site_shape(node))
        samples = len(frames) // steps  # several rows of the batch axis may belong to one sample
        last = frames.dim() > 2 and frames.stride(1) == 1  # channels innermost in memory
        x = (frames.movedim(1, -1) if last else frames).reshape(-1)
        weights, totals = self._weights(node.name, last, x)
        with threads_for(x.numel()):
            return torch.from_numpy(weigh(x.cpu().numpy(), weights, totals, steps, samples, len(totals)))

    def _weights(self, name: str, last: bool, x: torch.Tensor) -> tuple[Any, Any]:
        """For `weigh`: what a unit of activation, and an event, of each unit counts; and the totals to add to."""
        key = (name, last)
        if key not in self._per_unit:
            worth, fan = self.operations.amplitudes[name].cpu(), self._fan_out[name]
            table = torch.stack([fan / worth, torch.ones_like(fan) / worth, fan])
            table = table.movedim(1, -1) if last else table
            self._per_unit[key] = table.reshape(3, -1).to("cpu", x.dtype).contiguous().numpy()
            self._totals[key] = torch.zeros(fan.numel(), dtype=torch.float64).numpy()
        return self._per_unit[key], self._totals[key]

    def _spikes_per_unit(self, name: str) -> torch.Tensor:
        """Spikes of each unit over all samples and steps. *site"""
        shape = self._fan_out[name].shape
        found = torch.zeros(shape, dtype=torch.float64)
        for last in (False, True):
            total = self._totals.get((name, last))
            if total is not None:
                sizes = (*shape[1:], shape[0]) if last else shape
                x = torch.from_numpy(total).view(sizes)
                found += x.movedim(-1, 0) if last else x
        return (found / self.operations.amplitudes[name].cpu()).round()

    def rates(self) -> dict[str, float]:
        """Spikes per neuron and step, by site."""
        count = max(1, self.samples * self._steps)
        return {site.name: float(self._spikes[site.node].sum()) / (count * site.units) for site in self._graph.sites}

    def silent_channels(self) -> dict[str, int]:
        """By site, channels that never emitted a spike."""
        found = {}
        for site in self._graph.sites:
            per_channel = by_channel(site, self._spikes_per_unit(site.node)).sum(1)
            found[site.name] = int((per_channel == 0).sum())
        return found

    def energy(self) -> Energy:
        """Operations and energy per sample of everything seen so far."""
        n = max(1, self.samples)
        counts = {name: self._spikes_per_unit(name)[None] for name in self.operations.sources}
        arrivals = synaptic_operations(_on_cpu(self._graph), counts) if counts else {}
        by_layer: dict[str, float] = {}  # a layer that is called several times is one layer
        for node in self._graph.body:
            if node.name in arrivals:
                layer = f"{node.path or node.name} ({base_name(node.op).split('.')[-1]})"
                by_layer[layer] = by_layer.get(layer, 0.0) + float(arrivals[node.name]) / n
        ops = self.operations
        sops = (self._sops.cumsum(0) / n).tolist()
        return Energy(
            n,
            ops.macs(),
            ops.macs(Drive.CONSTANT),
            ops.dense_work(),
            tuple(sops),
            tuple((self._events.cumsum(0) / n).tolist()),
            by_layer,
            ops.spiking_share,
        )


def by_channel(site: Site, x: torch.Tensor) -> torch.Tensor:
    """Values of one sample as channels x units of a channel. *site"""
    return x.movedim(site.channel_axis, 0).reshape(site.channels, -1)


def _site_shape(node: Node) -> tuple[int, ...]:
    """One sample of a node's result, batch axis first."""
    assert node.shape is not None
    lead = (node.batch_times,) if node.batch_times > 1 else ()
    rest = [size for axis, size in enumerate(node.shape) if axis != node.batch_axis]
    return (*lead, *(int(size) for size in rest if isinstance(size, int))) or (1,)


def _fan_outs(graph: Graph, operations: Operations) -> dict[str, torch.Tensor]:
    """Per unit of every source, how many synaptic operations one of its spikes causes. *site"""
    nodes = {node.name: node for node in graph.nodes}
    counts = {name: torch.zeros(1, *_site_shape(nodes[name]), requires_grad=True) for name in operations.sources}
    if not counts:
        return {}
    with torch.enable_grad():
        total = sum(synaptic_operations(_on_cpu(graph), counts).values(), torch.zeros((), requires_grad=True))
        gradients = torch.autograd.grad(total, list(counts.values()), allow_unused=True)
    return {
        name: torch.zeros(counts[name].shape[1:]) if g is None else g[0].detach().clone()
        for name, g in zip(counts, gradients, strict=True)
    }


def _on_cpu(graph: Graph) -> Graph:
    """The graph in single precision on the CPU, where counting is done."""
    return graph.with_params({name: x.float().cpu() if x.is_floating_point() else x.cpu() for name, x in graph.params.items()})


def energy(net: SpikingNetwork, batches: Any, steps: int = 32) -> Energy:
    """Simulate ``batches`` and account for every operation.

    Raises:
        DataError: no data, or data that does not fit the network.
    """
    if steps < 1:
        raise DataError(f"steps is {steps}: simulate at least one step")
    meter = Meter(net.graph, net.plan, steps)
    seen = 0
    for inputs in Batches(net.graph, batches):
        simulate(net, tuple(inputs) if len(inputs) > 1 else inputs[0], steps, probe=meter.probe)
        seen += len(inputs[0])
    meter.samples = seen
    return meter.energy()

"""What is in a network before anything is simulated: sites, analog operations, how much of it spikes drive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from transpike.graph.ir import Graph, Role
from transpike.measure.operations import Drive, count_operations
from transpike.network import SpikingNetwork
from transpike.spiking.plan import Plan, SiteParams

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """The static account of a network; print it, or take `to_dict`."""

    network: str
    inputs: tuple[dict[str, Any], ...]
    sites: tuple[dict[str, Any], ...]
    analog: tuple[dict[str, Any], ...]
    macs: int
    constant_macs: int
    dense_macs: int
    spiking_share: float
    parameters: int
    method: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def __str__(self) -> str:
        lines = [
            f"{self.network}: {self.parameters:,} parameters, {self.macs / 1e6:.1f} M multiply-accumulates",
            f"  {len(self.sites)} sites, {sum(site['units'] for site in self.sites):,} neurons; "
            f"{self.spiking_share:.1%} of the operations spike-driven, {self.constant_macs / max(1, self.macs):.1%} computed once, "
            f"{self.dense_macs / max(1, self.macs):.1%} dense at every step",
        ]
        if not self.sites:
            lines.append("  nothing in it spikes: it has no ReLU (or clipped ReLU) that depends on the input")
        for site in self.sites:
            clip = "" if site["ceiling"] is None else f"  clip {_range(site['ceiling'])}"
            theta = "" if site["threshold"] is None else "  threshold {:.4g} .. {:.4g}".format(*site["threshold"])
            lines.append(f"    {site['name']:<44} {'x'.join(map(str, site['shape'])):>14}{clip}{theta}")
        if self.analog:
            lines.append("  not spike-driven (exact on average by the differential combinator, dense work at every step):")
            lines += [f"    {op['op']:<36} {op['path']}  {op['share']:.1%} of the operations" for op in self.analog]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _range(ceiling: float | tuple[float, ...]) -> str:
    return f"{min(ceiling):.4g} .. {max(ceiling):.4g}" if isinstance(ceiling, tuple) else f"{ceiling:g}"


def inspect(network: SpikingNetwork | Graph) -> Inspection:
    """Say what is in a captured or converted network.

    Args:
        network: what `convert`, `capture` or `load` gave.
    """
    if isinstance(network, SpikingNetwork):
        graph, plan = network.graph, network.plan
    else:
        graph, plan = network, Plan({site.name: SiteParams(torch.ones(())) for site in network.sites})
    converted = isinstance(network, SpikingNetwork)
    ops = count_operations(graph, plan)
    total = max(1, ops.macs())
    nodes = {node.name: node for node in graph.nodes}
    stepwise = [node for node in graph.body if node.role is Role.STEPWISE]
    analog = [
        {
            "op": w.op,
            "path": w.path,
            "work": w.macs + w.elements,
            "share": (w.macs + w.elements) / total,
            "role": nodes[w.node].role.value,
        }
        for w in ops.work
        if w.drive == Drive.DENSE
    ]
    analog += [{"op": node.op, "path": node.path, "work": 0, "share": 0.0, "role": node.role.value} for node in stepwise]
    sites = []
    for site in graph.sites:
        theta = plan.sites[site.name].threshold
        sites.append(
            {
                "name": site.name,
                "shape": list(site.shape),
                "channel_axis": site.channel_axis,
                "units": site.units,
                "ceiling": site.ceiling,
                "threshold": [float(theta.min()), float(theta.max())] if converted else None,
            }
        )
    return Inspection(
        graph.name,
        tuple({"key": value.key, "shape": list(value.shape), "dtype": str(value.dtype)} for value in graph.inputs),
        tuple(sites),
        tuple(analog),
        ops.macs(),
        ops.macs(Drive.CONSTANT),
        ops.dense_work(),
        ops.spiking_share,
        sum(x.numel() for x in graph.params.values()),
        plan.metadata.get("method") if converted else None,
        plan.notes,
    )

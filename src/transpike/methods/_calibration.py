"""What calibrating methods share: samples in groups that fit into memory, the ANN's means, the form of the shift."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import check_granularity, check_refines, rectify
from transpike.spiking.plan import Plan, SiteParams, expand

__all__ = ["Shift", "ann_means", "check_calibration", "plus", "sample_groups", "shifted"]

_GROUP_BYTES = 1 << 28  # currents of the largest site for all steps of one group of samples; a sweep holds a few times this


class Shift(enum.Enum):
    """How neurons get the charge that rounds their count instead of cutting it off."""

    INITIAL = "initial"  # as potential before the first step
    TRICKLED = "trickled"  # in equal parts at every step, from potential 0


def check_calibration(method: Any, graph: Graph, plan: Plan | None) -> Plan:
    """The plan, if there is one that fits and the settings make sense.

    Raises:
        PlanError: no plan, one of another network, ``steps`` or ``samples`` below 1, or ``granularity`` is none.
    """
    check_granularity(method)
    if method.steps < 1 or method.samples < 1:
        raise PlanError(f"{type(method).__name__}(steps={method.steps}, samples={method.samples}): both are at least 1")
    return check_refines(method, graph, plan)


def sample_groups(graph: Graph, batches: Iterable[Any], samples: int, steps: int) -> list[list[torch.Tensor]]:
    """The first ``samples`` samples in equal groups, each small enough for all steps of a site at once."""
    parts: list[list[torch.Tensor]] = []
    seen = 0
    for inputs in Batches(graph, batches):
        parts.append([x[: samples - seen] for x in inputs])
        seen += len(parts[-1][0])
        if seen >= samples:
            break
    largest = max((site.units for site in graph.sites), default=1) * steps * graph.inputs[0].dtype.itemsize
    groups = -(-seen // max(1, _GROUP_BYTES // largest))
    split = [torch.cat(xs).tensor_split(groups) for xs in zip(*parts, strict=True)]
    return [list(inputs) for inputs in zip(*split, strict=True)]


def ann_means(graph: Graph, inputs: Sequence[torch.Tensor], axes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Every site's activation in the ANN, with its original weights, averaged over ``axes`` of N *site."""
    means: dict[str, torch.Tensor] = {}

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        a = rectify(site, z)
        means[site.name] = a.mean(axes[site.name])
        return a

    forward(graph, inputs, at_site)
    return means


def shifted(site: Site, params: SiteParams, shift: Shift, steps: int) -> SiteParams:
    """The same charge in the form asked for: ``v(0) = 0`` and ``v(0) / T`` more at every step, or as it is."""
    if shift is Shift.INITIAL:
        return params
    return replace(params, v_init=torch.zeros_like(params.v_init), current=plus(site, params.current, params.v_init / steps))


def plus(site: Site, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of two parameters, each a scalar, per channel or per unit."""
    if a.shape == b.shape or a.dim() == 0 or b.dim() == 0:
        return a + b
    return expand(a, site) + expand(b, site)

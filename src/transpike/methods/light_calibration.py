"""Light calibration: a bias for every channel that brings the spiking network's mean activation to the ANN's.

    b <- b + mean(a) - mean(r),   r = 1/T sum_(t=1..T) x(t)

``a`` is the ANN's activation with its original weights, ``r`` what the spiking neuron passes on, averaged over the T
steps; means over samples and space, one for each channel. Layer by layer: what a layer is given comes from layers that
are calibrated already. The correction is a charge at every step, so it stands in the plan's `current` and weights stay.

Reference: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration",
ICML 2021, arXiv:2106.06984.
Departures: one sweep of the network instead of one simulation per layer, with the same numbers; thresholds and neurons
are those of the plan it refines, the published ones are `MMSE` and ``shift=TRICKLED``; one correction does not bring the
gap to zero, so it is repeated at the layer before the next one is looked at (``iterations=1, samples=128``, a batch, as
published takes a quarter of the time); samples that do not fit into memory together are taken in groups, each refining
the corrections of those before with its share of the samples seen so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.engines.sweep import respond, sweep
from transpike.errors import PlanError
from transpike.graph.ir import Graph, Site
from transpike.methods._calibration import Shift, ann_means, check_calibration, plus, sample_groups, shifted
from transpike.methods._observe import reduced_axes, refined
from transpike.spiking.plan import Granularity, Plan

__all__ = ["LightCalibration", "Shift"]


@dataclass(frozen=True)
class LightCalibration:
    """Refines a plan by a charge for every channel: ``Chain(LTB(), LightCalibration(steps=32))``.

    Args:
        steps: the number of time steps T that the corrections are made for.
        samples: how many calibration samples are used, the first of the data.
        shift: as potential before the first step as the plan has it, or trickled in over the steps as published.
        iterations: corrections of a layer before the next one; 1 as published.
        granularity: what shares a correction.
    """

    refines: ClassVar[bool] = True  # needs a plan
    order_dependent: ClassVar[bool] = True  # takes the first samples

    steps: int = 32
    samples: int = 384
    shift: Shift = Shift.INITIAL
    iterations: int = 3
    granularity: Granularity = Granularity.CHANNEL

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Correct every site of ``plan``, in the order of the network.

        Raises:
            PlanError: there is no plan, it does not fit, or a setting is out of range.
        """
        if self.iterations < 1:
            raise PlanError(f"LightCalibration(iterations={self.iterations}): at least one correction")
        plan = check_calibration(self, graph, plan)
        groups = sample_groups(graph, batches, self.samples, self.steps)
        sites = {site.name: shifted(site, plan.sites[site.name], self.shift, self.steps) for site in graph.sites}
        refining, seen = replace(plan, sites=sites), 0
        for inputs in groups:
            seen += len(inputs[0])
            refining = self._sweep(graph, refining, inputs, share=len(inputs[0]) / seen)
        return refined(self, refining, seen, [_note(self)])

    def _sweep(self, graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor], share: float) -> Plan:
        axes = {site.name: reduced_axes(site, self.granularity) for site in graph.sites}
        wanted = ann_means(graph, inputs, axes)
        sites = {}

        def calibrate(site: Site, currents: torch.Tensor) -> torch.Tensor:
            params = plan.sites[site.name]
            emitted = respond(site, params, currents).emitted
            for _ in range(self.iterations):
                gap = wanted[site.name] - emitted.mean((0, *(axis + 1 for axis in axes[site.name])))  # T N *site
                params = replace(params, current=plus(site, params.current, share * gap))
                emitted = respond(site, params, currents).emitted
            sites[site.name] = params
            return emitted

        sweep(graph, plan, inputs, self.steps, calibrate)
        return replace(plan, sites=sites)


def _note(method: LightCalibration) -> str:
    return f"corrections of LightCalibration are made for {method.steps} steps: calibrate again for another number"

"""Auto: the best choice known so far for a number of steps and the neurons that are allowed; for who names no method.

    plan = Chain(thresholds for T steps and B spikes a step, refinements)

The thresholds are those of least quantisation error at T steps. Bursts and signed neurons make up for what came too early
or too late while the network runs, so nothing else is needed; plain integrate-and-fire neurons cannot, and get biases and
then potentials (one for each unit) that are calibrated for T steps; parallel neurons know all their charge, are fitted layer
by layer, and learn, with the weights, to give the ANN back.

Reference: MMSE thresholds, Li et al., ICML 2021, arXiv:2106.06984; bursts, Wang et al., AAAI 2025, arXiv:2412.16219;
parallel neurons, Hao et al., ICML 2025, arXiv:2412.13610; calibration and reconstruction: see the modules of the methods that it
names in the plan.
Departures: this is a choice among methods, to be held against the board (docs/board.md), not a method of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transpike.errors import PlanError
from transpike.graph.ir import Graph
from transpike.methods import Method
from transpike.methods._observe import settings
from transpike.methods.advanced_calibration import AdvancedCalibration
from transpike.methods.chain import Chain
from transpike.methods.light_calibration import LightCalibration
from transpike.methods.mmse import MMSE
from transpike.methods.parallel import Parallel
from transpike.methods.reconstruction import Reconstruction
from transpike.spiking.plan import Plan

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto:
    """The best known conversion for ``steps`` steps with the neurons that are allowed.

    Args:
        steps: time steps T that the network will be run for.
        cap: most spikes of a neuron in one step that the target can send; 1 for plain spikes.
        signed: may neurons take spikes back?
        parallel: may neurons wait for all their charge before they fire? Takes the place of bursts and signs.
    """

    order_dependent: ClassVar[bool] = True  # calibration looks at the first samples

    steps: int = 32
    cap: int = 8
    signed: bool = True
    parallel: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Choose a method and return its plan, which names it.

        Raises:
            PlanError: ``steps`` or ``cap`` is below 1.
        """
        if self.steps < 1 or self.cap < 1:
            raise PlanError(f"{self}: steps and cap are at least 1")
        chosen = self.choice()
        found = chosen.fit(graph, batches)
        origin = {**found.metadata, "method": "Auto", "settings": settings(self), "chosen": settings_of(chosen)}
        return replace(found, metadata=origin)

    def choice(self) -> Method:
        """The method that these settings stand for."""
        if self.parallel:
            return Chain(Parallel(self.steps), Reconstruction(self.steps))
        thresholds = MMSE(steps=self.steps, cap=self.cap, signed=self.signed)
        if self.signed or self.cap > 1:
            return thresholds
        return Chain(thresholds, LightCalibration(steps=self.steps), AdvancedCalibration(steps=self.steps, replace=True))


def settings_of(method: Method) -> dict[str, Any]:
    """A method's name and fields, ready for JSON."""
    return {"method": type(method).__name__, **settings(method)}

"""Auto: the best conversion for a number of steps and the neurons that are allowed; for who names no method.

    plan = argmin over candidates of  min_c E |c y_snn - y_ann|^2 / E |y_ann|^2

(c = 1 where outputs are no classes) on samples that no candidate was calibrated on, after T steps; the simplest of those within 2 %
of the least error is fitted to all samples. The candidates are chains of methods, from few to many:

    plain       MaxNorm, alone and with a bias for every channel; Percentile; LTB with such a bias; MMSE, alone, with a bias
                (corrected once, or three times on three times the samples), and then a potential for every unit
    signed      the plain ones; MMSE with signs and thresholds for rounding down (shift 0), and with a bias for every channel, once
                or thrice; thrice also with thresholds for rounding to nearest
    bursts      MMSE, and with a bias for every channel, once or thrice; as for signed ones where signs are allowed
    parallel    with and without clipping, fitted layer by layer; and then learning, with the weights, to give the ANN back

What the best is depends on the network: deep ones cut more off than shallow ones can bear. So it is tried, not assumed.

Reference: MMSE thresholds and calibration, Li et al., ICML 2021, arXiv:2106.06984; bursts, Wang et al., AAAI 2025,
arXiv:2412.16219; parallel neurons, Hao et al., ICML 2025, arXiv:2412.13610; see the modules of the methods.
Departures: this is a choice among methods, not a method of its own; the error is that of `_sensitivity`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.ir import Graph
from transpike.methods import Method
from transpike.methods._observe import settings
from transpike.methods._sensitivity import Bench
from transpike.methods.advanced_calibration import AdvancedCalibration
from transpike.methods.light_calibration import LightCalibration
from transpike.methods.ltb import LTB
from transpike.methods.max_norm import MaxNorm
from transpike.methods.mmse import MMSE
from transpike.methods.parallel import Calibration, Parallel
from transpike.methods.percentile import Percentile
from transpike.methods.reconstruction import Reconstruction
from transpike.spiking.plan import Plan

__all__ = ["Auto"]

_Parts = tuple[Method, ...]
_BALANCING = 300  # iterations: at few steps more bring nothing
_ALIKE = 1.02  # times the least error: on so few samples it is as good
_FEW, _MORE = 128, 384  # samples of calibrations that correct once, three times


@dataclass(frozen=True)
class Auto:
    """The best conversion for ``steps`` steps with the neurons that are allowed.

    Args:
        steps: time steps T that the network will be run for.
        cap: most spikes of a neuron in one step that the target can send; 1 for plain spikes.
        signed: may neurons take spikes back?
        parallel: may neurons wait for all their charge before they fire? Takes the place of bursts and signs.
        held_out: how many samples judge the candidates, which are fitted to the others; a quarter at most.
    """

    order_dependent: ClassVar[bool] = True  # the first samples judge, calibration looks at those behind them

    steps: int = 32
    cap: int = 8
    signed: bool = True
    parallel: bool = False
    held_out: int = 128

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Fit every candidate and return the best one's plan for all samples; it names them all and their errors.

        Raises:
            PlanError: ``steps``, ``cap`` or ``held_out`` is below 1.
        """
        if min(self.steps, self.cap, self.held_out) < 1:
            raise PlanError(f"{self}: steps, cap and held_out are at least 1")
        data = Batches(graph, batches)
        samples = sum(len(inputs[0]) for inputs in data)
        apart = min(self.held_out, samples // 4)
        bench, others = Bench(graph, data, apart or 1, self.steps), data.after(apart)
        fitted: dict[_Parts, Plan] = {}
        errors = {parts: bench.misfit(bench.respond(_fitted(parts, graph, others, fitted))) for parts in self.candidates()}
        best = next(parts for parts in errors if errors[parts] <= _ALIKE * min(errors.values()))
        found = _fitted(best, graph, data, {}) if apart else fitted[best]
        tried = [{"methods": _named(parts), "error": error} for parts, error in errors.items()]
        origin = {"method": "Auto", "settings": settings(self), "samples": samples, "chosen": _named(best), "tried": tried}
        return replace(found, metadata={**found.metadata, **origin})

    def candidates(self) -> tuple[_Parts, ...]:
        """Chains of methods that these settings allow, the simplest first."""
        if self.parallel:
            exact, sequential = Parallel(self.steps, Calibration.EXACT), Parallel(self.steps)
            return (exact,), (sequential,), (sequential, Reconstruction(self.steps))
        biased = _biased(MMSE(steps=self.steps, shift=0, cap=self.cap, signed=self.signed), self.steps)
        if self.signed:
            *_, thrice = _biased(MMSE(steps=self.steps, cap=self.cap, signed=True), self.steps)
            biased = (*biased, thrice)
        if self.cap > 1:
            return biased
        return (*_plain(self.steps), *biased) if self.signed else _plain(self.steps)


def _biased(thresholds: Method, steps: int) -> tuple[_Parts, ...]:
    """Thresholds alone, and with a bias for every channel, corrected once and thrice."""
    once, thrice = (LightCalibration(steps=steps, samples=n, iterations=k) for n, k in ((_FEW, 1), (_MORE, 3)))
    return (thresholds,), (thresholds, once), (thresholds, thrice)


def _plain(steps: int) -> tuple[_Parts, ...]:
    """Candidates whose neurons fire once at most and take nothing back."""
    light = LightCalibration(steps=steps, samples=_FEW, iterations=1)
    others = (MaxNorm(),), (Percentile(),), (MaxNorm(), light), (LTB(iterations=_BALANCING), light)
    alone, once, thrice = _biased(MMSE(steps=steps), steps)
    potentials = [(*once, AdvancedCalibration(steps=steps, replace=instead)) for instead in (False, True)]
    return *others, alone, once, thrice, *potentials, (*thrice, AdvancedCalibration(steps=steps, samples=_MORE, replace=True))


def _fitted(parts: _Parts, graph: Graph, data: Batches, known: dict[_Parts, Plan]) -> Plan:
    """The plan of the chain ``parts``; beginnings that are ``known`` are not fitted again."""
    if parts not in known:
        *earlier, last = parts
        known[parts] = last.fit(graph, data, _fitted(tuple(earlier), graph, data, known) if earlier else None)
    return known[parts]


def _named(parts: _Parts) -> list[dict[str, Any]]:
    """Names and fields of methods, ready for JSON."""
    return [{"method": type(method).__name__, **settings(method)} for method in parts]

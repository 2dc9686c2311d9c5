"""Advanced calibration: weights that know the quantisation, then an initial potential for every unit.

    W <- argmin  mean_(samples, space) sum_channels (Q(W xbar + b + rest) - a)^2,   Q(z) = theta/T clip(floor(T z / theta), 0, T)
    v(0) <- v(0) + T mean_samples(a - r),   r = 1/T sum_(t=1..T) x(t)

``a`` is the ANN's activation with its original weights, ``xbar`` what the spiking network gives a synapse on average over
the T steps and ``rest`` all else that reaches the neurons (residual branches), ``r`` what the neurons pass on. Both go
layer by layer, on inputs from layers that are calibrated already: first the weights of all layers, then the potentials.
A potential per unit moves ``r`` by v(0) / T where the neuron is neither silent nor saturated.

Reference: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration",
ICML 2021, arXiv:2106.06984.
Departures: see `AdvancedCalibration` for the published settings. Q rounds as the simulated neuron does (its v(0) and
current are in it). Everything between neurons is in one problem: synapses in parallel are trained together, linear
layers without neurons behind them are kept, and so is the bias; weights that are read in several places stay. Inputs of
the first layers are no spikes, and their weights stay. 100 updates a layer on 128 samples instead of 5000 on 1024, with
a step size of its own. Samples that do not fit into memory together are taken in groups: the weights' updates are shared
out over them, and a potential is the mean over the groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.engines.sweep import respond, sweep
from transpike.errors import PlanError
from transpike.graph.interpret import call, channels_last, forward, interpret
from transpike.graph.ir import Graph, Site
from transpike.methods._calibration import Shift, ann_means, check_calibration, plus, sample_groups, shifted
from transpike.methods._observe import rectify, refined
from transpike.methods._weights import Feed, Updates, as_node, feeds, late, quantised, train
from transpike.spiking.plan import Plan

__all__ = ["AdvancedCalibration", "Shift"]


@dataclass(frozen=True)
class AdvancedCalibration:
    """Refines a plan by weights and initial potentials: ``Chain(LTB(), AdvancedCalibration(steps=32))``.

    As published: ``samples=1024, shift=Shift.TRICKLED, replace=True, rounding=False, iterations=5000, rate=1e-5``, and on
    small images ``weights=False``, as here.

    Args:
        steps: the number of time steps T that weights and potentials are made for.
        samples: how many calibration samples are used, the first of the data.
        weights: are weights calibrated?
        potential: are initial potentials calibrated?
        shift: as potential before the first step as the plan has it, or trickled in over the steps as published.
        replace: does the calibrated potential take the place of the present one, instead of being added to it?
        rounding: does Q know the initial potential?
        iterations: updates of a layer's weights.
        rate: Adam's first step size, which falls to 0 as half a cosine.
        batch: samples of one update.
        seed: of the draw of these samples.
    """

    refines: ClassVar[bool] = True  # needs a plan
    order_dependent: ClassVar[bool] = True  # takes the first samples

    steps: int = 32
    samples: int = 128
    weights: bool = False
    potential: bool = True
    shift: Shift = Shift.INITIAL
    replace: bool = False
    rounding: bool = True
    iterations: int = 100
    rate: float = 1e-4
    batch: int = 32
    seed: int = 0

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Calibrate every site of ``plan``, in the order of the network.

        Raises:
            PlanError: there is no plan, it does not fit, or a setting is out of range.
        """
        if self.iterations < 1 or self.batch < 1 or not self.rate > 0:
            raise PlanError(
                f"AdvancedCalibration(iterations={self.iterations}, rate={self.rate}, batch={self.batch}): all must be positive"
            )
        if not (self.weights or self.potential):
            raise PlanError("AdvancedCalibration(weights=False, potential=False) does nothing: ask for one of them")
        plan = check_calibration(self, graph, plan)
        groups = sample_groups(graph, batches, self.samples, self.steps)
        sites = {site.name: shifted(site, plan.sites[site.name], self.shift, self.steps) for site in graph.sites}
        refining, notes = replace(plan, sites=sites), []
        if self.weights:
            refining, notes = self._calibrate_weights(graph, refining, groups)
        if self.potential:
            refining = self._calibrate_potentials(graph, refining, groups)
        notes.append(f"AdvancedCalibration is made for {self.steps} steps: calibrate again for another number")
        return refined(self, refining, sum(len(inputs[0]) for inputs in groups), notes)

    def _calibrate_potentials(self, graph: Graph, plan: Plan, groups: Sequence[Sequence[torch.Tensor]]) -> Plan:
        before, seen = plan, 0
        for inputs in groups:
            seen += len(inputs[0])
            plan = self._sweep_potentials(graph, before, plan, inputs, len(inputs[0]) / seen)
        return plan

    def _sweep_potentials(self, graph: Graph, before: Plan, plan: Plan, inputs: Sequence[torch.Tensor], share: float) -> Plan:
        wanted = ann_means(graph, inputs, {site.name: (0,) for site in graph.sites})
        sites = {}

        def calibrate(site: Site, currents: torch.Tensor) -> torch.Tensor:
            params = plan.sites[site.name]
            tried = before.sites[site.name] if self.replace else params  # what takes its place is what is missing from there
            missing = self.steps * (wanted[site.name] - respond(site, tried, currents).emitted.mean((0, 1)))
            if self.replace:
                missing = plus(site, missing, -params.v_init)
            sites[site.name] = replace(params, v_init=plus(site, params.v_init, share * missing))
            return respond(site, sites[site.name], currents).emitted

        sweep(graph, plan, inputs, self.steps, calibrate)
        return replace(plan, sites=sites)

    def _calibrate_weights(self, graph: Graph, plan: Plan, groups: Sequence[Sequence[torch.Tensor]]) -> tuple[Plan, list[str]]:
        graph = late(graph)
        fed = feeds(graph)
        trained = {name: {**graph.params, **plan.params}[name].clone() for feed in fed.values() for name in feed.weights}
        plan = replace(plan, params={**plan.params, **trained})
        generator = torch.Generator().manual_seed(self.seed)
        for k, inputs in enumerate(groups):
            first, last = (self.iterations * i // len(groups) for i in (k, k + 1))
            updates = Updates(self.rate, self.batch, first, last, self.iterations, generator)
            self._sweep_weights(graph, plan, inputs, fed, updates)
        nodes = {node.name: node for node in graph.body}
        left = [site.name for site in graph.sites if site.name not in fed and nodes[site.node].args[0].name in nodes]
        notes = []
        if left:
            some = f"{', '.join(left[:3])}{' ...' if len(left) > 3 else ''}"
            notes.append(f"the weights in front of {len(left)} sites ({some}) stay: no synapse there has weights of its own")
        return plan, notes

    def _sweep_weights(
        self, graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor], fed: dict[str, Feed], updates: Updates
    ) -> None:
        """Train the weights in ``plan.params`` in place: the running sweep reads them when it gets there."""
        wanted = _activations(graph, inputs, set(fed))
        known: dict[str, Any] = {**graph.params, **plan.params}
        known.update((value.name, channels_last(x)) for value, x in zip(graph.inputs, inputs, strict=True))
        with torch.no_grad():
            interpret(graph.prefix, known, lambda node, env: call(node, env, len(inputs[0]), inputs[0].device))
        nodes = {node.name: node for node in graph.body}
        by_node = {site.node: site.name for site in graph.sites}
        order = [by_node[name] for name in nodes if name in by_node]

        def emit(site: Site, currents: torch.Tensor) -> torch.Tensor:
            emitted = respond(site, plan.sites[site.name], currents).emitted
            known[site.node] = as_node(site, nodes[site.node], emitted.mean(0))
            following = order.index(site.name) + 1
            feed = fed.get(order[following]) if following < len(order) else None
            if feed is not None:  # all that it begins with is known now, and its synapses come after this site
                params = plan.sites[feed.site.name]
                better = train(
                    feed,
                    known,
                    wanted[feed.site.name],
                    lambda z: quantised(feed.site, params, z, self.steps, rounding=self.rounding),
                    updates,
                )
                for name, weight in better.items():
                    known[name].copy_(weight)
            return emitted

        sweep(graph, plan, inputs, self.steps, emit)


def _activations(graph: Graph, inputs: Sequence[torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
    """The ANN's activations at some sites, with its original weights. N *site"""
    found = {}

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        a = rectify(site, z)
        if site.name in names:
            found[site.name] = a.clone()
        return a

    forward(graph, inputs, at_site)
    return found

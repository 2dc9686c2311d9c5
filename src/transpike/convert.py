"""START HERE: the whole of a conversion on one page.

    nn.Module --capture--> Graph --calibrate--> Plan --build--> SpikingNetwork

A conversion decides numbers, and only numbers: thresholds, initial potentials, a neuron model for every site. The
weights stay as they are, and the caller's model is never touched.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from transpike.errors import PlanError
from transpike.graph.batches import example_of, peek
from transpike.graph.capture import Pooling, capture
from transpike.graph.ir import Graph, Role
from transpike.graph.passes import folded, spike_gates
from transpike.methods import Method, available
from transpike.network import SpikingNetwork
from transpike.spiking.plan import NeuronKind, Plan

__all__ = ["build", "calibrate", "convert"]


def convert(
    model: nn.Module,
    method: Method | None = None,
    batches: Any = None,
    *,
    pooling: Pooling = Pooling.RATE,
    require_spiking: bool = False,
) -> SpikingNetwork:
    """Turn a trained network into a spiking one.

    Args:
        model: any network in eval mode; left as it is.
        method: how thresholds are chosen, for example ``LTB()``; see `transpike.methods`. None: the best of several for 32 steps,
            where neurons may send bursts and take spikes back, ``Auto()``.
        batches: calibration data: any iterable of tensors or of pairs (input, target); targets are not used.
        pooling: where max pooling stands, see `Pooling`.
        require_spiking: refuse a network with analog operations instead of running them as such.

    Returns:
        The spiking network; ``transpike.inspect`` says what in it spikes and what does not.

    Raises:
        CaptureError: the network cannot be converted, with every reason.
        DataError: the data is empty, of the wrong shape or not finite.
        PlanError: the method's settings make no sense, or analog operations are refused.
    """
    method = _checked(method)
    first, batches = peek(batches)
    graph = capture(model, example_of(model, first), pooling=pooling)
    if require_spiking:
        _refuse_analog(graph)
    return build(graph, method.fit(graph, batches), require_spiking=require_spiking)


def calibrate(graph: Graph, method: Method | None = None, batches: Any = None) -> Plan:
    """Let ``method``, by default ``Auto()``, choose the numbers for ``graph`` on calibration data."""
    return _checked(method).fit(graph, batches)


def build(graph: Graph, plan: Plan, *, require_spiking: bool = False) -> SpikingNetwork:
    """The spiking network of a graph and a plan.

    Batch norms of a network that quantises fold here, unless neurons are parallel: those answer as the network to the bit.

    Raises:
        PlanError: the plan does not fit, or ``require_spiking`` and there are analog operations.
    """
    exact = any(params.kind is NeuronKind.PARALLEL for params in plan.sites.values())
    graph = graph if exact or plan.params else folded(graph)
    net = SpikingNetwork(graph, plan)
    if require_spiking:
        shared = all(plan.sites[site.name].threshold.shape in ((), (site.channels,)) for site in graph.sites)
        _refuse_analog(graph, gates=shared)
    return net


def _checked(method: Method | None) -> Method:
    """The method, `Auto` where none is named."""
    if method is None:
        return available()["Auto"]()  # by its name: it knows all the others, and who names a method need not wait for them
    if not callable(getattr(method, "fit", None)):
        given = f"{method!r}, a {type(method).__name__},"
        raise PlanError(f"{given} is not a method: give an instance such as LTB(), or none, convert(model, batches=...)")
    if isinstance(method, type):
        raise PlanError(f"{method.__name__} is a class: give an instance, {method.__name__}()")
    return method


def _refuse_analog(graph: Graph, *, gates: bool = True) -> None:
    """``gates``: do pooled neurons share thresholds, so that max pools of spikes pass whole spikes on?"""
    spiking = spike_gates(graph) if gates else set()
    dense = [node for node in graph.body if node.role in (Role.ANALOG, Role.STEPWISE) and node.name not in spiking]
    analog = [f"{node.op} in {node.path}" for node in dense]
    if analog:
        raise PlanError(
            f"{graph.name} has {len(analog)} operations that are not spike-driven: {', '.join(analog[:5])}"
            f"{' ...' if len(analog) > 5 else ''}; replace them in the model, or drop require_spiking"
        )

"""What every method does before and after its own idea: watch the ANN, and turn thresholds into a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from transpike.engines.budget import bytes_per_frame
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.spiking.plan import Granularity, Plan, SiteParams, versions, weights_hash

__all__ = [
    "check_granularity",
    "check_neurons",
    "check_refines",
    "collapse",
    "few_samples",
    "observed_maximum",
    "rectify",
    "reduced_axes",
    "refined",
    "settings",
    "to_plan",
    "watch",
]

_MEMORY = 2 << 30  # bytes that the activations of samples that are looked at together may take


def check_granularity(method: Any) -> None:
    """Refuse a granularity, where the method has one, that is none.

    Raises:
        PlanError: ``granularity`` is no `Granularity`.
    """
    if not isinstance(granularity := getattr(method, "granularity", Granularity.CHANNEL), Granularity):
        known = ", ".join(map(str, Granularity))
        raise PlanError(f"granularity is {granularity!r}: give one of {known} (transpike.spiking.plan)")


def check_neurons(method: Any) -> None:
    """Refuse neuron settings that make no sense, before any data is read.

    Raises:
        PlanError: ``v_init`` or ``cap`` is out of range, or ``granularity`` is none.
    """
    check_granularity(method)
    if not 0 <= method.v_init <= 1:
        raise PlanError(f"v_init is {method.v_init}: a fraction of the threshold, from 0 to 1")
    if method.cap is not None and method.cap < 1:
        raise PlanError(f"cap is {method.cap}: the most spikes in one step, at least 1, or None for no limit")


def check_refines(method: Any, graph: Graph, plan: Plan | None) -> Plan:
    """The plan that ``method`` refines.

    Raises:
        PlanError: there is none, or it is one of another network.
    """
    name = type(method).__name__
    if plan is None:
        raise PlanError(f"{name} refines a plan and was given none: use Chain(MMSE(), {name}()), or give fit a plan")
    return plan.validate(graph)


def refined(method: Any, plan: Plan, samples: int, notes: Iterable[str] = (), **found: Any) -> Plan:
    """The plan as the work of ``method``, which began with another method's; ``found`` goes to the metadata."""
    origin = {"refines": plan.metadata.get("method", "unknown"), "method": type(method).__name__, "settings": settings(method)}
    metadata = {**plan.metadata, **origin, "samples": samples, "versions": versions(), **found}
    return replace(plan, metadata=metadata, notes=(*plan.notes, *notes))


def rectify(site: Site, z: torch.Tensor) -> torch.Tensor:
    """The site's activation function, in place."""
    clip = site.clip(z)
    return z.clamp_(min=0) if clip is None else z.clamp_(torch.zeros_like(clip), clip)


def clip_beside(site: Site, x: torch.Tensor) -> torch.Tensor | None:
    """The site's ceiling, where there is one, in a shape that goes with a parameter (scalar, per channel or per unit)."""
    clip = site.clip(x)
    if clip is None or clip.dim() == 0:
        return clip
    return clip.reshape(-1) if x.numel() in (1, site.channels) else clip.expand(site.shape)


def watch(graph: Graph, batches: Iterable[Any], look: Callable[[Site, torch.Tensor], None]) -> int:
    """Show every site's activations (N *site) of every batch to ``look``; returns the number of samples."""

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        a = rectify(site, z)
        look(site, a)
        return a

    batches = batches if isinstance(batches, Batches) else Batches(graph, batches)
    for inputs in batches:
        forward(graph, inputs, at_site)
    return batches.samples


def observed_maximum(graph: Graph, batches: Iterable[Any]) -> dict[str, torch.Tensor]:
    """Every site's largest activation per channel; where there never was one, the site's largest, else 1."""
    largest: dict[str, torch.Tensor] = {}

    def look(site: Site, a: torch.Tensor) -> None:
        here = a.amax(reduced_axes(site, Granularity.CHANNEL))
        largest[site.name] = torch.maximum(largest[site.name], here) if site.name in largest else here

    watch(graph, batches, look)
    for name, top in largest.items():
        fallback = top.max() if bool((top > 0).any()) else torch.ones_like(top)
        largest[name] = torch.where(top > 0, top, fallback)
    return largest


def few_samples(graph: Graph, batches: Iterable[Any], most: int, *, copies: int = 1) -> tuple[list[torch.Tensor], tuple[str, ...]]:
    """The first samples of ``batches`` as one batch, at most ``most`` and as many as memory allows, with a note if it is less.

    Args:
        copies: how many values of every activation are held at once.
    """
    fitting = max(1, _MEMORY // max(1, copies * bytes_per_frame(graph, graph.inputs[0].dtype.itemsize)))
    parts: list[list[torch.Tensor]] = []
    held = 0
    for inputs in batches if isinstance(batches, Batches) else Batches(graph, batches):
        parts.append(inputs)
        held += len(inputs[0])
        if held >= min(most, fitting):
            break
    taken = [torch.cat(x)[: min(most, fitting)] for x in zip(*parts, strict=True)]
    limited = fitting < min(most, held)
    note = f"calibrated on {fitting} of {min(most, held)} samples together: more activations than {_MEMORY >> 30} GiB hold"
    return taken, (note,) if limited else ()


def reduced_axes(site: Site, granularity: Granularity) -> tuple[int, ...]:
    """The axes of N *site that share a threshold."""
    if granularity is Granularity.UNIT:
        return (0,)
    everything = range(len(site.shape) + 1)
    return tuple(axis for axis in everything if granularity is Granularity.LAYER or axis != site.channel_axis + 1)


def collapse(site: Site, x: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """Activations (N *site) as outer x groups x inner, where a group shares a threshold; a view where possible."""
    if granularity is Granularity.LAYER:
        order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
        return x.permute(order).reshape(-1, 1, 1)
    if granularity is Granularity.UNIT:
        return x.reshape(len(x), -1, 1)
    axis = site.channel_axis + 1
    if x.dim() > 2 and x.stride(axis) == 1:  # channels innermost in memory
        return x.movedim(axis, -1).reshape(-1, site.channels, 1)
    return x.reshape(x.shape[:axis].numel(), site.channels, -1)


def settings(method: Any) -> dict[str, Any]:
    """A method's fields, ready for JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"method": type(value).__name__, **settings(value)}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return getattr(value, "value", value)

    return {f.name: plain(getattr(method, f.name)) for f in dataclasses.fields(method)}


def to_plan(
    method: Any,
    graph: Graph,
    thresholds: Mapping[str, torch.Tensor],
    samples: int,
    notes: Iterable[str] = (),
    *,
    caps: Mapping[str, int] | None = None,
) -> Plan:
    """A plan with the method's ``v_init``, ``cap`` (or ``caps`` by site) and ``signed`` for every site.

    A group that never was active has threshold 0: it gets the largest threshold of its site, so that it neither
    fires on noise nor saturates, and is noted. A clipped rectifier (ReLU6) caps the threshold at
    ceiling / cap, so that the neuron's highest rate is the clip; without a cap there is no highest rate, which is noted.
    """
    check_neurons(method)
    device, dtype = next((x.device for x in graph.params.values()), None), graph.inputs[0].dtype
    sites, dead = {}, {}
    for site in graph.sites:
        threshold = thresholds[site.name].to(device=device, dtype=dtype)
        threshold = threshold.reshape(_threshold_shape(site, threshold))
        if bool((threshold <= 0).any()):
            dead[site.name] = int((threshold <= 0).sum())
            fallback = threshold.max() if bool((threshold > 0).any()) else torch.ones_like(threshold)
            threshold = torch.where(threshold <= 0, fallback, threshold)
        cap = method.cap if caps is None else caps[site.name]
        clip = clip_beside(site, threshold)
        if clip is not None:
            threshold = torch.minimum(threshold, clip / (cap or 1))
        sites[site.name] = SiteParams(threshold, threshold * method.v_init, cap=cap, signed=method.signed)
    metadata = {
        "method": type(method).__name__,
        "settings": settings(method),
        "samples": samples,
        "weights": weights_hash(graph),
        "versions": versions(),
    }
    if dead:
        most = max(dead, key=lambda name: dead[name])
        what = f"{sum(dead.values())} thresholds in {len(dead)} sites have never seen activity on the calibration data"
        notes = (*notes, f"{what} (most in {most}: {dead[most]}) and are set to their site's largest")
    clipped = [site.name for site in graph.sites if site.ceiling is not None]
    if clipped and method.cap is None:
        what = f"{len(clipped)} sites are clipped rectifiers ({', '.join(clipped[:3])}{' ...' if len(clipped) > 3 else ''})"
        notes = (*notes, f"{what}: neurons without a cap fire beyond the clip; give a cap to keep it")
    return Plan(sites, {}, metadata, tuple(notes)).validate(graph)


def _threshold_shape(site: Site, threshold: torch.Tensor) -> tuple[int, ...]:
    if threshold.numel() == 1 and site.units > 1 and site.channels > 1:
        return ()
    return (site.channels,) if threshold.numel() == site.channels else site.shape

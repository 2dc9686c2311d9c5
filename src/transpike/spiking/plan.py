"""A conversion is numbers, and only numbers: `Plan` holds them, one `SiteParams` a site.

Thresholds and potentials are in activation units: a spike is worth one threshold, weights stay as they are.
"""

from __future__ import annotations

import enum
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from transpike.errors import PlanError
from transpike.graph.ir import Graph, Site
from transpike.spiking.store import digest, read_tensors, write_tensors

__all__ = ["Granularity", "NeuronKind", "Plan", "SiteParams", "expand", "versions"]

_KIND = "plan"


class NeuronKind(enum.Enum):
    """How charge becomes spikes."""

    INTEGRATE_AND_FIRE = "integrate-and-fire"
    PARALLEL = "parallel"  # all steps at once: counts what the whole charge is worth
    OFFSET = "offset"  # all steps twice: the second time the potential starts higher or lower by the spikes that were amiss

    @property
    def all_at_once(self) -> bool:
        """Does it need the currents of all steps before it sends the first spike?"""
        return self is not NeuronKind.INTEGRATE_AND_FIRE


class Granularity(enum.Enum):
    """What shares a threshold: a layer, a channel, or nothing (every unit has its own)."""

    LAYER = "layer"
    CHANNEL = "channel"
    UNIT = "unit"


def _zero() -> torch.Tensor:
    return torch.zeros(())


@dataclass(frozen=True, eq=False)
class SiteParams:
    """The neurons of one site: ``m = v + I + current; s = clip(floor(m / threshold), low, cap); v = m - threshold s``.

    What the next layer sees is ``amplitude s``. Parallel neurons: see `transpike.spiking.neurons.parallel`.

    Args:
        threshold: activation units, > 0. Scalar, per channel ``[C]``, or per unit (the site's shape).
        v_init: membrane potential before the first step, activation units; the same shapes.
        current: added to the membrane at every step, activation units; the same shapes.
        cap: most spikes in one step; 1 is integrate-and-fire, more are bursts, None has no limit.
        signed: ``low`` is minus the spikes sent so far instead of 0 (a neuron may take back what it sent too early).
        kind: the neuron model.
        amplitude: what a spike is worth to the next layer, activation units, > 0; None: the threshold.
        late: parallel neurons only: the last steps carry the spikes instead of the first.
    """

    threshold: torch.Tensor
    v_init: torch.Tensor = field(default_factory=_zero)
    current: torch.Tensor = field(default_factory=_zero)
    cap: int | None = 1
    signed: bool = False
    kind: NeuronKind = NeuronKind.INTEGRATE_AND_FIRE
    amplitude: torch.Tensor | None = None
    late: bool = False

    def __post_init__(self) -> None:
        """Numbers without axes, the defaults among them, go where the thresholds are."""
        for name, x in self.tensors().items():
            if x.dim() == 0:
                object.__setattr__(self, name, x.to(self.threshold.device))

    @property
    def worth(self) -> torch.Tensor:
        """What a spike is worth to the next layer, activation units."""
        return self.threshold if self.amplitude is None else self.amplitude

    @property
    def several(self) -> bool:
        """May a neuron send anything but one spike in a step?"""
        return self.signed or self.cap != 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensor fields by name."""
        own = {"threshold": self.threshold, "v_init": self.v_init, "current": self.current}
        return own if self.amplitude is None else {**own, "amplitude": self.amplitude}


@dataclass(frozen=True, eq=False)
class Plan:
    """All numbers of a conversion.

    Args:
        sites: parameters by site name, every site of the graph once.
        params: weights or biases that replace the graph's, by parameter name.
        metadata: where the numbers come from (method, settings, samples, versions, hash of the weights).
        notes: what a user should know about them: dead channels, thresholds that have not converged.
    """

    sites: Mapping[str, SiteParams]
    params: Mapping[str, torch.Tensor] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def validate(self, graph: Graph) -> Plan:
        """Return self if it fits ``graph``.

        Raises:
            PlanError: with every misfit, one line each.
        """
        names = [site.name for site in graph.sites]
        problems = [f"site {name} has no parameters" for name in names if name not in self.sites]
        problems += [f"there is no site {name} in {graph.name}" for name in self.sites if name not in names]
        for site in graph.sites:
            if site.name in self.sites:
                problems += _site_problems(site, self.sites[site.name])
        for name, tensor in self.params.items():
            if name not in graph.params:
                problems.append(f"there is no parameter {name} in {graph.name}")
            elif tensor.shape != graph.params[name].shape:
                problems.append(f"parameter {name} has shape {tuple(tensor.shape)}, not {tuple(graph.params[name].shape)}")
            elif not bool(torch.isfinite(tensor).all()):
                problems.append(f"parameter {name} has NaN or infinite values")
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise PlanError(f"the plan does not fit {graph.name}:{lines}\ncalibrate again, or load the plan made for this network")
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor under a flat name: ``site/<site>/<field>`` and ``param/<name>``."""
        flat = {f"site/{name}/{key}": x for name, site in self.sites.items() for key, x in site.tensors().items()}
        return flat | {f"param/{name}": x for name, x in self.params.items()}

    def with_tensors(self, flat: Mapping[str, torch.Tensor]) -> Plan:
        """The same plan with other tensors under the names of `tensors`."""
        sites = {
            name: replace(site, **{key: flat[f"site/{name}/{key}"] for key in site.tensors()}) for name, site in self.sites.items()
        }
        return replace(self, sites=sites, params={name: flat[f"param/{name}"] for name in self.params})

    def header(self) -> dict[str, Any]:
        """What is not a tensor, ready for JSON."""
        sites = {
            name: {"cap": site.cap, "signed": site.signed, "kind": site.kind.value, "late": site.late}
            for name, site in self.sites.items()
        }
        return {"sites": sites, "params": list(self.params), "metadata": dict(self.metadata), "notes": list(self.notes)}

    @staticmethod
    def from_header(header: Mapping[str, Any], flat: Mapping[str, torch.Tensor]) -> Plan:
        """Inverse of `header` and `tensors`."""
        sites = {
            name: SiteParams(
                **{key: flat[f"site/{name}/{key}"] for key in ("threshold", "v_init", "current")},
                cap=settings["cap"],
                signed=settings["signed"],
                kind=NeuronKind(settings["kind"]),
                amplitude=flat.get(f"site/{name}/amplitude"),
                late=settings.get("late", False),
            )
            for name, settings in header["sites"].items()
        }
        params = {name: flat[f"param/{name}"] for name in header["params"]}
        return Plan(sites, params, header["metadata"], tuple(header["notes"]))

    def save(self, path: Path | str) -> Path:
        """Write to one safetensors file with JSON metadata.

        Raises:
            ArtifactError: the file cannot be written.
        """
        return write_tensors(path, self.tensors(), {"kind": _KIND, **self.header()})

    @staticmethod
    def load(path: Path | str) -> Plan:
        """Read what `save` wrote.

        Raises:
            ArtifactError: missing, truncated or changed.
        """
        tensors, header = read_tensors(path, _KIND)
        return Plan.from_header(header, tensors)


def _site_problems(site: Site, params: SiteParams) -> list[str]:
    problems = []
    shapes = ((), (site.channels,), site.shape)
    for key, x in params.tensors().items():
        if tuple(x.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            problems.append(f"{key} of {site.name} has shape {list(x.shape)}, not {wanted}")
        elif not bool(torch.isfinite(x).all()):
            problems.append(f"{key} of {site.name} is not finite")
    for key in ("threshold", "amplitude"):
        if bool((params.tensors().get(key, params.threshold) <= 0).any()):
            problems.append(f"{key} of {site.name} is not positive everywhere")
    if params.signed and params.kind.all_at_once:
        problems.append(
            f"{site.name} is {params.kind.value} and signed: such neurons know all their charge beforehand, drop signed"
        )
    if params.cap is not None and params.cap < 1:
        problems.append(f"cap of {site.name} is {params.cap}: at least 1, or None for no limit")
    return problems


def expand(x: torch.Tensor, site: Site) -> torch.Tensor:
    """A scalar, per-channel or per-unit parameter as one value per unit (a view where possible)."""
    if x.dim() == 1 and tuple(x.shape) != site.shape:
        x = x.view(site.channel_shape())
    return x.expand(site.shape)


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found["transpike"] = version("transpike")
    except PackageNotFoundError:
        found["transpike"] = "not installed"
    return found


def weights_hash(graph: Graph) -> str:
    """Identifies the network that a plan was made for."""
    return digest(graph.params)

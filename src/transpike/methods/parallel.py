"""Parallel neurons: all time steps at once, so that when a spike arrives no longer matters, only how many do.

    n = clip(floor((sum_t I(t) + T psi + theta / 2) / theta), 0, T),   the next layer sees (theta + phi) n

With the ceilings of a QCFS network for thresholds, psi = phi = 0 and T = its levels this is that network, exactly
(`Calibration.NONE`). For an ordinary ReLU network it is a quantiser with T levels, and one channel's threshold, shift
psi and amplitude theta + phi are fitted to the activations of the ANN:

    authors      theta = max; moving averages of E(z_ann - z_snn) for psi and of E(a_ann - r) for phi, all layers at once
    exact        theta = max; layer by layer, psi = E(z_ann - z_snn), amplitude = E a_ann / E(n / T)
    sequential   layer by layer, psi = E(z_ann - z_snn); theta on a grid, amplitude by least squares of a_ann on n / T

Reference: Hao et al., "Faster and stronger: when ANN-SNN conversion meets parallel spiking calculation", ICML 2025,
arXiv:2412.13610.
Departures: "authors" calibrates linear layers too, and its moving averages are corrected for their start, so that few
batches suffice. Its phi leaves the gap phi itself behind (its fixed point is (E a - theta r) / (1 + r) with the
mean rate r); "exact" nulls the mean gap. "sequential" is ours: each layer is fitted on what the layers before it, already
fitted, really send, by least squares, so thresholds below the maximum trade clipping against resolution.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.engines.allocator import keep_freed_memory
from transpike.engines.counts import count
from transpike.engines.kernels import threads_for
from transpike.errors import PlanError
from transpike.graph.batches import Batches
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Site
from transpike.methods._observe import collapse, few_samples, observed_maximum, rectify, settings
from transpike.methods._statistics import match_sums
from transpike.spiking.plan import Granularity, NeuronKind, Plan, SiteParams, expand, versions, weights_hash

__all__ = ["Calibration", "Parallel"]

_GRID = torch.linspace(1.1, 0.1, 41)  # thresholds tried, as fractions of the largest activation


class Calibration(enum.Enum):
    """How thresholds, shifts and amplitudes of parallel neurons are found; see the module."""

    NONE = "none"
    AUTHORS = "authors"
    EXACT = "exact"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True)
class Parallel:
    """Parallel neurons for ``steps`` steps, on the thresholds of a plan or from scratch.

    Args:
        steps: time steps T that shifts and amplitudes are made for; run the network for as many.
        calibration: none, authors, exact or sequential. "none" needs a plan to take thresholds from.
        samples: most calibration samples that are looked at together (not for "authors", which takes all batches in turn).
        momentum: of the moving averages of "authors".
        cap: most spikes of a neuron in one step (None: no limit).
        late: spikes at the end of the train (as in the paper) instead of at its beginning (as in the authors' code).
    """

    order_dependent: ClassVar[bool] = True  # "authors" is an online rule, the others look at the first samples

    steps: int = 16
    calibration: Calibration = Calibration.SEQUENTIAL
    samples: int = 512
    momentum: float = 0.99
    cap: int | None = 1
    late: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Return a plan of parallel neurons for every site.

        Raises:
            PlanError: a setting is out of range, or "none" without a plan to take thresholds from.
        """
        if self.steps < 1 or self.samples < 1 or not 0 <= self.momentum < 1 or (self.cap is not None and self.cap < 1):
            raise PlanError(f"{self}: steps, samples and cap are at least 1, momentum from 0 to below 1")
        if self.calibration is Calibration.NONE:
            if plan is None:
                raise PlanError(
                    "Parallel(calibration='none') takes its thresholds from a plan: Chain(QCFS(), Parallel(...)), "
                    "or choose another calibration"
                )
            return self._finish(graph, plan, {name: self._neurons(p.threshold) for name, p in plan.sites.items()}, plan.metadata)
        keep_freed_memory()
        batches = Batches(graph, batches)
        thresholds = observed_maximum(graph, batches) if plan is None else {n: p.threshold for n, p in plan.sites.items()}
        first = {name: self._neurons(theta) for name, theta in thresholds.items()}
        base = plan or Plan(first)
        notes: tuple[str, ...] = ()
        if self.calibration is Calibration.AUTHORS:
            sites, samples = _moving_averages(self, graph, base, first, batches)
        else:
            inputs, notes = few_samples(graph, batches, self.samples, copies=2)
            fit_site = _fit_exactly if self.calibration is Calibration.EXACT else _fit_least_squares
            sites, samples = _layer_by_layer(self, graph, base, first, inputs, fit_site), len(inputs[0])
        if levels := {site.levels for site in graph.sites if site.levels is not None}:
            some = max(levels)
            exact = f"Chain(QCFS(levels={some}), Parallel({some}, Calibration.NONE))"
            notes = (*notes, f"{graph.name} was trained with {some} levels: {exact} would answer as it does, exactly")
        metadata = {"weights": weights_hash(graph), **base.metadata, "samples": samples}
        return self._finish(graph, replace(base, notes=(*base.notes, *notes)), sites, metadata)

    def _neurons(self, theta: torch.Tensor) -> SiteParams:
        return SiteParams(theta, theta / 2, cap=self.cap, kind=NeuronKind.PARALLEL, late=self.late)

    def _finish(self, graph: Graph, plan: Plan, sites: dict[str, SiteParams], metadata: Any) -> Plan:
        origin = {**metadata, "method": "Parallel", "settings": settings(self), "versions": versions()}
        return replace(plan, sites=sites, metadata=origin).validate(graph)


# of one site: its neurons so far, T, pre-activations of the SNN and of the ANN, activations of the ANN, all N *site
_FitSite = Callable[[Site, SiteParams, int, torch.Tensor, torch.Tensor, torch.Tensor], SiteParams]


def _layer_by_layer(
    method: Parallel, graph: Graph, plan: Plan, first: dict[str, SiteParams], inputs: list[torch.Tensor], fit_site: _FitSite
) -> dict[str, SiteParams]:
    """One pass with the ANN and the SNN side by side in the batch; each site is fitted when the pass reaches it."""
    sites: dict[str, SiteParams] = {}

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        half = len(z) // 2
        ann, snn = z[:half], z[half:]
        shown = rectify(site, ann.clone())
        params = fit_site(site, first[site.name], method.steps, snn, ann, shown)
        sites[site.name] = params
        rate = count(site, params, snn, method.steps) / method.steps
        return torch.cat([shown, rate.mul_(expand(params.worth, site))])

    forward(graph.with_params({**graph.params, **plan.params}), [torch.cat([x, x]) for x in inputs], at_site)
    return sites


def _per_channel(site: Site, x: torch.Tensor) -> torch.Tensor:
    """N *site as channels x the rest."""
    return x.movedim(site.channel_axis + 1, 0).reshape(site.channels, -1)


def _fit_exactly(
    site: Site, params: SiteParams, steps: int, snn: torch.Tensor, ann: torch.Tensor, shown: torch.Tensor
) -> SiteParams:
    """Shift that nulls the mean gap before the neurons, amplitude that nulls the mean gap behind them."""
    shift = _per_channel(site, ann - snn).mean(1)
    shifted = replace(params, current=shift)
    rate = _per_channel(site, count(site, shifted, snn, steps)).mean(1) / steps
    wanted = _per_channel(site, shown).mean(1)
    theta = _by_channel(site, params.threshold)
    return replace(shifted, amplitude=torch.where((rate > 0) & (wanted > 0), wanted / rate.clamp(min=1e-12), theta))


def _fit_least_squares(
    site: Site, params: SiteParams, steps: int, snn: torch.Tensor, ann: torch.Tensor, shown: torch.Tensor
) -> SiteParams:
    """Threshold and amplitude of least squared error between ``amplitude n / T`` and the ANN's activations.

    ``min over theta in the grid and A of E (A q - a)^2`` with the rate ``q = n / T``: the best ``A = E(q a) / E(q^2)``
    leaves ``E a^2 - E(q a)^2 / E(q^2)``.
    """
    a = _per_channel(site, shown)
    shift = _per_channel(site, ann - snn).mean(1)
    largest = a.amax(1)
    largest = torch.where(largest > 0, largest, _by_channel(site, params.threshold))
    bounded = 1 if params.cap is None else params.cap
    grid = largest[:, None] * _GRID.to(largest) / bounded  # channels x candidates
    most = float("inf") if params.cap is None else float(params.cap * steps)
    z = _per_channel(site, snn) + shift[:, None]
    with threads_for(z.numel() * len(_GRID)):
        qa, qq = (torch.from_numpy(x).to(z.device) for x in match_sums(_array(z)[None], _array(a)[None], _array(grid), steps, most))
    gain = torch.where(qa > 0, qa.square() / qq.clamp(min=1e-30), 0)  # E a^2 less the least error
    best = gain.argmax(1, keepdim=True)
    theta = grid.gather(1, best)[:, 0]
    scale = (qa / qq.clamp(min=1e-30)).gather(1, best)[:, 0].to(theta)
    amplitude = torch.where(gain.amax(1) > 0, scale, theta)
    return replace(params, threshold=theta, v_init=theta / 2, current=shift, amplitude=amplitude)


def _array(x: torch.Tensor) -> Any:
    return x.to("cpu", torch.float32).contiguous().numpy()


def _moving_averages(
    method: Parallel, graph: Graph, plan: Plan, first: dict[str, SiteParams], batches: Batches
) -> tuple[dict[str, SiteParams], int]:
    """The authors' rule: shift and amplitude follow moving averages of the gaps while batches pass through."""
    shifts: dict[str, torch.Tensor] = {}
    offsets: dict[str, torch.Tensor] = {}
    weight = 0.0  # of all batches so far in a moving average that starts at 0

    def current(site: Site) -> SiteParams:
        params, name = first[site.name], site.name
        theta = _by_channel(site, params.threshold)
        amplitude = torch.maximum(theta + offsets[name] / max(weight, 1e-12), 1e-3 * theta)  # a spike is worth something
        return replace(params, current=shifts[name] / max(weight, 1e-12), amplitude=amplitude)

    def follow(average: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        return method.momentum * average + (1 - method.momentum) * gap

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        half = len(z) // 2
        ann, snn = z[:half], z[half:]
        name, zero = site.name, torch.zeros(site.channels, dtype=z.dtype, device=z.device)
        theta = expand(first[name].threshold, site)
        shown = torch.minimum(ann.clamp(min=0), theta * (1 if method.cap is None else method.cap))
        shifts[name] = follow(shifts.get(name, zero), _per_channel(site, ann - snn).mean(1))
        offsets.setdefault(name, zero)
        params = current(site)
        out = count(site, params, snn, method.steps) / method.steps * expand(params.worth, site)
        offsets[name] = follow(offsets[name], _per_channel(site, shown - out).mean(1))
        return torch.cat([shown, out])

    params = graph.with_params({**graph.params, **plan.params})
    for inputs in batches:
        weight = 1 - (1 - weight) * method.momentum
        forward(params, [torch.cat([x, x]) for x in inputs], at_site)
    return {site.name: current(site) for site in graph.sites}, batches.samples


def _by_channel(site: Site, theta: torch.Tensor) -> torch.Tensor:
    """A threshold as one value per channel (the mean of those of its units)."""
    return collapse(site, expand(theta, site)[None], Granularity.CHANNEL).mean((0, 2))

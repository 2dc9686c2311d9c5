"""Reconstruction: thresholds, shifts, amplitudes and weights learn, without labels, to give each layer of the ANN back.

    minimise  sum over sites l of  E (r_l - a_l)^2 / E a_l^2   +   E (y_snn - y_ann)^2 / E y_ann^2
    r = A / T clip(floor((T (z + psi) + v0) / theta), 0, B T),   a = ReLU(z_ann)

by Adam through the whole network in count space, floor with a smoothed gradient. A fifth of the samples is held out: the
numbers that serve those best are kept, at worst the plan as it came. At T steps a neuron is a quantiser with B T levels,
so this is post-training quantisation by reconstruction: every layer is fitted on what the layers before it really send,
and answers for what it does to the layers behind it. Weights and biases learn with the numbers: at few steps what a layer is
sent is coarse, and other weights than the ANN's make more of it. With ``weight_rate=0`` they stay as they are.

Reference: the reconstruction idea of BRECQ (Li et al., ICLR 2021, arXiv:2102.05426) and of QDrop (Wei et al., ICLR 2022,
arXiv:2203.05740), straight-through learning of step sizes of LSQ (Esser et al., ICLR 2020, arXiv:1902.08153).
Departures: spiking neurons are quantised here, not weights; all layers at once with the sum of their relative errors as
the objective, instead of block after block, so any graph will do and nothing has to be cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from transpike.engines.allocator import keep_freed_memory
from transpike.errors import PlanError
from transpike.graph.interpret import call, channels_last, forward, frees, interpret
from transpike.graph.ir import Graph, Node, Ref, Site, map_tree, tree_refs
from transpike.graph.roles import SYNAPSES, base_name
from transpike.methods._observe import check_refines, few_samples, rectify, refined
from transpike.spiking.plan import Plan, SiteParams, expand

__all__ = ["Reconstruction"]

_HELD = 128  # samples at most that are not learned from but judge what was learned
_TOGETHER = 32  # of them at once
_LOOKS = 4  # how often they do
_MEMORY = 4 << 30  # bytes that the values of one update may take


@dataclass(frozen=True)
class Reconstruction:
    """Learns the numbers of a plan, and weights to go with them, for ``steps`` steps: ``Chain(Parallel(4), Reconstruction(4))``.

    Exact for parallel neurons and for signed neurons without a cap, whose counts depend on the whole charge alone; for other
    neurons it fits what they would do if their charge came evenly.

    Args:
        steps: time steps T that the plan is made for.
        iterations: number of updates. batch: samples of each.
        samples: most calibration samples that are drawn from; the more, the less the weights learn them by heart.
        rate: step size of Adam for the logarithms of thresholds and amplitudes, and for shifts in thresholds; falls to 0
            along a cosine.
        weight_rate: step size for weights and biases in root mean squares of each; 0 leaves them as they are.
        seed: of the draws.
    """

    order_dependent: ClassVar[bool] = True  # draws from the samples by position
    refines: ClassVar[bool] = True  # needs a plan

    steps: int = 16
    iterations: int = 300
    batch: int = 32
    samples: int = 4096
    rate: float = 0.005
    weight_rate: float = 0.005
    seed: int = 0

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """Return the plan with numbers that reconstruct the ANN better.

        Raises:
            PlanError: there is no plan to refine, or a setting is out of range.
        """
        if min(self.steps, self.iterations, self.batch, self.samples) < 1 or self.rate < 0 or self.weight_rate < 0:
            raise PlanError(f"{self}: steps, iterations, batch and samples are at least 1, rates are not negative")
        plan = check_refines(self, graph, plan)
        keep_freed_memory()
        inputs, notes = few_samples(graph, batches, self.samples, copies=0)
        generator = torch.Generator().manual_seed(self.seed)
        learned = {site.name: _Numbers(site, plan.sites[site.name], self.steps) for site in graph.sites}
        weights = _learnable_weights(graph, plan) if self.weight_rate > 0 else {}
        groups = [{"params": [x for numbers in learned.values() for x in numbers.learnable], "lr": self.rate}]
        groups += [{"params": [w], "lr": self.weight_rate * float(w.detach().square().mean().sqrt())} for w in weights.values()]
        optimiser = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.iterations)
        count = len(inputs[0])
        held = max(1, min(count // 5, _HELD)) if count > 1 else 0
        judges, students = [x[count - (held or 1) :] for x in inputs], [x[: count - held] for x in inputs]
        size = min(self.batch, count - held, max(1, _MEMORY // _bytes_per_sample(graph)))

        def snapshot() -> tuple[float, dict[str, SiteParams], dict[str, torch.Tensor]]:
            now = {**graph.params, **plan.params, **weights}
            with torch.no_grad():
                parts = [x.split(_TOGETHER) for x in judges]
                errors = [float(_mismatch(graph, now, learned, list(some))) * len(some[0]) for some in zip(*parts, strict=True)]
            error = sum(errors) / len(judges[0])
            numbers = {name: numbers.result() for name, numbers in learned.items()}
            return error, numbers, {name: x.detach().clone() for name, x in weights.items()}

        before = best = snapshot()
        for k in range(self.iterations):
            chosen = torch.randperm(count - held, generator=generator)[:size]
            some = [x[chosen.to(x.device)] for x in students]
            loss = _mismatch(graph, {**graph.params, **plan.params, **weights}, learned, some)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if (k + 1) % max(1, self.iterations // _LOOKS) == 0 or k + 1 == self.iterations:
                best = min(best, snapshot(), key=lambda found: found[0])
        if best is before:
            notes = (*notes, "Reconstruction found no numbers that serve held-out samples better: the plan is unchanged")
            return refined(self, plan, count, notes)
        better = replace(plan, sites=best[1], params={**plan.params, **best[2]})
        error = {"before": before[0], "after": best[0]}  # the objective on samples that were not learned from
        return refined(self, better, count, notes, error=error).validate(graph)


class _Numbers:
    """The learnable numbers of one site: a factor of threshold and amplitude, one of the amplitude alone, and a shift.

    The amplitude follows the threshold: only so is the straight-through gradient of the threshold, ``r - z`` inside, that
    of the quantisation noise. With the amplitude held it would lower every threshold, whatever that does to the error.
    """

    def __init__(self, site: Site, params: SiteParams, steps: int) -> None:
        self._site, self._params, self._steps = site, params, steps
        self.learnable = tuple(torch.zeros_like(params.threshold).requires_grad_() for _ in range(3))

    def rate(self, z: torch.Tensor) -> torch.Tensor:
        """Mean emitted activation for mean currents ``z`` (N *site), differentiable."""
        params, steps = self.now(), self._steps
        theta, worth, v_init, current = (
            _spread(self._site, x) for x in (params.threshold, params.worth, params.v_init, params.current)
        )
        most = float("inf") if params.cap is None else float(params.cap * steps)
        return _Count.apply(((z + current) * steps + v_init) / theta, most) * (worth / steps)

    def now(self) -> SiteParams:
        """The site's numbers with what was learned so far."""
        before, (log_theta, log_ratio, shift) = self._params, self.learnable
        scale = log_theta.exp()
        theta = before.threshold * scale
        return replace(
            before,
            threshold=theta,
            v_init=_product(self._site, before.v_init, scale),
            current=_sum(self._site, before.current, theta * shift),
            amplitude=_product(self._site, before.worth, scale * log_ratio.exp()),
        )

    def result(self) -> SiteParams:
        """`now`, as numbers."""
        with torch.no_grad():
            return self.now()


class _Count(torch.autograd.Function):
    """``clip(floor(u), 0, most)``, whose derivative ``sum_k delta(u - k)``, k = 1 .. most, is smoothed to ``1 + cos(2 pi u)``.

    Half a level beyond the first and the last jump nothing passes any more. A derivative of 1 there, or one that does not
    know where in a level a neuron stands, pushes all thresholds in one direction.
    """

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, most: float) -> torch.Tensor:
        ctx.save_for_backward(u)
        ctx.most = most
        return torch.floor(u).clamp_(0, most)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (u,) = ctx.saved_tensors
        near = (u > 0.5) & (u < ctx.most + 0.5)
        return grads[0] * near * (1 + torch.cos(2 * torch.pi * u)), None


def _mismatch(
    graph: Graph, weights: Mapping[str, torch.Tensor], learned: Mapping[str, _Numbers], inputs: list[torch.Tensor]
) -> torch.Tensor:
    """The objective on one batch."""
    wanted: dict[str, torch.Tensor] = {}

    def show(site: Site, z: torch.Tensor) -> torch.Tensor:
        wanted[site.name] = rectify(site, z)
        return wanted[site.name].clone()

    ann = list(_tensors(forward(graph, inputs, show)))
    sites, batch, device = {site.node: site for site in graph.sites}, len(inputs[0]), inputs[0].device
    errors: list[torch.Tensor] = []

    def handle(node: Node, env: Mapping[str, Any]) -> Any:
        site = sites.get(node.name)
        if site is None:
            return call(node, env, batch, device)
        z, axis = env[node.args[0].name], node.batch_axis or 0
        moved = z.movedim(axis, 0)
        rate = learned[site.name].rate(moved.reshape(-1, *site.shape))
        errors.append(_relative(rate, wanted[site.name]))
        return rate.reshape(moved.shape).movedim(0, axis)

    env: dict[str, Any] = dict(weights)
    env.update((value.name, channels_last(x)) for value, x in zip(graph.inputs, inputs, strict=True))
    interpret(graph.nodes, env, handle, frees(graph.nodes, set(tree_refs(graph.outputs))))
    outputs = [env[name] for name in tree_refs(graph.outputs)]
    pairs = [(y, a) for y, a in zip(outputs, ann, strict=True) if y.is_floating_point()]
    return torch.stack([*errors, *(_relative(y, a) for y, a in pairs)]).sum()


def _relative(x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (x - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tree(found.append, tree)
    return found


def _bytes_per_sample(graph: Graph) -> int:
    """What one sample of an update holds: every value of the ANN and of the SNN, and the gradient of the latter."""
    return 3 * graph.inputs[0].dtype.itemsize * max(1, sum(node.numel() for node in graph.nodes))


def _learnable_weights(graph: Graph, plan: Plan) -> dict[str, torch.Tensor]:
    """Weights and biases of the synapses, as leaves of the gradient."""
    names = {arg.name for node in graph.nodes if base_name(node.op) in SYNAPSES for arg in node.args[1:] if isinstance(arg, Ref)}
    tensors = {**graph.params, **plan.params}
    return {
        n: tensors[n].detach().clone().requires_grad_() for n in sorted(names) if n in tensors and tensors[n].is_floating_point()
    }


def _spread(site: Site, x: torch.Tensor) -> torch.Tensor:
    """A scalar, per-channel or per-unit parameter, ready to broadcast against N *site."""
    return x.view(site.channel_shape()) if x.dim() == 1 and tuple(x.shape) != site.shape else x


def _product(site: Site, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * b if a.shape == b.shape or not (a.dim() and b.dim()) else expand(a, site) * expand(b, site)


def _sum(site: Site, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b if a.shape == b.shape or not (a.dim() and b.dim()) else expand(a, site) + expand(b, site)

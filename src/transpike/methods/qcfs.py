"""QCFS: train the network with quantising activations; the learned ceilings are the thresholds.

    h(z) = lambda clip(floor(z L / lambda + 1/2) / L, 0, 1)      the activation while training
    theta = lambda,  v(0) = theta / 2                            the neuron afterwards

A network that was trained with L levels loses little when neurons that fire T = L times at most take their place: on a
constant current the spike count is the level. Deeper layers see uneven currents, so integrate-and-fire neurons need some
more steps, or initial potentials for the number of steps (`Chain(QCFS(4), InitialPotential(8))`); parallel neurons need
neither. `prepare` gives the network to train (fine-tuning from ReLU weights takes a few epochs), `fit` reads the ceilings of
the trained one.

Reference: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks",
ICLR 2022, arXiv:2303.04347.
Training by what neurons send (``steps``): Yu et al., "Advancing training efficiency of deep spiking neural networks through
rate-based backpropagation", NeurIPS 2024, arXiv:2410.11488.
Noise while training: Li and Rajendran, "Noise Adaptor: enhancing low-latency spiking neural networks through noise-injected low-bit
ANN conversion", arXiv:2411.17431.
Departures: every channel may have a ceiling of its own (``granularity``); noise is even and enters before the rounding; max
pooling stays unless ``average_pooling`` asks for the paper's averages; ceilings start from data instead of at 8; the gradients
are those of the authors' first code, see `transpike.graph.quantised`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from transpike.errors import DataError, PlanError
from transpike.graph.batches import call_arguments, peek
from transpike.graph.ir import Graph, Site
from transpike.graph.prepared import Prepared, channel_shape, intercepted
from transpike.methods._observe import check_neurons, reduced_axes, to_plan, watch
from transpike.methods._sender import Sender
from transpike.methods._statistics import quantisation_errors
from transpike.spiking.plan import Granularity, Plan

__all__ = ["QCFS", "prepare"]

_GRID = 1.0 - 0.01 * np.arange(95)


@dataclass(frozen=True)
class QCFS:
    """Thresholds at the ceilings that training found; `prepare` makes the network to train.

    Args:
        levels: L, the levels of the activation while training.
        granularity: what shares a ceiling while training: a layer as in the paper, or a channel.
        average_pooling: train with average pooling in the place of max pooling, as the paper does.
        noise: while training, pre-activations are off by up to so many levels, evenly distributed: integrate-and-fire neurons
            miscount by as much where spikes come unevenly, and a network that knows it minds less (0.5 to 1; 0: none).
        steps: while training, activations are what the neurons send on average in so many steps, with the gradients of the
            quantiser (None: the quantiser's levels): steps + 3 forward passes instead of 3, for a last epoch, at a tenth of the
            learning rate, of a network that shall answer after few steps.
        v_init: initial membrane potential as a fraction of the threshold; 0.5 is what the activation rounds by.
        cap: most spikes of a neuron in one step (None: no limit).
        signed: may neurons take spikes back?
    """

    prepared_only: ClassVar[bool] = True  # it reads what training found

    levels: int = 8
    granularity: Granularity = Granularity.LAYER
    average_pooling: bool = False
    noise: float = 0.0
    steps: int | None = None
    v_init: float = 0.5
    cap: int | None = 1
    signed: bool = False

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """The learned ceilings as thresholds; data is read only for rectifiers that do not quantise.

        Raises:
            PlanError: no activation quantises, ``levels`` is not positive, or ``v_init`` or ``cap`` is out of range.
        """
        _check(self)
        trained = [site for site in graph.sites if site.levels is not None]
        plain = {site.name for site in graph.sites if site.levels is None}
        if not trained:
            raise PlanError(
                f"no activation of {graph.name} quantises: prepare(model, QCFS(levels={self.levels}), batches), train, then convert"
            )
        thresholds = {site.name: torch.tensor(site.ceiling, dtype=torch.float64) for site in trained}
        notes, samples = [], 0
        if other := sorted({site.levels for site in trained if site.levels is not None} - {self.levels}):
            made = ", ".join(map(str, other))
            notes.append(f"{graph.name} was trained with {made} levels, not {self.levels}: thresholds are what it learned")
        if plain:
            samples = watch(graph, batches, lambda site, a: _raise_to_largest(site, a, thresholds) if site.name in plain else None)
            notes.append(
                f"{len(plain)} of {len(graph.sites)} sites do not quantise ({', '.join(sorted(plain)[:3])}): "
                "their thresholds are their largest activations"
            )
        return to_plan(self, graph, thresholds, samples, notes)


def prepare(model: nn.Module, method: QCFS, batches: Any = None) -> Prepared:
    """A copy of ``model`` to train: each of its rectifiers quantises to ``method.levels`` levels.

    Args:
        model: any network, pretrained with ReLU or not; left as it is. A prepared one keeps its ceilings.
        batches: some batches of data to choose the ceilings' start from. None: the authors' 8, and the first pass (or
            loading a state) must come before an optimiser asks for the parameters.

    Returns:
        The network to train, in the mode of ``model``.

    Raises:
        DataError: ``model`` cannot read the batches.
    """
    _check(method)
    per_channel = method.granularity is Granularity.CHANNEL
    if isinstance(model, Prepared):
        ceilings = list(model.ceilings) or None
        model, per_channel = model.network, model.per_channel
    else:
        ceilings = None if batches is None else _start(model, method, batches)
    return Prepared(
        model,
        method.levels,
        ceilings,
        per_channel=per_channel,
        average_pooling=method.average_pooling,
        noise=method.noise,
        steps=method.steps,
        sender=Sender(replace(method, steps=None)),
    )


def _check(method: QCFS) -> None:
    if method.levels < 1:
        raise PlanError(f"QCFS(levels={method.levels}): levels is at least 1")
    if not 0 <= method.noise < math.inf:
        raise PlanError(f"QCFS(noise={method.noise}): noise is a number of levels, 0 for none")
    if method.steps is not None and method.steps < 1:
        raise PlanError(f"QCFS(steps={method.steps}): steps is at least 1, or None to train the quantiser itself")
    if method.steps and method.noise:
        raise PlanError(f"QCFS(steps={method.steps}, noise={method.noise}): noise stands for what steps do, give one of them")
    if method.granularity is Granularity.UNIT:
        raise PlanError("QCFS(granularity='unit'): a channel or a layer shares a ceiling")
    check_neurons(method)


def _raise_to_largest(site: Site, a: torch.Tensor, largest: dict[str, torch.Tensor]) -> None:
    here = a.amax(reduced_axes(site, Granularity.LAYER)).double()
    largest[site.name] = torch.maximum(largest.get(site.name, here), here)


def _start(model: nn.Module, method: QCFS, batches: Any) -> list[torch.Tensor]:
    """For every rectifier call the ceilings of least squared quantisation error on the data, in the shape they broadcast.

    A channel that is silent on the data gets the largest ceiling of its call.
    """
    model = copy.deepcopy(model).eval()
    _, batches = peek(batches)
    per_channel = method.granularity is Granularity.CHANNEL
    shapes: dict[int, tuple[int, ...]] = {}
    largest: dict[int, Any] = {}
    errors: dict[int, Any] = {}
    levels, shift = np.float32(method.levels), np.float32(0.5)

    def grouped(z: torch.Tensor, axis: int) -> Any:
        """outer x groups x inner; the outer ones are shared among threads"""
        shape = (z.shape[:axis].numel(), z.shape[axis], -1) if per_channel else (-1, 1, 1)
        return z.float().cpu().reshape(shape).contiguous().numpy()

    def find_largest(i: int, z: torch.Tensor, clip: float | None, axis: int) -> torch.Tensor:
        a = z.clamp(0, clip)
        shapes[i] = channel_shape(z, axis) if per_channel else ()
        largest[i] = np.maximum(largest.get(i, 0), grouped(a, axis).max(axis=(0, 2)))
        return a

    def add_errors(i: int, z: torch.Tensor, clip: float | None, axis: int) -> torch.Tensor:
        a = z.clamp(0, clip)
        grid = (largest[i][:, None] * _GRID[None]).astype(np.float32)
        errors[i] = errors.get(i, 0) + quantisation_errors(grouped(a, axis), grid, levels, np.float32(1), shift)
        return a

    for look in (find_largest, add_errors):
        for batch in batches:
            with torch.no_grad(), intercepted(look, method.average_pooling):
                _show(model, batch)
    found = [largest[i] * _GRID[errors[i].argmin(1)] for i in range(len(largest))]
    found = [np.where(ceiling > 0, ceiling, ceiling.max() or 1.0) for ceiling in found]
    return [torch.from_numpy(ceiling).reshape(shapes[i]) for i, ceiling in enumerate(found)]


def _show(model: nn.Module, batch: Any) -> None:
    """Run the model on a batch for what looks on inside.

    Raises:
        DataError: the batch is nothing that it can read.
    """
    args, kwargs = call_arguments(model, batch)
    try:
        model(*args, **kwargs)
    except RuntimeError as error:
        sizes = ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()))
        reason = str(error).split("\n")[0]
        raise DataError(f"{type(model).__name__} cannot read the data, which has shape {sizes}: {reason}") from error

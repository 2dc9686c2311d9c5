"""The dense engine: every operation on all steps of a chunk at once, neurons by a fused kernel or else step by step.

A `Population` is the neurons of one site for some samples. Its state lives as long as one run.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from transpike.engines.emitted import Counted, Emitted, Worth, frames_of
from transpike.engines.event_arguments import Beside, Geometry, Neurons, Reading, Room
from transpike.engines.event_kernels import respond
from transpike.engines.events import Synapse, Weights, passing
from transpike.engines.kernels import Halves, fire, threads_for
from transpike.engines.layout import batch_first, bits_of, flat_array, logical, memory_order
from transpike.engines.vectors import LANES
from transpike.graph.ir import Site
from transpike.spiking.neurons import parallel, parallel_count, step
from transpike.spiking.plan import NeuronKind, SiteParams, expand

__all__ = ["DensePopulation", "gpu_kernel", "takes_sums"]

_NO_HALVES = Halves()
_ONES = "ones"  # among what populations share: what spikes are worth that are counted
_ZEROS = "zeros"  # among what populations share: the currents of all sites that have none


class DensePopulation:
    """Neurons of one site: potentials, spikes sent, and the step that turns currents into spikes.

    ``shared`` keeps the numbers of each site in memory order for the other populations of the same run.
    """

    def __init__(
        self,
        site: Site,
        params: SiteParams,
        samples: int,
        batch_axis: int,
        like: torch.Tensor,
        shared: dict[Any, Any] | None = None,
    ) -> None:
        self._site, self._params, self._samples, self._axis = site, params, samples, batch_axis
        self._order = memory_order(like, batch_axis, len(site.shape))  # axes of one sample, outermost in memory first
        device, dtype = like.device, like.dtype
        state = (samples, site.units)
        self._shared = numbers = {} if shared is None else shared
        key = (site.name, self._order)
        if key not in numbers:
            numbers[key] = self._numbers(numbers, device, dtype)
        self._theta, self._worth, self._extra = numbers[key]
        v_init = expand(params.v_init, site).permute(self._order).reshape(-1).to(device, dtype)
        self._v = v_init.expand(state).clone(memory_format=torch.contiguous_format)
        self._count = torch.zeros(state, device=device, dtype=dtype)
        self._sent = torch.zeros(state, device=device, dtype=dtype) if params.signed else self._count

    def advance(
        self, current: torch.Tensor, steps: int, *, constant: bool, overwrite: bool, beside: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Spikes times threshold for ``steps`` steps.

        Args:
            current: steps x samples along the batch axis; samples only if ``constant``.
            overwrite: may the memory of ``current`` hold the result?
            beside: is added to the current, of integrate-and-fire neurons on the CPU.
        """
        x = self._units_inmemory_order(current)  # [steps] x samples, units
        if self._params.kind is NeuronKind.PARALLEL:
            return self._logical(self._all_at_once(x, steps, constant), current)
        if self._params.kind is NeuronKind.OFFSET:
            self._offset_potential(x, steps, constant)
        if constant:
            spikes, drive = torch.empty(steps * self._samples, x.shape[1], dtype=x.dtype, device=x.device), x
        else:
            shares = x.data_ptr() == current.data_ptr()
            spikes, drive = x.clone() if shares and not overwrite else x, None
        if beside is None:
            self._fire(spikes, drive, steps)
        else:
            self._fused(spikes, drive, steps, Halves(beside=flat_array(self._units_inmemory_order(beside))))
        return self._logical(spikes, current)

    def absorb(
        self,
        sums: torch.Tensor,
        bias: torch.Tensor | None,
        other: torch.Tensor | Counted | Emitted | None,
        steps: int,
        *,
        heard: bool,
    ) -> torch.Tensor | Counted:
        """As `advance` for the currents ``sums + bias + other``, which are made on the way: one pass over memory.

        Args:
            sums: bfloat16 (on a GPU float32 too), steps x samples along the batch axis; may be overwritten. bias: by channel.
            other: as ``sums``, in float32 or counts.
            heard: does anything in low precision read the spikes? They are `Counted` then.
        """
        if takes_sums(sums):
            assert not isinstance(other, Emitted), "there are no bits on a GPU"
            return self._absorb_on_gpu(sums, bias, other, steps, heard)
        halves, added = self._units_inmemory_order(sums), torch.zeros(()) if bias is None else bias
        parts = Halves(bits_of(halves), flat_array(self._flat(added)))
        if isinstance(other, Counted):
            counts = self._units_inmemory_order(other.spikes)
            parts = parts._replace(counts=bits_of(counts), worth=flat_array(other.worth.units))
        elif other is not None:
            numbers = other.numbers() if isinstance(other, Emitted) else other
            parts = parts._replace(beside=flat_array(self._units_inmemory_order(numbers)))
        if not heard:
            numbers = torch.empty(halves.shape)
            self._fused(numbers, None, steps, parts)
            return self._logical(numbers, sums)
        spikes = torch.empty_like(halves)
        self._fused(torch.empty(0), None, steps, parts._replace(spikes=bits_of(spikes)))
        return Counted(self._logical(spikes, sums), self._spike())

    def _absorb_on_gpu(
        self, sums: torch.Tensor, bias: torch.Tensor | None, other: torch.Tensor | Counted | None, steps: int, heard: bool
    ) -> torch.Tensor | Counted:
        x = self._units_inmemory_order(sums)
        spikes = x if x.dtype == torch.float32 or heard else torch.empty_like(x, dtype=torch.float32)
        beside = None if other is None else self._units_inmemory_order(other.spikes if isinstance(other, Counted) else other)
        each = other.worth.units if isinstance(other, Counted) else None
        key = (self._site.name, self._order, "bias")
        if bias is not None and key not in self._shared:
            self._shared[key] = self._flat(bias)
        self._on_gpu(x, None, steps, self._shared.get(key), beside, each, spikes, heard)
        emitted = self._logical(spikes, sums)
        return Counted(emitted, self._spike()) if heard else emitted

    def receive(
        self,
        synapse: Synapse,
        weights: Weights,
        x: torch.Tensor | Emitted,
        other: torch.Tensor | Emitted | Counted | None,
        steps: int,
        *,
        constant: bool,
    ) -> torch.Tensor | Emitted:
        """Spikes times threshold for ``steps`` steps of events: what `advance` gives for the currents of ``synapse``.

        Args:
            x: what the synapse reads, steps x samples frames.
            weights: laid out by the synapse.
            other: is added to the currents; of samples only if ``constant``.
        """
        frames, several = steps * self._samples, self._params.several
        emitted = Emitted(tuple(self._site.shape), frames, self._spike(), several) if synapse.marks else None
        out = emitted.flat if emitted is not None else torch.empty(frames, self._site.units)
        if isinstance(other, Emitted) and emitted is not None and not several and not other.several:
            beside = Beside(flat_array(other.worth.units), other.bits, 3)
        elif other is None:
            beside = Beside()
        else:
            beside = Beside(frames_of(other), kind=1 if constant else 2)
        self._respond(synapse.read(x, weights), synapse.geometry, beside, emitted, out, steps)
        if emitted is not None:
            return emitted
        assert out is not None
        return synapse.logical(out, x.dim())

    def emit(self, current: torch.Tensor, steps: int, *, constant: bool, overwrite: bool) -> torch.Tensor | Emitted:
        """As `advance`, with a bit for a spike where neurons fire once at most and lie in memory as bits do."""
        frames, shape = steps * self._samples, tuple(self._site.shape)
        in_place = self._axis == 0 and len(shape) in (1, 3) and self._order == (*range(1, len(shape)), 0)
        once = self._params.kind is NeuronKind.INTEGRATE_AND_FIRE and not self._params.several
        if not in_place or not once or len(shape) != current.dim() - 1 or shape[0] % LANES:
            return self.advance(current, steps, constant=constant, overwrite=overwrite)
        emitted = Emitted(shape, frames, self._spike(), several=False)
        height, width = shape[1:] if len(shape) == 3 else (1, 1)
        reading, geometry = passing(height, width, shape[0])
        self._respond(reading, geometry, Beside(frames_of(current), kind=1 if constant else 2), emitted, None, steps)
        return emitted

    def _spike(self) -> Worth:
        """What one is worth, looked at once a run."""
        key = (self._site.name, "worth")
        if key not in self._shared:
            self._shared[key] = Worth(self._worth, self._site.shape[0])
        return self._shared[key]

    def _respond(
        self, read: Reading, g: Geometry, beside: Beside, emitted: Emitted | None, numbers: torch.Tensor | None, steps: int
    ) -> None:
        room = Room() if numbers is None else Room(flat_array(numbers))
        room = room if emitted is None else room._replace(bits=emitted.bits, marked=1)
        state = map(flat_array, (self._v, self._sent, self._count, self._theta, self._worth, self._extra))
        cap = np.float32(math.inf if self._params.cap is None else self._params.cap)
        neurons = Neurons(*state, cap=cap, signed=self._params.signed)
        with threads_for(steps * self._samples * self._site.units):
            respond(read, g, True, beside, room, neurons, steps, self._samples)

    def spikes(self) -> torch.Tensor:
        """Spikes of either sign so far. N *site"""
        return self._per_sample(self._count)

    def net(self) -> torch.Tensor:
        """Spikes sent less those taken back. N *site"""
        return self._per_sample(self._sent)

    def membrane(self) -> torch.Tensor:
        """Membrane potentials, activation units. N *site"""
        return self._per_sample(self._v)

    def keep(self, kept: torch.Tensor) -> None:
        """Go on with the samples numbered ``kept`` alone."""
        rows = kept.to(self._v.device)
        self._v, self._count = self._v[rows], self._count[rows]
        self._sent = self._sent[rows] if self._params.signed else self._count
        self._samples = len(rows)

    def _fire(self, spikes: torch.Tensor, drive: torch.Tensor | None, steps: int) -> None:
        if spikes.device.type == "cpu" and spikes.dtype in (torch.float32, torch.float64):
            self._fused(spikes, drive, steps)
        elif spikes.device.type == "cuda" and spikes.dtype == torch.float32 and gpu_kernel() is not None:
            self._on_gpu(spikes, drive, steps)
        else:
            self._stepwise(spikes, drive, steps)

    def _offset_potential(self, x: torch.Tensor, steps: int, constant: bool) -> None:
        """Fire once in vain to see which spikes are amiss, and start again so that they are not.

        ``v'(0) = v(0) + theta floor(v(T) / theta)``: a neuron left with a threshold or more fired too little, one left
        below 0 too much.
        """
        start = self._v.clone()
        trial = torch.empty(steps * self._samples, x.shape[1], dtype=x.dtype, device=x.device) if constant else x.clone()
        self._fire(trial, x if constant else None, steps)
        self._v = start + self._theta * torch.floor(self._v / self._theta)
        self._count = torch.zeros_like(self._count)
        self._sent = self._count

    def _fused(self, spikes: torch.Tensor, drive: torch.Tensor | None, steps: int, halves: Halves = _NO_HALVES) -> None:
        nothing, worth = np.empty(0, flat_array(spikes).dtype), self._worth
        if halves.spikes.size:
            worth = self._shared.setdefault(_ONES, torch.ones(0))
            if len(worth) < self._site.units:
                worth = self._shared[_ONES] = torch.ones(self._site.units)
        cap = math.inf if self._params.cap is None else self._params.cap
        with threads_for(steps * self._samples * self._site.units):
            fire(
                flat_array(spikes),
                nothing if drive is None else flat_array(drive),
                halves,
                flat_array(self._v),
                flat_array(self._sent) if self._params.signed else nothing,
                flat_array(self._count),
                flat_array(self._theta),
                flat_array(worth),
                flat_array(self._extra),
                steps,
                self._samples,
                self._site.units,
                nothing.dtype.type(cap),
                self._params.signed,
            )

    def _on_gpu(self, spikes: torch.Tensor, drive: torch.Tensor | None, steps: int, *added: Any) -> None:
        """``added``: the kernel's arguments from ``bias`` on."""
        kernel = gpu_kernel()
        assert kernel is not None
        kernel(
            spikes,
            drive,
            self._v,
            self._sent,
            self._count,
            self._theta,
            self._worth,
            self._extra,
            steps,
            self._params.cap,
            self._params.signed,
            *added,
        )

    def _all_at_once(self, x: torch.Tensor, steps: int, constant: bool) -> torch.Tensor:
        """Parallel neurons: the executor gives them all steps in one chunk."""
        total = (x * steps if constant else x.view(steps, self._samples, -1).sum(0)) + self._extra * steps
        self._count = self._sent = parallel_count(total, self._v, self._theta, steps, self._params.cap)
        self._v = total + self._v - self._theta * self._count
        train = parallel(self._count, steps, self._params.cap, self._params.late)
        return train.mul_(self._worth).view(steps * self._samples, -1)

    def _stepwise(self, spikes: torch.Tensor, drive: torch.Tensor | None, steps: int) -> None:
        frames = spikes.view(steps, self._samples, -1)
        for frame in frames:
            current = (frame if drive is None else drive) + self._extra
            s, self._v, sent = step(self._v, self._sent, current, self._theta, self._params.cap, self._params.signed)
            self._count = self._count + s.abs()
            self._sent = sent if self._params.signed else self._count
            torch.mul(self._worth, s, out=frame)

    def _numbers(self, shared: dict[Any, Any], device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Threshold, worth and current of each unit; of large maps they are as many as the spikes: the same ones are kept once."""
        params = self._params
        theta = self._flat(params.threshold).to(device, dtype)
        worth = theta if params.amplitude is None else self._flat(params.amplitude).to(device, dtype)
        if bool(params.current.any()):
            return theta, worth, self._flat(params.current).to(device, dtype)
        if len(shared.get(_ZEROS, ())) < self._site.units:
            shared[_ZEROS] = torch.zeros(self._site.units, device=device, dtype=dtype)
        return theta, worth, shared[_ZEROS][: self._site.units]

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        """A parameter as one value per unit, in memory order."""
        return expand(x, self._site).permute(self._order).reshape(-1).contiguous()

    def _units_inmemory_order(self, x: torch.Tensor) -> torch.Tensor:
        x = batch_first(x, self._axis, self._site.shape)
        return x.permute(0, *(axis + 1 for axis in self._order)).contiguous().view(len(x), -1)

    def _per_sample(self, flat: torch.Tensor) -> torch.Tensor:
        return logical(flat, self._site.shape, self._order)

    def _logical(self, flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Spikes in the shape of the current, with as many frames on the batch axis as there are."""
        rest = [size for axis, size in enumerate(like.shape) if axis != self._axis]
        return self._per_sample(flat).reshape(-1, *rest).movedim(0, self._axis)


def takes_sums(x: torch.Tensor) -> bool:
    """Do neurons take sums in either number format where ``x`` is, and add what comes to them?"""
    return x.is_cuda and gpu_kernel() is not None


@cache
def gpu_kernel() -> Callable[..., None] | None:
    """The fused kernel for CUDA, None without Triton; imported where a run needs it, for it takes longer than all else."""
    try:
        return importlib.import_module("transpike.engines.triton_kernels").fire
    except ImportError:
        return None

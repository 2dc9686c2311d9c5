"""The quantising activation of QCFS: a rectifier with a learned ceiling and L levels, as one operation.

    h(z) = lambda clip(floor(z L / lambda + 1/2) / L, 0, 1)

A ceiling is a scalar, or one for every channel. The activation is an operation of torch's own kind, so export keeps it whole
and `capture` sees a site. It is computed as the parallel neuron counts, ``n = clip(floor((L z + lambda / 2) / lambda), 0, L)``
and ``h = n (lambda / L)``, in this order of roundings: on equal ``z`` level and spike count are equal to the bit, ties included.

Gradients are straight-through (the derivative of floor is 1), with the boundaries of floor, then clip:

    dh/dz = 1 where -lambda/(2L) <= z < lambda + lambda/(2L), else 0
    dh/dlambda = (h - z) / lambda there, 1 above, 0 below (summed over all that share the ceiling)

Reference: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks",
ICLR 2022, arXiv:2303.04347 (the variant of the authors' first code).
Departures: the ceiling is kept positive (`guarded`); as in the authors' code a value above the upper boundary moves the
ceiling only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numba import get_num_threads, set_num_threads

from transpike.graph.quantise_kernels import quantise, straight_through

__all__ = ["QUANTISED", "SMALLEST_CEILING", "guarded", "qcfs"]

QUANTISED = "transpike.qcfs"  # name in a graph: (z, ceiling, levels)
SMALLEST_CEILING = 1e-6  # activation units; learning may carry a ceiling to zero and below
_WORTH_THREADS = 1 << 17  # elements
_LINE = 512  # elements that a loop runs over, about


def guarded(ceiling: torch.Tensor) -> torch.Tensor:
    """The ceiling, at least `SMALLEST_CEILING`."""
    return ceiling.clamp(min=SMALLEST_CEILING)


@torch.library.custom_op("transpike::qcfs", mutates_args=())
def qcfs(z: torch.Tensor, ceiling: torch.Tensor, levels: int) -> torch.Tensor:
    """The quantised activation.

    Args:
        z: pre-activations, any shape.
        ceiling: lambda, activation units: a scalar, or per channel in a shape that broadcasts (C x 1 x 1 after a convolution).
        levels: L.
    """
    top = guarded(ceiling)
    if not _on_cpu(z, top):
        return _level(z, top, levels).clamp_(0, levels).mul_(top / levels)
    z = _dense(z)
    out = torch.empty_like(z)
    view, tops = _grouped(z, top)
    with _threads(z.numel()):
        quantise(view(z), view(out), tops, tops.dtype.type(levels))
    return out


def _level(z: torch.Tensor, top: torch.Tensor, levels: int) -> torch.Tensor:
    """``floor((L z + lambda / 2) / lambda)``, not yet clipped."""
    return (z * levels).add_(top * 0.5).div_(top).floor_()


@qcfs.register_fake
def _(z: torch.Tensor, ceiling: torch.Tensor, levels: int) -> torch.Tensor:
    return torch.empty_like(z)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, int], output: torch.Tensor) -> None:
    z, ceiling, ctx.levels = inputs
    ctx.save_for_backward(z, ceiling)


@torch.library.custom_op("transpike::qcfs_gradients", mutates_args=())
def _gradients(
    z: torch.Tensor, ceiling: torch.Tensor, grad: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:  # an operation too, so that compilers need not look inside
    top = guarded(ceiling)
    if not _on_cpu(z, top) or grad.dtype != z.dtype:
        return _plain_gradients(z, top, grad, levels)
    z = _dense(z)
    grad = grad if grad.stride() == z.stride() else torch.empty_like(z).copy_(grad)
    for_z, (view, tops) = torch.empty_like(z), _grouped(z, top)
    with _threads(z.numel()):
        sums = straight_through(view(z), view(grad), view(for_z), tops, tops.dtype.type(levels))
    return for_z, torch.from_numpy(sums.reshape(-1, top.numel()).sum(0)).to(ceiling.dtype).reshape(ceiling.shape)


@_gradients.register_fake
def _(z: torch.Tensor, ceiling: torch.Tensor, grad: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(z), torch.empty_like(ceiling)


def _plain_gradients(z: torch.Tensor, top: torch.Tensor, grad: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    n = _level(z, top, levels)
    above = n > levels
    inside = (n >= 0) & ~above
    slope = torch.where(inside, n / levels - z / top, above.to(z.dtype))
    return grad * inside, (grad * slope).sum_to_size(top.shape).to(top.dtype)


def _straight_through(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    z, ceiling = ctx.saved_tensors
    return (*_gradients(z, ceiling, grad, ctx.levels), None)


qcfs.register_autograd(_straight_through, setup_context=_save)


def _on_cpu(z: torch.Tensor, top: torch.Tensor) -> bool:
    return z.device.type == "cpu" and z.dtype in (torch.float32, torch.float64) and top.dtype == z.dtype


def _dense(z: torch.Tensor) -> torch.Tensor:
    """``z`` with its elements side by side in memory, in whatever order they are."""
    return z if torch.empty_like(z).stride() == z.stride() else z.contiguous()


def _grouped(z: torch.Tensor, top: torch.Tensor) -> tuple[Callable[[torch.Tensor], Any], Any]:
    """How the kernels see tensors laid out in memory as ``z``, and the ceilings they see.

    outer x groups x inner with a group for every ceiling; where the ceilings lie innermost rows x line, as many pixels in a line
    as make it long, and the ceilings again for each of them.
    """
    tops = top.detach().reshape(-1)
    order = sorted(range(z.dim()), key=lambda axis: -z.stride(axis))
    sizes = [z.shape[axis] for axis in order]
    at = max(1, len(sizes) - 2) if tops.numel() == 1 else order.index(z.dim() - top.dim())
    outer, inner = math.prod(sizes[:at]), math.prod(sizes[at:]) // tops.numel()
    shape = (outer, tops.numel(), inner)
    if inner == 1:
        pixels = math.gcd(outer, max(1, 1 << (_LINE // tops.numel()).bit_length()))
        shape, tops = (outer // pixels, -1), tops.repeat(pixels)
    return lambda x: x.detach().permute(order).reshape(shape).numpy(), tops.numpy()


@contextmanager
def _threads(elements: int) -> Iterator[None]:
    """As many threads as torch has, one where there is little to do."""
    before = get_num_threads()
    set_num_threads(max(1, min(before, torch.get_num_threads())) if elements >= _WORTH_THREADS else 1)
    try:
        yield
    finally:
        set_num_threads(before)

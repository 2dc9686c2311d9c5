"""How the units of a site lie in memory, and tensors as the arrays that kernels read."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["batch_first", "bits_of", "flat_array", "logical", "memory_order"]


def batch_first(x: torch.Tensor, axis: int, shape: tuple[int, ...]) -> torch.Tensor:
    """frames, *site; a batch axis that holds several rows per sample gives the site a leading axis."""
    return x.movedim(axis, 0).reshape(-1, *shape)


def memory_order(like: torch.Tensor, batch_axis: int, rank: int) -> tuple[int, ...]:
    """Axes of one sample of the site, outermost in memory first."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim())
    if last is not None and batch_axis == 0 and rank == like.dim() - 1 and like.is_contiguous(memory_format=last):
        return (*range(1, rank), 0)
    return tuple(range(rank))


def logical(flat: torch.Tensor, shape: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    """Rows of units in memory order as N *site, in the same memory; ``shape`` of the site, ``order`` as `memory_order`."""
    in_memory = flat.view(-1, *(shape[axis] for axis in order))
    return in_memory.permute(0, *(order.index(axis) + 1 for axis in range(len(order))))


def bits_of(x: torch.Tensor) -> Any:
    """bfloat16 as the integers of its bits, flat."""
    return x.view(torch.int16).view(-1).numpy()


def flat_array(x: torch.Tensor) -> Any:
    """All numbers of a tensor that lies without gaps, in order."""
    return x.view(-1).numpy()

"""Tensors with a batch axis: room for more samples, and what is left when some of them leave."""

from __future__ import annotations

import torch

__all__ = ["empty_like", "keep_samples", "rows_of"]


def empty_like(x: torch.Tensor, axis: int, rows: int) -> torch.Tensor:
    """An empty tensor with ``rows`` rows on ``axis``, laid out in memory as ``x`` is."""
    shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    return x.new_empty([shape[d] for d in order]).permute([order.index(d) for d in range(x.dim())])


def rows_of(samples: torch.Tensor, times: int) -> torch.Tensor:
    """The rows that belong to ``samples`` on an axis where each has ``times`` of them."""
    return (samples[:, None] * times + torch.arange(times, device=samples.device)).flatten()


def keep_samples(x: torch.Tensor, axis: int, kept: torch.Tensor, samples: int) -> torch.Tensor:
    """The samples numbered ``kept`` of the ``samples`` that share ``axis``."""
    rows = rows_of(kept.to(x.device), x.shape[axis] // samples)
    return empty_like(x, axis, len(rows)).copy_(x.index_select(axis, rows))

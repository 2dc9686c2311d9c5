"""What a neuron does in one step, and the combinator that keeps any other function's average exact.

Pure functions: state comes in and goes out. They are the reference that the fused kernels must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["differential", "parallel", "parallel_count", "step"]


def step(
    v: torch.Tensor,
    sent: torch.Tensor,
    current: torch.Tensor,
    threshold: torch.Tensor,
    cap: int | None = 1,
    signed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of the integrate-and-fire family with reset by subtraction.

    ``m = v + I;  s = clip(floor(m / theta), low, cap);  v' = m - theta s;  sent' = sent + s``
    with ``low = -sent`` for signed neurons and 0 otherwise. The next layer sees ``theta s``.

    Args:
        v: membrane potential, activation units, any shape.
        sent: spikes sent so far, net of those taken back; the shape of ``v``.
        current: the input of this step, activation units; the shape of ``v``.
        threshold: > 0, broadcasts against ``v``.
        cap: most spikes in one step, None for no limit. signed: may spikes be taken back?

    Returns:
        ``(s, v', sent')``; ``s`` is an integer number in the dtype of ``v``.

    Example:
        >>> import torch
        >>> v, sent = torch.tensor([0.5]), torch.zeros(1)
        >>> step(v, sent, torch.tensor([0.75]), torch.tensor(1.0))
        (tensor([1.]), tensor([0.2500]), tensor([1.]))

    Source: Bu et al. 2022 (arXiv:2303.04347) for cap 1, Wang et al. 2025 (arXiv:2412.16219) for bursts.
    """
    m = v + current
    if cap == 1 and not signed:
        s = (m >= threshold).to(v.dtype)
    else:
        s = torch.floor(m / threshold)
        s = torch.maximum(s, -sent) if signed else s.clamp(min=0)
        s = s if cap is None else s.clamp(max=cap)
    return s, m - threshold * s, sent + s


def parallel_count(
    total: torch.Tensor, v_init: torch.Tensor, threshold: torch.Tensor, steps: int, cap: int | None = 1
) -> torch.Tensor:
    """How many spikes a parallel neuron sends in ``steps`` steps: ``n = clip(floor((A + v(0)) / theta), 0, B T)``.

    Args:
        total: charge ``A`` of all steps together, activation units.
        v_init: initial potential ``v(0)``. threshold: > 0. Both broadcast against ``total``.
        cap: most spikes ``B`` in one step, None for no limit.
    """
    n = (total + v_init).div_(threshold).floor_()
    return n.clamp_(min=0, max=None if cap is None else cap * steps)


def parallel(count: torch.Tensor, steps: int, cap: int | None = 1, late: bool = False) -> torch.Tensor:
    """The sorted train of ``count`` spikes: ``s(t) = clip(n - B (t - 1), 0, B)`` at step t = 1..T.

    With B = 1 step t fires if at least t spikes are due: each step compares the whole charge with its own multiple
    of the threshold. ``late`` mirrors the train in time (the paper's order). Without a cap everything is sent at once.

    Args:
        count: spikes of all steps. N *site

    Returns:
        Spikes of every step. T N *site

    Source: Hao et al., ICML 2025 (arXiv:2412.13610); the authors' code sends early, their paper late.
    """
    if cap is None:
        train = torch.zeros(steps, *count.shape, dtype=count.dtype, device=count.device)
        train[0] = count
    else:
        before = cap * torch.arange(steps, dtype=count.dtype, device=count.device).view(-1, *[1] * count.dim())
        train = (count - before).clamp_(0, cap)
    return train.flip(0) if late else train


def differential(
    function: Callable[..., torch.Tensor],
    sums: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    before: torch.Tensor | None,
    t: int,
    homogeneous: bool = False,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
    """One step of ``y_t = t f(m_t) - (t-1) f(m_(t-1))``, where ``m_t`` is the mean of the inputs of steps 1..t.

    The mean of ``y`` over steps 1..t is exactly ``f(m_t)``, whatever ``f``. For a homogeneous function
    (``f(c x) = c f(x)``, c > 0) this is ``f(S_t) - f(S_(t-1))`` with the sums ``S_t``, free of divisions.

    Args:
        function: of as many tensors as ``inputs``.
        sums: sums of each input over steps 1..t-1. inputs: the inputs of step t. before: ``(t-1) f(m_(t-1))``.
        t: the step, from 1.

    Returns:
        ``(y_t, new sums, t f(m_t))``
    """
    sums = tuple(s + x for s, x in zip(sums, inputs, strict=True))
    total = function(*sums) if homogeneous else t * function(*(s / t for s in sums))
    return total if before is None else total - before, sums, total

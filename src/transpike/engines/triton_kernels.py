"""Fused neuron kernel for the GPU: all steps of a block of neurons while their state is in registers.

It computes what `transpike.spiking.neurons.step` defines, operation by operation: divisions are rounded as torch rounds them
and nothing is fused into multiply-add, so its spikes are identical. Written in Triton, which comes with torch for CUDA;
without it neurons go step by step.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false, reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

__all__ = ["fire"]

_BLOCK = 512  # neurons of a program


def fire(
    x: torch.Tensor,
    constant: torch.Tensor | None,
    v: torch.Tensor,
    sent: torch.Tensor,
    count: torch.Tensor,
    theta: torch.Tensor,
    worth: torch.Tensor,
    extra: torch.Tensor,
    steps: int,
    cap: int | None,
    signed: bool,
    bias: torch.Tensor | None = None,
    beside: torch.Tensor | None = None,
    each: torch.Tensor | None = None,
    spikes: torch.Tensor | None = None,
    counted: bool = False,
) -> None:
    """Currents ``x + bias + each beside`` become ``worth * spikes``; state is updated. One launch, nothing is waited for.

    Args:
        x: float32, or bfloat16 if spikes go elsewhere; steps x samples rows of units.
        constant: current of one step (samples, units) if it is the same at every step.
        v, sent, count: potential, net spikes and spikes of either sign (samples, units); ``sent`` is ``count`` for unsigned
            neurons and is not written then.
        theta, worth, extra: threshold, value of a spike and per-step current of each unit.
        cap: most spikes in a step, None for no limit.
        bias: of each unit, float32. beside: as many as ``x``, float32 or bfloat16. each: what one of them is worth, of each unit.
        spikes: room for what is emitted; None: the place of ``x``. counted: write the spikes there, not what they are worth.
    """
    neurons, units = v.numel(), v.shape[-1]
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, the tensors may be on another
        _fire[(triton.cdiv(neurons, _BLOCK),)](
            x,
            x if spikes is None else spikes,
            x if constant is None else constant,
            theta if bias is None else bias,
            x if beside is None else beside,
            theta if each is None else each,
            v,
            sent,
            count,
            theta,
            worth,
            extra,
            steps,
            neurons,
            units,
            math.inf if cap is None else float(cap),
            same=constant is not None,
            biased=bias is not None,
            joined=beside is not None,
            weighed=each is not None,
            counted=counted,
            signed=signed,
            single=cap == 1 and not signed,
            block=_BLOCK,
            enable_fp_fusion=False,
        )


@triton.jit
def _fire(
    x,
    out,
    constant,
    bias,
    beside,
    each,
    v,
    sent,
    count,
    theta,
    worth,
    extra,
    steps,
    neurons,
    units,
    cap,
    same: tl.constexpr,
    biased: tl.constexpr,
    joined: tl.constexpr,
    weighed: tl.constexpr,
    counted: tl.constexpr,
    signed: tl.constexpr,
    single: tl.constexpr,
    block: tl.constexpr,
):
    """One program: ``block`` neurons, counted through samples and units, for all steps."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = at < neurons
    unit = at % units
    limit = tl.load(theta + unit, mask=there, other=1.0)
    value = tl.load(worth + unit, mask=there, other=0.0)
    more = tl.load(extra + unit, mask=there, other=0.0)
    potential = tl.load(v + at, mask=there, other=0.0)
    total = tl.load(count + at, mask=there, other=0.0)
    net = tl.load(sent + at, mask=there, other=0.0)
    current = potential
    if same:
        current = tl.load(constant + at, mask=there, other=0.0)
    first = potential
    if biased:
        first = tl.load(bias + unit, mask=there, other=0.0)
    share = potential
    if weighed:
        share = tl.load(each + unit, mask=there, other=0.0)
    place = at
    for _ in range(steps):
        if not same:
            current = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        if biased:
            current = current + first
        if joined:
            other = tl.load(beside + place, mask=there, other=0.0).to(tl.float32)
            if weighed:
                other = share * other
            current = current + other
        m = potential + (current + more)
        if single:
            s = tl.where(m >= limit, 1.0, 0.0)
        else:
            low = -net if signed else tl.zeros_like(net)
            s = tl.minimum(tl.maximum(tl.floor(tl.div_rn(m, limit)), low), cap)
        if counted:
            tl.store(out + place, s.to(out.dtype.element_ty), mask=there)
        else:
            tl.store(out + place, value * s, mask=there)
        potential = m - limit * s
        total += tl.abs(s)
        net += s
        place += neurons
    tl.store(v + at, potential, mask=there)
    tl.store(count + at, total, mask=there)
    if signed:
        tl.store(sent + at, net, mask=there)

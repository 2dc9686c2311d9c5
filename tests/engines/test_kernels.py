"""The fused kernel equals the step function, operation by operation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transpike.engines.kernels import fire
from transpike.spiking.neurons import step

STEPS, SAMPLES, UNITS = 9, 3, 1500  # more units than one block


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cap", [1, 3, None])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_the_kernel_equals_the_step_function_bit_for_bit_on_real_data(dtype, cap, signed, constant):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x, drive = 2 * normal(STEPS, SAMPLES, UNITS), 2 * normal(SAMPLES, UNITS)
    theta, extra, v = normal(UNITS).abs() + 0.1, 0.1 * normal(UNITS), normal(SAMPLES, UNITS)
    sent, count = torch.randint(0, 4, (SAMPLES, UNITS), generator=generator).to(dtype), torch.zeros(SAMPLES, UNITS, dtype=dtype)

    wanted, v_ref, sent_ref, count_ref = [], v, sent, count
    for t in range(STEPS):
        s, v_ref, sent_ref = step(v_ref, sent_ref, (drive if constant else x[t]) + extra, theta, cap, signed)
        wanted.append(theta * s)
        count_ref = count_ref + s.abs()

    got, nothing = x.clone(), np.empty(0, x.numpy().dtype)
    state = {"v": v.clone(), "sent": sent.clone(), "count": count.clone()}
    fire(
        got.view(-1).numpy(),
        drive.view(-1).numpy() if constant else nothing,
        state["v"].view(-1).numpy(),
        state["sent"].view(-1).numpy() if signed else nothing,
        state["count"].view(-1).numpy(),
        theta.numpy(),
        theta.numpy(),
        extra.numpy(),
        STEPS,
        SAMPLES,
        UNITS,
        nothing.dtype.type(math.inf if cap is None else cap),
        signed,
    )
    assert torch.equal(got, torch.stack(wanted))
    assert torch.equal(state["v"], v_ref) and torch.equal(state["count"], count_ref)
    assert not signed or torch.equal(state["sent"], sent_ref)

"""The fused kernel equals the step function, operation by operation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transpike.engines.kernels import Halves, fire
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
        Halves(),
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


@pytest.mark.parametrize(("cap", "signed"), [(1, False), (3, False), (None, True)])
@pytest.mark.parametrize("counted", [False, True])
def test_currents_in_parts_give_the_spikes_of_their_sum_and_counts_are_exact(cap, signed, counted):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    sums, bias, beside = normal(STEPS, SAMPLES, UNITS).bfloat16(), normal(UNITS), normal(STEPS, SAMPLES, UNITS)
    others, worth = torch.randint(-2, 3, (STEPS, SAMPLES, UNITS), generator=generator), normal(UNITS).abs()
    theta = normal(UNITS).abs() + 0.1
    currents = sums.float() + bias + beside + worth * others

    v, sent, wanted = torch.zeros(SAMPLES, UNITS), torch.zeros(SAMPLES, UNITS), []
    for current in currents:
        s, v, sent = step(v, sent, current, theta, cap, signed)
        wanted.append(s)

    def bits(x: torch.Tensor) -> np.ndarray:
        return x.bfloat16().view(torch.int16).view(-1).numpy()

    numbers, room = torch.empty(0 if counted else wanted[0].numel() * STEPS), torch.empty(currents.shape, dtype=torch.bfloat16)
    parts = Halves(bits(sums), bias.numpy(), beside.view(-1).numpy(), bits(others), worth.numpy())
    parts = parts._replace(spikes=room.view(torch.int16).view(-1).numpy()) if counted else parts
    nothing, zeros = np.empty(0, np.float32), np.zeros(SAMPLES * UNITS, np.float32)
    fire(
        *(numbers.numpy(), nothing, parts, zeros, zeros.copy() if signed else nothing, zeros.copy(), theta.numpy()),
        *((torch.ones(UNITS) if counted else theta).numpy(), np.zeros(UNITS, np.float32), STEPS, SAMPLES, UNITS),
        *(np.float32(math.inf if cap is None else cap), signed),
    )
    if counted:
        assert torch.equal(room.float(), torch.stack(wanted).bfloat16().float())
    else:
        assert torch.equal(numbers.view(currents.shape), torch.stack(wanted) * theta)
    assert torch.equal(torch.from_numpy(zeros).view(v.shape), v)

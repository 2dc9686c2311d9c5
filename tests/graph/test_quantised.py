"""The quantising activation: closed form, properties P-QCFS-1, 3, 5, 6, gradients, layouts, export."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from transpike.graph.quantised import SMALLEST_CEILING, qcfs
from transpike.spiking.neurons import parallel_count


def by_hand(z: float, ceiling: float, levels: int) -> float:
    return ceiling * min(max(math.floor(z * levels / ceiling + 0.5) / levels, 0), 1)


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_equals_the_formula_on_numbers_that_are_exact(levels: int) -> None:
    z = torch.arange(-64, 256) / 32  # every tie among them
    wanted = torch.tensor([by_hand(float(x), 4.0, levels) for x in z])
    assert torch.equal(qcfs(z, torch.tensor(4.0), levels), wanted)


def test_floor_then_clip_is_clip_then_floor() -> None:
    z, top = torch.arange(-300, 900, dtype=torch.float64) / 64, 8.0
    clipped_first = torch.floor((z / top).clamp(0, 1) * 8 + 0.5) / 8 * top
    assert torch.equal(qcfs(z, torch.tensor(top, dtype=torch.float64), 8), clipped_first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [3, 4, 8])
def test_level_is_the_count_of_a_parallel_neuron_to_the_bit(dtype: torch.dtype, levels: int) -> None:
    torch.manual_seed(0)
    theta = torch.tensor(0.7, dtype=dtype)
    ties = (torch.arange(-5, 30, dtype=dtype) + 0.5) * theta / levels
    z = torch.cat([torch.randn(100_000, dtype=dtype), ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    count = parallel_count(z * levels, theta / 2, theta, levels)
    assert torch.equal(qcfs(z, theta, levels), count * (theta / levels))


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_gradients_are_straight_through_inside_and_the_ceilings_above(levels: int) -> None:
    top = 4.0
    half = top / (2 * levels)
    z = torch.linspace(-2, 8, 999, dtype=torch.float64)
    z = torch.cat([z, torch.tensor([-half, top + half], dtype=torch.float64)]).requires_grad_()
    inside = (z >= -half) & (z < top + half)
    for i in range(0, len(z), 37):
        ceiling = torch.tensor(top, dtype=torch.float64, requires_grad=True)
        h = qcfs(z, ceiling, levels)
        for_z, for_ceiling = torch.autograd.grad(h[i], (z, ceiling))
        assert torch.equal(for_z, torch.zeros_like(z).index_fill(0, torch.tensor(i), float(inside[i])))
        wanted = (h[i] - z[i]) / top if inside[i] else float(z[i] >= top + half)
        torch.testing.assert_close(for_ceiling, torch.as_tensor(wanted, dtype=torch.float64).detach(), rtol=0, atol=1e-12)
    for value, passed in ((-half, True), (top + half, False), (math.nextafter(-half, -math.inf), False)):
        x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        qcfs(x, torch.tensor(top, dtype=torch.float64), levels).sum().backward()
        assert x.grad is not None and bool(x.grad) is passed


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "slice", "expanded", "other gradient"])
def test_any_layout_of_memory_gives_the_same(layout: str) -> None:
    torch.manual_seed(1)
    base, grad = torch.randn(4, 6, 5, 7), torch.randn(4, 6, 5, 7)
    plain, ceiling = base.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
    qcfs(plain, ceiling, 4).backward(grad)
    z = base.contiguous(memory_format=torch.channels_last) if layout in ("channels last", "other gradient") else base
    if layout == "slice":
        z = torch.stack([base, -base], -1)[..., 0]
    if layout == "expanded":
        z = base[:1].expand(4, -1, -1, -1)
    z, other = z.requires_grad_(), torch.tensor(1.5, requires_grad=True)
    h = qcfs(z, other, 4)
    assert torch.equal(h, qcfs(base[:1].repeat(4, 1, 1, 1) if layout == "expanded" else base, ceiling, 4))
    h.backward(grad if layout != "channels last" else grad.contiguous(memory_format=torch.channels_last))
    if layout != "expanded":
        assert torch.equal(z.grad, plain.grad)
        torch.testing.assert_close(other.grad, ceiling.grad, rtol=1e-5, atol=1e-5)


def test_kernels_and_plain_torch_agree() -> None:
    torch.manual_seed(2)
    z, grad = torch.randn(50_000, requires_grad=True), torch.randn(50_000)
    ceiling = torch.tensor(1.3, requires_grad=True)
    fused = torch.autograd.grad(qcfs(z, ceiling, 8), (z, ceiling), grad)
    plain = torch.autograd.grad(qcfs(z, ceiling, 8), (z, ceiling), grad, create_graph=True)  # takes the way of other devices
    assert torch.equal(fused[0], plain[0])
    torch.testing.assert_close(fused[1], plain[1].detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 5, 7), (2, 6, 3, 5, 4), (20, 3, 6)])
@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_a_ceiling_for_every_channel_is_a_scalar_for_each(shape: tuple[int, ...], order: str) -> None:
    torch.manual_seed(3)
    axis = 2 if shape == (20, 3, 6) else 1
    z, grad = torch.randn(shape), torch.randn(shape)
    if order == "channels last":
        z = z.movedim(axis, -1).contiguous().movedim(-1, axis)
    z.requires_grad_()
    ceilings = (torch.rand(6) + 0.5).reshape(6, *[1] * (len(shape) - axis - 1)).requires_grad_()
    h = qcfs(z, ceilings, 4)
    for_z, for_ceilings = torch.autograd.grad(h, (z, ceilings), grad)
    for c in range(6):
        one = z.detach().select(axis, c).clone().requires_grad_()
        top = ceilings.detach().flatten()[c].clone().requires_grad_()
        alone = qcfs(one, top, 4)
        assert torch.equal(h.select(axis, c), alone)
        wanted, for_top = torch.autograd.grad(alone, (one, top), grad.select(axis, c))
        assert torch.equal(for_z.select(axis, c), wanted)
        torch.testing.assert_close(for_ceilings.flatten()[c], for_top, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_ceiling_that_learning_drove_below_zero_is_guarded_and_can_rise_again(value: float) -> None:
    ceiling = torch.tensor(value, requires_grad=True)
    h = qcfs(torch.tensor([-1.0, 0.5]), ceiling, 8)
    assert torch.isfinite(h).all() and h.max().item() == pytest.approx(SMALLEST_CEILING)
    (-h.sum()).backward()
    assert ceiling.grad is not None and float(ceiling.grad) < 0  # a step down the gradient raises it


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's own check
def test_is_an_operation_as_torch_wants_it() -> None:
    z, ceiling = torch.randn(3, 4, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    torch.library.opcheck(qcfs, (z, ceiling, 4))
    torch.library.opcheck(qcfs, (z, torch.rand(4, requires_grad=True), 4))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ceiling = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return qcfs(x, self.ceiling, 8)


def test_survives_export_as_one_node() -> None:
    program = torch.export.export(Layer(), (torch.randn(2, 3),), strict=False).run_decompositions({})
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == ["transpike.qcfs.default"]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("levels", [1, 2, 4, 8, 16])
def test_other_step_counts_have_no_bias_and_bounded_error(levels: int, steps: int) -> None:
    """P-QCFS-3: E[r_T - h_L] = 0 for uniform z (midpoints of 2 L T cells); P-QCFS-6: |r_T - h_L| <= theta/2 (1/T + 1/L)."""
    cells = 2 * levels * steps
    theta = torch.tensor(1.0, dtype=torch.float64)
    z = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    r = parallel_count(z * steps, theta / 2, theta, steps) / steps
    h = qcfs(z, theta, levels)
    assert abs(float((r - h).mean())) < 1e-15
    assert float((r - h).abs().max()) <= 0.5 * (1 / steps + 1 / levels) + 1e-12
    without_shift = (torch.floor(z * steps) / steps - torch.floor(z * levels) / levels).mean()
    assert float(without_shift) == pytest.approx(0.5 * (1 / levels - 1 / steps), abs=1e-12)


@pytest.mark.parametrize(("levels", "a", "steps"), [(4, 0.25, 2), (4, 0.75, 8), (8, 0.4, 16), (2, 0.5, 7)])
def test_the_matched_shift_nulls_the_bias(levels: int, a: float, steps: int) -> None:
    """P-QCFS-4: a_T = 1/2 + (a_L - 1/2) T / L."""
    matched = 0.5 + (a - 0.5) * steps / levels
    assert 0 <= matched <= 1
    z = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    one = torch.tensor(1.0, dtype=torch.float64)
    r = parallel_count(z * steps, matched * one, one, steps) / steps
    h = (torch.floor(z * levels + a) / levels).clamp(0, 1)
    assert abs(float((r - h).mean())) < 1e-5

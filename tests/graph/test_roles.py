"""The table of roles: what stands under linear is linear, what stands under homogeneous is so, all else is analog."""

from __future__ import annotations

import pytest
import torch

from transpike.graph import roles
from transpike.graph.interpret import function
from transpike.graph.ir import Role
from transpike.graph.quantised import QUANTISED
from transpike.graph.roles import AFFINE, HOMOGENEOUS, MAX_POOLS, NO_OPS, SYNAPSES, rectifier_ceiling, role_of


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KERNEL, IMAGE = _normal(4, 3, 3, 3), (2, 3, 6, 6)
CONSTANT = _normal(2, 3, 6, 6, seed=1)

# operation, shape of what varies, the other arguments
LINEAR = [
    ("aten.conv1d.default", (2, 3, 6), (_normal(4, 3, 3), _normal(4))),
    ("aten.conv2d.default", IMAGE, (KERNEL, _normal(4), [2, 2], [1, 1])),
    ("aten.conv3d.default", (2, 3, 4, 4, 4), (_normal(4, 3, 2, 2, 2), None)),
    ("aten.conv_transpose2d.input", IMAGE, (_normal(3, 4, 2, 2), _normal(4), [2, 2])),
    ("aten.linear.default", (2, 3), (_normal(5, 3), _normal(5))),
    ("aten.matmul.default", (2, 3), (_normal(3, 5),)),
    (AFFINE, IMAGE, (_normal(3), _normal(3, seed=1))),
    ("aten.add.Tensor", IMAGE, (CONSTANT,)),
    ("aten.sub.Tensor", IMAGE, (CONSTANT,)),
    ("aten.rsub.Scalar", IMAGE, (1.5,)),
    ("aten.neg.default", IMAGE, ()),
    ("aten.mul.Tensor", IMAGE, (CONSTANT,)),
    ("aten.div.Tensor", IMAGE, (CONSTANT,)),
    ("aten.sum.dim_IntList", IMAGE, ([1],)),
    ("aten.mean.dim", IMAGE, ([2, 3],)),
    ("aten.cumsum.default", IMAGE, (1,)),
    ("aten.avg_pool2d.default", IMAGE, ([3, 3], [2, 2], [1, 1])),
    ("aten.adaptive_avg_pool2d.default", IMAGE, ([2, 2],)),
    ("aten.pad.default", IMAGE, ([1, 1, 0, 2],)),
    ("aten.pad.default", IMAGE, ([1, 1, 0, 2], "constant", 2.0)),
    ("aten.reflection_pad2d.default", IMAGE, ([1, 1, 2, 2],)),
    ("aten.upsample_nearest2d.vec", IMAGE, (None, [2.0, 2.0])),
    ("aten.upsample_bilinear2d.vec", IMAGE, ([9, 9], False, None)),
    ("aten.upsample_bicubic2d.vec", IMAGE, ([9, 9], True, None)),
    ("aten.masked_fill.Scalar", IMAGE, (CONSTANT > 0, 3.0)),
    ("aten.permute.default", IMAGE, ([0, 2, 3, 1],)),
    ("aten.pixel_shuffle.default", (2, 4, 3, 3), (2,)),
    ("aten.roll.default", IMAGE, ([1], [2])),
    ("aten.gather.default", (2, 3), (1, torch.tensor([[0, 2], [1, 1]]))),
    ("aten.index.Tensor", IMAGE, ([None, torch.tensor([2, 0])],)),
    ("aten.flip.default", IMAGE, ([3],)),
    ("aten.repeat.default", IMAGE, ([1, 2, 1, 1],)),
]


@pytest.mark.parametrize(("op", "shape", "rest"), LINEAR, ids=[op for op, *_ in LINEAR])
def test_an_operation_called_linear_or_shape_passes_averages_over_time(op, shape, rest):
    assert role_of(op, {0}) in (Role.LINEAR, Role.SHAPE)
    steps = [_normal(*shape, seed=t) for t in range(5)]
    of_mean = function(op)(sum(steps) / 5, *rest)
    mean_of = sum(function(op)(x, *rest) for x in steps) / 5
    torch.testing.assert_close(of_mean, mean_of)


@pytest.mark.parametrize(
    ("op", "varying", "role"),
    [
        ("aten.add.Tensor", {0, 1}, Role.LINEAR),
        ("aten.cat.default", {0}, Role.LINEAR),
        ("aten.mul.Tensor", {0}, Role.LINEAR),
        ("aten.mul.Tensor", {1}, Role.LINEAR),
        ("aten.mul.Tensor", {0, 1}, Role.ANALOG),
        ("aten.matmul.default", {0, 1}, Role.ANALOG),
        ("aten.bmm.default", {1}, Role.LINEAR),
        ("aten.conv2d.default", {1}, Role.ANALOG),
        ("aten.div.Tensor", {1}, Role.ANALOG),
        ("aten.div.Tensor_mode", {0}, Role.ANALOG),
        ("aten.where.self", {1, 2}, Role.LINEAR),
        ("aten.where.self", {0, 1}, Role.ANALOG),
        ("aten.masked_fill.Scalar", {0, 1}, Role.ANALOG),
        ("aten.gather.default", {0, 2}, Role.ANALOG),
        ("aten.view.default", {0}, Role.SHAPE),
        ("aten.max_pool2d.default", {0}, Role.ANALOG),
        ("aten.softmax.int", {0}, Role.ANALOG),
        ("aten.an_operation_of_tomorrow.default", {0}, Role.ANALOG),
    ],
)
def test_the_role_depends_on_which_operands_vary(op, varying, role):
    assert role_of(op, varying) is role


@pytest.mark.parametrize(
    ("op", "options", "ceiling"),
    [
        ("aten.relu.default", [], None),
        ("aten.relu6.default", [], 6.0),
        ("aten.hardtanh.default", [0.0, 4.0], 4.0),
        ("aten.hardtanh.default", [], False),
        ("aten.clamp.default", [0, 0.5], 0.5),
        ("aten.clamp.default", [0.0, None], None),
        ("aten.clamp.default", [0.1, 0.5], False),
        ("aten.clamp.default", [None, 0.5], False),
        ("aten.clamp.default", [0, -1.0], False),
        ("aten.clamp_min.default", [0], None),
        ("aten.threshold.default", [0, 0], None),
        ("aten.threshold.default", [0.5, 0], False),
        ("aten.leaky_relu.default", [0.1], False),
    ],
)
def test_a_rectifier_is_zero_below_zero_and_its_ceiling_is_its_upper_clip(op, options, ceiling):
    assert rectifier_ceiling(op, options) is ceiling or rectifier_ceiling(op, options) == ceiling


HOMOGENEOUS_ARGUMENTS = {
    **{f"aten.max_pool{d}d": ([2],) for d in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{d}d": ([1] * d,) for d in (1, 2, 3)},
    **{f"aten.max_pool{d}d_with_indices": ([2],) for d in (2, 3)},
    **dict.fromkeys(["aten.amax", "aten.amin", "aten.max", "aten.min"], (1,)),
    "aten.leaky_relu": (0.1,),
    "aten.abs": (),
    "aten.maximum": ("another",),
    "aten.minimum": ("another",),
    "aten.linalg_vector_norm": (2, [1]),
}


@pytest.mark.parametrize("op", sorted(HOMOGENEOUS))
def test_what_is_called_homogeneous_grows_with_its_input(op):
    rank = next((int(d) for d in "123" if f"{d}d" in op), 2)
    x = _normal(2, 3, *[4] * rank)

    def call(scale: float) -> torch.Tensor:
        rest = [scale * _normal(*x.shape, seed=1) if arg == "another" else arg for arg in HOMOGENEOUS_ARGUMENTS[op]]
        result = function(op)(scale * x, *rest)
        return result if isinstance(result, torch.Tensor) else result[0]

    torch.testing.assert_close(call(3.0), 3.0 * call(1.0))


def test_every_name_in_the_tables_is_an_operation_of_this_torch():
    names = {*roles._LINEAR, *roles._SHAPE, *roles._RECTIFIERS, *NO_OPS, *MAX_POOLS, *HOMOGENEOUS, *SYNAPSES}
    unknown = [name for name in names - {AFFINE, QUANTISED, "getitem"} if not hasattr(torch.ops.aten, name.removeprefix("aten."))]
    assert unknown == []

"""The one table: what each ATen operation does to averages over time.

An operation that is not in the table is analog: the differential combinator makes it rate-exact. An operation
stands under LINEAR with the operands that may vary in time; where another operand varies too (a product of two
streams), the average of the results is not the result of the averages, and the operation is analog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transpike.graph.ir import Role
from transpike.graph.quantised import QUANTISED

__all__ = ["AFFINE", "BATCH_NORM", "HOMOGENEOUS", "MAX_POOLS", "NO_OPS", "SYNAPSES", "base_name", "rectifier_ceiling", "role_of"]

BATCH_NORM = "aten._native_batch_norm_legit_no_training"  # eval mode
AFFINE = "transpike.affine"  # x * scale + shift per channel (axis 1): batch norm that found nothing to fold into


@dataclass(frozen=True)
class _Linear:
    """``operands`` that may vary in time; ``together``: all of them at once (sums), else one (products)."""

    operands: tuple[int, ...] = (0,)
    together: bool = False


_FIRST = _Linear()  # linear in the first operand, the others are constants (weights, sizes)
_EITHER = _Linear(operands=(0, 1))  # linear in each operand separately
_JOINT = _Linear(operands=(0, 1), together=True)  # linear in all operands at once

_LINEAR: Mapping[str, _Linear] = {
    AFFINE: _FIRST,
    BATCH_NORM: _FIRST,
    # synapses
    **dict.fromkeys(["aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"], _FIRST),
    **dict.fromkeys(["aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"], _FIRST),
    "aten.linear": _FIRST,
    "aten.addmm": _Linear(operands=(1, 2)),
    **dict.fromkeys(["aten.mm", "aten.bmm", "aten.matmul"], _EITHER),
    # sums and means
    **dict.fromkeys(["aten.add", "aten.sub", "aten.rsub", "aten.neg", "aten.cat", "aten.stack"], _JOINT),
    **dict.fromkeys(["aten.sum", "aten.mean", "aten.cumsum"], _FIRST),
    **dict.fromkeys(["aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d"], _FIRST),
    **dict.fromkeys([f"aten.adaptive_avg_pool{d}d" for d in (1, 2, 3)], _FIRST),
    **dict.fromkeys([f"aten._adaptive_avg_pool{d}d" for d in (2, 3)], _FIRST),
    # scaling by a constant
    "aten.mul": _EITHER,
    "aten.div": _FIRST,
    # resizing and padding
    **dict.fromkeys(["aten.pad", "aten.constant_pad_nd"], _FIRST),
    **dict.fromkeys([f"aten.{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3)], _FIRST),
    **dict.fromkeys([f"aten.upsample_nearest{d}d" for d in (1, 2, 3)], _FIRST),
    **dict.fromkeys(["aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_trilinear3d"], _FIRST),
    **dict.fromkeys(["aten.upsample_bicubic2d", "aten._upsample_nearest_exact2d"], _FIRST),
    # constant masks
    "aten.masked_fill": _FIRST,
    "aten.where": _Linear(operands=(1, 2), together=True),
}

_SHAPE = frozenset(
    f"aten.{name}"
    for name in [
        "view",
        "reshape",
        "_unsafe_view",
        "view_as",
        "reshape_as",
        "permute",
        "transpose",
        "t",
        "swapaxes",
        "movedim",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
        "repeat",
        "tile",
        "slice",
        "select",
        "narrow",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "index",
        "index_select",
        "gather",
        "roll",
        "flip",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "slice_scatter",
        "select_scatter",
        "as_strided",
        "unfold",
        "im2col",
        "_to_copy",
        "to",
    ]
) | {"getitem"}

NO_OPS = frozenset(
    f"aten.{name}"
    for name in [
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "detach_",
        "lift_fresh_copy",
    ]
)

MAX_POOLS = frozenset([f"aten.max_pool{d}d" for d in (1, 2, 3)] + [f"aten.adaptive_max_pool{d}d" for d in (1, 2, 3)])

# f(c x) = c f(x) for c > 0 if x is everything they read: the differential combinator needs no division then, so dyadic
# data stays exact
HOMOGENEOUS = MAX_POOLS | frozenset(
    f"aten.{name}"
    for name in [
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "amax",
        "amin",
        "max",
        "min",
        "leaky_relu",
        "abs",
        "maximum",
        "minimum",
        "linalg_vector_norm",
    ]
)

SYNAPSES = frozenset(
    f"aten.{name}"
    for name in [
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "addmm",
        "mm",
        "bmm",
        "matmul",
    ]
)

_RECTIFIERS: Mapping[str, Callable[[list[Any]], float | bool | None]] = {
    # the upper clip (None: no clip), or False: not a rectifier
    "aten.relu": lambda a: None,
    "aten.relu6": lambda a: 6.0,
    "aten.hardtanh": lambda a: _clip(a[0] if a else -1.0, a[1] if len(a) > 1 else 1.0),
    "aten.clamp": lambda a: _clip(a[0] if a else None, a[1] if len(a) > 1 else None),
    "aten.clamp_min": lambda a: _clip(a[0], None),
    "aten.threshold": lambda a: None if a[:2] == [0, 0] else False,
    QUANTISED: lambda a: None,  # its ceiling is a parameter, which the site takes its value from
}


def _clip(low: Any, high: Any) -> float | bool | None:
    if not (isinstance(low, (int, float)) and low == 0):
        return False
    if high is None:
        return None
    return float(high) if isinstance(high, (int, float)) and high > 0 else False


def base_name(op: str) -> str:
    """``aten.conv2d.default`` without its overload."""
    return ".".join(op.split(".")[:2])


def rectifier_ceiling(op: str, options: list[Any]) -> float | bool | None:
    """The upper clip of a rectifier, None for a plain ReLU, False for anything that is not a rectifier.

    ``options`` are the arguments after the first, ``min`` and ``max`` in this order.
    """
    rule = _RECTIFIERS.get(base_name(op))
    return False if rule is None else rule(options)


def role_of(op: str, varying: set[int]) -> Role:
    """The role of ``op`` when the operands at the positions ``varying`` change in time."""
    name = base_name(op)
    if name in _SHAPE:
        return Role.SHAPE if varying <= {0} or name in ("aten.slice_scatter", "aten.select_scatter") else Role.ANALOG
    rule = _LINEAR.get(name)
    if rule is None or op.endswith("_mode"):  # div with a rounding mode is not linear
        return Role.ANALOG
    alone_or_joint = rule.together or len(varying) <= 1
    return Role.LINEAR if alone_or_joint and varying <= set(rule.operands) else Role.ANALOG

"""What an exported program says about one call, in our own words: name, place, shape and arguments.

Sizes that depend on the batch become `BatchSize`; a size that is no multiple of it is refused with ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import Node as FxNode

from transpike.graph.ir import BatchSize, DeviceSlot, Ref
from transpike.graph.roles import NO_OPS, base_name

__all__ = ["encode", "filled", "is_data", "is_floating", "is_random", "is_symbolic", "label", "module_path", "op_name", "shape_of"]

_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")


def is_symbolic(value: Any) -> bool:
    """Is it a size that export left open?"""
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def is_floating(value: Any) -> bool:
    """Is it real or complex? Several tensors are what each of them is."""
    return not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex()


def is_random(fx: FxNode, op: str) -> bool:
    """Would the same input give another result?"""
    if torch.Tag.nondeterministic_seeded not in getattr(fx.target, "tags", ()):
        return False
    if base_name(op) == "aten.scaled_dot_product_attention":
        return bool((fx.args[4] if len(fx.args) > 4 else fx.kwargs.get("dropout_p", 0.0)) != 0.0)
    if base_name(op) in _RECURRENT:  # (input, states, weights, biases, layers, dropout, train, ...)
        return fx.args[6] is not False
    return not (base_name(op) in NO_OPS and fx.args[-1] is False)  # dropout(x, p, train=False)


def filled(fx: FxNode, op: str) -> Any:
    """The value that ``new_full``, ``zeros_like`` and their kin fill a tensor with, None for other operations."""
    base = base_name(op)
    if base in ("aten.new_full", "aten.full_like"):
        return fx.args[-1]
    zeros, ones = ("zeros", "empty"), ("ones",)
    for value, kinds in ((0, zeros), (1, ones)):
        if base in {f"aten.new_{kind}" for kind in kinds} | {f"aten.{kind}_like" for kind in kinds}:
            return value
    return None


def is_data(fx: FxNode) -> bool:
    """Is the result a tensor or several, not a size or a check?"""
    return isinstance(fx.meta.get("val"), (torch.Tensor, tuple, list))


def op_name(fx: FxNode) -> str:
    """``aten.conv2d.default``, or the function's own name."""
    return str(fx.target) if isinstance(fx.target, torch._ops.OpOverload) else getattr(fx.target, "__name__", str(fx.target))


def module_path(fx: FxNode, wrapper: str = "") -> str:
    """The path of the innermost module that made the call, seen from the module at the path ``wrapper``."""
    stack = list((fx.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path.removeprefix(wrapper).removeprefix(".") if path == wrapper or path.startswith(f"{wrapper}.") else path


def label(fx: FxNode, wrapper: str = "") -> str:
    """What a call is named after: its activation module, or the calling module and the function."""
    stack = list((fx.meta.get("nn_module_stack") or {}).values())
    path, kind = module_path(fx, wrapper), stack[-1][1] if stack else ""
    if "torch.nn.modules.activation." in str(kind):
        return path
    return f"{path}.{_short(fx)}" if path else _short(fx)


def _short(fx: FxNode) -> str:
    return op_name(fx).split(".")[1] if "." in op_name(fx) else op_name(fx)


def _batch_multiple(size: Any) -> int | BatchSize:
    """A size as a number or a multiple of the batch."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if not symbols:
        return int(expression)
    if len(symbols) == 1:
        trials = [(n, expression.subs(symbols[0], n)) for n in (2, 3, 5, 12)]
        times = int(trials[0][1]) // 2
        if all(value == times * n for n, value in trials):
            return BatchSize(times)
    raise ValueError(f"the size {expression} is not a multiple of the batch")


def shape_of(value: Any) -> tuple[int | BatchSize, ...] | None:
    """A tensor's shape with `BatchSize` where the batch is, None for anything else.

    Raises:
        ValueError: a size that is no multiple of the batch, or the batch on two axes.
    """
    if not isinstance(value, torch.Tensor):
        return None
    shape = tuple(_batch_multiple(size) for size in value.shape)
    if sum(isinstance(size, BatchSize) for size in shape) > 1:
        raise ValueError(f"its result {list(value.shape)} has the batch on two axes: samples would influence each other")
    return shape


def encode(value: Any, names: Mapping[str, str]) -> Any:
    """An fx argument as literals, `Ref`, `BatchSize` and `DeviceSlot`."""
    if isinstance(value, FxNode):
        if is_symbolic(value.meta.get("val")):
            return _batch_multiple(value.meta["val"])
        return Ref(names.get(value.name, value.name))
    if isinstance(value, (torch.SymInt,)):
        return _batch_multiple(value)
    if isinstance(value, torch.device):
        return DeviceSlot()
    if isinstance(value, Mapping):
        return {key: encode(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [encode(item, names) for item in value]
    if isinstance(value, tuple):
        return tuple(encode(item, names) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [encode(item, names) for item in value]
    return value

"""A convolution or linear layer with its numbers, whatever its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from transpike.graph.interpret import function
from transpike.graph.ir import Node, Ref
from transpike.graph.roles import base_name

__all__ = ["Form"]

_CONVOLUTIONS = tuple(f"aten.conv{d}d" for d in (1, 2, 3))
_TRANSPOSED = tuple(f"aten.conv_transpose{d}d" for d in (1, 2, 3))


@dataclass(frozen=True, eq=False)
class Form:
    """A convolution or linear layer with its numbers."""

    node: Node
    weight: torch.Tensor
    bias: torch.Tensor | None

    @staticmethod
    def of(node: Node, params: Mapping[str, torch.Tensor]) -> Form | None:
        """The form of ``node``, None where weights or bias are not parameters or the operation is another."""
        name, args = base_name(node.op), node.args
        if name not in (*_CONVOLUTIONS, *_TRANSPOSED, "aten.linear") or node.kwargs or len(args) < 2:
            return None
        weight, bias = args[1], args[2] if len(args) > 2 else None
        fixed = all(isinstance(x, Ref) and x.name in params for x in (weight, bias) if x is not None)
        if not isinstance(args[0], Ref) or weight is None or not fixed:
            return None
        weight, bias = params[weight.name], None if bias is None else params[bias.name]
        return Form(node, weight.detach(), None if bias is None else bias.detach())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a frame; a transposed convolution's edges are counted too."""
        if base_name(self.node.op) not in _TRANSPOSED:
            return self.node.numel() * math.prod(self.weight.shape[1:])
        stride = self.node.args[3] if len(self.node.args) > 3 else 1
        apart = math.prod(stride) if isinstance(stride, (list, tuple)) else stride ** (self.weight.dim() - 2)
        return self.node.numel() * self.weight.numel() // self.weight.shape[1] // self.groups // apart

    @property
    def linear(self) -> bool:
        return base_name(self.node.op) == "aten.linear"

    @property
    def axis(self) -> int:
        """The axis of channels."""
        return -1 if self.linear else 1

    @property
    def groups(self) -> int:
        return int(self.node.args[6]) if len(self.node.args) > 6 else 1

    def folded(self, worth: torch.Tensor | None) -> torch.Tensor:
        """``W``, output channels first: [outputs, inputs of a group, ...]."""
        weight = self.weight
        if base_name(self.node.op) in _TRANSPOSED:  # is stored as [inputs, outputs of a group, ...]
            weight = _swapped(weight, self.groups)
        if worth is None:
            return weight
        by_group = worth.view(self.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (weight.unflatten(0, (self.groups, -1)) * by_group).flatten(0, 1)

    def call(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The operation without its bias on ``weight``, output channels first."""
        stored = _swapped(weight, self.groups) if base_name(self.node.op) in _TRANSPOSED else weight
        return function(self.node.op)(x, stored, None, *self.node.args[3:])

    def by_output(self, x: torch.Tensor) -> torch.Tensor:
        """One number for each output channel, ready to broadcast against the result."""
        return x if self.linear else x.view(-1, *[1] * (self.weight.dim() - 2))

    def windows(self) -> tuple[list[int], list[int], list[int]] | None:
        """Stride, padding and dilation of a convolution, None where oneDNN has no such operation."""
        dims = self.weight.dim() - 2
        options = [*self.node.args[3:6], *[None] * 3][:3]
        sizes = [default if x is None else x for x, default in zip(options, (1, 0, 1), strict=True)]
        if base_name(self.node.op) not in _CONVOLUTIONS or any(isinstance(x, str) for x in sizes):
            return None
        stride, padding, dilation = ([x] * dims if isinstance(x, int) else [*x, *x][:dims] for x in sizes)
        return stride, padding, dilation


def _swapped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[groups x a, b, ...] as [groups x b, a, ...]."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

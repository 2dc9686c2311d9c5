"""The event engine's synapses: which operations it can run, how their weights lie in memory, what running them costs.

A convolution or linear layer reads frames NHWC. An input pixel sends its events to rectangles of output pixels, one
`Synapse.patches` row for each: with stride 1 a single rectangle of kernel height x kernel width; a stride gives each phase
of the pixel grid its own, dilation and groups take the rectangle apart into columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from transpike.engines.event_kernels import currents
from transpike.engines.kernels import threads_for
from transpike.engines.vectors import LANES
from transpike.graph.ir import Graph, Node, Ref
from transpike.graph.roles import base_name

__all__ = ["Synapse", "frames_of"]

_BLOCK_BYTES = 640 << 10  # weights of the output channels that are computed together: they stay in the second-level cache

# what things cost, in vector operations of `LANES` numbers (AMD Zen 4, one core, both ways interleaved; benchmarks/speed.py)
_PIXEL, _LIT, _EVENT, _NEAR, _FAR, _EDGE, _DENSE = 14.0, 22.0, 3.0, 1.25, 2.1, 2.5, 1.15
_NEAR_BYTES = 24 << 10  # weights that stay in the first-level cache


@dataclass(frozen=True)
class Synapse:
    """One convolution or linear operation on frames of ``height`` x ``width`` pixels; a linear layer has one.

    Weights are kept as ``[block][patch][row][channel][columns x own]``, ``own`` output channels to a block.
    """

    weight: str  # parameter names
    bias: str | None
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @staticmethod
    def of(node: Node, graph: Graph) -> Synapse | None:
        """The synapse of ``node``, None if the event engine has no kernel for it."""
        name = base_name(node.op)
        source = node.args[0] if node.args and isinstance(node.args[0], Ref) else None
        values = {n.name: n for n in graph.nodes}
        before = values.get(source.name) if source is not None else None
        if before is None or node.batch_axis != 0 or before.batch_axis != 0 or node.batch_times != 1 or before.batch_times != 1:
            return None
        if not (len(node.args) > 1 and isinstance(node.args[1], Ref) and node.args[1].name in graph.params) or node.kwargs:
            return None
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None and not (isinstance(bias, Ref) and bias.name in graph.params):
            return None
        shape_in, shape_out = _sizes(before), _sizes(node)
        named = (node.args[1].name, None if bias is None else bias.name)
        if name == "aten.linear" and len(shape_in) == 1:
            return Synapse(*named, 1, 1, shape_in[0], 1, 1, shape_out[0], (1, 1), (1, 1), (0, 0), (1, 1), 1)
        dims = {"aten.conv1d": 1, "aten.conv2d": 2}.get(name)
        if dims is None or len(shape_in) != dims + 1:
            return None
        options = [*node.args[3:], *[None] * 4][:4]
        stride, padding, dilation = (_pair(x, default) for x, default in zip(options, (1, 0, 1), strict=False))
        if stride is None or padding is None or dilation is None:
            return None  # padding by name
        kernel = tuple(graph.params[named[0]].shape[2:])
        ins, outs = ((1, *shape[1:]) if dims == 1 else shape[1:] for shape in (shape_in, shape_out))
        kernel = (1, *kernel) if dims == 1 else kernel
        if dims == 1:
            stride, padding, dilation = (1, stride[1]), (0, padding[1]), (1, dilation[1])
        groups = 1 if options[3] is None else int(options[3])
        frames = (ins[0], ins[1], shape_in[0], outs[0], outs[1], shape_out[0])
        return Synapse(*named, *frames, (kernel[0], kernel[1]), stride, padding, dilation, groups)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, 0s included."""
        return self.out_height * self.out_width * self.out_channels * math.prod(self.kernel) * self.channels // self.groups

    @cached_property
    def own(self) -> int:
        """Output channels to a block."""
        if self.groups > 1:
            return self.out_channels
        whole = _padded(self.out_channels)
        row = 4 * math.prod(self.kernel) * self.channels
        return whole if whole * row <= 2 * _BLOCK_BYTES else max(LANES, _BLOCK_BYTES // row // LANES * LANES)

    @cached_property
    def blocks(self) -> int:
        return -(-self.out_channels // self.own)

    @cached_property
    def span(self) -> int:
        """Numbers that one tap of the kernel writes for one event."""
        return self.own if self.groups == 1 else _padded(self.out_channels // self.groups)

    @cached_property
    def _axes(self) -> tuple[_Axis, _Axis]:
        sizes = ((self.height, self.out_height), (self.width, self.out_width))
        y, x = (
            _Axis(size, out, self.kernel[i], self.stride[i], self.padding[i], self.dilation[i])
            for i, (size, out) in enumerate(sizes)
        )
        return y, x

    @cached_property
    def _pieces(self) -> list[list[tuple[int, int, list[int], int, list[int]]]]:
        """By phase: first row and column of each rectangle, the kernel's rows, the rows' distance, the kernel's columns."""
        y, x = self._axes
        found = []
        for a in range(self.stride[0]):
            for b in range(self.stride[1]):
                rows, columns = y.taps(a), x.taps(b)
                joined = x.distance == 1 and self.groups == 1
                sets = [columns] if joined and columns else [[column] for column in columns]
                found.append([(y.place(rows[0], a), x.place(c[0], b), rows, y.distance, c) for c in sets] if rows else [])
        return found

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
        """``geometry``, ``phases``, ``patches`` and ``shape`` for the kernels."""
        y, x = self._axes
        pitch, offset, patches, phases = x.size * self.own, 0, [], [0]
        for pieces in self._pieces:
            for top, left, rows, distance, columns in pieces:
                width = len(columns) * self.span
                patches.append((top, left, len(rows), distance * pitch, width, offset, self.channels * width))
                offset += len(rows) * self.channels * width
            phases.append(len(patches))
        geometry = (
            self.height, self.width, self.channels, self.groups, *self.stride, *self.padding, pitch, self.own,
            self.out_channels // self.groups, offset, x.reach,
        )  # fmt: skip
        shape = (y.size, x.size, self.own, self.blocks, self.out_height, self.out_width, self.out_channels, y.margin, x.margin)
        # a row more, so that an array without patches still has a type
        return np.array(geometry), np.array(phases), np.array([*patches, (0,) * 7]), shape

    def layout(self, params: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Weights and bias as the kernels read them, flat."""
        weight = params[self.weight].detach().float().reshape(self.out_channels, self.channels // self.groups, *self.kernel)
        padded = self.own * self.blocks
        full = torch.zeros(padded if self.groups == 1 else self.span * self.groups, *weight.shape[1:])
        if self.groups == 1:
            full[: self.out_channels] = weight
        else:  # [group][span] outputs; an event's row holds its own group's
            full.view(self.groups, self.span, *weight.shape[1:])[:, : self.out_channels // self.groups] = weight.view(
                self.groups, -1, *weight.shape[1:]
            )
        parts = []
        for block in range(self.blocks):
            some = full[block * self.own : (block + 1) * self.own] if self.groups == 1 else full
            for pieces in self._pieces:
                for _, _, rows, _, columns in pieces:
                    taps = some[:, :, rows][..., columns]  # outputs, channels of a group, rows, columns
                    if self.groups == 1:
                        parts.append(taps.permute(2, 1, 3, 0).reshape(-1))
                    else:
                        split = taps.reshape(self.groups, self.span, -1, len(rows), len(columns))
                        parts.append(split.permute(3, 0, 2, 4, 1).reshape(-1))
        flat = torch.cat(parts) if parts else torch.zeros(1)
        bias = torch.zeros(padded + LANES)
        if self.bias is not None:
            bias[: self.out_channels] = params[self.bias].detach().float()
        return flat.numpy(), bias.numpy()

    def event_cost(self, density: float) -> float:
        """Vector operations of one frame of which the share ``density`` is not 0."""
        pixels = self.height * self.width * self.groups * self.blocks
        events = self.channels / self.groups * density  # of a pixel
        lit = 1 - (1 - min(density, 1.0)) ** (self.channels // self.groups)
        taps = math.prod(self.kernel) / math.prod(self.stride) * self.span / LANES
        bytes_of = 4 * math.prod(self.kernel) * self.channels * self.own / self.groups
        near = _NEAR if bytes_of <= _NEAR_BYTES else _FAR
        pieces = sum(map(len, self._pieces)) / max(1, len(self._pieces))
        return pixels * (_PIXEL + lit * pieces * (_LIT + taps / pieces * _EDGE) + events * (_EVENT * pieces + taps * near))

    def dense_cost(self) -> float:
        """Vector operations of one frame, whatever it holds."""
        return _DENSE * self.macs / LANES

    def currents(self, x: torch.Tensor, weights: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        """The currents for frames ``x``, in the shape of the operation's result."""
        frames = len(x)
        out = torch.empty(frames, self.out_height * self.out_width * self.out_channels)
        geometry, phases, patches, shape = self.tables
        with threads_for(frames * self.height * self.width * self.channels):
            currents(frames_of(x), weights[0], weights[1], out.view(-1).numpy(), frames, geometry, phases, patches, shape)
        return self.logical(out, x.dim())

    def logical(self, flat: torch.Tensor, dims: int) -> torch.Tensor:
        """Frames NHWC as the operation's result: channels first, in the same memory."""
        if dims == 2:
            return flat.view(len(flat), self.out_channels)
        nhwc = flat.view(len(flat), self.out_height, self.out_width, self.out_channels)
        return nhwc.permute(0, 3, 1, 2) if dims == 4 else nhwc[:, 0].permute(0, 2, 1)


@dataclass(frozen=True)
class _Axis:
    """One axis of a convolution, with a margin around the outputs for what is sent beyond them."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def distance(self) -> int:
        """Outputs between two taps of the same phase."""
        return self.dilation // math.gcd(self.dilation, self.stride)

    @property
    def reach(self) -> int:
        """Outputs from the first to the last that an input meets."""
        return self.dilation * (self.kernel - 1) // self.stride + 1

    @property
    def margin(self) -> int:
        """Places before output 0."""
        return max(0, -((self.padding - self.dilation * (self.kernel - 1)) // self.stride))

    @property
    def size(self) -> int:
        """Places in all."""
        last = (self.inputs - 1 + self.padding) // self.stride
        return self.margin + max(self.outputs, last + 1)

    def taps(self, phase: int) -> list[int]:
        """Taps that an input of this phase meets, the one of the first output first."""
        return [k for k in reversed(range(self.kernel)) if (self.dilation * k - phase) % self.stride == 0]

    def place(self, tap: int, phase: int) -> int:
        """Where ``tap`` writes, counted from the place of the input's own phase."""
        return self.margin - (self.dilation * tap - phase) // self.stride


def frames_of(x: torch.Tensor) -> Any:
    """Frames flat in the order NHWC, without a copy where they lie so already."""
    last = x.movedim(1, -1) if x.dim() > 2 else x
    return last.contiguous().view(-1).numpy()


def _sizes(node: Node) -> tuple[int, ...]:
    return tuple(size for size in (node.shape or ())[1:] if isinstance(size, int))


def _pair(x: Any, default: int) -> tuple[int, int] | None:
    if x is None:
        return default, default
    if isinstance(x, int):
        return x, x
    if not isinstance(x, (list, tuple)) or not all(isinstance(i, int) for i in x):
        return None
    return (int(x[0]), int(x[-1]))


def _padded(count: int) -> int:
    return -(-count // LANES) * LANES

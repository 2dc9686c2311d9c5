"""The event engine's synapses: which operations it can run, how their weights lie in memory, what running them costs.

A convolution or linear layer reads frames NHWC. A line of outputs walks along the input columns. With stride and dilation 1
and a kernel of width 3, an input column meets three neighbouring outputs at once; else an output sees its columns, the taps,
one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from transpike.engines.emitted import Emitted, frames_of
from transpike.engines.event_arguments import Beside, Geometry, Neurons, Reading, Room
from transpike.engines.event_kernels import events, respond
from transpike.engines.event_vectors import NO_BITS, NOTHING, SHAPES
from transpike.engines.kernels import threads_for
from transpike.engines.vectors import LANES
from transpike.graph.ir import Graph, Node, Ref
from transpike.graph.roles import base_name

__all__ = ["Synapse", "Weights", "passing"]

_BLOCK_BYTES = LANES * 40 << 10  # weights that are computed together: they stay in the second-level cache
_NESTED_BYTES = LANES * 32 << 10  # weights of all blocks that do

# what things cost, in vector operations (about a cycle each), fitted to one core of an AMD Zen 3 over 23 shapes at 4 densities: an
# output pixel, a word, its first event, another beside its vectors; a vector of weights from the second-level cache; a number
# written or looked at; and a vector operation of the dense engine, and a number that it reads or writes, which is memory traffic
_PIXEL, _WORD, _LIT, _EVENT, _FAR, _STORE, _LOOK = 15.0, 31.0, 16.0, 3.2, 2.0, 2.2, 3.0
_DENSE, _MOVED = 1.1, 5.3
_NEAR_BYTES = 48 << 10  # weights that mostly stay in the first-level cache
_FEWEST = 4  # channels of a group that are worth looking at one by one
_USUAL = 0.15  # density that the shape of the work is chosen for


class Weights(NamedTuple):
    """A synapse's weights and bias as the kernels read them, flat.

    Args:
        folded: are they multiplied by what an event is worth?
    """

    rows: np.ndarray
    bias: np.ndarray
    folded: bool = False


@dataclass(frozen=True)
class Synapse:
    """One convolution or linear operation on frames of ``height`` x ``width`` pixels; a linear layer has one.

    Weights are kept as ``[group][block][tap][kernel row][channel][columns x vectors x LANES]``.
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
        if groups > 1 and shape_in[0] // groups < _FEWEST:
            return None  # depthwise: an event meets too few weights to pay for being found
        frames = (ins[0], ins[1], shape_in[0], outs[0], outs[1], shape_out[0])
        return Synapse(*named, *frames, (kernel[0], kernel[1]), stride, padding, dilation, groups)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, 0s included."""
        return self.out_height * self.out_width * self.out_channels * math.prod(self.kernel) * self.channels // self.groups

    @cached_property
    def _own(self) -> tuple[int, int]:
        """Channels that a group reads and that it writes."""
        return self.channels // self.groups, self.out_channels // self.groups

    @cached_property
    def columns(self) -> int:
        """Neighbouring output pixels that share an input column in registers."""
        walks = self.kernel[1] in SHAPES and self.stride[1] == 1 and self.dilation[1] == 1
        return self.kernel[1] if walks else 1

    @cached_property
    def vectors(self) -> int:
        """Vectors of output channels that are computed together, so that an event costs least."""
        needed, row = -(-self._own[1] // LANES), 4 * LANES * math.prod(self.kernel) * self._own[0]
        fit = [count for count in SHAPES[self.columns] if count * row <= _BLOCK_BYTES] or [1]
        return min(fit, key=lambda count: -(-needed // count) * self._pixel_cost(count, _USUAL))

    @cached_property
    def blocks(self) -> int:
        """Of a group, ``vectors`` each."""
        return -(-self._own[1] // (self.vectors * LANES))

    @cached_property
    def geometry(self) -> Geometry:
        """What the kernels need to know."""
        (own, _), (rows, wide), bank = self._own, self.kernel, self._bank
        taps = wide // self.columns
        return Geometry(
            self.height, self.width, self.channels, self.groups, self.out_height, self.out_width, self.out_channels,
            rows, self.stride[0], self.padding[0], self.dilation[0], self.padding[1],
            self.columns, self.vectors, self.blocks, taps, self.stride[1], self.dilation[1], bank // taps,
            self._words, self._packed, self.groups * -(-own // 8), bank, int(self._nested),
        )  # fmt: skip

    @cached_property
    def _nested(self) -> bool:
        """Do all blocks take a line in turn? Their weights stay in cache, and none has more vectors than channels but the last."""
        full = self.groups == 1 or self._own[1] % (self.vectors * LANES) == 0
        return full and self.groups * self.blocks * self._bank * 4 <= _NESTED_BYTES

    @cached_property
    def _bank(self) -> int:
        return math.prod(self.kernel) * self._own[0] * self.vectors * LANES

    @cached_property
    def _packed(self) -> int:
        """Rows of the kernel whose events share a word, 0 where a row needs several."""
        return min(self.kernel[0], 64 // self._own[0])

    @cached_property
    def _words(self) -> int:
        """Of an input column, all rows of the kernel."""
        return -(-self.kernel[0] // self._packed) if self._packed else self.kernel[0] * -(-self._own[0] // 64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where in the input each bit of a word lies, and of each word where its first bit lies there and in the weights.

        Twice: for inputs as they are, and for one number for each channel in their place.
        """
        return np.array([self._offsets(self.dilation[0] * self.width * self.channels), self._offsets(0)])

    def _offsets(self, pitch: int) -> list[int]:
        own, rows, row = self._own[0], self.kernel[0], self.columns * self.vectors * LANES
        if self._packed:
            bits = [i // own * pitch + i % own for i in range(64)]
            words = [(ky * pitch, ky * own * row) for ky in range(0, rows, self._packed)]
        else:
            bits, words = range(64), [(ky * pitch + c, (ky * own + c) * row) for ky in range(rows) for c in range(0, own, 64)]
        return [*bits, *(x for word in words for x in word)]

    def layout(self, params: Mapping[str, torch.Tensor]) -> Weights:
        """Weights and bias as the kernels read them, flat."""
        (ins, outs), padded, taps = self._own, self.blocks * self.vectors * LANES, self.kernel[1] // self.columns
        weight = params[self.weight].detach().float().reshape(self.groups, outs, ins, *self.kernel)
        full = torch.zeros(self.groups, padded, ins, *self.kernel)
        full[:, :outs] = weight if self.columns == 1 else weight.flip(-1)  # the leftmost output sees the last column
        split = full.view(self.groups * self.blocks, self.vectors * LANES, ins, self.kernel[0], taps, self.columns)
        bias = torch.zeros(self.groups, padded)
        if self.bias is not None:
            bias[:, :outs] = params[self.bias].detach().float().view(self.groups, outs)
        return Weights(split.permute(0, 4, 3, 2, 5, 1).reshape(-1).numpy(), bias.view(-1).numpy())

    def folded(self, weights: Weights, worth: np.ndarray, dtype: torch.dtype = torch.float32) -> Weights:
        """The weights times what an event of each channel is ``worth``, rounded to ``dtype``: then an event needs no product."""
        (own, _), row = self._own, self.columns * self.vectors * LANES
        split = weights.rows.reshape(self.groups, -1, own, row) * worth.reshape(self.groups, 1, own, 1)
        rounded = torch.from_numpy(split.reshape(-1)).to(dtype).float().numpy()
        return Weights(rounded, weights.bias, folded=True)

    def _pixel_cost(self, vectors: int, density: float) -> float:
        """Vector operations of ``vectors`` sums of an output pixel."""
        row, bits = self.columns * vectors, self._own[0] * self.kernel[0]  # of an input column
        near = 4 * LANES * vectors * self._own[0] * math.prod(self.kernel) <= _NEAR_BYTES
        event = max(_EVENT + row, 0.0 if near else _FAR * row)
        lit = self._words * (1 - (1 - density) ** (bits / self._words))
        column = self._words * _WORD + lit * _LIT + bits * density * event
        return _PIXEL + vectors * LANES * _STORE + self.kernel[1] // self.columns * column

    def event_cost(self, density: float, marked: bool = False) -> float:
        """Vector operations of one frame of which the share ``density`` is not 0; ``marked``: its bits are there already."""
        positions = self.out_height * (self.out_width + self.columns - 1) * self.blocks * self.groups
        looked = 0.0 if marked else self.height * self.width * self.channels * _LOOK
        return positions * self._pixel_cost(self.vectors, min(density, 1.0)) + looked

    def dense_cost(self) -> float:
        """Vector operations of one frame, whatever it holds."""
        moved = self.height * self.width * self.channels + self.out_height * self.out_width * self.out_channels
        return _DENSE * self.macs / LANES + _MOVED * moved

    def currents(self, x: torch.Tensor | Emitted, weights: Weights) -> torch.Tensor:
        """The currents for frames ``x``, in the shape of the operation's result."""
        frames = len(x)
        out = torch.empty(frames, self.out_height * self.out_width * self.out_channels)
        with threads_for(frames * self.height * self.width * self.channels):
            room = Room(out.view(-1).numpy())
            respond(self.read(x, weights), self.geometry, False, Beside(), room, Neurons(), 1, frames)
        return self.logical(out, x.dim())

    def read(self, x: torch.Tensor | Emitted, weights: Weights) -> Reading:
        """Frames ``x`` and weights for the kernels; bits are taken as they are where they fit."""
        own = (weights.rows, weights.folded, weights.bias, self.offsets)
        if isinstance(x, Emitted) and self.fits(x):
            known = len(x.by_channel) > 0
            return Reading(NOTHING if known else frames_of(x), x.bits, x.by_channel, *own)
        flat = frames_of(x)
        return Reading(flat, *events(flat, len(x), self.geometry), *own)

    def fits(self, x: Emitted) -> bool:
        """Can it read the bits as they are? Then each group's begin with a byte."""
        return self.groups == 1 or self._own[0] % 8 == 0

    @property
    def marks(self) -> bool:
        """Can neurons behind it emit bits? Then vectors end where pixels and groups do."""
        return self._own[1] % LANES == 0

    def logical(self, flat: torch.Tensor, dims: int) -> torch.Tensor:
        """Frames NHWC as the operation's result: channels first, in the same memory."""
        if dims == 2:
            return flat.view(len(flat), self.out_channels)
        nhwc = flat.view(len(flat), self.out_height, self.out_width, self.out_channels)
        return nhwc.permute(0, 3, 1, 2) if dims == 4 else nhwc[:, 0].permute(0, 2, 1)


def passing(height: int, width: int, channels: int) -> tuple[Reading, Geometry]:
    """What `respond` takes where there is no synapse: neurons whose currents come from elsewhere."""
    vectors = max(count for count in SHAPES[1] if count <= channels // LANES)
    blocks = -(-channels // (vectors * LANES))
    geometry = Geometry(
        height, width, channels, 1, height, width, channels, 0, 1, 0, 1, 0,
        1, vectors, blocks, 0, 1, 1, 0, 1, 0, channels // 8, 0, 1,
    )  # fmt: skip
    bias = np.zeros(blocks * vectors * LANES, np.float32)
    return Reading(NOTHING, NO_BITS, NOTHING, NOTHING, False, bias, np.zeros((2, 64), np.int64)), geometry


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

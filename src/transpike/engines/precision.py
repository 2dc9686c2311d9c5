"""What a synapse's arithmetic is: the number formats in which a convolution or linear layer multiplies and adds.

Whole spikes enter as they are: the synapse reads the counts ``s`` and its weights take in what a spike is worth,

    I_o = b_o + sum_c,k w_(o,c,k) (worth_c s_(c,k)) = b_o + sum_c,k W_(o,c,k) s_(c,k),    W = w worth

so only ``W`` is rounded. Membranes, thresholds, biases, the read-out layers and all other operations stay float32.

- bfloat16: ``W`` and what is no whole spike are rounded to 8 bits, products are summed in float32, the sum is rounded to
  bfloat16 before the bias comes to it (no library gives another result). Counts to 256 are exact. Neurons behind such a
  synapse take its sums as they are and hand counts in bfloat16 on: one pass over half the memory. Engine "auto" adds events
  up where they are cheaper: the same ``W``, whose sum stays in float32.
- int8: ``W = scale_o q`` with ``q = round(W / scale_o)``, ``scale_o = max |W_o| / 127``; the sum of ``q s`` is an exact integer.
  A synapse that reads anything else than whole spikes stays float32.

A processor without instructions for them gets the same numbers more slowly.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from transpike.engines.count_kernels import counts
from transpike.engines.emitted import Counted, Emitted
from transpike.engines.form import Form
from transpike.engines.worth import Spikes, by_channel, whole_spikes
from transpike.errors import SpecError
from transpike.graph.interpret import channels_last
from transpike.graph.ir import Graph, Node, Role
from transpike.graph.roles import SYNAPSES, base_name
from transpike.spiking.plan import Plan

__all__ = ["Arithmetic", "Bfloat16", "Float32", "Int8", "Sums", "arithmetic_of", "check_precision", "has_bfloat16", "label_of"]

PRECISIONS = ("float32", "bfloat16", "int8")

_LARGEST = 127  # of a weight, and of a count: two products of such numbers fit the 16 bits that older processors add them in
_BFLOAT16_SHARE = 0.6  # of a float32 layer's time, where bfloat16 is faster at all
_MIDDLE = 64  # stands for 0 where counts of either sign are written without one


def check_precision(precision: str, engine: str) -> None:
    """Raises `SpecError` if there is no such precision, or the engine has float32 alone."""
    if precision not in PRECISIONS:
        raise SpecError(f"there is no precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision != "float32" and engine in ("events", "counts"):
        why = "adds float32 weights" if engine == "events" else "passes means on, which are no whole spikes"
        raise SpecError(f"engine={engine!r} {why}: precision={precision!r} needs engine='dense' or 'auto'")


class Arithmetic(Protocol):
    """How one synapse makes currents. ``label`` says it in words, ``macs`` are multiply-accumulates of a frame."""

    @property
    def label(self) -> str: ...
    @property
    def macs(self) -> int: ...
    def currents(self, x: torch.Tensor) -> torch.Tensor: ...


def label_of(arithmetic: Arithmetic | None) -> str:
    """What a trace calls it; None is float32."""
    return "float32" if arithmetic is None else arithmetic.label


def arithmetic_of(graph: Graph, plan: Plan, precision: str, on_gpu: bool = False) -> dict[str, Arithmetic]:
    """The arithmetic of every synapse of the body, by node name; empty for float32, where nothing is to be decided.

    Args:
        on_gpu: in float32 too neurons shall take a layer's sums before its bias comes to them, one pass over memory less.

    Raises:
        SpecError: the network is not in single precision.
    """
    params = {**graph.params, **plan.params}
    synapses = [node for node in graph.body if node.role is Role.LINEAR and base_name(node.op) in SYNAPSES]
    if precision == "float32":
        forms = {node.name: Form.of(node, params) for node in synapses} if on_gpu else {}
        return {name: Sums(form) for name, form in forms.items() if form is not None and form.weight.dtype == torch.float32}
    if wrong := sorted({str(x.dtype) for x in params.values() if x.is_floating_point() and x.dtype != torch.float32}):
        raise SpecError(f"precision={precision!r} is for networks in float32, {graph.name} has {wrong[0]} weights: call .float()")
    spikes, driving = whole_spikes(graph, plan), _driving(graph)
    return {node.name: _chosen(node, params, spikes, driving, precision) for node in synapses}


def _chosen(
    node: Node, params: Mapping[str, torch.Tensor], spikes: Mapping[str, Spikes], driving: set[str], precision: str
) -> Arithmetic:
    form = Form.of(node, params)
    if form is None:
        return Float32(node, 0, f"{base_name(node.op)} of this form")
    if node.name not in driving:
        return Float32(node, form.macs, "behind all neurons")
    source = spikes.get(node.args[0].name)
    worth = None if source is None else by_channel(source.worth, form.axis)
    if precision == "bfloat16":
        return Bfloat16(form, worth)
    if source is None or worth is None:
        return Float32(node, form.macs, "reads no whole spikes")
    return Int8(form, worth, source.most)


def _driving(graph: Graph) -> set[str]:
    """What reaches a neuron, directly or not."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.role is Role.NEURON or node.name in found:
            found.update(node.refs())
    return found


@dataclass(frozen=True, eq=False)
class Float32:
    """Left as it was, and why."""

    node: Node
    macs: int
    why: str

    @property
    def label(self) -> str:
        return f"float32 ({self.why})"

    def currents(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the executor calls the operation itself")


class Sums:
    """Products in float32 as they are; who reads them may add the bias."""

    label, counting = "float32", False

    def __init__(self, form: Form) -> None:
        self._form, self.macs, self._weight = form, form.macs, channels_last(form.folded(None))

    @property
    def bias(self) -> torch.Tensor | None:
        """By output channel."""
        return self._form.bias

    def sums(self, x: torch.Tensor | Counted) -> torch.Tensor:
        """The operation's result for ``x`` without its bias."""
        return self._form.call(x.numbers() if isinstance(x, Counted) else x, self._weight)

    def currents(self, x: torch.Tensor | Counted) -> torch.Tensor:
        """The operation's result for ``x``."""
        sums = self.sums(x)
        return sums if self.bias is None else sums.add_(self._form.by_output(self.bias))


class Bfloat16:
    """Products of 8-bit significands, summed in float32. ``dense_share``: their time as a share of float32's."""

    def __init__(self, form: Form, worth: torch.Tensor | None) -> None:
        self._form, self._worth, self.macs = form, worth, form.macs
        self.label = "bfloat16" if worth is not None else "bfloat16 (inputs rounded)"
        self._dtype = torch.bfloat16 if has_bfloat16(form.weight.device.type) else torch.float32
        self._weight = channels_last(form.folded(worth).to(torch.bfloat16).to(self._dtype))
        self.dense_share = _BFLOAT16_SHARE if self._dtype == torch.bfloat16 else 1.0

    @property
    def bias(self) -> torch.Tensor | None:
        """By output channel; it is added in float32."""
        return self._form.bias

    @property
    def counting(self) -> bool:
        """Does it read whole spikes?"""
        return self._worth is not None

    def sums(self, x: torch.Tensor | Counted | Emitted) -> torch.Tensor:
        """The operation's result for ``x`` without its bias, in bfloat16."""
        if isinstance(x, Emitted):
            x = x.numbers() if x.several or not self.counting else Counted(x.halves(), x.worth)
        if isinstance(x, Counted):
            given = x.spikes.to(self._dtype) if self.counting else x.numbers().to(torch.bfloat16).to(self._dtype)
        else:
            given = x.to(torch.bfloat16).to(self._dtype) if self._worth is None else self._counts(x, self._worth)
        return self._form.call(given, self._weight).to(torch.bfloat16)

    def currents(self, x: torch.Tensor | Counted | Emitted) -> torch.Tensor:
        """The operation's result for ``x``, in float32."""
        sums = self.sums(x)
        return sums.float() if self.bias is None else sums + self._form.by_output(self.bias)

    def _counts(self, x: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
        return counts(x, worth, self._form.axis, torch.bfloat16).to(self._dtype)


class Int8:
    """Products of integers, summed exactly."""

    def __init__(self, form: Form, worth: torch.Tensor, most: int | None) -> None:
        self._form, self._worth, self._most = form, worth, most
        self.label, self.macs = "int8", form.macs
        weight = form.folded(worth)
        scale = weight.flatten(1).abs().amax(1) / _LARGEST
        self._scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        self._q = torch.round(weight / self._scale.view(-1, *[1] * (weight.dim() - 1)))
        self._reach = float(self._q.flatten(1).abs().sum(1).max())  # the largest sum for counts of 1
        self._packed: dict[int, torch.Tensor] = {}

    def currents(self, x: torch.Tensor) -> torch.Tensor:
        """The operation's result for ``x``, in float32."""
        fast = _has_int8(x.device.type) and (self._form.linear or self._form.windows() is not None)
        if fast and self._most is not None and self._most <= _LARGEST:
            return self._small(counts(x, self._worth, self._form.axis, torch.uint8), 0)
        s = counts(x, self._worth, self._form.axis, torch.float32)
        low, high = (0, self._most) if self._most is not None else (float(end) for end in s.aminmax())
        if fast and low >= 0 and high <= _LARGEST:
            return self._small(s.to(torch.uint8), 0)
        if fast and low >= -_MIDDLE and high < _MIDDLE:
            return self._small(s.add_(_MIDDLE).to(torch.uint8), _MIDDLE)
        return self._exact(s, max(-low, high))

    def _small(self, s: torch.Tensor, zero: int) -> torch.Tensor:
        """oneDNN's kernels for counts ``s - zero`` that are small enough."""
        form, nothing = self._form, torch.zeros(len(self._scale), dtype=torch.int32)
        if form.linear:
            if zero not in self._packed:
                self._packed[zero] = torch.ops.onednn.qlinear_prepack(self._q.to(torch.int8), None)
            rows = s.reshape(-1, s.shape[-1])
            y = torch.ops.onednn.qlinear_pointwise(
                *(rows, 1.0, zero, self._packed[zero], self._scale, nothing, form.bias, 1.0, 0, torch.float32, "none", [], "")
            )
            return y.view(*s.shape[:-1], -1)
        windows = form.windows()
        assert windows is not None
        if zero not in self._packed:
            self._packed[zero] = torch.ops.onednn.qconv_prepack(
                *(self._q.to(torch.int8), self._scale, 1.0, zero, *windows, form.groups, list(s.shape))
            )
        return torch.ops.onednn.qconv_pointwise(
            *(s, 1.0, zero, self._packed[zero], self._scale, nothing, form.bias, *windows, form.groups),
            *(1.0, 0, torch.float32, "none", [], ""),
        )

    def _exact(self, s: torch.Tensor, largest: float) -> torch.Tensor:
        """The same integers in floating point that holds their sums; other devices may sum them by ways that need rounding."""
        cpu = s.device.type == "cpu"
        holds = largest * self._reach < 2.0 ** (24 if cpu else 20) and largest <= 2**11
        dtype = torch.float32 if holds else torch.float64
        sums = self._form.call(s.to(dtype), self._q.to(dtype))
        y = (sums if cpu else sums.round_()).float() * self._form.by_output(self._scale)
        return y if self._form.bias is None else y.add_(self._form.by_output(self._form.bias))


@cache
def has_bfloat16(device: str) -> bool:
    """Does the processor multiply bfloat16 faster than float32?

    Tried once, in milliseconds, for its instructions do not tell: with AVX512_BF16 convolutions of 16, 32 and 64 channels take
    half the time on AMD Zen 4, and 1.6 to 1.9 times as long on Sapphire Rapids without its matrix tiles.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return device == "cpu" and any(ask is not None and ask() for ask in asks) and _seconds(torch.bfloat16) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of some convolutions of 32 channels."""
    x, weight = (torch.ones(shape, dtype=dtype) for shape in ((16, 32, 16, 16), (32, 32, 3, 3)))
    x, best = channels_last(x), math.inf
    with torch.no_grad():
        for _ in range(7):
            began = time.perf_counter()
            torch.conv2d(x, weight, padding=1)
            best = min(best, time.perf_counter() - began)
    return best


@cache
def _has_int8(device: str) -> bool:
    """Are there kernels for 8-bit counts and weights?"""
    ready = all(hasattr(torch.ops.onednn, name) for name in ("qconv_pointwise", "qlinear_pointwise"))
    return device == "cpu" and ready and platform.machine() in ("x86_64", "AMD64")

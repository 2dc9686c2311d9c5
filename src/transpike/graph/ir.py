"""The captured network as plain frozen data: no torch.fx, no user classes, nothing to pickle.

A `Graph` is a list of `Node` in execution order. Arguments of a node are Python literals, `Ref` to other
nodes or parameters, `BatchSize` (a multiple of the batch, known only at run time), or small tagged values.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["BatchSize", "DeviceSlot", "Graph", "Input", "Node", "Ref", "Role", "Site", "map_tree", "tree_refs"]


class Role(enum.Enum):
    """What an operation does to averages over time (design: roles)."""

    NEURON = "neuron"  # a rectifier: replaced by spiking neurons
    LINEAR = "linear"  # passes averages: runs on the spikes as it is
    SHAPE = "shape"  # moves values about: runs as it is
    ANALOG = "analog"  # anything else: the differential combinator keeps its average exact
    STEPWISE = "stepwise"  # max pooling of currents before a neuron, step by step: the paper's approximation


@dataclass(frozen=True)
class Ref:
    """The value of the node, input or parameter called ``name``."""

    name: str


@dataclass(frozen=True)
class BatchSize:
    """``times`` x the batch: samples in the constant prefix, steps x samples in the body."""

    times: int = 1


@dataclass(frozen=True)
class DeviceSlot:
    """Stands where the captured program named a device; the device of the run takes its place."""


@dataclass(frozen=True)
class Node:
    """One operation.

    ``shape`` is the shape of its result with `BatchSize` where the batch is (None: not one tensor).
    ``index`` picks one of several results. ``varying``: does it change from step to step in the spiking network?
    ``floating``: is the result real (or complex), not a mask or an index, which have no average?
    """

    name: str
    op: str  # "aten.conv2d.default"
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    role: Role
    shape: tuple[int | BatchSize, ...] | None
    path: str = ""  # the module that called it
    index: int | None = None
    varying: bool = True
    floating: bool = True

    @property
    def batch_axis(self) -> int | None:
        """The axis that carries the batch, None where there is none."""
        for axis, size in enumerate(self.shape or ()):
            if isinstance(size, BatchSize):
                return axis
        return None

    @property
    def batch_times(self) -> int:
        """How many rows of the batch axis belong to one sample."""
        axis = self.batch_axis
        size = self.shape[axis] if self.shape is not None and axis is not None else None
        return size.times if isinstance(size, BatchSize) else 1

    def numel(self) -> int:
        """Elements of the result for one sample."""
        return math.prod(size.times if isinstance(size, BatchSize) else size for size in self.shape or ())

    def refs(self) -> Iterator[str]:
        """Names of everything it reads, in order."""
        yield from tree_refs(self.args)
        yield from tree_refs(dict(self.kwargs))


@dataclass(frozen=True)
class Input:
    """One tensor that the network takes. ``key`` is its position or keyword, ``shape`` is for one sample.

    ``varying``: it is another at every step: frames N T ... in the place of N ... (`transpike.graph.streaming`).
    """

    name: str
    key: int | str
    shape: tuple[int, ...]
    dtype: torch.dtype
    varying: bool = False


@dataclass(frozen=True)
class Site:
    """A place where neurons sit: one call of a rectifier.

    ``shape`` is for one sample; ``channel_axis`` counts in it. ``ceiling`` is the upper clip (6 for ReLU6), one for all or
    one for every channel.
    ``levels``: a quantising activation has this many steps of ceiling / levels each (None: it is continuous).
    """

    name: str  # module path and ordinal: layer1.0.relu#2
    node: str
    shape: tuple[int, ...]
    channel_axis: int
    ceiling: float | tuple[float, ...] | None = None
    levels: int | None = None

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def units(self) -> int:
        return math.prod(self.shape)

    def channel_shape(self) -> tuple[int, ...]:
        """The shape in which a per-channel vector broadcasts against one sample."""
        return tuple(size if axis == self.channel_axis else 1 for axis, size in enumerate(self.shape))

    def clip(self, like: torch.Tensor) -> torch.Tensor | None:
        """The ceiling, where there is one, with the dtype and device of ``like``; broadcasts against samples."""
        if self.ceiling is None:
            return None
        clip = torch.tensor(self.ceiling, dtype=like.dtype, device=like.device)
        return clip if clip.dim() == 0 else clip.reshape(self.channel_shape())


@dataclass(frozen=True, eq=False)
class Graph:
    """A normalised network: ``prefix`` depends on the input alone, ``body`` on time.

    ``outputs`` is the user's own structure (tensor, tuple, list, dict) with `Ref` for tensors.
    """

    name: str
    inputs: tuple[Input, ...]
    prefix: tuple[Node, ...]
    body: tuple[Node, ...]
    outputs: Any
    sites: tuple[Site, ...]
    params: Mapping[str, torch.Tensor]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.prefix + self.body

    @property
    def streamed(self) -> tuple[str, ...]:
        """Names of the inputs that are others at every step."""
        return tuple(value.name for value in self.inputs if value.varying)

    @property
    def quantises(self) -> bool:
        """Has it quantising activations? (Sites are named by then.)"""
        return any(site.levels is not None for site in self.sites)

    def site(self, name: str) -> Site:
        """The site called ``name``."""
        return next(site for site in self.sites if site.name == name)

    def node(self, name: str) -> Node:
        """The node called ``name``."""
        return next(node for node in self.nodes if node.name == name)

    def with_params(self, params: Mapping[str, torch.Tensor]) -> Graph:
        """The same network with other tensors under the same names."""
        return replace(self, params=dict(params))


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``function`` to every leaf of nested tuples, lists and dicts, keeping their types."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tree(function, item) for item in tree)
    if isinstance(tree, dict):
        return type(tree)((key, map_tree(function, item)) for key, item in tree.items())
    return function(tree)


def tree_refs(tree: Any) -> Iterator[str]:
    """Names of every `Ref` in nested tuples, lists and dicts."""
    if isinstance(tree, Ref):
        yield tree.name
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tree_refs(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tree_refs(item)

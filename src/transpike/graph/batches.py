"""What a data loader yields, as the list of tensors that a graph takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from transpike.errors import DataError
from transpike.graph.ir import Graph

__all__ = ["Batches", "call_arguments", "check_frames", "checked_inputs", "example_of", "inputs_of", "peek", "target_of"]


def inputs_of(batch: Any, count: int = 1) -> list[torch.Tensor]:
    """The input tensors of a batch: a tensor, a dict, a tuple of ``count`` tensors, or a pair (input, target)."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return list(batch.values())[:count]
    if not isinstance(batch, Sequence) or not batch:
        raise DataError(f"a batch is a {type(batch).__name__}: give tensors or pairs (input, target)")
    if isinstance(batch[0], (Mapping, tuple, list)):
        return inputs_of(batch[0], count)
    found = list(batch[:count])
    if len(found) < count or not all(isinstance(x, torch.Tensor) for x in found):
        kinds = ", ".join(type(x).__name__ for x in batch)
        raise DataError(f"a batch holds ({kinds}), the network takes {count} input tensors: give tensors or pairs (input, target)")
    return found


def target_of(batch: Any, count: int = 1) -> Any:
    """What a batch gives besides the inputs, None where there is nothing."""
    if isinstance(batch, (torch.Tensor, Mapping)):
        return None
    position = 1 if isinstance(batch[0], (Mapping, tuple, list)) else count
    return batch[position] if len(batch) > position else None


def example_of(model: nn.Module, batch: Any) -> Any:
    """The inputs of a batch in the form that `capture` takes: a dict, or as many tensors as the model requires."""
    if isinstance(batch, dict):
        return batch
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (dict, tuple, list)):
        return batch[0]
    if not isinstance(model, nn.Module):
        return batch
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in inspect.signature(model.forward).parameters.values() if p.kind in positional and p.default is p.empty]
    return tuple(inputs_of(batch, max(1, len(required))))


def call_arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments with which ``model`` is called on a batch, on its device."""
    example, place = example_of(model, batch), next((p.device for p in model.parameters()), None)

    def moved(x: Any) -> Any:
        return x.to(place) if isinstance(x, torch.Tensor) else x

    if isinstance(example, Mapping):
        return (), {key: moved(x) for key, x in example.items()}
    return tuple(moved(x) for x in (example if isinstance(example, (tuple, list)) else (example,))), {}


def peek(batches: Any) -> tuple[Any, Any]:
    """The first batch, and batches that can be gone through again from the start.

    A tensor is one batch; an iterator, which can be gone through only once, is read into a list.

    Raises:
        DataError: there is no batch.
    """
    if isinstance(batches, torch.Tensor):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise DataError(f"the data is a {type(batches).__name__}: give an iterable of batches, such as a DataLoader or a list")
    if isinstance(batches, Iterator):
        batches = list(batches)
    for first in batches:
        return first, batches
    raise DataError("the data has no batch: the loader or list is empty")


class Batches:
    """Checked input tensors of every batch, again at each iteration; ``samples`` counts the last pass.

    Args:
        skip: so many samples at the beginning are left out.
    """

    def __init__(self, graph: Graph, batches: Any, *, skip: int = 0) -> None:
        self._graph, self._skip = graph, skip
        _, self._batches = peek(batches)
        self.samples = 0

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        self.samples, skip = 0, self._skip
        for batch in self._batches:
            inputs = checked_inputs(self._graph, inputs_of(batch, len(self._graph.inputs)))
            left_out = min(skip, len(inputs[0]))
            skip -= left_out
            if left_out < len(inputs[0]):
                self.samples += len(inputs[0]) - left_out
                yield [x[left_out:] for x in inputs] if left_out else inputs

    def after(self, skip: int) -> Batches:
        """The same data without their first ``skip`` samples."""
        return Batches(self._graph, self._batches, skip=self._skip + skip)

    def forever(self) -> Iterator[list[torch.Tensor]]:
        """Round and round."""
        while True:
            yield from self


def checked_inputs(graph: Graph, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The inputs, on the graph's device and in its dtype, if they fit.

    Raises:
        DataError: saying which input, what it is and what it should be.
    """
    if len(inputs) != len(graph.inputs):
        raise DataError(f"{graph.name} takes {len(graph.inputs)} inputs, got {len(inputs)}")
    device = next(iter(graph.params.values())).device if graph.params else inputs[0].device
    checked = []
    for value, x in zip(graph.inputs, inputs, strict=True):
        lead = 2 if value.varying else 1
        if x.dim() < lead or tuple(x.shape[lead:]) != value.shape or not all(x.shape[1:lead]):
            wanted = ", ".join(map(str, ("N", *["steps"] * (lead - 1), *value.shape)))
            raise DataError(
                f"input {value.key} has shape {tuple(x.shape)}, {graph.name} was captured for ({wanted}): "
                "resize the data, or capture again with an example of this shape"
            )
        if not len(x):
            raise DataError(f"input {value.key} is an empty batch: give at least one sample")
        if len(x) != len(inputs[0]):
            raise DataError(f"input {value.key} has {len(x)} samples, input {graph.inputs[0].key} has {len(inputs[0])}")
        if not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise DataError(
                f"input {value.key} is {kind}: scale it to what the network was trained on, and give it as {value.dtype}"
            )
        x = x.detach().to(device, value.dtype)
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"input {value.key} has NaN or infinite values: clean the data first")
        checked.append(x)
    return checked


def check_frames(graph: Graph, inputs: Sequence[torch.Tensor], steps: int) -> None:
    """Has every streamed input a frame for each step?

    Raises:
        DataError: fewer frames than steps.
    """
    for value, x in zip(graph.inputs, inputs, strict=True):
        if value.varying and x.shape[1] < steps:
            raise DataError(
                f"input {value.key} has {x.shape[1]} frames for {steps} steps: simulate {x.shape[1]} steps, or cut the recording "
                "into more frames"
            )

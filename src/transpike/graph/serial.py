"""A graph as JSON and back: what JSON lacks becomes ``{"$": tag, ...}``. The weights travel beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from transpike.errors import ArtifactError
from transpike.graph.ir import BatchSize, DeviceSlot, Graph, Input, Node, Ref, Role, Site

__all__ = ["from_header", "header"]


def header(graph: Graph) -> dict[str, Any]:
    """Everything of ``graph`` but its tensors, ready for JSON.

    Raises:
        ArtifactError: an argument of a kind that a file cannot keep.
    """
    return {
        "name": graph.name,
        "inputs": [_encode(_input(value)) for value in graph.inputs],
        "prefix": [_node(node) for node in graph.prefix],
        "body": [_node(node) for node in graph.body],
        "outputs": _encode(graph.outputs),
        "sites": [_site(site) for site in graph.sites],
    }


def from_header(data: Mapping[str, Any], params: Mapping[str, torch.Tensor]) -> Graph:
    """Inverse of `header`."""
    return Graph(
        data["name"],
        tuple(Input(**_decode(value)) for value in data["inputs"]),
        tuple(_read_node(node) for node in data["prefix"]),
        tuple(_read_node(node) for node in data["body"]),
        _decode(data["outputs"]),
        tuple(_read_site(site) for site in data["sites"]),
        params,
    )


def _input(value: Input) -> dict[str, Any]:
    """Without ``varying`` where it does not, as files had it before anything did."""
    return {key: x for key, x in dataclasses.asdict(value).items() if key != "varying" or x}


def _site(site: Site) -> dict[str, Any]:
    """Without ``levels`` where there are none, as files had it before there were any."""
    return {key: value for key, value in dataclasses.asdict(site).items() if key != "levels" or value is not None}


def _read_site(data: Mapping[str, Any]) -> Site:
    tuples: dict[str, Any] = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return Site(**{**data, **tuples})


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "args": _encode(node.args),
        "kwargs": _encode(dict(node.kwargs)),
        "role": node.role.value,
        "shape": _encode(node.shape),
        "path": node.path,
        "index": node.index,
        "varying": node.varying,
        "floating": node.floating,
    }


def _read_node(data: Mapping[str, Any]) -> Node:
    decoded = {key: _decode(data[key]) for key in ("args", "kwargs", "shape")}
    return Node(**{**data, **decoded, "role": Role(data["role"])})


def _encode(value: Any) -> Any:
    """Anything that stands in a graph as JSON; what JSON lacks becomes ``{"$": tag, ...}``."""
    if isinstance(value, Ref):
        return {"$": "ref", "v": value.name}
    if isinstance(value, BatchSize):
        return {"$": "batch", "v": value.times}
    if isinstance(value, DeviceSlot):
        return {"$": "device"}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"$": "torch", "v": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"$": "tuple", "v": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"$": "dict", "v": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$": "float", "v": str(value)}
    if isinstance(value, complex):
        return {"$": "complex", "v": [value.real, value.imag]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ArtifactError(f"the graph holds a {type(value).__name__}, which a file cannot keep: please report the network")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag: str = value["$"]
    content: Any = value.get("v")
    if tag == "ref":
        return Ref(content)
    if tag == "batch":
        return BatchSize(content)
    if tag == "device":
        return DeviceSlot()
    if tag == "torch":
        return getattr(torch, content)
    if tag == "tuple":
        return tuple(_decode(item) for item in content)
    if tag == "dict":
        return {_decode(key): _decode(item) for key, item in content}
    return float(content) if tag == "float" else complex(*content)

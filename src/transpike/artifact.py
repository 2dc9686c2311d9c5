"""A converted network in one file: graph and plan as JSON, tensors as safetensors. No pickle, no user classes.

The checksum covers names, numbers and structure, so a file that was cut short or changed is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transpike.errors import ArtifactError
from transpike.graph.ir import BatchSize, DeviceSlot, Graph, Input, Node, Ref, Role, Site
from transpike.network import SpikingNetwork
from transpike.spiking.plan import Plan, versions
from transpike.spiking.store import read_tensors, write_tensors

__all__ = ["load", "save"]

_KIND = "spiking network"
_FORMAT = 1


def save(net: SpikingNetwork, path: Path | str) -> Path:
    """Write ``net`` to ``path``, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    graph = net.graph
    header = {
        "kind": _KIND,
        "format": _FORMAT,
        "versions": versions(),
        "name": graph.name,
        "inputs": [_encode(dataclasses.asdict(value)) for value in graph.inputs],
        "prefix": [_node(node) for node in graph.prefix],
        "body": [_node(node) for node in graph.body],
        "outputs": _encode(graph.outputs),
        "sites": [dataclasses.asdict(site) for site in graph.sites],
        "plan": net.plan.header(),
        "run": {"steps": net.steps, "start": net.start, "engine": net.engine, "max_memory": net.max_memory},
    }
    tensors = {f"weight/{name}": x for name, x in graph.params.items()}
    tensors.update((f"plan/{name}", x) for name, x in net.plan.tensors().items())
    return write_tensors(path, tensors, header)


def load(path: Path | str) -> SpikingNetwork:
    """Read a network that `SpikingNetwork.save` wrote; it gives bit-identical outputs on the same machine.

    Raises:
        ArtifactError: missing, truncated, changed, or of a newer format.
    """
    tensors, header = read_tensors(path, _KIND)
    if header.get("format") != _FORMAT:
        raise ArtifactError(f"{path} has format {header.get('format')}, this version reads {_FORMAT}: upgrade transpike")
    weights = {name.removeprefix("weight/"): x for name, x in tensors.items() if name.startswith("weight/")}
    numbers = {name.removeprefix("plan/"): x for name, x in tensors.items() if name.startswith("plan/")}
    graph = Graph(
        header["name"],
        tuple(Input(**{**_decode(value), "shape": tuple(_decode(value)["shape"])}) for value in header["inputs"]),
        tuple(_read_node(node) for node in header["prefix"]),
        tuple(_read_node(node) for node in header["body"]),
        _decode(header["outputs"]),
        tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in header["sites"]),
        weights,
    )
    return SpikingNetwork(graph, Plan.from_header(header["plan"], numbers), **header["run"])


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

"""Batch norm in eval mode is ``y = g x + h`` per channel: fold it into a neighbouring synapse where algebra allows.

``g = gamma / sqrt(var + eps)``, ``h = beta - g mean``.
Behind a synapse: ``W' = g W``, ``b' = g b + h``. Before one (linear, or convolution without padding):
``W' = W g``, ``b' = b + W h``. Where neither holds it stays a linear operation of its own (`AFFINE`).
Computed in float64, stored in the weights' dtype.

A network with quantising activations is captured with its batch norms as torch computes them: another rounding, of 1e-7, moves
about one activation in a million to the next level, and then parallel neurons are no longer the trained network to the bit.
Other neurons promise no bits, so `transpike.build` folds for them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from transpike.graph.ir import Graph, Node, Ref, tree_refs
from transpike.graph.roles import AFFINE, BATCH_NORM, base_name

__all__ = ["lower_batch_norm"]

_CONVS = {f"aten.conv{d}d": d for d in (1, 2, 3)}
_TRANSPOSED = {f"aten.conv_transpose{d}d": d for d in (1, 2, 3)}


def lower_batch_norm(graph: Graph) -> Graph:
    """Fold every batch norm of the body or leave it as `AFFINE`."""
    nodes = {node.name: node for node in graph.body}
    params = dict(graph.params)
    count = Counter(name for node in graph.nodes for name in node.refs())
    count.update(tree_refs(graph.outputs))
    for name in list(nodes):
        node = nodes[name]
        if base_name(node.op) != BATCH_NORM:
            continue
        scale, shift = _scale_and_shift(node, params)
        source = nodes.get(node.args[0].name)
        if source is not None and count[source.name] == 1 and _foldable_behind(source, params):
            synapse = _fold_behind(source, scale, shift, params, count)
            nodes[name] = replace(synapse, name=name, shape=node.shape)
            del nodes[source.name]
            count[source.name] = 0
        else:
            nodes[name] = _affine(node, scale, shift, params)
    for name, node in list(nodes.items()):
        if node.op == AFFINE:
            readers = [n for n in nodes.values() if name in n.refs()]
            if name not in set(tree_refs(graph.outputs)) and readers and all(_foldable_before(r, node, params) for r in readers):
                scale, shift = params[node.args[1].name].double(), params[node.args[2].name].double()
                for reader in readers:
                    nodes[reader.name] = _fold_before(reader, node, scale, shift, params, count)
                del nodes[name]
    order = [n.name for n in graph.body]
    body = tuple(nodes[name] for name in order if name in nodes)
    return replace(graph, body=body, params=params)


def _scale_and_shift(node: Node, params: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    _, gamma, beta, mean, var = (
        params[a.name].double() if isinstance(a, Ref) and a.name in params else None for a in node.args[:5]
    )
    assert mean is not None and var is not None, "batch norm without running statistics is refused at capture"
    scale = (1.0 if gamma is None else gamma) / torch.sqrt(var + node.args[6])
    shift = -scale * mean if beta is None else beta - scale * mean
    return scale, shift


def _synapse(node: Node, params: dict[str, torch.Tensor]) -> tuple[str, str | None] | None:
    """Names of weight and bias of a convolution or linear layer whose weight is a parameter."""
    if base_name(node.op) not in {*_CONVS, *_TRANSPOSED, "aten.linear"}:
        return None
    weight = node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    if not isinstance(weight, Ref) or weight.name not in params:
        return None
    if bias is not None and not (isinstance(bias, Ref) and bias.name in params):
        return None
    return weight.name, None if bias is None else bias.name


def _foldable_behind(source: Node, params: dict[str, torch.Tensor]) -> bool:
    if _synapse(source, params) is None:
        return False
    return base_name(source.op) != "aten.linear" or len(source.shape or ()) == 2  # channels on axis 1 only then


def _foldable_before(reader: Node, affine: Node, params: dict[str, torch.Tensor]) -> bool:
    if _synapse(reader, params) is None or reader.args[0] != affine_ref(affine) or tuple(reader.refs()).count(affine.name) != 1:
        return False
    op = base_name(reader.op)
    if op == "aten.linear":
        return len(affine.shape or ()) == 2
    if op not in _CONVS:
        return False
    padding = reader.args[4] if len(reader.args) > 4 else 0
    return padding == 0 or (isinstance(padding, (list, tuple)) and all(p == 0 for p in padding)) or padding == "valid"


def affine_ref(affine: Node) -> Ref:
    return Ref(affine.name)


def _fold_behind(
    source: Node, scale: torch.Tensor, shift: torch.Tensor, params: dict[str, torch.Tensor], count: Counter[str]
) -> Node:
    names = _synapse(source, params)
    assert names is not None
    weight = params[names[0]].double()
    bias = torch.zeros_like(scale) if names[1] is None else params[names[1]].double()
    op = base_name(source.op)
    if op in _TRANSPOSED:
        groups = source.args[6] if len(source.args) > 6 else 1
        grouped = weight.unflatten(0, (groups, -1))  # g, in/g, out/g, k...
        factor = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (grouped * factor).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return _rewrite(source, names, weight, scale * bias + shift, params, count)


def _fold_before(
    reader: Node, affine: Node, scale: torch.Tensor, shift: torch.Tensor, params: dict[str, torch.Tensor], count: Counter[str]
) -> Node:
    names = _synapse(reader, params)
    assert names is not None
    weight = params[names[0]].double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64) if names[1] is None else params[names[1]].double()
    groups = reader.args[6] if base_name(reader.op) in _CONVS and len(reader.args) > 6 else 1
    grouped = weight.unflatten(0, (groups, -1))  # g, out/g, in/g, k...
    tail = [1] * (weight.dim() - 2)
    by_input = (grouped * scale.view(groups, 1, -1, *tail)).flatten(0, 1)
    constant = (grouped * shift.view(groups, 1, -1, *tail)).flatten(0, 1).flatten(1).sum(1)
    reader = replace(reader, args=(affine.args[0], *reader.args[1:]))
    return _rewrite(reader, names, by_input, bias + constant, params, count)


def _rewrite(
    node: Node,
    names: tuple[str, str | None],
    weight: torch.Tensor,
    bias: torch.Tensor,
    params: dict[str, torch.Tensor],
    count: Counter[str],
) -> Node:
    """The synapse with new numbers; a shared weight gets a name of its own, so that other users keep theirs."""
    old_weight, old_bias = names
    dtype = params[old_weight].dtype
    new_bias = old_bias or f"{old_weight.removesuffix('.weight')}.bias"
    new_weight = _own(old_weight, params, count, replacing=True)
    new_bias = _own(new_bias, params, count, replacing=old_bias is not None)
    params[new_weight], params[new_bias] = weight.to(dtype), bias.to(dtype)
    rest: tuple[Any, ...] = node.args[3:]
    return replace(node, args=(node.args[0], Ref(new_weight), Ref(new_bias), *rest))


def _own(name: str, params: dict[str, torch.Tensor], count: Counter[str], *, replacing: bool) -> str:
    """``name`` if nobody else reads it, else ``name@2``, ``name@3``, ..."""
    if name not in params or (replacing and count[name] <= 1):
        count[name] = max(count[name], 1)
        return name
    count[name] -= 1 if replacing else 0
    number = 2
    while f"{name}@{number}" in params:
        number += 1
    count[f"{name}@{number}"] = 1
    return f"{name}@{number}"


def _affine(node: Node, scale: torch.Tensor, shift: torch.Tensor, params: dict[str, torch.Tensor]) -> Node:
    mean = node.args[3]
    dtype = params[mean.name].dtype
    stem = mean.name.removesuffix(".running_mean")
    params[f"{stem}.scale:{node.name}"], params[f"{stem}.shift:{node.name}"] = scale.to(dtype), shift.to(dtype)
    args = (node.args[0], Ref(f"{stem}.scale:{node.name}"), Ref(f"{stem}.shift:{node.name}"))
    return replace(node, op=AFFINE, args=args, kwargs={}, index=None)

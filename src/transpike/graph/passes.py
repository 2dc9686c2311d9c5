"""Pure functions from graph to graph: what capture leaves is brought to the one form that all else relies on.

1. drop operations that do nothing, compute what depends on parameters alone; 2. fold batch norm into its neighbour
(of a network that quantises on request, `folded`);
3. place max pooling; 4. split what depends on the input alone (prefix) from what varies in time (body), give roles, name the sites.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transpike.graph.constants import compute_constants
from transpike.graph.fold import lower_batch_norm
from transpike.graph.ir import BatchSize, Graph, Node, Ref, Role, Site, map_tree, tree_refs
from transpike.graph.quantised import QUANTISED, guarded
from transpike.graph.roles import AFFINE, BATCH_NORM, MAX_POOLS, NO_OPS, base_name, rectifier_ceiling, role_of

_VIEWS = ("aten.view", "aten._unsafe_view")

__all__ = ["Pooling", "channel_axes", "folded", "normalise", "spike_gates"]


class Pooling(enum.Enum):
    """Where max pooling stands.

    RATE: where the user put it, on running means: exact in the limit, and on spikes a gate that passes spikes on.
    CURRENT: before the neuron, on each step's currents (the papers' form; biased upwards in deep layers).
    Where the current is constant both agree, and pooling always moves before the neuron, into the prefix.
    """

    RATE = "rate"
    CURRENT = "current"


def normalise(graph: Graph, pooling: Pooling | None) -> Graph:
    """All passes in order; without a word on pooling neurons stay where their rectifiers are."""
    graph = drop_no_ops(graph)
    graph = drop_unused(compute_constants(pick_results(graph)))
    graph = graph if any(base_name(node.op) == QUANTISED for node in graph.body) else lower_batch_norm(graph)
    graph = graph if pooling is None else place_pooling(graph, pooling)
    return split_and_name(drop_unused(graph))


def folded(graph: Graph) -> Graph:
    """A normalised network that quantises, with its batch norms folded: the same function but for rounding."""
    if not graph.quantises:
        return graph
    graph = lower_batch_norm(graph)
    needed = {name for node in graph.nodes for name in node.refs()} | set(tree_refs(graph.outputs))
    return graph.with_params({name: tensor for name, tensor in graph.params.items() if name in needed})


def users(nodes: Sequence[Node], outputs: Any = None) -> Counter[str]:
    """How often each value is read; reading by the caller counts too."""
    count = Counter(name for node in nodes for name in node.refs())
    count.update(tree_refs(outputs))
    return count


def rename(nodes: Sequence[Node], names: Mapping[str, str]) -> tuple[Node, ...]:
    """Point every reference to the names' final replacements."""

    def final(leaf: Any) -> Any:
        while isinstance(leaf, Ref) and leaf.name in names:
            leaf = Ref(names[leaf.name])
        return leaf

    return tuple(replace(n, args=map_tree(final, n.args), kwargs=map_tree(final, dict(n.kwargs))) for n in nodes)


def drop_no_ops(graph: Graph) -> Graph:
    """Remove dropout (eval), contiguous, clone and the like."""
    names: dict[str, str] = {}
    kept = []
    quantised = {node.name for node in graph.body if base_name(node.op) == QUANTISED}
    for node in graph.body:
        first = node.args[0] if node.args else None
        if base_name(node.op) in NO_OPS and isinstance(first, Ref):
            names[node.name] = first.name
        elif base_name(node.op) == "aten.copy" and next(tree_refs(node.args[1:]), "") in quantised:
            names[node.name] = node.args[1].name  # an in-place rectifier wrote its result over what it read
        elif base_name(node.op) in _VIEWS:  # which need a memory layout that dropped copies no longer promise
            kept.append(replace(node, op="aten.reshape.default"))
        else:
            kept.append(node)
    outputs = map_tree(lambda leaf: _final(leaf, names), graph.outputs)
    return replace(graph, body=rename(kept, names), outputs=outputs)


def _final(leaf: Any, names: Mapping[str, str]) -> Any:
    while isinstance(leaf, Ref) and leaf.name in names:
        leaf = Ref(names[leaf.name])
    return leaf


def pick_results(graph: Graph) -> Graph:
    """``getitem(f(x), i)`` of an operation with several results becomes one node with ``index``."""
    by_name = {node.name: node for node in graph.body}
    nodes = []
    for node in graph.body:
        source = by_name.get(node.args[0].name) if node.op == "getitem" and isinstance(node.args[0], Ref) else None
        if source is not None and role_of(source.op, {0}) is not Role.SHAPE:
            node = replace(source, name=node.name, shape=node.shape, index=node.args[1], floating=node.floating)
        nodes.append(node)
    return replace(graph, body=tuple(nodes))


def drop_unused(graph: Graph) -> Graph:
    """Remove nodes and parameters that nobody reads."""
    needed = set(tree_refs(graph.outputs))
    kept = []
    for node in reversed(graph.body):
        if node.name in needed:
            kept.append(node)
            needed.update(node.refs())
    params = {name: tensor for name, tensor in graph.params.items() if name in needed}
    return replace(graph, body=tuple(reversed(kept)), params=params)


def _options(node: Node) -> list[Any]:
    """The arguments of a rectifier after its input, in order."""
    options = list(node.args[1:])
    if not options and node.kwargs:
        options = [node.kwargs.get("min"), node.kwargs.get("max")]
    return options


def _ceiling(node: Node) -> float | bool | None:
    return rectifier_ceiling(node.op, _options(node))


def data_dependent(graph: Graph) -> set[str]:
    """Names of everything that depends on the input (on its values, not only on the batch size)."""
    reached = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if any(name in reached for name in node.refs()):
            reached.add(node.name)
    return reached


def time_varying(graph: Graph) -> set[str]:
    """Names of everything that changes from step to step: what lies behind a neuron, or a streamed input."""
    data, varying = data_dependent(graph), set(graph.streamed)
    for node in graph.nodes:
        neuron = _ceiling(node) is not False and node.name in data and node.batch_axis is not None
        if neuron or any(name in varying for name in node.refs()):
            varying.add(node.name)
    return varying


def place_pooling(graph: Graph, pooling: Pooling) -> Graph:
    """Swap rectifier and max pool (also through a concatenation of channels), equal for every input.

    ``max_i ReLU(z_i) = ReLU(max_i z_i)``. With `Pooling.RATE` only where the current is constant.
    """
    while (swapped := _swap_one(graph, pooling)) is not None:
        graph = swapped
    return graph


def _swap_one(graph: Graph, pooling: Pooling) -> Graph | None:
    varying, by_name, count = time_varying(graph), {n.name: n for n in graph.body}, users(graph.body, graph.outputs)

    def rectifier(name: str) -> Node | None:
        node = by_name.get(name)
        if node is None or name not in varying or _ceiling(node) is False or count[name] != 1:
            return None
        constant = next(iter(node.refs())) not in varying
        return node if constant or pooling is Pooling.CURRENT else None

    for pool in graph.body:
        if base_name(pool.op) not in MAX_POOLS or not isinstance(pool.args[0], Ref) or pool.index not in (None, 0):
            continue
        source = by_name.get(pool.args[0].name)
        if source is None:
            continue
        if (neuron := rectifier(source.name)) is not None:
            return _replace_nodes(graph, {source.name: [], pool.name: _pool_then_fire(pool, neuron, pool.name, pool.shape)})
        joined = list(tree_refs(source.args[:1]))
        if base_name(source.op) == "aten.cat" and source.args[1:] == (1,) and count[source.name] == 1:
            neurons = [rectifier(name) for name in joined]
            if all(neurons) and len(set(joined)) == len(joined):
                branches: list[Node] = []
                for neuron in neurons:
                    assert neuron is not None and neuron.shape is not None and pool.shape is not None
                    shape = (*neuron.shape[:2], *pool.shape[2:])
                    branches += _pool_then_fire(pool, neuron, f"{neuron.name}_pooled", shape)
                refs = [Ref(f"{neuron.name}_pooled") for neuron in neurons if neuron is not None]
                cat = replace(source, name=pool.name, args=(refs, 1), shape=pool.shape)
                return _replace_nodes(graph, {**{name: [] for name in joined}, source.name: [], pool.name: [*branches, cat]})
    return None


def _pool_then_fire(pool: Node, neuron: Node, name: str, shape: Any) -> list[Node]:
    first = replace(pool, name=f"{name}_current", args=(neuron.args[0], *pool.args[1:]), shape=shape)
    return [first, replace(neuron, name=name, args=(Ref(first.name), *neuron.args[1:]), shape=shape)]


def _replace_nodes(graph: Graph, new: Mapping[str, list[Node]]) -> Graph:
    return replace(graph, body=tuple(n for node in graph.body for n in new.get(node.name, [node])))


def spike_gates(graph: Graph) -> set[str]:
    """Max pools that see nothing but one neuron layer's spikes, or several put side by side as channels.

    If those neurons share a threshold per channel such a pool passes whole spikes on: it is spike-driven.
    """
    spikes = {site.node for site in graph.sites if site.channel_axis == 0 and graph.node(site.node).batch_axis == 0}
    gates: set[str] = set()
    for node in graph.body:
        parts = list(tree_refs(node.args[:1]))
        if not parts or not all(name in spikes for name in parts):
            continue
        if base_name(node.op) in MAX_POOLS and node.role is Role.ANALOG and node.index in (None, 0):
            gates.add(node.name)
            spikes.add(node.name)
        elif base_name(node.op) == "aten.cat" and node.args[1:] == (1,):
            spikes.add(node.name)
    return gates


def split_and_name(graph: Graph) -> Graph:
    """Roles, constant prefix and body, and the sites with their names, shapes and channel axes."""
    data, varying, axes = data_dependent(graph), time_varying(graph), channel_axes(graph)
    discrete = {node.name for node in graph.body if not node.floating}
    ordinal: Counter[str] = Counter()
    prefix, body, sites = [], [], []
    feeds_neuron = {next(node.refs()) for node in graph.body if node.name in varying and _ceiling(node) is not False}
    for node in graph.body:
        inside = [name for name in node.refs() if name in varying]
        if node.name not in varying:
            prefix.append(replace(node, role=_role(node, data, discrete), varying=False))
        elif _ceiling(node) is not False and next(node.refs()) in data and node.batch_axis is not None:
            ordinal[node.path] += 1
            sites.append(_site(graph, node, f"{node.path}#{ordinal[node.path]}", axes[node.name]))
            body.append(replace(node, role=Role.NEURON))
        else:
            assert inside
            pooled_current = base_name(node.op) in MAX_POOLS and node.name.endswith("_current") and node.name in feeds_neuron
            body.append(replace(node, role=Role.STEPWISE if pooled_current else _role(node, varying, discrete)))
    return replace(graph, prefix=tuple(prefix), body=tuple(body), sites=tuple(sites))


def _role(node: Node, changing: set[str], discrete: set[str]) -> Role:
    """What the table says, but every step between real values and masks or indices is analog: those have no average."""
    if any((name in discrete) == node.floating for name in node.refs() if name in changing):
        return Role.ANALOG
    positions = {i for i, arg in enumerate(node.args) if any(name in changing for name in tree_refs(arg))}
    if any(name in changing for name in tree_refs(dict(node.kwargs))):
        positions.add(len(node.args) + 99)  # no table entry allows a varying keyword
    return role_of(node.op, positions)


def _site(graph: Graph, node: Node, name: str, axis: int) -> Site:
    assert node.shape is not None
    batch = node.batch_axis
    assert batch is not None
    clip, levels = _ceiling(node), None
    ceiling: float | tuple[float, ...] | None = None if clip is None else float(clip)
    if base_name(node.op) == QUANTISED:
        tops, levels = guarded(graph.params[node.args[1].name]), node.args[2]
        ceiling = tops.item() if tops.dim() == 0 else tuple(tops.flatten().tolist())
        axis = axis if tops.dim() == 0 else len(node.shape) - tops.dim()
    times = node.batch_times
    lead = (times,) if times > 1 else ()
    rest = [size for i, size in enumerate(node.shape) if i != batch]
    position = axis - (1 if axis > batch else 0)
    shape = (*lead, *(int(size) for size in rest if not isinstance(size, BatchSize)))
    channel = position + len(lead) if shape else 0
    shape = shape or (1,)
    return Site(name, node.name, shape, min(channel, len(shape) - 1), ceiling, levels)


def channel_axes(graph: Graph) -> dict[str, int]:
    """For every value the axis of its channels: 1 after a convolution, the last after a linear layer."""
    axes: dict[str, int] = {value.name: 1 for value in graph.inputs}
    for node in graph.body:
        rank = len(node.shape or ())
        source = next((name for name in node.refs() if name in axes), None)
        before = axes.get(source, 1) if source else 1
        axes[node.name] = min(_CHANNEL_RULES.get(base_name(node.op), _keep)(node, before, rank), max(rank - 1, 0))
    return axes


def _keep(node: Node, before: int, rank: int) -> int:
    return before


def _moved(node: Node, before: int, rank: int) -> int:
    if base_name(node.op) == "aten.permute":
        order = [axis % rank for axis in node.args[1]]
        return order.index(before)
    a, b = (axis % rank for axis in node.args[1:3])
    return {a: b, b: a}.get(before, before)


_CHANNEL_RULES: Mapping[str, Callable[[Node, int, int], int]] = {
    **dict.fromkeys([f"aten.{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)], lambda n, b, r: 1),
    "aten.linear": lambda n, b, r: r - 1,
    **dict.fromkeys([AFFINE, BATCH_NORM], lambda n, b, r: 1),
    **dict.fromkeys(["aten.permute", "aten.transpose", "aten.swapaxes"], _moved),
    **dict.fromkeys(["aten.reshape", "aten.flatten"], lambda n, b, r: 1),
}

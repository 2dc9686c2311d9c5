"""What the neurons of a network in training send: the network is converted as it stands, at every pass, and simulated.

Tracing takes a second or two and happens once for each size of input; new weights, their batch norms folded and the ceilings
as thresholds take milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from transpike.engines.executor import Run, simulate
from transpike.graph.capture import traced
from transpike.graph.ir import BatchSize, Graph, Site
from transpike.graph.passes import folded, normalise
from transpike.graph.prepared import Prepared, modes_kept
from transpike.spiking.plan import Plan, expand

if TYPE_CHECKING:
    from transpike.methods import Method

__all__ = ["Sender"]


class Sender:
    """Converts with ``method``, which reads no data; called by `Prepared` before each of its passes while training."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._traced: dict[Any, Graph] = {}

    def __call__(self, net: Prepared, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, torch.Tensor]:
        """Mean over the steps, activation units, in the shape of each rectifier's result, by the number of its call.

        Raises:
            CaptureError: the network cannot be converted, with every reason.
            PlanError: it calls other rectifiers in eval mode than in training.
        """
        assert net.steps is not None
        device = next((x.device for x in net.parameters()), torch.device("cpu"))
        with torch.no_grad(), torch.autocast(device.type, enabled=False), modes_kept(net):
            net.eval()
            traced_once = self._program(net, args, kwargs)
            now = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
            params = {
                name: now.get(name, x).to(x.dtype) for name, x in traced_once.params.items()
            }  # half precision is simulated in full
            graph = folded(normalise(traced_once.with_params(params), None))
            given = [args[value.key] if isinstance(value.key, int) else kwargs[value.key] for value in graph.inputs]
            given = [x.to(value.dtype) for x, value in zip(given, graph.inputs, strict=True)]
            plan = self._method.fit(graph, [tuple(given)])  # read only if a rectifier does not quantise
            run = simulate(graph, plan, given, net.steps)
            return {_call(graph, site): _mean(graph, site, plan, run) for site in graph.sites if site.levels is not None}

    def _program(self, net: Prepared, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
        tensors = [(name, x) for name, x in [*enumerate(args), *kwargs.items()] if isinstance(x, torch.Tensor)]
        key = tuple((name, x.shape[1:], x.dtype, x.device) for name, x in tensors)
        if key not in self._traced:
            some, named = tuple(map(_two, args)), {name: _two(x) for name, x in kwargs.items()}
            net(*some, **named)  # says it plainly if other rectifiers are called in this mode
            self._traced[key] = traced(net, named or some)
        return self._traced[key]


def _two(x: Any) -> Any:
    return x[:2] if isinstance(x, torch.Tensor) and x.dim() else x


def _call(graph: Graph, site: Site) -> int:
    """The number of the rectifier call: that of its ceiling, ``ceilings.3``."""
    return int(graph.node(site.node).args[1].name.rpartition(".")[2])


def _mean(graph: Graph, site: Site, plan: Plan, run: Run) -> torch.Tensor:
    """What the neurons of ``site`` sent on average, in the shape of the rectifier's result."""
    node = graph.node(site.node)
    assert node.shape is not None and node.batch_axis is not None
    mean = run.net[site.name] * (expand(plan.sites[site.name].worth, site) / run.steps)
    rest = [size for size in node.shape if not isinstance(size, BatchSize)]
    return mean.reshape(-1, *rest).movedim(0, node.batch_axis)

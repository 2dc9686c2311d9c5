"""One method after another: each refines the plan of the one before.

    plan_k = fit_k(graph, batches, plan_(k-1))

Reference: the combinations in table 1 of Bu et al., CVPR 2025, arXiv:2409.03368 (thresholds, then calibration).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from transpike.errors import PlanError
from transpike.graph.batches import peek
from transpike.graph.ir import Graph
from transpike.methods import Method
from transpike.methods._observe import settings
from transpike.spiking.plan import Plan

__all__ = ["Chain"]


@dataclass(frozen=True, init=False)
class Chain:
    """``Chain(LTB(), Refinement())``: fits the methods in order.

    Args:
        methods: at least one; the first makes a plan, each other one is given the plan so far.
    """

    methods: tuple[Method, ...]

    def __init__(self, *methods: Method) -> None:
        object.__setattr__(self, "methods", methods)

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        """The last method's plan; its metadata names them all.

        Raises:
            PlanError: the chain is empty.
        """
        if not self.methods:
            raise PlanError("the chain has no method: Chain(first, second, ...)")
        _, batches = peek(batches)
        notes: list[str] = []
        for method in self.methods:
            plan = method.fit(graph, batches, plan)
            notes += [note for note in plan.notes if note not in notes]
        assert plan is not None
        return replace(plan, metadata={**plan.metadata, "method": "Chain", "settings": settings(self)}, notes=tuple(notes))

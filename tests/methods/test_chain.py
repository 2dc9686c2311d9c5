"""One method after another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from models import batch_of, calibration, make
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.methods.chain import Chain
from transpike.methods.ltb import LTB
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import Plan


@dataclass(frozen=True)
class Scale:
    """Multiplies the thresholds of the plan before."""

    factor: float

    def fit(self, graph: Graph, batches: Iterable[Any], plan: Plan | None = None) -> Plan:
        assert plan is not None
        assert sum(len(batch) for batch in batches) == 24  # every method gets to see all the data
        sites = {name: replace(site, threshold=site.threshold * self.factor) for name, site in plan.sites.items()}
        return replace(plan, sites=sites, notes=(f"scaled by {self.factor}",))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(make("mlp"), batch_of("mlp", 2))


def test_every_method_gets_the_plan_of_the_one_before_and_all_the_data(graph: Graph) -> None:
    data = calibration("mlp", batches=3, n=8)
    plan = Chain(MaxNorm(), Scale(2.0), Scale(0.25)).fit(graph, (batch for batch in data))
    once = MaxNorm().fit(graph, data)
    for name, site in plan.sites.items():
        assert torch.equal(site.threshold, once.sites[name].threshold * 2.0 * 0.25)


def test_a_plan_given_to_the_chain_reaches_its_first_method(graph: Graph) -> None:
    data = calibration("mlp", batches=3, n=8)
    given = MaxNorm().fit(graph, data)
    plan = Chain(Scale(3.0)).fit(graph, data, given)
    assert all(torch.equal(site.threshold, given.sites[name].threshold * 3.0) for name, site in plan.sites.items())


def test_metadata_and_notes_name_every_method_once(graph: Graph) -> None:
    plan = Chain(LTB(iterations=1), Scale(2.0), Scale(2.0)).fit(graph, calibration("mlp", batches=3, n=8))
    assert plan.metadata["method"] == "Chain"
    assert [part["method"] for part in plan.metadata["settings"]["methods"]] == ["LTB", "Scale", "Scale"]
    assert plan.metadata["settings"]["methods"][1]["factor"] == 2.0
    assert plan.notes.count("scaled by 2.0") == 1
    assert any("not converged" in note for note in plan.notes)


def test_an_empty_chain_is_refused(graph: Graph) -> None:
    with pytest.raises(PlanError, match="no method"):
        Chain().fit(graph, calibration("mlp"))


def test_chains_are_values() -> None:
    assert Chain(MaxNorm(), LTB()) == Chain(MaxNorm(), LTB()) != Chain(LTB(), MaxNorm())

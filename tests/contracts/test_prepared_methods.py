"""What every method promises that reads a network trained for it: the table of `test_methods` on prepared networks."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import sys
from functools import cache
from typing import Any

import pytest
import torch

import transpike
from models import batch_of, calibration, make
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.graph.prepared import Prepared
from transpike.methods import available
from transpike.methods.qcfs import QCFS, prepare
from transpike.spiking.plan import Plan

PREPARED = {name: kind for name, kind in available().items() if getattr(kind, "prepared_only", False)}
MODELS = ("mlp", "residual", "depthwise", "clamped", "two_inputs")

each = pytest.mark.parametrize("kind", PREPARED.values(), ids=PREPARED)


def network(model: str) -> Prepared:
    return prepare(make(model), QCFS(), calibration(model)).eval()


@cache
def graph_of(model: str) -> Graph:
    return capture(network(model), batch_of(model, 2))


def same_numbers(a: Plan, b: Plan) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    assert all(torch.equal(x, b.tensors()[key]) for key, x in a.tensors().items())


def test_the_table_holds_the_method_that_is_promised() -> None:
    assert set(PREPARED) >= {"QCFS"}


@each
@pytest.mark.parametrize("model", MODELS)
def test_covers_every_site_once_with_finite_positive_thresholds(kind: type[Any], model: str) -> None:
    graph = graph_of(model)
    plan = kind().fit(graph, calibration(model))
    assert list(plan.sites) == [site.name for site in graph.sites] and len(graph.sites) >= 1
    for params in plan.sites.values():
        assert bool(torch.isfinite(params.threshold).all()) and bool((params.threshold > 0).all())
    assert plan.validate(graph) is plan


@each
def test_refuses_a_network_that_was_not_prepared(kind: type[Any]) -> None:
    with pytest.raises(PlanError, match="prepare"):
        kind().fit(capture(make("residual"), batch_of("residual", 2)), calibration("residual"))


@each
def test_same_bits_from_any_kind_and_order_of_batches(kind: type[Any]) -> None:
    graph, data = graph_of("residual"), calibration("residual")
    wanted = kind().fit(graph, data)
    pairs = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in data]
    for batches in (data, data[::-1], pairs, (batch for batch in data), list(torch.cat(data).split(5))):
        same_numbers(kind().fit(graph, batches), wanted)


@each
def test_the_plan_survives_save_and_load(kind: type[Any], tmp_path: Any) -> None:
    plan = kind().fit(graph_of("depthwise"), calibration("depthwise"))
    again = Plan.load(plan.save(tmp_path / "plan.safetensors"))
    same_numbers(plan, again)
    assert again.header() == plan.header()


@each
def test_the_network_survives_save_and_load(kind: type[Any], tmp_path: Any) -> None:
    net = transpike.convert(network("residual"), kind(), calibration("residual"))
    again = transpike.load(net.save(tmp_path / "net.spike"))
    assert again.graph.sites == net.graph.sites
    x = batch_of("residual")
    assert torch.equal(again(x), net(x))


@each
def test_the_callers_model_is_left_as_found(kind: type[Any]) -> None:
    model = network("residual")
    before = copy.deepcopy(model.state_dict())
    places = {key: x.data_ptr() for key, x in model.state_dict().items() if key != "_extra_state"}
    net = transpike.convert(model, kind(), calibration("residual"))
    net(batch_of("residual"))
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert {key: x.data_ptr() for key, x in model.state_dict().items() if key in places} == places


@each
@pytest.mark.parametrize("model", ["mlp", "residual", "depthwise", "two_inputs"])
def test_the_error_against_the_relu_network_falls_with_steps(kind: type[Any], model: str) -> None:
    data = calibration(model)
    net = transpike.convert(network(model), kind(), data)
    run = transpike.simulate(net, data[0], steps=64)
    with torch.no_grad():
        wanted = make(model)(*data[0]) if isinstance(data[0], tuple) else make(model)(data[0])
    error = {t: float((run.readout(t) - wanted).norm() / wanted.norm()) for t in (1, 4, 64)}
    assert error[64] < error[4] < error[1], error
    assert error[64] < 0.2, error


@each
def test_the_module_states_equation_and_reference(kind: type[Any]) -> None:
    text = inspect.getdoc(sys.modules[kind.__module__])
    assert text is not None
    assert re.search(r"^    .*(=|<-).*$", text, re.MULTILINE), "an indented equation"
    assert re.search(r"Reference: (.|\n)*(doi:10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5})", text), "a DOI or arXiv id"
    assert kind.__doc__ and kind.fit.__doc__


@each
def test_neuron_settings_have_defaults_and_reach_every_site(kind: type[Any]) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    assert (defaults["v_init"], defaults["cap"], defaults["signed"]) == (0.5, 1, False)
    plan = kind(v_init=0.25, cap=3, signed=True).fit(graph_of("residual"), calibration("residual"))
    for params in plan.sites.values():
        assert (params.cap, params.signed) == (3, True)
        torch.testing.assert_close(params.v_init, params.threshold / 4, rtol=1e-6, atol=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().cap = 2
    assert hash(kind()) == hash(kind())


@each
def test_metadata_says_where_the_numbers_come_from(kind: type[Any]) -> None:
    plan = kind().fit(graph_of("mlp"), calibration("mlp"))
    assert plan.metadata["method"] == kind.__name__
    assert set(plan.metadata["settings"]) == {field.name for field in dataclasses.fields(kind)}


@each
def test_double_precision_stays_double(kind: type[Any]) -> None:
    data = [x.double() for x in calibration("residual")]
    net = transpike.convert(network("residual").double(), kind(), data)
    assert {params.threshold.dtype for params in net.plan.sites.values()} == {torch.float64}
    assert net(data[0]).dtype == torch.float64

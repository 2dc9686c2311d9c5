"""What every method promises: one table over `transpike.methods.available`, so a new file is tested by being there."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import transpike
from models import batch_of, calibration, make
from transpike.errors import DataError, PlanError
from transpike.graph.capture import capture
from transpike.graph.ir import Graph
from transpike.methods import available
from transpike.methods.adafire import AdaFire
from transpike.methods.chain import Chain
from transpike.methods.ltb import LTB
from transpike.methods.max_norm import MaxNorm
from transpike.methods.mmse import MMSE
from transpike.methods.offset_spikes import OffsetSpikes
from transpike.spiking.plan import Granularity, NeuronKind, Plan, SiteParams

# methods that read what training found (QCFS) have a table of their own: test_prepared_methods.py
KINDS = {name: kind for name, kind in available().items() if kind is not Chain and not getattr(kind, "prepared_only", False)}
REFINING_KINDS = {name: kind for name, kind in KINDS.items() if getattr(kind, "refines", False)}
SINGLE = {name: kind for name, kind in KINDS.items() if name not in REFINING_KINDS}
THRESHOLDS = {name: kind for name, kind in SINGLE.items() if "v_init" in {field.name for field in dataclasses.fields(kind)}}
QUICK: dict[str, dict[str, Any]] = {
    "LTB": {"iterations": 60},
    "AdaFire": {"steps": 64},
    "Auto": {"steps": 64, "held_out": 4},
    "Parallel": {"steps": 128},
    "LightCalibration": {"steps": 128},
    "AdvancedCalibration": {"steps": 128, "weights": True, "iterations": 3},
    "SpikeCompression": {"steps": 16, "largest": 2.0, "samples": 40},
    "InitialPotential": {"steps": 128},
    "Reconstruction": {"steps": 128, "iterations": 3},
}


def quick(kind: type[Any], **settings: Any) -> Any:
    """An instance that is done in milliseconds; a ``cap`` asked for is the only one there is to choose."""
    if "least" in {field.name for field in dataclasses.fields(kind)} and "cap" in settings:
        settings |= {"least": settings["cap"], "budget": 1.0}
    return kind(**QUICK.get(kind.__name__, {}) | settings)


REFINING = {name: quick(kind) for name, kind in REFINING_KINDS.items()}


METHODS = {
    **{name: quick(kind) for name, kind in SINGLE.items()},
    **{f"Chain(MMSE, {name})": Chain(MMSE(steps=128), method) for name, method in REFINING.items()},
    "Chain(LTB, MMSE)": Chain(LTB(iterations=5), MMSE(steps=16)),
    "Chain(MaxNorm)": Chain(MaxNorm()),
}
MODELS = ("mlp", "residual", "depthwise", "clamped", "two_inputs")  # linear, convolutional, ReLU6, clip at 0.5, two inputs

each_method = pytest.mark.parametrize("name", METHODS)
each_single = pytest.mark.parametrize("kind", SINGLE.values(), ids=SINGLE)
each_threshold = pytest.mark.parametrize("kind", THRESHOLDS.values(), ids=THRESHOLDS)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_refining = pytest.mark.parametrize("method", REFINING.values(), ids=REFINING)


@cache
def graph_of(model: str) -> Graph:
    return capture(make(model), batch_of(model, 2))


def order_dependent(method: Any) -> bool:
    parts = method.methods if isinstance(method, Chain) else (method,)
    return any(getattr(type(part), "order_dependent", False) for part in parts)


def same_numbers(a: Plan, b: Plan, tolerance: float = 0.0) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    for key, x in a.tensors().items():
        torch.testing.assert_close(x, b.tensors()[key], rtol=tolerance, atol=0, msg=lambda text, key=key: f"{key}: {text}")


def test_the_table_holds_the_methods_that_are_promised() -> None:
    assert {"AdaFire", "LTB", "MMSE", "MaxNorm", "Percentile"} <= set(THRESHOLDS)
    assert {"Auto", "Parallel"} <= set(SINGLE) - set(THRESHOLDS)
    assert {"AdvancedCalibration", "InitialPotential", "LightCalibration", "OffsetSpikes"} <= set(REFINING)
    assert {"Reconstruction", "SpikeCompression"} <= set(REFINING)


@each_refining
def test_a_refining_method_without_a_plan_says_what_to_chain_before_any_data_is_read(method: Any) -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=rf"refines a plan and was given none: use Chain\(.*{type(method).__name__}\(\)\)"):
        method.fit(graph_of("mlp"), unread())


@each_refining
def test_a_refining_method_leaves_the_plan_it_was_given_and_refuses_one_of_another_network(method: Any) -> None:
    graph, data = graph_of("residual"), calibration("residual")
    plan = MMSE().fit(graph, data)
    kept = {key: x.clone() for key, x in plan.tensors().items()}
    refined = method.fit(graph, data, plan)
    assert refined is not plan and list(refined.sites) == list(plan.sites)
    assert all(torch.equal(x, kept[key]) for key, x in plan.tensors().items())
    with pytest.raises(PlanError, match="does not fit"):
        method.fit(graph_of("mlp"), calibration("mlp"), plan)


@each_refining
def test_a_refining_method_serves_every_kind_of_neuron(method: Any) -> None:
    graph, data = graph_of("residual"), calibration("residual")
    for change in ({"cap": 4}, {"cap": None, "signed": True}, {"kind": NeuronKind.PARALLEL}, {"amplitude": torch.tensor(1.5)}):
        plan = MMSE().fit(graph, data)
        plan = dataclasses.replace(plan, sites={n: dataclasses.replace(p, **change) for n, p in plan.sites.items()})
        if isinstance(method, OffsetSpikes) and any(p.signed or p.kind is NeuronKind.PARALLEL for p in plan.sites.values()):
            continue  # which it refuses
        refined = method.fit(graph, data, plan)
        kinds = {NeuronKind.OFFSET} if isinstance(method, OffsetSpikes) else {p.kind for p in plan.sites.values()}
        assert {p.kind for p in refined.sites.values()} == kinds
        assert {(p.cap, p.signed, p.late) for p in refined.sites.values()} == {
            (p.cap, p.signed, p.late) for p in plan.sites.values()
        }
        run = transpike.simulate(transpike.build(graph, refined), data[0], steps=16)
        assert bool(torch.isfinite(run.readout()).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@each_method
def test_fits_a_network_on_a_gpu_with_batches_from_the_cpu(name: str) -> None:
    net = transpike.convert(make("residual").cuda(), METHODS[name], calibration("residual"))
    assert all(x.is_cuda for x in net.plan.tensors().values())
    assert bool(torch.isfinite(transpike.simulate(net, calibration("residual")[0], steps=16).readout()).all())


@each_method
@pytest.mark.parametrize("model", MODELS)
def test_covers_every_site_once_with_finite_positive_thresholds(name: str, model: str) -> None:
    graph = graph_of(model)
    plan = METHODS[name].fit(graph, calibration(model))
    assert list(plan.sites) == [site.name for site in graph.sites]
    assert len(graph.sites) >= 1
    for params in plan.sites.values():
        assert bool(torch.isfinite(params.threshold).all()) and bool((params.threshold > 0).all())
    assert plan.validate(graph) is plan


@each_threshold
@pytest.mark.parametrize("model", ["mlp", "residual"])
@pytest.mark.parametrize("granularity", Granularity)
def test_thresholds_have_the_shape_of_the_granularity(kind: type[Any], model: str, granularity: Granularity) -> None:
    graph = graph_of(model)
    plan = quick(kind, granularity=granularity).fit(graph, calibration(model))
    for site in graph.sites:
        wanted = {Granularity.LAYER: (), Granularity.CHANNEL: (site.channels,), Granularity.UNIT: site.shape}[granularity]
        assert tuple(plan.sites[site.name].threshold.shape) == wanted


@each_method
def test_same_data_twice_gives_the_same_bits(name: str) -> None:
    graph, data = graph_of("residual"), calibration("residual")
    same_numbers(METHODS[name].fit(graph, data), METHODS[name].fit(graph, data))


@each_method
def test_a_generator_serves_as_well_as_a_list(name: str) -> None:
    graph, data = graph_of("mlp"), calibration("mlp")
    same_numbers(METHODS[name].fit(graph, (batch for batch in data)), METHODS[name].fit(graph, data))


@each_method
def test_targets_beside_the_inputs_are_ignored(name: str) -> None:
    graph, data = graph_of("mlp"), calibration("mlp")
    pairs = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in data]
    same_numbers(METHODS[name].fit(graph, pairs), METHODS[name].fit(graph, data))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not order_dependent(method)])
@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_independent_of_batch_size_and_order_unless_declared(name: str, model: str) -> None:
    method = METHODS[name]
    graph, whole = graph_of(model), torch.cat(calibration(model, batches=4, n=10))
    wanted = method.fit(graph, [whole])
    for batches in (whole.split(4), whole.split(10), whole.flip(0).split(10)):
        same_numbers(method.fit(graph, list(batches)), wanted, tolerance=1e-5)


def test_only_online_rules_and_what_looks_at_the_first_samples_declare_that_order_matters() -> None:
    independent = {name for name, method in METHODS.items() if not order_dependent(method)}
    assert independent == {"MMSE", "MaxNorm", "Percentile", "Chain(MaxNorm)", "Chain(MMSE, OffsetSpikes)"}


@each_method
def test_the_plan_survives_save_and_load(name: str, tmp_path: Any) -> None:
    plan = METHODS[name].fit(graph_of("depthwise"), calibration("depthwise"))
    again = Plan.load(plan.save(tmp_path / "plan.safetensors"))
    same_numbers(plan, again)
    assert again.header() == plan.header()


@each_method
def test_the_callers_model_is_left_as_found(name: str) -> None:
    model = make("residual")
    seen: list[str] = []
    model.get_submodule("conv1").register_forward_hook(lambda *_: seen.append("conv1"))
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)

    def state() -> tuple[Any, ...]:
        modules = list(model.modules())
        flags = [p.requires_grad for p in parameters], [p.grad for p in parameters]
        return *flags, [m.training for m in modules], [dict(m._forward_hooks) for m in modules], [vars(m).keys() for m in modules]

    before, weights = state(), {key: (x.clone(), x.dtype, x.device, x.data_ptr()) for key, x in model.state_dict().items()}
    data = calibration("residual")
    kept = [x.clone() for x in data]
    net = transpike.convert(model, METHODS[name], data)
    net(data[0])
    assert state() == before and [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    for key, x in model.state_dict().items():
        value, *kind = weights[key]
        assert [x.dtype, x.device, x.data_ptr()] == kind and torch.equal(x, value), key
    assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "Parallel"])  # beginnings of sorted trains are no read-outs
@pytest.mark.parametrize("model", ["mlp", "residual", "depthwise", "two_inputs"])
def test_the_error_of_the_read_out_falls_with_steps(name: str, model: str) -> None:
    longer = {"LTB": LTB(iterations=300), "Chain(LTB, MMSE)": Chain(LTB(5), MMSE(steps=64)), "Auto": quick(KINDS["Auto"], cap=1)}
    method = longer.get(name, METHODS[name])  # bursts are at their best after a few steps already
    graph, data = graph_of(model), calibration(model)
    net = transpike.build(graph, method.fit(graph, data))
    run = transpike.simulate(net, data[0], steps=128)
    with torch.no_grad():
        wanted = make(model)(*data[0]) if isinstance(data[0], tuple) else make(model)(data[0])
    error = {t: float((run.readout(t) - wanted).norm() / wanted.norm()) for t in (4, 32, 128)}
    assert error[128] < error[32] < error[4], error
    assert error[128] < 0.15, error


@each_kind
def test_the_module_states_equation_and_reference(kind: type[Any]) -> None:
    text = inspect.getdoc(sys.modules[kind.__module__])
    assert text is not None
    assert re.search(r"^    .*(=|<-).*$", text, re.MULTILINE), "an indented equation"
    assert re.search(r"Reference: (.|\n)*(doi:10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5})", text), "a DOI or arXiv id"
    assert kind.__doc__ and kind.fit.__doc__


def test_the_chain_states_equation_and_reference() -> None:
    text = inspect.getdoc(sys.modules[Chain.__module__])
    assert text is not None and "plan_k = " in text and re.search(r"arXiv:\d{4}\.\d{5}", text)


@each_threshold
def test_neuron_settings_have_defaults_and_reach_every_site(kind: type[Any]) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    bursts = kind is AdaFire  # whose point they are
    assert (defaults["v_init"], defaults["cap"], defaults["signed"]) == (0.5, 8 if bursts else 1, False)
    plan = quick(kind, v_init=0.25, cap=3, signed=True).fit(graph_of("residual"), calibration("residual"))
    assert len(plan.sites) == 3
    for params in plan.sites.values():
        assert (params.cap, params.signed) == (3, True)
        torch.testing.assert_close(params.v_init, params.threshold / 4, rtol=1e-6, atol=0)
        assert params.current.shape == () and float(params.current) == 0


@each_kind
def test_is_a_frozen_dataclass(kind: type[Any]) -> None:
    method = quick(kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, getattr(method, field.name))
    assert quick(kind) == method and hash(quick(kind)) == hash(method)


@each_single
def test_metadata_says_where_the_numbers_come_from(kind: type[Any]) -> None:
    method = quick(kind)
    plan = method.fit(graph_of("mlp"), calibration("mlp", batches=3, n=8))
    assert plan.metadata["method"] == kind.__name__
    assert plan.metadata["samples"] == (60 * 8 if kind is LTB else 24)
    assert set(plan.metadata["settings"]) == {field.name for field in dataclasses.fields(kind)}
    assert plan.metadata["settings"].get("granularity", "channel") == "channel"


@each_refining
def test_a_refining_method_says_what_it_refines(method: Any) -> None:
    graph, data = graph_of("mlp"), calibration("mlp", batches=3, n=8)
    given = MaxNorm().fit(graph, data)
    plan = method.fit(graph, data, given)
    name = type(method).__name__
    assert (plan.metadata["method"], plan.metadata["refines"], plan.metadata["samples"]) == (name, "MaxNorm", 24)
    assert plan.metadata["weights"] == given.metadata["weights"]
    assert set(plan.metadata["settings"]) == {field.name for field in dataclasses.fields(method)}


@each_threshold
@pytest.mark.parametrize("cap", [1, 4])
def test_clipped_sites_cannot_fire_beyond_the_clip(kind: type[Any], cap: int) -> None:
    graph = graph_of("depthwise")
    data = [40 * x for x in calibration("depthwise")]  # far into the clip
    plan = quick(kind, cap=cap).fit(graph, data)
    ceilings = [site.ceiling for site in graph.sites]
    assert ceilings == [6.0, 6.0, 6.0]
    highest = [float(plan.sites[site.name].threshold.max()) * cap for site in graph.sites]
    assert max(highest) <= 6.0 + 1e-5
    assert max(highest) > 3.0  # and the clip was reached by the data


@pytest.mark.parametrize("kind", [kind for kind in THRESHOLDS.values() if kind is not AdaFire])  # which has caps always
def test_clipped_sites_without_a_cap_are_noted(kind: type[Any]) -> None:
    noted = quick(kind, cap=None).fit(graph_of("depthwise"), calibration("depthwise"))
    assert any("3 sites are clipped rectifiers" in note for note in noted.notes)
    plain = quick(kind, cap=None).fit(graph_of("residual"), calibration("residual"))
    assert not any("clipped" in note for note in plain.notes)


@each_method
def test_double_precision_stays_double(name: str) -> None:
    model, data = make("residual").double(), [x.double() for x in calibration("residual")]
    graph = double_graph()
    plan = METHODS[name].fit(graph, data)
    assert {params.threshold.dtype for params in plan.sites.values()} == {torch.float64}
    with torch.no_grad():
        wanted = model(data[0])
    found = transpike.simulate(transpike.build(graph, plan), data[0], steps=64).readout()
    assert found.dtype == torch.float64
    assert float((found - wanted).norm() / wanted.norm()) < 0.3


@cache
def double_graph() -> Graph:
    return capture(make("residual").double(), batch_of("residual", 2).double())


@each_single
def test_an_integer_buffer_does_not_set_the_dtype_of_the_thresholds(kind: type[Any]) -> None:
    plan = quick(kind).fit(permuting_graph(), calibration("mlp"))
    assert all(params.threshold.dtype == torch.float32 for params in plan.sites.values())
    assert all(params.threshold.unique().numel() > 1 for params in plan.sites.values())


class Permuted(nn.Module):
    """Its first parameter by name is an index tensor."""

    a_order: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a_order", torch.tensor([5, 4, 3, 2, 1, 0]))
        self.b = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(x[:, self.a_order]))


@cache
def permuting_graph() -> Graph:
    graph = capture(Permuted().eval(), batch_of("mlp", 2))
    assert next(iter(sorted(graph.params))) == "a_order"
    return graph.with_params({name: graph.params[name] for name in sorted(graph.params)})


@each_threshold
@pytest.mark.parametrize("settings", [{"v_init": -0.1}, {"v_init": 1.5}, {"v_init": float("nan")}, {"cap": 0}, {"cap": -2}])
def test_senseless_neurons_are_refused_before_data_is_read(kind: type[Any], settings: dict[str, Any]) -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=next(iter(settings))):
        quick(kind, **settings).fit(graph_of("mlp"), unread())


@each_method
def test_data_that_does_not_fit_is_a_data_error(name: str) -> None:
    graph = graph_of("mlp")
    for data, words in (([], "no batch"), ([torch.zeros(3, 5)], "shape"), ([torch.full((3, 6), torch.nan)], "NaN")):
        with pytest.raises(DataError, match=words):
            METHODS[name].fit(graph, data)


def test_site_params_default_to_the_neuron_of_every_method() -> None:
    params = SiteParams(torch.ones(()))
    assert (params.cap, params.signed) == (1, False)

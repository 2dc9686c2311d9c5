"""The whole pipeline: any usual form of data goes in, every mistake is refused before work is done."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import transpike
from models import calibration, captured, converted, make, tensors, vectors
from transpike.errors import CaptureError, DataError, PlanError
from transpike.graph.capture import Pooling
from transpike.graph.ir import Role
from transpike.methods.auto import Auto
from transpike.methods.chain import Chain
from transpike.methods.max_norm import MaxNorm
from transpike.methods.parallel import Calibration, Parallel
from transpike.methods.qcfs import QCFS, prepare
from transpike.spiking.plan import Granularity

X = vectors(24)


@pytest.fixture
def captured_once(monkeypatch):
    """Capture costs most of a conversion: take the shared graph."""
    module = importlib.import_module("transpike.convert")  # the name transpike.convert is the function
    monkeypatch.setattr(module, "capture", lambda model, example, pooling: captured("mlp"))


@pytest.mark.parametrize(
    "batches",
    [
        X,
        [X],
        list(X.split(8)),
        [(part, torch.zeros(8)) for part in X.split(8)],
        [[part, torch.zeros(8)] for part in X.split(8)],
        (part for part in X.split(8)),
        DataLoader(TensorDataset(X, torch.zeros(24)), batch_size=8),
    ],
    ids=["tensor", "one batch", "tensors", "pairs", "lists", "generator", "loader"],
)
def test_every_form_of_the_same_data_gives_the_same_thresholds(batches, captured_once):
    net = transpike.convert(make("mlp"), MaxNorm(), batches)
    wanted = MaxNorm().fit(captured("mlp"), [X])
    for name, site in wanted.sites.items():
        assert torch.equal(net.plan.sites[name].threshold, site.threshold)


def test_a_conversion_is_capture_then_calibrate_then_build():
    model = make("two_inputs")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    net = transpike.convert(model, MaxNorm(), [(*x, torch.zeros(8)) for x in calibration("two_inputs")])
    graph = captured("two_inputs")
    by_hand = transpike.build(graph, transpike.calibrate(graph, MaxNorm(), calibration("two_inputs")))
    x = calibration("two_inputs")[0]
    assert torch.equal(net(*x), by_hand(*x))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_a_batch_of_keyword_tensors_is_handed_on_by_name():
    class Join(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return torch.relu(left) + torch.relu(right)

    net = transpike.convert(Join().eval(), MaxNorm(), [{"left": vectors(4), "right": vectors(4)}])
    assert [value.key for value in net.graph.inputs] == ["left", "right"]


def test_pooling_is_placed_as_asked():
    net = transpike.convert(make("deep_pool"), MaxNorm(), calibration("deep_pool"), pooling=Pooling.CURRENT)
    assert [node.role for node in net.graph.body if "max_pool" in node.op] == [Role.STEPWISE]


@pytest.mark.parametrize("batches", [[], (x for x in ()), DataLoader([])])
def test_empty_data_is_refused(batches):
    with pytest.raises(DataError, match="no batch"):
        transpike.convert(make("mlp"), MaxNorm(), batches)


def test_data_that_is_no_data_is_refused():
    with pytest.raises(DataError, match="give an iterable of batches"):
        transpike.convert(make("mlp"), MaxNorm(), None)


def test_nan_in_a_later_batch_is_refused(captured_once):
    with pytest.raises(DataError, match="NaN"):
        transpike.convert(make("mlp"), MaxNorm(), [X, torch.full((2, 6), float("nan"))])


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(CaptureError, match=r"not a torch\.nn\.Module"):
        transpike.convert("resnet18", MaxNorm(), [X])  # type: ignore[arg-type]


def test_who_names_no_method_gets_the_best_of_several() -> None:
    x = torch.cat(calibration("mlp"))
    nets = [transpike.convert(make("mlp"), batches=[x]), transpike.convert(make("mlp"), Auto(), [x])]
    plans = [net.plan for net in nets] + [transpike.calibrate(nets[0].graph, batches=[x])]
    assert all(plan.metadata["chosen"] == plans[0].metadata["chosen"] for plan in plans)
    with pytest.raises(DataError, match="iterable of batches"):
        transpike.convert(make("mlp"))


@pytest.mark.parametrize(
    ("method", "message"), [(MaxNorm, r"MaxNorm is a class: give an instance, MaxNorm\(\)"), ("ltb", "is not a method")]
)
def test_what_is_no_method_is_refused_before_any_data_is_read(method, message):
    def untouched():
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=message):
        transpike.convert(make("mlp"), method, untouched())
    with pytest.raises(PlanError, match=message):
        transpike.calibrate(captured("mlp"), method, untouched())


@pytest.mark.parametrize("name", ["activations", "attention", "squeeze_excite"])
def test_analog_operations_are_named_and_refused_if_the_network_must_spike(name):
    graph, plan = converted(name)
    with pytest.raises(PlanError, match="not spike-driven: aten"):
        transpike.build(graph, plan, require_spiking=True)


def test_a_network_of_spikes_alone_is_accepted():
    graph, plan = converted("residual")
    assert tensors(transpike.build(graph, plan, require_spiking=True)(calibration("residual")[0]))


def test_analog_operations_are_refused_before_calibration():
    class Never:
        def fit(self, graph, batches, plan=None):
            raise AssertionError("calibrated")

    with pytest.raises(PlanError, match="not spike-driven"):
        transpike.convert(make("activations"), Never(), calibration("activations"), require_spiking=True)


def test_a_max_pool_of_spikes_is_spike_driven_if_they_share_thresholds():
    net = transpike.convert(make("deep_pool"), MaxNorm(), calibration("deep_pool"), require_spiking=True)
    assert not transpike.inspect(net).analog
    for method, pooling in ((MaxNorm(granularity=Granularity.UNIT), Pooling.RATE), (MaxNorm(), Pooling.CURRENT)):
        with pytest.raises(PlanError, match=r"not spike-driven: aten\.max_pool2d"):
            transpike.convert(make("deep_pool"), method, calibration("deep_pool"), pooling=pooling, require_spiking=True)


def test_a_plan_for_another_network_is_refused():
    with pytest.raises(PlanError, match="does not fit"):
        transpike.build(captured("residual"), converted("mlp")[1])
    graph, plan = converted("mlp")
    with pytest.raises(PlanError, match="no site elsewhere"):
        transpike.build(graph, replace(plan, sites={**plan.sites, "elsewhere": plan.sites["1#1"]}))


def test_batch_norms_of_a_network_that_quantises_fold_unless_neurons_are_parallel():
    net = prepare(make("residual"), QCFS(levels=4), calibration("residual")).eval()
    x = calibration("residual")[0]
    trained = QCFS(levels=4)
    spiking, parallel = (transpike.convert(net, method, [x]) for method in (trained, Chain(trained, Parallel(4, Calibration.NONE))))
    found = [[node.op for node in each.graph.body if "batch_norm" in node.op] for each in (spiking, parallel)]
    assert not found[0] and found[1]
    unfolded = transpike.SpikingNetwork(parallel.graph, spiking.plan)
    assert torch.allclose(spiking(x), unfolded(x), atol=1e-4)
    assert torch.equal(transpike.simulate(parallel, x, 4, engine="counts").readout(), net(x).detach())
    fitted_anew = transpike.convert(net, Parallel(4), [x])
    assert any("Parallel(4, Calibration.NONE)" in note for note in fitted_anew.plan.notes) and not parallel.plan.notes

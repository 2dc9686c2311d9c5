"""The converted network is an ordinary module: it goes where modules go and keeps nothing between calls."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import transpike
from models import as_inputs, batch_of, calibration, captured, converted, make, tensors, vectors
from transpike.engines.program import Program
from transpike.errors import DataError, PlanError
from transpike.network import SpikingNetwork
from transpike.spiking.plan import SiteParams


def _net(name: str, steps: int = 8) -> SpikingNetwork:
    return SpikingNetwork(*converted(name), steps=steps)


@pytest.mark.parametrize("name", ["mlp", "two_outputs", "dict_output", "two_inputs", "tokens_first"])
def test_a_call_returns_the_users_structure_with_the_mean_read_out(name):
    net, x = _net(name), as_inputs(batch_of(name, 3))
    got, wanted = net(*x), make(name)(*x)
    assert type(got) is type(wanted)
    assert [y.shape for y in tensors(got)] == [y.shape for y in tensors(wanted)]
    run = transpike.simulate(net, x if len(x) > 1 else x[0], 8)
    for a, b in zip(tensors(got), tensors(run.outputs), strict=True):
        torch.testing.assert_close(a, b.mean(0))


def test_a_call_leaves_out_the_steps_before_the_start():
    net = SpikingNetwork(*converted("mlp"), steps=12, start=4)
    assert torch.equal(net(vectors()), transpike.simulate(net, vectors(), 12).readout(12, 4))


def test_repeated_calls_are_equal_for_there_is_nothing_to_reset():
    net, x = _net("residual"), batch_of("residual")
    first = net(x)
    net(torch.flip(x, [0]))
    assert torch.equal(net(x), first)


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_a_network_is_made_ready_once_until_a_tensor_is_written_to(name, monkeypatch):
    net, x, made = _net(name), batch_of(name), []
    of = Program.of
    monkeypatch.setattr(Program, "of", staticmethod(lambda *args: made.append(args[2]) or of(*args)))
    before = net(x)
    assert torch.equal(net(x), before) and made == ["auto"]
    transpike.simulate(net, x, 8, engine="dense")
    assert made == ["auto", "dense"]
    for names in (list(net.graph.params), [key for key in net.plan.tensors() if key.endswith("threshold")]):
        for key in names:
            tensor = {**net.graph.params, **net.plan.tensors()}[key]
            with torch.no_grad():
                tensor.mul_(1.25)
            fresh = SpikingNetwork(net.graph, net.plan, steps=net.steps)
            assert torch.equal(net(x), fresh(x)), key
    assert not torch.equal(net(x), before)


def test_other_parameters_of_a_site_are_seen():
    net, x = _net("residual"), batch_of("residual")
    before = net(x)
    name, params = next(iter(net.plan.sites.items()))
    net.plan.sites[name] = replace(params, threshold=2 * params.threshold)
    assert torch.equal(net(x), SpikingNetwork(net.graph, net.plan, steps=net.steps)(x))
    assert not torch.equal(net(x), before)


def test_another_plan_in_the_place_of_the_old_one_is_seen():
    net, x = _net("residual"), batch_of("residual")
    before = net(x)
    doubled = {name: 2 * value if "threshold" in name else value for name, value in net.state_dict().items()}
    net.load_state_dict(doubled, assign=True)
    assert torch.equal(net(x), SpikingNetwork(net.graph, net.plan, steps=net.steps)(x))
    assert not torch.equal(net(x), before)


def test_copies_begin_with_nothing_ready():
    net, x = _net("residual"), batch_of("residual")
    before = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other._kept is not net._kept and other._kept._last is None
        assert torch.equal(other(x), before)


def test_networks_made_in_inference_mode_are_made_ready_anew():
    x = batch_of("mlp")
    with torch.inference_mode():
        net = _net("mlp")
        before = net(x)
        next(iter(net.plan.tensors().values())).mul_(4.0)
        for tensor in net.graph.params.values():
            tensor.mul_(1.5)
        assert torch.equal(net(x), SpikingNetwork(net.graph, net.plan, steps=net.steps)(x))
        assert not torch.equal(net(x), before)


def test_more_steps_come_closer_to_the_model():
    x = calibration("mlp")[0]  # nothing is clipped on calibration data
    with torch.no_grad():
        ann = make("mlp")(x)
    few, many = ((SpikingNetwork(*converted("mlp"), steps=t)(x) - ann).abs().mean() for t in (4, 128))
    assert many < few / 4


def test_double_precision_moves_weights_numbers_and_inputs():
    net = _net("mlp").to(torch.float64)
    assert net(vectors()).dtype is torch.float64
    assert {x.dtype for x in net.state_dict().values()} == {torch.float64}
    torch.testing.assert_close(net(vectors()).float(), _net("mlp")(vectors()), rtol=1e-3, atol=1e-3)


def test_low_precision_runs_step_by_step():
    assert _net("mlp").to(torch.bfloat16)(vectors()).dtype is torch.bfloat16


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_carries_weights_and_thresholds(assign):
    net, other = _net("mlp"), _net("mlp")
    with torch.no_grad():
        for x in other.buffers():
            x.mul_(1.5)
    assert not torch.equal(net(vectors()), other(vectors()))
    net.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(net(vectors()), other(vectors()))


def test_a_state_dict_is_carried_inside_a_larger_module_too():
    one, other = nn.Sequential(_net("mlp"), nn.Softmax(1)), nn.Sequential(_net("mlp"), nn.Softmax(1))
    with torch.no_grad():
        for x in other.buffers():
            x.mul_(1.5)
    one.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(one(vectors()), other(vectors()))


def test_a_deep_copy_is_independent():
    net = _net("mlp")
    before, other = net(vectors()), copy.deepcopy(net)
    assert torch.equal(other(vectors()), before)
    with torch.no_grad():
        for x in other.buffers():
            x.mul_(2)
    assert torch.equal(net(vectors()), before) and not torch.equal(other(vectors()), before)


def test_the_graph_and_plan_given_are_not_shared():
    graph, plan = converted("mlp")
    net = SpikingNetwork(graph, plan)
    for x in net.buffers():
        x.zero_()
    assert all(bool(x.any()) for x in graph.params.values())
    assert all(bool(site.threshold.all()) for site in plan.sites.values())


def test_what_the_module_computes_with_is_what_graph_and_plan_show():
    net = _net("mlp")
    net.load_state_dict({name: x * 2 for name, x in net.state_dict().items()})
    graph, plan = converted("mlp")
    assert torch.equal(net.graph.params["0.weight"], graph.params["0.weight"] * 2)
    assert torch.equal(net.plan.sites["1#1"].threshold, plan.sites["1#1"].threshold * 2)


def test_no_gradient_is_recorded_and_there_are_no_parameters():
    net = _net("mlp")
    assert not list(net.parameters()) and not net.training
    assert not net(vectors().requires_grad_()).requires_grad


def test_keyword_inputs_are_taken_by_name():
    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.left(left)) - torch.relu(self.right(right))

    left, right = vectors(4), vectors(4, 5)
    graph = transpike.capture(Join().eval(), {"left": left, "right": right})
    plan = transpike.Plan({site.name: SiteParams(torch.tensor(0.5)) for site in graph.sites})
    net = SpikingNetwork(graph, plan)
    assert torch.equal(net(left=left, right=right), net(right=right, left=left))
    with pytest.raises(DataError, match="the input lacks right"):
        net(left=left)


def test_a_plan_that_does_not_fit_is_refused():
    with pytest.raises(PlanError, match="has no parameters"):
        SpikingNetwork(captured("mlp"), transpike.Plan({}))


def test_simulate_refuses_a_network_that_was_not_converted():
    with pytest.raises(DataError, match="convert the model first"):
        transpike.simulate(make("mlp"), vectors(), 4)  # type: ignore[arg-type]


def test_a_pair_of_input_and_target_may_be_simulated_as_it_is():
    net = _net("mlp")
    run = transpike.simulate(net, (vectors(), torch.zeros(4)), 4)
    assert torch.equal(run.outputs, transpike.simulate(net, vectors(), 4).outputs)


def test_its_text_says_what_it_is():
    assert "Sequential, 2 sites, method=MaxNorm, steps=8" in repr(_net("mlp"))

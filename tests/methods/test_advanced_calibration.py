"""P-CAL-4 and 5: potentials and weights against the paper's loops written in plain torch with the slow reference simulator."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reference
from models import CASES, EarlyShortcut, as_inputs, batch_of, calibration, captured, converted, dyadic, eighths, tensors
from transpike.engines.executor import simulate
from transpike.errors import PlanError
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Role
from transpike.methods import _calibration
from transpike.methods._weights import feeds, late, quantised
from transpike.methods.advanced_calibration import AdvancedCalibration, Shift
from transpike.methods.chain import Chain
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import NeuronKind, Plan, SiteParams, expand

STEPS = 8


def sequential() -> nn.Module:
    """Two convolutions and a hidden linear layer."""
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)],
    )


NETWORKS = {"sequential": sequential, "residual": EarlyShortcut}
# the synapses that are trained for each site
TRAINED = {
    "sequential": {"1#1": [], "3#1": ["2"], "7#1": ["6"]},
    "residual": {"relu0#1": [], "relu1#1": ["conv1"], "relu2#1": ["shortcut", "conv2"], "relu3#1": ["hidden"]},
}


def network(name: str, **neuron: Any) -> tuple[nn.Module, Graph, Plan, torch.Tensor]:
    """A network in double precision whose numbers, sums and means over 8 samples and 8 steps are exact."""
    torch.manual_seed(1)
    model = dyadic(NETWORKS[name]().double().eval(), scale=2)
    x = eighths(8, 3, 8, 8).double()
    graph = capture(model, x[:2])
    thetas = {site.name: eighths(site.channels, seed=k, low=6, high=14).double() for k, site in enumerate(graph.sites)}
    return model, graph, Plan({site: SiteParams(theta, theta / 2, **neuron) for site, theta in thetas.items()}), x


def traced(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and outputs of every module of one forward pass, by path."""
    given: dict[str, torch.Tensor] = {}
    made: dict[str, torch.Tensor] = {}
    hooks = []
    for path, module in model.named_modules():

        def note(_m: nn.Module, inputs: Any, out: torch.Tensor, path: str = path) -> None:
            given[path], made[path] = inputs[0].detach().clone(), out.detach().clone()

        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return given, made


def averages(model: nn.Module, sites: dict[str, SiteParams], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every site passes on, averaged over the steps, in the reference simulator. N *site"""
    neurons = reference.simulate(model, sites, x, STEPS).neurons
    return {name: n._spread(sites[name].threshold, n.net) * n.net / STEPS for name, n in neurons.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("neuron", [{}, {"cap": 3}, {"signed": True}], ids=str)
@pytest.mark.parametrize("instead", [False, True])
def test_potentials_are_those_of_one_simulation_per_layer(name: str, neuron: dict[str, Any], instead: bool) -> None:
    model, graph, plan, x = network(name, **neuron)
    _, wanted = traced(model, x)
    sites = dict(plan.sites)
    for site, params in plan.sites.items():
        missing = STEPS * (wanted[site.partition("#")[0]] - averages(model, sites, x)[site]).mean(0)
        before = reference.Neurons(params)._spread(params.v_init, missing[None]).expand_as(missing)
        sites[site] = replace(params, v_init=missing if instead else before + missing)
    found = AdvancedCalibration(steps=STEPS, replace=instead, weights=False, potential=True).fit(graph, [x], plan)
    assert found.params == {}
    for site, params in sites.items():
        assert found.sites[site].v_init.shape == graph.site(site).shape
        torch.testing.assert_close(found.sites[site].v_init, params.v_init, rtol=0, atol=1e-11)
        assert torch.equal(found.sites[site].current, params.current)


def published_weights(model: nn.Module, plan: Plan, x: torch.Tensor, trained: dict[str, list[str]], **s: Any) -> nn.Module:
    """The paper's loop for the weights: simulate, then Adam on the synapses of a layer, layer by layer; plain torch."""
    _, wanted = traced(model, x)
    snn, generator = copy.deepcopy(model), torch.Generator().manual_seed(s["seed"])
    for site, paths in trained.items():
        if not paths:
            continue
        r = averages(snn, dict(plan.sites), x)
        mean_net = copy.deepcopy(snn)  # gives the averages: linear layers of averages, sites replaced by theirs

        class Known(nn.Module):
            def __init__(self, value: torch.Tensor) -> None:
                super().__init__()
                self.value = value

            def forward(self, _: torch.Tensor) -> torch.Tensor:
                return self.value

        for other, value in r.items():
            setattr(mean_net, other.partition("#")[0], Known(value))
        xin, currents = traced(mean_net, x)
        total = xin[site.partition("#")[0]]
        layers = [mean_net.get_submodule(path) for path in paths]
        rest = total - sum(currents[path] for path in paths)  # biases and residual branches
        weights = [layer.weight.detach().clone().requires_grad_() for layer in layers]
        adam = torch.optim.Adam(weights, lr=1.0)
        theta = plan.sites[site].threshold.view(-1, *[1] * (total.dim() - 2))
        for i in range(s["iterations"]):
            adam.param_groups[0]["lr"] = s["rate"] * (1 + math.cos(math.pi * i / s["iterations"])) / 2
            some = torch.randperm(len(x), generator=generator)[: s["batch"]]
            z = rest[some]
            for layer, weight, path in zip(layers, weights, paths, strict=True):
                change = weight - layer.weight.detach()
                run = F.conv2d(xin[path][some], change, None, layer.stride, layer.padding) if weight.dim() == 4 else None
                z = z + (F.linear(xin[path][some], change) if run is None else run) + currents[path][some]
            level = (z * STEPS / theta + (0.5 if s["rounding"] else 0)).clamp(0, STEPS)
            q = (level + (level.floor() - level).detach()) * theta / STEPS
            loss = (q - wanted[site.partition("#")[0]][some]).square().sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        for path, weight in zip(paths, weights, strict=True):
            snn.get_submodule(path).weight.data = weight.detach()
    return snn


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rounding", [True, False])
def test_weights_are_those_of_the_published_loop(name: str, rounding: bool) -> None:
    model, graph, plan, x = network(name)
    settings = {"iterations": 12, "rate": 1e-2, "batch": 4, "seed": 3, "rounding": rounding}
    wanted = published_weights(model, plan, x, TRAINED[name], **settings)
    found = AdvancedCalibration(steps=STEPS, weights=True, potential=False, **settings).fit(graph, [x], plan)
    assert set(found.params) == {f"{path}.weight" for paths in TRAINED[name].values() for path in paths}
    for key, weight in found.params.items():
        original = graph.params[key]
        assert float((weight - original).abs().max()) > 1e-3
        torch.testing.assert_close(weight, wanted.state_dict()[key], rtol=0, atol=1e-9)
    for site, params in plan.sites.items():
        assert torch.equal(found.sites[site].v_init, params.v_init)


def test_weight_calibration_lowers_the_error_it_is_made_for() -> None:
    model, graph, plan, x = network("residual")
    method = AdvancedCalibration(steps=STEPS, weights=True, potential=False, iterations=60, rate=3e-3, batch=8)
    refined = method.fit(graph, [x], plan)
    _, wanted = traced(model, x)
    error = []
    for here in (plan, refined):
        run = simulate(graph, here, [x], STEPS)
        r = {site: run.net[site] * expand(here.sites[site].threshold, graph.site(site)) / STEPS for site in here.sites}
        error.append([float((r[site] - wanted[site.partition("#")[0]]).square().mean()) for site in r])
    assert error[1][0] == error[0][0], "the first layer's input is no spikes"
    assert all(after < before for before, after in zip(error[0][1:], error[1][1:], strict=True)), error


def rectifier(*shape: int, act: nn.Module | None = None) -> Graph:
    """A network whose only site sees its input."""
    act = act or nn.ReLU()
    return capture(nn.Sequential(act, nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2)).eval(), torch.zeros(2, *shape))


def test_a_constant_neuron_gets_t_times_what_it_lacks() -> None:
    """z = 5/8, theta = 1, T = 4: without a potential r = 1/2, so v(0) = 4 / 8; it then has 3 spikes."""
    plan = Plan({"0#1": SiteParams(torch.ones(1))})
    refined = AdvancedCalibration(steps=4, weights=False).fit(rectifier(1), [torch.full((3, 1), 0.625)], plan)
    assert refined.sites["0#1"].v_init.tolist() == [0.5]
    assert simulate(rectifier(1), refined, [torch.full((1, 1), 0.625)], 4).net["0#1"].tolist() == [[3.0]]


def test_potentials_lower_the_mean_gap_of_units() -> None:
    """P-CAL-5: Gaussian inputs, 8 steps."""
    x = torch.randn(2000, 3, 4, generator=torch.Generator().manual_seed(0)) + torch.linspace(-0.5, 0.5, 12).view(3, 4)
    graph, plan = rectifier(3, 4), Plan({"0#1": SiteParams(x.amax((0, 2)))})
    refined = AdvancedCalibration(steps=8, samples=2000, weights=False).fit(graph, [x], plan)
    gaps = []
    for here in (plan, refined):
        r = simulate(graph, here, [x], 8).net["0#1"] * here.sites["0#1"].threshold[:, None] / 8
        gaps.append((x.clamp(min=0) - r).mean(0).abs())
    assert bool((gaps[1] < 0.8 * gaps[0]).all()), gaps


def test_the_anns_clip_is_part_of_the_reference() -> None:
    """An input far beyond ReLU6's clip: both give 6, there is nothing to correct."""
    plan = Plan({"0#1": SiteParams(torch.full((2,), 6.0))})
    graph = rectifier(2, act=nn.ReLU6())
    refined = AdvancedCalibration(steps=4, weights=False).fit(graph, [torch.full((3, 2), 20.0)], plan)
    assert refined.sites["0#1"].v_init.tolist() == [0.0, 0.0]


def test_the_trickled_shift_leaves_only_the_correction_as_potential() -> None:
    x = torch.full((3, 1), 0.625)
    plan = Plan({"0#1": SiteParams(torch.ones(1), torch.full((1,), 0.5))})
    refined = AdvancedCalibration(steps=4, shift=Shift.TRICKLED, weights=False).fit(rectifier(1), [x], plan)
    assert refined.sites["0#1"].current.tolist() == [0.125]
    assert refined.sites["0#1"].v_init.tolist() == [-0.5]  # 3/4 a step gives 3 spikes: 0.625 - 0.75, four times
    replaced = AdvancedCalibration(steps=4, shift=Shift.TRICKLED, weights=False, replace=True).fit(rectifier(1), [x], plan)
    assert torch.equal(replaced.sites["0#1"].v_init, refined.sites["0#1"].v_init)


def test_groups_of_samples_average_their_potentials(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([0.625, 0.625, 0.375, 0.375])[:, None]
    monkeypatch.setattr(_calibration, "_GROUP_BYTES", 2 * 4 * 4)
    plan = Plan({"0#1": SiteParams(torch.ones(1))})
    refined = AdvancedCalibration(steps=4, weights=False, replace=False).fit(rectifier(1), [x], plan)
    # group 1: v = 4 (0.625 - 0.5) = 0.5; group 2: floor(1.5 + 0.5) = 2 spikes, half of 4 (0.375 - 0.5) is added
    assert refined.sites["0#1"].v_init.tolist() == [0.25]


def test_what_replaces_the_potential_is_missing_from_the_same_one_in_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([0.625, 0.625, 0.375, 0.375])[:, None]
    monkeypatch.setattr(_calibration, "_GROUP_BYTES", 2 * 4 * 4)
    plan = Plan({"0#1": SiteParams(torch.ones(1), torch.tensor([0.5]))})
    refined = AdvancedCalibration(steps=4, weights=False, replace=True).fit(rectifier(1), [x], plan)
    # from v = 0.5: 4 (0.625 - 0.75) in group 1 and 4 (0.375 - 0.5) in group 2
    assert refined.sites["0#1"].v_init.tolist() == [-0.5]


def test_groups_of_samples_share_the_updates_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, plan, x = network("residual")
    method = AdvancedCalibration(steps=STEPS, weights=True, potential=False, iterations=9, rate=1e-2, batch=8)
    whole = method.fit(graph, [x], plan)
    monkeypatch.setattr(_calibration, "_GROUP_BYTES", 4 * STEPS * 256 * 8)
    first, again = method.fit(graph, [x], plan), method.fit(graph, [x], plan)
    for key, weight in first.params.items():
        assert torch.equal(weight, again.params[key]) and not torch.equal(weight, whole.params[key])
        moved = (weight - graph.params[key]).norm() / (whole.params[key] - graph.params[key]).norm()
        assert 0.4 < float(moved) < 1.6  # as many updates in all
    assert first.metadata["samples"] == 8


def test_the_seed_decides_the_draw() -> None:
    _, graph, plan, x = network("sequential")
    by_seed = [
        AdvancedCalibration(steps=STEPS, weights=True, iterations=5, rate=1e-3, batch=2, seed=s).fit(graph, [x], plan)
        for s in (0, 0, 1)
    ]
    same, other = (torch.equal(by_seed[0].params["2.weight"], by_seed[k].params["2.weight"]) for k in (1, 2))
    assert same and not other


def test_the_ann_and_the_given_plan_are_left_as_they_are() -> None:
    """P-CAL-4: the reference is the network with its original weights, before and after, also beside replaced weights."""
    graph, base = converted("residual")
    x = batch_of("residual", 6)
    own = {"fc.weight": graph.params["fc.weight"] * 2}
    trained = {name for feed in feeds(late(graph)).values() for name in feed.weights}
    own |= {name: graph.params[name] * 1.25 for name in sorted(trained)}
    plan = replace(base, params=own)
    weights, before = {name: w.clone() for name, w in graph.params.items()}, forward(graph, [x])
    kept = {key: t.clone() for key, t in plan.tensors().items()}
    refined = AdvancedCalibration(steps=8, weights=True, iterations=4, rate=1e-3).fit(graph, [x], plan)
    assert all(torch.equal(w, weights[name]) for name, w in graph.params.items())
    assert torch.equal(forward(graph, [x]), before)
    assert all(torch.equal(t, kept[key]) for key, t in plan.tensors().items())
    assert torch.equal(refined.params["fc.weight"], own["fc.weight"])
    for name in trained:  # training begins at the plan's weights
        assert 0 < float((refined.params[name] - own[name]).abs().max()) <= 4e-3
    assert not torch.is_grad_enabled() or not any(w.requires_grad for w in refined.params.values())


class SharedWeight(nn.Module):
    """One linear layer used twice behind neurons, one used once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice, self.once, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.out(torch.relu(self.once(x)))


def test_weights_read_twice_stay_and_are_noted() -> None:
    torch.manual_seed(0)
    graph = capture(SharedWeight().eval(), torch.randn(2, 6))
    method = Chain(MaxNorm(), AdvancedCalibration(steps=4, weights=True, iterations=3, rate=1e-3))
    plan = method.fit(graph, [torch.randn(16, 6)])
    assert set(plan.params) == {"once.weight"}
    assert any("weights in front of 2 sites (relu#2, relu#3) stay" in note for note in plan.notes)
    assert not any(
        "weights in front of" in note
        for note in Chain(MaxNorm(), AdvancedCalibration(steps=4, weights=False)).fit(graph, [torch.randn(16, 6)]).notes
    )


@pytest.mark.parametrize("name", CASES)
def test_a_late_network_is_the_same_network(name: str) -> None:
    graph, plan = converted(name)
    reordered = late(graph)
    assert sorted(node.name for node in reordered.body) == sorted(node.name for node in graph.body)
    x = as_inputs(batch_of(name, 3))
    for a, b in zip(tensors(forward(graph, x)), tensors(forward(reordered, x)), strict=True):
        assert torch.equal(a, b)
    run, again = simulate(graph, plan, x, 4), simulate(reordered, plan, x, 4)
    assert all(torch.equal(run.spikes[site], again.spikes[site]) for site in run.spikes)


@pytest.mark.parametrize("name", CASES)
def test_in_a_late_network_what_feeds_a_site_comes_behind_the_site_before(name: str) -> None:
    graph = late(captured(name))
    position = {node.name: k for k, node in enumerate(graph.body)}
    neurons = [node.name for node in graph.body if node.role is Role.NEURON]
    found = feeds(graph)
    assert len({weight for feed in found.values() for weight in feed.weights}) == sum(len(feed.weights) for feed in found.values())
    for feed in found.values():
        previous = neurons[neurons.index(feed.site.node) - 1]
        assert position[previous] < position[feed.after[0].name]
        assert feed.source is feed.after[-1] and feed.reads


def test_the_early_shortcut_is_moved_behind_the_branch() -> None:
    graph = capture(EarlyShortcut().eval(), torch.zeros(2, 3, 8, 8))

    def reader(of: Graph, weight: str) -> int:
        return next(k for k, node in enumerate(of.body) if weight in node.refs())

    assert reader(graph, "shortcut.weight") < reader(graph, "conv1.weight")
    assert reader(late(graph), "shortcut.weight") > reader(late(graph), "conv1.weight")


@pytest.mark.parametrize("neuron", [{}, {"cap": 2}, {"cap": None, "signed": True}, {"amplitude": 0.5}], ids=str)
def test_the_quantiser_is_the_neuron_for_even_currents(neuron: dict[str, Any]) -> None:
    graph = rectifier(3)
    neuron = {key: torch.tensor(value) if key == "amplitude" else value for key, value in neuron.items()}
    params = SiteParams(
        torch.tensor([0.5, 1.0, 1.5]), torch.tensor([0.25, 0.0, 0.75]), torch.tensor([0.0, 0.125, -0.125]), **neuron
    )
    x = eighths(40, 3, low=-8, high=24)
    found = quantised(graph.sites[0], params, x, 8, rounding=True)
    net = simulate(graph, Plan({"0#1": params}), [x], 8).net["0#1"]
    torch.testing.assert_close(found, net * params.worth / 8, rtol=1e-6, atol=1e-7)
    without = quantised(graph.sites[0], replace(params, v_init=torch.zeros(())), x, 8, rounding=True)
    assert torch.equal(quantised(graph.sites[0], params, x, 8, rounding=False), without)


def test_the_quantiser_passes_the_gradient_inside_its_range_only() -> None:
    z = torch.tensor([[-0.5, 0.3, 1.7]], requires_grad=True)
    quantised(rectifier(3).sites[0], SiteParams(torch.ones(3)), z, 4, rounding=True).sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("kind", NeuronKind)
@pytest.mark.parametrize("name", CASES)
def test_runs_on_every_network(name: str, kind: NeuronKind) -> None:
    graph, base = converted(name)
    plan = Plan({site: replace(params, kind=kind) for site, params in base.sites.items()})
    refined = AdvancedCalibration(steps=3, weights=True, potential=True, iterations=2).fit(graph, calibration(name, 2, 3), plan)
    assert refined.validate(graph) is refined


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"samples": 0}, {"iterations": 0}, {"batch": 0}, {"rate": 0.0}, {"weights": False, "potential": False}],
)
def test_settings_out_of_range_are_refused_before_data_is_read(settings: dict[str, Any]) -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    graph, plan = converted("mlp")
    with pytest.raises(PlanError, match=next(iter(settings))):
        AdvancedCalibration(**settings).fit(graph, unread(), plan)

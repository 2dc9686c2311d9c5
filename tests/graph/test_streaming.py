"""Networks that see another frame at every step, against the reference loop and against an input that does not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import reference
import transpike
from models import CASES, as_inputs, batch_of, converted, dyadic, eighths, tensors
from transpike.engines.exits import simulate_until
from transpike.errors import DataError
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Role
from transpike.graph.streaming import streamed
from transpike.measure.accuracy import Classification
from transpike.methods.max_norm import MaxNorm
from transpike.network import SpikingNetwork
from transpike.spiking.plan import Plan, SiteParams

STEPS, SAMPLES = 7, 5


def network() -> nn.Module:
    """A max pool behind the second neuron layer, where the reference has its own."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return dyadic(nn.Sequential(*layers, nn.Linear(16, 3)).eval())


def frames() -> torch.Tensor:
    return eighths(SAMPLES, STEPS, 2, 6, 6, seed=1)


def spiking(signed: bool = False, cap: int | None = 1) -> SpikingNetwork:
    graph = capture(network(), frames()[:, 0])
    sites = {site.name: SiteParams(torch.tensor(1.5), torch.tensor(0.75), cap=cap, signed=signed) for site in graph.sites}
    return transpike.build(graph, Plan(sites)).streamed()


@pytest.mark.parametrize(("signed", "cap"), [(False, 1), (True, 1), (True, None)])
@pytest.mark.parametrize("chunk", [1, 3, STEPS])
def test_every_spike_is_that_of_the_reference_that_is_given_one_frame_a_step(signed: bool, cap: int | None, chunk: int) -> None:
    net = spiking(signed, cap)
    run = transpike.simulate(net, frames(), STEPS, chunk=chunk)
    wanted = reference.simulate(network(), net.plan.sites, frames(), STEPS, frames=True)
    assert torch.equal(run.outputs.double(), wanted.outputs)
    for name, neurons in wanted.neurons.items():
        assert torch.equal(run.spikes[name].double(), neurons.spikes)
        assert torch.equal(run.membranes[name].double(), neurons.v)


def test_a_sample_is_the_same_alone_and_among_others_and_later_frames_do_not_matter() -> None:
    net = spiking()
    whole = transpike.simulate(net, frames(), STEPS)
    alone = transpike.simulate(net, frames()[2:3, :4], 4)
    assert torch.equal(alone.outputs, whole.outputs[:4, 2:3])


@pytest.mark.parametrize("name", CASES)
def test_a_frame_that_is_repeated_is_an_input_that_does_not_change(name: str) -> None:
    net = transpike.build(*converted(name))
    x = as_inputs(batch_of(name, 3))
    still = transpike.simulate(net, tuple(x) if len(x) > 1 else x[0], 16)
    moving = [y[:, None].expand(-1, 16, *y.shape[1:]) for y in x]
    run = transpike.simulate(net.streamed(), tuple(moving) if len(x) > 1 else moving[0], 16)
    assert run.spikes.keys() == still.spikes.keys()
    for a, b in zip(tensors(run.readout()), tensors(still.readout()), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()) + 1e-6)  # a spike may move by rounding


def test_nothing_that_depends_on_the_input_is_computed_once_and_pooling_stays_exact() -> None:
    layers = [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(16, 3)]
    graph = capture(nn.Sequential(*layers).eval(), torch.zeros(2, 2, 10))
    assert any("max_pool" in node.op for node in graph.prefix)  # a constant current is pooled once
    moving = streamed(graph)
    assert not moving.prefix
    assert [site.name for site in moving.sites] == [site.name for site in graph.sites]
    assert {node.role for node in moving.body if "max_pool" in node.op} == {Role.ANALOG}


def test_the_read_out_approaches_the_ann_for_the_mean_of_the_frames() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()
    x = torch.rand(8, 256, 2, 6, 6)
    net = transpike.convert(model, MaxNorm(signed=True), x.mean(1)).streamed()
    with torch.no_grad():
        wanted = model(x.mean(1))
    torch.testing.assert_close(forward(net.graph, [x]), wanted)
    errors = [
        float((transpike.simulate(net, x, t).readout() - model(x[:, :t].mean(1)).detach()).norm() / wanted.norm()) for t in (4, 256)
    ]
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.02


def test_too_few_frames_and_single_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="7 frames for 8 steps"):
        transpike.simulate(spiking(), frames(), 8)
    with pytest.raises(DataError, match=r"captured for \(N, steps, 2, 6, 6\)"):
        transpike.simulate(spiking(), frames()[:, 0], 2)


def test_early_exit_drops_the_frames_of_those_who_left() -> None:
    net, whole = spiking(), transpike.simulate(spiking(), frames(), STEPS)
    leaves = torch.tensor([2, 5, 3, 7, 2])
    clock: list[int] = []

    def leave(totals: torch.Tensor, t: int) -> torch.Tensor:
        clock.append(t)
        here = leaves[leaves >= t]
        return here == t

    run = simulate_until(net.graph, net.plan, [frames()], STEPS, leave)
    assert torch.equal(run.exits, leaves)
    for n, t in enumerate(leaves.tolist()):
        assert torch.equal(run.readout[n], whole.outputs[:t, n].double().mean(0))


def test_the_first_layer_is_dense_work_at_every_step() -> None:
    net = spiking()
    e = transpike.energy(net, [frames()], STEPS)
    assert e.constant_macs == 0
    assert e.dense_macs >= 36 * 4 * 2 * 9  # the first convolution
    still = transpike.energy(SpikingNetwork(capture(network(), frames()[:, 0]), net.plan), [frames().mean(1)], STEPS)
    assert still.constant_macs == 36 * 4 * 2 * 9
    assert e.ann_macs == still.ann_macs


def test_a_saved_network_is_still_streamed(tmp_path: Path) -> None:
    net = spiking()
    found = transpike.load(net.save(tmp_path / "n.spike"))
    assert torch.equal(transpike.simulate(found, frames(), STEPS).outputs, transpike.simulate(net, frames(), STEPS).outputs)


def test_evaluate_measures_accuracy_against_time() -> None:
    net, x = spiking(), frames()
    y = forward(net.graph, [x]).argmax(1)
    report = transpike.evaluate(net, [(x, y)], STEPS, task=Classification(step_ms=10.0))
    assert report.ann["top1"] == 1.0
    outputs = transpike.simulate(net, x, STEPS).outputs
    for t in (1, STEPS):
        assert report.at(t) == pytest.approx(float((outputs[:t].mean(0).argmax(1) == y).double().mean()))
    assert report.to_dict()["step_ms"] == 10.0
    assert "ms" in str(report).splitlines()[2]

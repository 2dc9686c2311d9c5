"""The choice follows what neurons are allowed, and the plan says what was chosen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import transpike
from models import calibration, captured
from transpike.errors import PlanError
from transpike.graph.interpret import forward
from transpike.methods import Method
from transpike.methods.auto import Auto
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import NeuronKind


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        (Auto(steps=4), ["MMSE"]),
        (Auto(steps=4, cap=1), ["MMSE"]),
        (Auto(steps=4, signed=False), ["MMSE"]),
        (Auto(steps=4, cap=1, signed=False), ["MMSE", "LightCalibration", "AdvancedCalibration"]),
        (Auto(steps=4, parallel=True), ["Parallel", "Reconstruction"]),
    ],
)
def test_the_plan_names_the_methods_chosen_for_the_neurons_allowed(method: Auto, chosen: list[str]) -> None:
    plan = method.fit(captured("residual"), calibration("residual"))
    found = plan.metadata["chosen"]
    assert [part["method"] for part in found.get("methods", [found])] == chosen
    assert plan.metadata["method"] == "Auto" and plan.metadata["settings"]["steps"] == 4
    kind = NeuronKind.PARALLEL if method.parallel else NeuronKind.INTEGRATE_AND_FIRE
    cap, signed = (1, False) if method.parallel else (method.cap, method.signed)
    assert {(p.kind, p.cap, p.signed) for p in plan.sites.values()} == {(kind, cap, signed)}


def test_every_choice_is_nearer_to_the_ann_at_its_steps_than_thresholds_at_the_maximum() -> None:
    """Plain spikes, 8 steps, samples that nothing was calibrated on."""
    graph, data = captured("residual"), calibration("residual", batches=4, n=50)
    fresh = torch.cat(calibration("residual", batches=5, n=50)[4:])
    ann = forward(graph, [fresh])

    def error(method: Method) -> float:
        net = transpike.build(graph, method.fit(graph, data))
        return float((transpike.simulate(net, fresh, 8).readout() - ann).norm() / ann.norm())

    worst = error(MaxNorm())
    assert error(Auto(steps=8, cap=1, signed=False)) < 0.8 * worst
    assert error(Auto(steps=8, parallel=True)) < 0.5 * worst
    assert error(Auto(steps=8)) < 0.5 * worst


def test_settings_out_of_range_are_refused_before_data_is_read() -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    for wrong in (Auto(steps=0), Auto(cap=0)):
        with pytest.raises(PlanError, match="at least 1"):
            wrong.fit(captured("mlp"), unread())

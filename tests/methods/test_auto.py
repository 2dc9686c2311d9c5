"""The candidates follow what neurons are allowed; the one that serves held-out samples best is chosen, and the plan says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import transpike
from models import calibration, captured
from transpike.errors import PlanError
from transpike.graph.interpret import forward
from transpike.methods.auto import Auto
from transpike.spiking.plan import NeuronKind

ALLOWED = [
    Auto(steps=4),
    Auto(steps=4, cap=1),
    Auto(steps=4, signed=False),
    Auto(steps=4, cap=1, signed=False),
    Auto(4, parallel=True),
]


@pytest.mark.parametrize("method", ALLOWED, ids=str)
def test_neurons_are_those_allowed(method: Auto) -> None:
    plan = method.fit(captured("residual"), calibration("residual"))
    assert plan.metadata["method"] == "Auto" and plan.metadata["settings"]["steps"] == 4
    kind = NeuronKind.PARALLEL if method.parallel else NeuronKind.INTEGRATE_AND_FIRE
    cap, signed = (1, False) if method.parallel else (method.cap, method.signed)
    assert {(p.kind, p.cap, p.signed) for p in plan.sites.values()} == {(kind, cap, signed)}


@pytest.mark.parametrize("name", ["residual", "depthwise"])
@pytest.mark.parametrize("steps", [2, 16])
def test_the_chosen_one_has_the_least_error_on_the_samples_held_out(name: str, steps: int) -> None:
    graph, data = captured(name), calibration(name, batches=4, n=50)
    method = Auto(steps=steps, cap=1, signed=False, held_out=30)
    plan = method.fit(graph, data)
    tried = {str(entry["methods"]): entry["error"] for entry in plan.metadata["tried"]}
    assert len(tried) == len(method.candidates()) and tried[str(plan.metadata["chosen"])] == min(tried.values())
    judges = torch.cat(data)[:30]
    ann = forward(graph, [judges])
    snn = transpike.simulate(transpike.build(graph, plan), judges, steps).readout()
    ann, snn = (y - y.mean(1, keepdim=True) for y in (ann, snn))  # softmax does not see what all classes have in common
    assert float((snn - ann).square().sum() / ann.square().sum()) == pytest.approx(min(tried.values()), rel=1e-4)


def test_what_judges_does_not_calibrate() -> None:
    graph, data = captured("mlp"), torch.cat(calibration("mlp", batches=4, n=50))
    others = data.clone()
    others[:20] = 0  # the judges
    plans = [Auto(steps=8, cap=1, held_out=20).fit(graph, [x]) for x in (data, others)]
    for name, params in plans[0].sites.items():
        assert torch.equal(params.threshold, plans[1].sites[name].threshold)


def test_one_sample_is_enough() -> None:
    Auto(steps=2).fit(captured("mlp"), [calibration("mlp")[0][:1]])


def test_settings_out_of_range_are_refused_before_data_is_read() -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    for wrong in (Auto(steps=0), Auto(cap=0), Auto(held_out=0)):
        with pytest.raises(PlanError, match="at least 1"):
            wrong.fit(captured("mlp"), unread())

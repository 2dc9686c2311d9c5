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
from transpike.methods.chain import Chain
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
    unsigned = {(kind, 1, False)} if cap == 1 else {(kind, cap, signed)}  # single spikes need no signs to serve better
    found = {(p.kind, p.cap, p.signed) for p in plan.sites.values()}
    assert found == {(kind, cap, signed)} or found == unsigned


def test_what_is_allowed_more_is_tried_beside_what_is_allowed_less() -> None:
    plain, signed = (Auto(steps=4, cap=1, signed=signed).candidates() for signed in (False, True))
    assert signed[: len(plain)] == plain and len(signed) > len(plain)
    assert {parts[0].shift for parts in signed[len(plain) :]} == {0, None}  # None: 0.5, as signed neurons end at the nearest level


@pytest.mark.parametrize("name", ["residual", "depthwise"])
@pytest.mark.parametrize("steps", [2, 16])
def test_the_simplest_with_the_least_error_on_samples_held_out_is_fitted_to_all(name: str, steps: int) -> None:
    graph, data = captured(name), torch.cat(calibration(name, batches=4, n=50))
    method = Auto(steps=steps, cap=1, signed=False, held_out=30)
    plan = method.fit(graph, list(data.split(50)))
    ann = forward(graph, [data[:30]])
    errors = {}
    for parts in method.candidates():
        net = transpike.build(graph, Chain(*parts).fit(graph, [data[30:50], *data[50:].split(50)]))
        snn = transpike.simulate(net, data[:30], steps).readout()
        gap, full = (y - y.mean(1, keepdim=True) for y in (snn - ann, ann))  # softmax does not see what all classes share
        y = full + gap
        y = y * ((y * full).sum() / y.square().sum()).clamp(min=0)  # nor what makes all of them larger
        errors[parts] = float((y - full).square().sum() / full.square().sum())
    assert [entry["error"] for entry in plan.metadata["tried"]] == pytest.approx(list(errors.values()), rel=1e-4)
    best = next(parts for parts in method.candidates() if errors[parts] <= 1.02 * min(errors.values()))  # the simplest of equals
    assert [part["method"] for part in plan.metadata["chosen"]] == [type(part).__name__ for part in best]
    wanted = Chain(*best).fit(graph, data.split(50))
    for key, x in wanted.tensors().items():
        torch.testing.assert_close(plan.tensors()[key], x, rtol=1e-5, atol=1e-6)


def test_one_sample_is_enough() -> None:
    Auto(steps=2).fit(captured("mlp"), [calibration("mlp")[0][:1]])


def test_settings_out_of_range_are_refused_before_data_is_read() -> None:
    def unread() -> Iterator[torch.Tensor]:
        raise AssertionError("data was read")
        yield

    for wrong in (Auto(steps=0), Auto(cap=0), Auto(held_out=0)):
        with pytest.raises(PlanError, match="at least 1"):
            wrong.fit(captured("mlp"), unread())

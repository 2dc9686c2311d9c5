"""One neuron mends its count; a network comes closer to the one in count space."""

from __future__ import annotations

import pytest
import torch

import transpike
from models import batch_of, calibration, captured
from transpike.engines.sweep import respond
from transpike.errors import PlanError
from transpike.graph.ir import Site
from transpike.methods.chain import Chain
from transpike.methods.mmse import MMSE
from transpike.methods.offset_spikes import OffsetSpikes
from transpike.methods.parallel import Calibration, Parallel
from transpike.spiking.plan import NeuronKind, SiteParams

SITE = Site("s", "s", (1,), 0)


def counts(currents: list[float], kind: NeuronKind) -> tuple[float, float]:
    params = SiteParams(torch.ones(1), torch.full((1,), 0.5), kind=kind)
    answer = respond(SITE, params, torch.tensor(currents).view(-1, 1, 1))
    return float(answer.spikes), float(answer.membrane)


def test_too_early_and_too_late_are_mended() -> None:
    early, late = [2.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 2.5]
    assert counts(early, NeuronKind.INTEGRATE_AND_FIRE) == (2, -1.5)
    assert counts(early, NeuronKind.OFFSET)[0] == 0  # charge 0: nothing is owed
    assert counts(late, NeuronKind.INTEGRATE_AND_FIRE) == (1, 2.0)
    assert counts(late, NeuronKind.OFFSET)[0] == 3  # floor(2.5 + 0.5)


def test_even_charge_needs_no_mending() -> None:
    for x in (0.0, 0.25, 0.75, 1.0):
        assert counts([x] * 8, NeuronKind.OFFSET) == counts([x] * 8, NeuronKind.INTEGRATE_AND_FIRE)


def test_comes_closer_to_the_counts_of_the_whole_charge() -> None:
    graph, data, x = captured("residual"), calibration("residual"), batch_of("residual", 64)
    base = MMSE(steps=8).fit(graph, data)

    def run(plan):  # type: ignore[no-untyped-def]
        return transpike.simulate(transpike.build(graph, plan), x, 8).readout()

    ideal = run(Parallel(8, Calibration.NONE).fit(graph, data, base))
    plain, mended = run(base), run(OffsetSpikes().fit(graph, data, base))
    assert float((mended - ideal).norm()) < 0.6 * float((plain - ideal).norm())


def test_what_cannot_be_mended_is_refused_before_data_is_read() -> None:
    def unread():  # type: ignore[no-untyped-def]
        raise AssertionError("data was read")
        yield

    graph, data = captured("mlp"), calibration("mlp")
    with pytest.raises(PlanError, match="refines a plan"):
        OffsetSpikes().fit(graph, unread())
    for first in (MMSE(signed=True), Parallel(4)):
        with pytest.raises(PlanError, match="mend their count themselves"):
            Chain(first, OffsetSpikes()).fit(graph, data)

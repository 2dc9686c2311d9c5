"""A sweep with the ordinary neurons is the ordinary simulation, site by site."""

from __future__ import annotations

import pytest
import torch

import transpike
from models import batch_of, converted
from transpike.engines.sweep import respond, sweep
from transpike.graph.interpret import forward
from transpike.graph.ir import Site


@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise", "conv1d", "tokens_first", "conv3d"])
def test_responding_at_every_site_is_the_simulation(name: str) -> None:
    graph, plan = converted(name)
    x = batch_of(name, 5)
    run = transpike.simulate(transpike.build(graph, plan), x, 9)
    order: list[str] = []

    def at_site(site: Site, currents: torch.Tensor) -> torch.Tensor:
        assert tuple(currents.shape) == (9, 5, *site.shape)
        before = currents.clone()
        answer = respond(site, plan.sites[site.name], currents)
        assert torch.equal(currents, before), "currents stay as they are"
        order.append(site.name)
        torch.testing.assert_close(answer.spikes, run.spikes[site.name], rtol=0, atol=0)
        torch.testing.assert_close(answer.membrane, run.membranes[site.name], rtol=1e-5, atol=1e-5)
        return answer.emitted

    torch.testing.assert_close(sweep(graph, plan, [x], 9, at_site), run.outputs, rtol=1e-5, atol=1e-5)
    assert order == [site.name for site in graph.sites]


def test_what_a_site_emits_is_what_the_next_layers_see() -> None:
    """Emitting the ANN's activations at every step gives the ANN's output at every step."""
    graph, plan = converted("residual")
    x = batch_of("residual", 4)
    outputs = sweep(graph, plan, [x], 3, lambda site, currents: currents.clamp(min=0))
    for y in outputs:
        torch.testing.assert_close(y, forward(graph, [x]), rtol=1e-4, atol=1e-5)

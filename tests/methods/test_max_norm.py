"""Max norm against maxima taken by hooks on the torch model."""

from __future__ import annotations

import torch
from torch import nn

from models import batch_of, make
from transpike.graph.capture import capture
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import Granularity


def activations(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What every call of a ReLU module gives, in order."""
    seen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_thresholds_are_the_channels_largest_activations_over_all_batches() -> None:
    model, data = make("mlp"), [batch_of("mlp", 7), batch_of("mlp", 12)]
    graph = capture(model, data[0])
    plan = MaxNorm().fit(graph, data)
    wanted = activations(model, torch.cat(data))
    assert len(wanted) == len(graph.sites) == 2
    for site, a in zip(graph.sites, wanted, strict=True):
        largest = a.amax(0)
        largest = torch.where(largest > 0, largest, largest.max())  # dead units take their site's largest
        torch.testing.assert_close(plan.sites[site.name].threshold, largest, rtol=1e-5, atol=0)


def test_layer_and_unit_maxima_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    x = batch_of("residual", 30)
    graph = capture(model, x[:2])
    (a,) = activations(model, x)
    by = {g: MaxNorm(granularity=g).fit(graph, [x[:13], x[13:]]).sites["1#1"].threshold for g in Granularity}
    torch.testing.assert_close(by[Granularity.LAYER], a.max(), rtol=1e-5, atol=0)
    torch.testing.assert_close(by[Granularity.CHANNEL], a.amax((0, 2, 3)), rtol=1e-5, atol=0)
    largest = a.amax(0)
    torch.testing.assert_close(by[Granularity.UNIT], torch.where(largest > 0, largest, largest.max()), rtol=1e-5, atol=0)


def test_is_a_true_maximum_not_a_moving_average() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(1, 1)).eval()
    graph = capture(model, torch.zeros(2, 1))
    batches = [torch.tensor([[8.0]]), *[torch.tensor([[0.5]])] * 20]
    assert float(MaxNorm().fit(graph, batches).sites["0#1"].threshold) == 8.0

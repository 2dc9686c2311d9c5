"""One population: every layout of memory and every precision gives the spikes of the step function."""

from __future__ import annotations

import pytest
import torch

from models import eighths
from transpike.engines.dense import DensePopulation
from transpike.graph.ir import Site
from transpike.spiking.neurons import step
from transpike.spiking.plan import SiteParams, expand

STEPS, SAMPLES = 6, 3
PARAMS = SiteParams(torch.tensor([0.5, 1.0, 0.75, 0.25]), torch.tensor([0.25, 0.5, 0.0, 0.125]), torch.tensor(0.125), 2, True)


def _reference(
    site: Site, params: SiteParams, current: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Emitted values, spikes, net spikes and potentials for currents T N *site."""
    theta, v, extra = (expand(x, site).to(current.dtype) for x in params.tensors().values())
    v, emitted = v.expand(current[0].shape), []
    net, count = torch.zeros_like(v), torch.zeros_like(v)
    for frame in current:
        s, v, net = step(v, net, frame + extra, theta, params.cap, params.signed)
        emitted.append(theta * s)
        count = count + s.abs()
    return torch.stack(emitted), count, net, v


LAYOUTS = {
    # site shape, channel axis, batch axis, rows per sample, memory format
    "vector": ((4,), 0, 0, 1, None),
    "image": ((4, 3, 5), 0, 0, 1, None),
    "image, channels last": ((4, 3, 5), 0, 0, 1, torch.channels_last),
    "volume, channels last": ((4, 2, 3, 2), 0, 0, 1, torch.channels_last_3d),
    "tokens": ((5, 4), 1, 0, 1, None),
    "batch on axis 1": ((5, 4), 1, 1, 1, None),
    "several rows per sample": ((2, 4), 1, 0, 2, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_every_layout_gives_the_spikes_of_the_step_function(layout, stepwise, constant, monkeypatch):
    shape, channel, batch_axis, rows, memory = LAYOUTS[layout]
    site = Site("a#1", "a", shape, channel)
    current = eighths(STEPS, SAMPLES, *shape)  # T N *site
    if constant:
        current = current[:1].expand(STEPS, -1, *[-1] * len(shape))
    if stepwise:
        monkeypatch.setattr(DensePopulation, "_fused", DensePopulation._stepwise)

    def folded(x: torch.Tensor) -> torch.Tensor:  # frames N *site as the operation before the neurons would give them
        x = x.flatten(0, 1) if rows > 1 else x.movedim(0, batch_axis)
        return x.contiguous(memory_format=memory or torch.contiguous_format)

    like = folded(current[0])
    population = DensePopulation(site, PARAMS, SAMPLES, batch_axis, like)
    parts = []
    for first, last in ((0, 1), (1, 4), (4, 6)):  # state is carried over
        x = like if constant else folded(current[first:last].flatten(0, 1))
        before = x.clone()
        y = population.advance(x, last - first, constant=constant, overwrite=False)
        assert torch.equal(x, before)
        frames = (last - first) * SAMPLES
        parts.append(
            (y.unflatten(0, (frames, rows)) if rows > 1 else y.movedim(batch_axis, 0)).unflatten(0, (last - first, SAMPLES))
        )
    emitted, count, net, v = _reference(site, PARAMS, current)
    assert torch.equal(torch.cat(parts), emitted)
    assert torch.equal(population.spikes(), count)
    assert torch.equal(population.net(), net)
    assert torch.equal(population.membrane(), v)


@pytest.mark.parametrize("layout", [name for name, (*_, axis, rows, _) in LAYOUTS.items() if (axis, rows) == (0, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_what_is_beside_the_current_is_added_wherever_it_lies_in_memory(layout, order):
    shape, channel, _, _, memory = LAYOUTS[layout]
    site = Site("a#1", "a", shape, channel)
    current, other = eighths(STEPS * SAMPLES, *shape), eighths(STEPS * SAMPLES, *shape).flip(0)
    x = current.contiguous(memory_format=memory or torch.contiguous_format)
    beside = other.contiguous(memory_format=order) if len(shape) == 3 else other
    population = DensePopulation(site, PARAMS, SAMPLES, 0, x[:1])
    emitted = population.advance(x, STEPS, constant=False, overwrite=False, beside=beside)
    total = (current + other).unflatten(0, (STEPS, SAMPLES))
    wanted, _, _, v = _reference(site, PARAMS, total)
    assert torch.equal(emitted.view_as(total), wanted) and torch.equal(population.membrane(), v)


def test_a_float_type_the_kernel_does_not_take_goes_step_by_step():
    site, current = Site("a#1", "a", (4,), 0), eighths(STEPS, SAMPLES, 4).bfloat16()
    population = DensePopulation(site, PARAMS, SAMPLES, 0, current[0])
    emitted = population.advance(current.flatten(0, 1), STEPS, constant=False, overwrite=False)
    assert emitted.dtype is torch.bfloat16
    assert torch.equal(emitted.view_as(current), _reference(site, PARAMS, current)[0])


def test_memory_is_reused_only_where_that_is_allowed():
    site, current = Site("a#1", "a", (4,), 0), eighths(SAMPLES, 4)
    for overwrite in (False, True):
        x = current.clone()
        y = DensePopulation(site, PARAMS, SAMPLES, 0, x).advance(x, 1, constant=False, overwrite=overwrite)
        assert (y.data_ptr() == x.data_ptr()) == overwrite


def test_an_unsigned_neurons_net_spikes_are_its_spikes():
    site, x = Site("a#1", "a", (4,), 0), eighths(SAMPLES, 4)
    population = DensePopulation(site, SiteParams(torch.tensor(0.5)), SAMPLES, 0, x)
    population.advance(x, 8, constant=True, overwrite=False)
    assert torch.equal(population.net(), population.spikes()) and bool((population.spikes() > 0).any())

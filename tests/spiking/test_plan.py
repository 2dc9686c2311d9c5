"""Plans: numbers that fit or are refused all at once, and that survive a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from models import captured, converted
from transpike.errors import ArtifactError, PlanError
from transpike.graph.ir import Site
from transpike.spiking.plan import NeuronKind, Plan, SiteParams, expand, weights_hash

SITE = Site("relu#1", "relu", (4, 2, 3), 0)


def _plan() -> Plan:
    return converted("mlp")[1]


def _with(name: str, **changes: object) -> Plan:
    plan = _plan()
    return replace(plan, sites={**plan.sites, name: replace(plan.sites[name], **changes)})


@pytest.mark.parametrize("shape", [(), (4,), (4, 2, 3)])
def test_a_scalar_a_channel_vector_and_a_unit_tensor_become_one_value_per_unit(shape):
    x = torch.arange(24.0)[: int(torch.tensor(shape).prod()) if shape else 1].reshape(shape)
    wanted = torch.stack([torch.full((2, 3), float(c)) for c in range(4)]) if shape == (4,) else x.expand(4, 2, 3)
    assert torch.equal(expand(x, SITE), wanted)


def test_the_channel_vector_lies_along_the_channel_axis():
    site = replace(SITE, shape=(5, 4), channel_axis=1)
    assert torch.equal(expand(torch.arange(4.0), site), torch.arange(4.0).expand(5, 4))


def test_numbers_without_axes_are_where_the_thresholds_are():
    params = SiteParams(torch.ones(4, device="meta"), v_init=torch.tensor(0.5), amplitude=torch.tensor(1.5))
    assert {x.device.type for x in params.tensors().values()} == {"meta"}


def test_a_plan_that_fits_is_returned_as_it_is():
    assert _plan().validate(captured("mlp")) is _plan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": torch.zeros(())}, "threshold of 1#1 is not positive everywhere"),
        ({"threshold": -torch.ones(16)}, "threshold of 1#1 is not positive everywhere"),
        ({"threshold": torch.tensor(float("nan"))}, "threshold of 1#1 is not finite"),
        ({"threshold": torch.ones(5)}, r"threshold of 1#1 has shape \[5\], not \[\] or \[16\]"),
        ({"v_init": torch.tensor(float("inf"))}, "v_init of 1#1 is not finite"),
        ({"current": torch.ones(16, 2)}, r"current of 1#1 has shape \[16, 2\]"),
        ({"cap": 0}, "cap of 1#1 is 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_named_with_its_site(changes, message):
    with pytest.raises(PlanError, match=message):
        _with("1#1", **changes).validate(captured("mlp"))


def test_all_misfits_are_reported_at_once():
    plan = _plan()
    plan = replace(
        plan,
        sites={"1#1": replace(plan.sites["1#1"], cap=0), "elsewhere#1": plan.sites["3#1"]},
        params={"0.bias": torch.zeros(3), "nothing": torch.zeros(1), "2.bias": torch.full((12,), float("nan"))},
    )
    with pytest.raises(PlanError) as caught:
        plan.validate(captured("mlp"))
    for part in ("site 3#1 has no parameters", "no site elsewhere#1", "cap of 1#1", "0.bias has shape", "no parameter nothing"):
        assert part in str(caught.value)
    assert "2.bias has NaN" in str(caught.value)


def test_a_saved_plan_comes_back_bit_for_bit(tmp_path):
    plan = _plan()
    sites = {
        "1#1": SiteParams(torch.rand(16) + 0.1, torch.rand(16), torch.rand(()), cap=None, signed=True),
        "3#1": SiteParams(torch.tensor(0.1), cap=4, kind=NeuronKind.INTEGRATE_AND_FIRE),
    }
    plan = replace(plan, sites=sites, params={"0.bias": torch.rand(16)}, notes=("one", "two"))
    back = Plan.load(plan.save(tmp_path / "plan.safetensors"))
    assert plan.tensors().keys() == back.tensors().keys()
    assert all(torch.equal(x, back.tensors()[name]) for name, x in plan.tensors().items())
    assert back.header() == plan.header() and back.notes == ("one", "two")
    assert back.sites["1#1"].cap is None and back.sites["1#1"].signed and back.sites["3#1"].cap == 4


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="not a plan of transpike"):
        Plan.load(path)


def test_other_tensors_can_take_the_place_of_a_plans_own():
    plan = _plan()
    doubled = plan.with_tensors({name: 2 * x for name, x in plan.tensors().items()})
    assert torch.equal(doubled.sites["1#1"].threshold, 2 * plan.sites["1#1"].threshold)
    assert doubled.sites["1#1"].cap == plan.sites["1#1"].cap and doubled.metadata == plan.metadata


def test_the_hash_of_the_weights_tells_networks_apart():
    graph = captured("mlp")
    changed = graph.with_params({**graph.params, "0.bias": graph.params["0.bias"] + 1})
    assert weights_hash(graph) == weights_hash(graph.with_params(graph.params)) != weights_hash(changed)

"""The static account of a network against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import transpike
from models import batch_of, calibration, make
from transpike.graph.capture import Pooling, capture
from transpike.graph.ir import Graph
from transpike.methods.ltb import LTB
from transpike.methods.max_norm import MaxNorm


def small() -> Graph:
    """conv 2 -> 4 over 6x6, relu, conv 4 -> 3 over 4x4, relu6, linear 48 -> 5."""
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(48, 5)]
    return capture(nn.Sequential(*layers).eval(), torch.zeros(2, 2, 6, 6))


MACS = (4 * 36 * 18, 3 * 16 * 36, 48 * 5)


def test_operations_and_the_spiking_share_by_hand() -> None:
    found = transpike.inspect(small())
    assert found.macs == sum(MACS) and found.constant_macs == MACS[0] and found.dense_macs == 0
    assert found.spiking_share == pytest.approx((MACS[1] + MACS[2]) / sum(MACS))
    assert found.parameters == (4 * 18 + 4) + (3 * 36 + 3) + (48 * 5 + 5)


def test_sites_are_listed_with_their_shapes_and_clips() -> None:
    first, second = transpike.inspect(small()).sites
    assert (first["name"], first["shape"], first["units"], first["channel_axis"], first["ceiling"]) == (
        "1#1",
        [4, 6, 6],
        144,
        0,
        None,
    )
    assert (second["name"], second["shape"], second["units"], second["ceiling"]) == ("3#1", [3, 4, 4], 48, 6.0)
    assert first["threshold"] is None  # nothing is converted yet


def test_inputs_are_listed() -> None:
    found = transpike.inspect(capture(make("two_inputs"), batch_of("two_inputs", 2)))
    assert [value["shape"] for value in found.inputs] == [[3, 8, 8], [5]]


def test_a_converted_network_shows_thresholds_method_and_notes() -> None:
    net = transpike.convert(make("mlp"), LTB(iterations=1), calibration("mlp"))
    found = transpike.inspect(net)
    for site in found.sites:
        theta = net.plan.sites[site["name"]].threshold
        assert site["threshold"] == [float(theta.min()), float(theta.max())]
    assert found.method == "LTB" and found.notes == net.plan.notes and any("converged" in note for note in found.notes)
    assert all(f"note: {note}" in str(found) for note in found.notes)


def test_every_analog_operation_is_listed_with_its_share() -> None:
    graph = capture(make("activations"), batch_of("activations", 2))
    found = transpike.inspect(graph)
    ops = [op["op"].split(".")[1] for op in found.analog]
    for name in ("gelu", "silu", "softmax", "layer_norm", "group_norm"):
        assert any(name in op for op in ops), (name, ops)
    work = {op["op"].split(".")[1]: op for op in found.analog}
    assert work["gelu"]["work"] == 8 and work["gelu"]["share"] == pytest.approx(8 / found.macs)
    assert found.macs == 6 * 8 + 8 * 8 + 8 * 8 + 8 * 4
    assert found.constant_macs == 6 * 8 and found.spiking_share == pytest.approx(64 / found.macs)  # only b is fed spikes
    assert found.dense_macs == sum(op["work"] for op in found.analog)
    assert "not spike-driven" in str(found) and "gelu" in str(found)


def test_pooling_that_passes_spikes_on_is_not_dense_but_step_by_step_pooling_is_listed() -> None:
    rate = transpike.inspect(capture(make("deep_pool"), batch_of("deep_pool", 2)))
    assert rate.analog == ()
    current = transpike.inspect(capture(make("deep_pool"), batch_of("deep_pool", 2), pooling=Pooling.CURRENT))
    (pool,) = current.analog
    assert (pool["role"], pool["work"]) == ("stepwise", 0) and "max_pool2d" in pool["op"]


def test_a_network_without_sites_says_so() -> None:
    found = transpike.inspect(capture(nn.Linear(4, 3).eval(), torch.zeros(2, 4)))
    assert found.sites == () and found.spiking_share == 0.0 and "nothing in it spikes" in str(found)


def test_the_account_is_json_and_text() -> None:
    net = transpike.convert(make("residual"), MaxNorm(), calibration("residual"))
    found = transpike.inspect(net)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["network"] == "Residual" and len(again["sites"]) == 3 and again["method"] == "MaxNorm"
    assert all(site["name"] in str(found) for site in found.sites)

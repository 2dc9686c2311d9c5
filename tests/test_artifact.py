"""A saved network is the network, bit for bit, also where its class is unknown; a damaged file is one clear error."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import transpike
from models import CASES, as_inputs, batch_of, converted, tensors, vectors
from transpike.errors import ArtifactError
from transpike.graph import serial
from transpike.graph.ir import BatchSize, Node, Ref, Role
from transpike.network import FILE_FORMAT, FILE_KIND, SpikingNetwork
from transpike.spiking.store import read_tensors, write_tensors

ELSEWHERE = """
import sys, torch, transpike
net = transpike.load(sys.argv[1])
data = torch.load(sys.argv[2], weights_only=True)
assert "models" not in sys.modules
torch.save([net(*x) for x in data], sys.argv[3])
"""


def _net(name: str) -> SpikingNetwork:
    return SpikingNetwork(*converted(name), steps=6, start=1)


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_network_gives_bit_identical_outputs(name, tmp_path):
    net, x = _net(name), as_inputs(batch_of(name, 3))
    path = net.save(tmp_path / "net.spike")
    again = transpike.load(path)
    for a, b in zip(tensors(net(*x)), tensors(again(*x)), strict=True):
        assert torch.equal(a, b)
    assert again.graph.nodes == net.graph.nodes and again.graph.sites == net.graph.sites
    assert again.graph.inputs == net.graph.inputs and again.graph.outputs == net.graph.outputs
    assert again.plan.header() == net.plan.header()
    assert (again.steps, again.start, again.engine, again.max_memory) == (6, 1, "auto", None)


def test_a_new_process_without_the_models_class_loads_it_bit_identically(tmp_path):
    net, x = _net("dict_output"), batch_of("dict_output", 3)
    torch.save([(x,)], tmp_path / "x.pt")
    command = [sys.executable, "-c", ELSEWHERE, net.save(tmp_path / "net.spike"), tmp_path / "x.pt", tmp_path / "y.pt"]
    subprocess.run(command, check=True, cwd=tmp_path)
    (there,) = torch.load(tmp_path / "y.pt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors(net(x)), tensors(there), strict=True))


def test_a_network_can_be_saved_over_its_own_file(tmp_path):
    path = _net("mlp").save(tmp_path / "net.spike")
    again = transpike.load(path)
    again.save(path)
    assert torch.equal(transpike.load(path)(vectors()), again(vectors()))
    assert [p.name for p in tmp_path.iterdir()] == ["net.spike"]


def test_the_precision_survives(tmp_path):
    net = _net("mlp").double()
    assert torch.equal(transpike.load(net.save(tmp_path / "net.spike"))(vectors()), net(vectors()))


def test_arithmetic_of_lower_precision_survives(tmp_path):
    net = SpikingNetwork(*converted("mlp"), steps=6, precision="int8")
    again = transpike.load(net.save(tmp_path / "net.spike"))
    assert again.precision == "int8" and "precision=int8" in repr(again)
    assert torch.equal(again(vectors()), transpike.simulate(net, vectors(), 6, precision="int8").readout())
    assert not torch.equal(again(vectors()), _net("mlp")(vectors()))


def test_a_file_from_before_there_were_precisions_is_read(tmp_path):
    net = _net("mlp")
    tensors, header = read_tensors(net.save(tmp_path / "net.spike"), FILE_KIND)
    header = {**header, "format": 1, "run": {key: x for key, x in header["run"].items() if key != "precision"}}
    again = transpike.load(write_tensors(tmp_path / "old.spike", tensors, header))
    assert again.precision == "float32" and torch.equal(again(vectors()), net(vectors()))


def test_a_truncated_changed_or_foreign_file_is_refused(tmp_path):
    path = _net("mlp").save(tmp_path / "net.spike")
    sound = path.read_bytes()
    for damaged in (sound[:-1], sound[:50], b"", sound + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="truncated"):
            transpike.load(path)
    for position in range(8, len(sound), 97):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        with pytest.raises(ArtifactError):
            transpike.load(path)
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="not a readable spiking network"):
        transpike.load(path)


def test_a_plan_is_not_taken_for_a_network_nor_a_network_for_a_plan(tmp_path):
    net = _net("mlp")
    with pytest.raises(ArtifactError, match="holds a plan, not a spiking network"):
        transpike.load(net.plan.save(tmp_path / "plan"))
    with pytest.raises(ArtifactError, match="holds a spiking network, not a plan"):
        transpike.Plan.load(net.save(tmp_path / "net"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no file .*nowhere\.spike"):
        transpike.load(tmp_path / "nowhere.spike")


def test_a_file_of_a_newer_format_asks_for_an_upgrade(tmp_path):
    tensors, header = read_tensors(_net("mlp").save(tmp_path / "net"), FILE_KIND)
    path = write_tensors(tmp_path / "new", tensors, {**header, "format": FILE_FORMAT + 1})
    with pytest.raises(ArtifactError, match="upgrade transpike"):
        transpike.load(path)


def test_a_place_that_cannot_be_written_gives_one_clear_error_and_no_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ArtifactError, match="cannot write"):
        _net("mlp").save(tmp_path / "file" / "net.spike")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_every_value_that_can_stand_in_a_graph_survives_the_text_form():
    values = (None, True, 3, -2.5, float("inf"), "mean", 1 + 2j, torch.float32, torch.strided, torch.channels_last)
    node = Node(
        "n", "aten.x.default", (Ref("a"), [BatchSize(3), (1, [])], *values), {"k": {1: (2,)}}, Role.LINEAR, (BatchSize(), 4)
    )
    graph = replace(converted("mlp")[0], body=(node, replace(node, shape=None, index=1, floating=False, varying=False)))
    back = serial.from_header(serial.header(graph), graph.params)
    assert back.body == graph.body
    assert [type(arg) for arg in back.body[0].args] == [type(arg) for arg in node.args]


def test_a_value_that_a_file_cannot_keep_is_named(tmp_path):
    graph, plan = converted("mlp")
    strange = replace(graph.body[0], kwargs={"x": object()})
    with pytest.raises(ArtifactError, match="the graph holds a object"):
        SpikingNetwork(replace(graph, body=(strange, *graph.body[1:])), plan).save(tmp_path / "net")

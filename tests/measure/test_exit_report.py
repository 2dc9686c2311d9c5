"""Early exit evaluated: accuracy, exits and energy against counting by brute force."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import transpike
from models import batch_of, calibration, make
from transpike.errors import DataError
from transpike.measure.early_exit import Certainty, ExitPolicy, ReadOut, Statistic
from transpike.measure.energy import CONSTANTS
from transpike.measure.exit_report import ExitReport, evaluate_exit
from transpike.measure.operations import Drive, count_operations, synaptic_operations
from transpike.methods.max_norm import MaxNorm
from transpike.network import SpikingNetwork

STEPS, SAMPLES = 10, 21


@cache
def network(name: str, cap: int | None = 1, signed: bool = False) -> SpikingNetwork:
    return transpike.convert(make(name), MaxNorm(cap=cap, signed=signed), calibration(name))


@cache
def data(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = batch_of(name, SAMPLES)
    with torch.no_grad():
        right = make(name)(x).argmax(1)
    return x, torch.where(torch.arange(SAMPLES) % 3 == 0, (right + 1) % 3, right)


@cache
def policy(name: str, start: int = 0, cap: int | None = 1, signed: bool = False) -> ExitPolicy:
    """Thresholds between the certainties that occur, so that rounding moves no exit, and exits at several steps."""
    certainty = Certainty(Statistic.ENTROPY, ReadOut.MEAN, start)
    outputs = transpike.simulate(network(name, cap, signed), data(name)[0], STEPS).outputs
    levels = [sure.sort().values for sure in certainty.over_time(outputs)]
    return ExitPolicy(certainty, (*[1.0] * start, *(float(s[-4] + s[-5]) / 2 for s in levels)), {"rule": "given"})


@cache
def report(name: str, start: int = 0, batch: int = SAMPLES, chunk: int = 1) -> ExitReport:
    x, y = data(name)
    return evaluate_exit(network(name), list(zip(x.split(batch), y.split(batch))), policy(name, start), chunk=chunk)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_accuracy_and_exits_are_those_of_the_definition(name: str, start: int) -> None:
    x, y = data(name)
    outputs = transpike.simulate(network(name), x, STEPS).outputs.double()
    exits = policy(name, start).exits(outputs).tolist()
    right = [bool(outputs[start:t, n].sum(0).argmax() == y[n]) for n, t in enumerate(exits)]
    found = report(name, start)
    assert list(found.exits) == [exits.count(t) for t in range(1, STEPS + 1)] and len(set(exits)) > 2
    assert list(found.right) == [sum(r for r, e in zip(right, exits) if e == t) for t in range(1, STEPS + 1)]
    assert found.accuracy == pytest.approx(np.mean(right)) and found.mean_steps == pytest.approx(np.mean(exits))
    assert found.saved == pytest.approx(1 - np.mean(exits) / STEPS) and found.computed == pytest.approx(np.mean(exits))
    curve = [float((outputs[start if t > start else 0 : t].sum(0).argmax(1) == y).double().mean()) for t in range(1, STEPS + 1)]
    assert list(found.curve) == pytest.approx(curve) and found.lost == pytest.approx(curve[-1] - found.accuracy)
    with torch.no_grad():
        assert found.ann == pytest.approx(float((make(name)(x).argmax(1) == y).double().mean()))
    assert found.quantile(1.0) == max(exits) and found.quantile(0.5) == sorted(exits)[(SAMPLES - 1) // 2]


@pytest.mark.parametrize(("cap", "signed"), [(1, False), (3, True)])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "residual", "deep_pool"])
def test_energy_is_that_of_every_sample_simulated_alone_until_its_exit(name: str, chunk: int, cap: int, signed: bool) -> None:
    net, (x, y) = network(name, cap, signed), data(name)
    chosen = policy(name, 0, cap, signed)
    found = evaluate_exit(net, [(x, y)], chosen, chunk=chunk)
    exits = chosen.exits(transpike.simulate(net, x, STEPS).outputs).tolist()
    alone = [transpike.energy(net, [x[n : n + 1]], steps=t) for n, t in enumerate(exits)]
    assert found.sops == pytest.approx(np.mean([e.sops[-1] for e in alone]), rel=2e-3)  # a spike may move by rounding
    assert found.events == pytest.approx(np.mean([e.events[-1] for e in alone]), rel=2e-3)
    assert found.sops_at == pytest.approx(transpike.energy(net, [x], STEPS).sops, rel=1e-6)
    for c in CONSTANTS:
        wanted = np.mean([e.snn_pj(t, c) for e, t in zip(alone, exits)]) * 1e-9
        assert found.energy()[c.name]["snn_mj"] == pytest.approx(wanted, rel=2e-3)
        full = transpike.energy(net, [x], STEPS)
        assert found.energy_at(4)[c.name]["snn_mj"] == pytest.approx(full.snn_pj(4, c) * 1e-9, rel=1e-6)
        assert found.energy()[c.name]["ann_mj"] == pytest.approx(full.ann_pj(c) * 1e-9)


def test_energy_equals_the_spikes_of_each_sample_sent_through_a_network_of_ones() -> None:
    """By brute force, independent of the meter: spikes of `Run` up to the exit, through `synaptic_operations`."""
    net, (x, _) = network("mlp"), data("mlp")
    chosen = policy("mlp")
    exits = chosen.exits(transpike.simulate(net, x, STEPS).outputs).tolist()
    sites = {site.name: site.node for site in net.graph.sites}
    total = 0.0
    for n, t in enumerate(exits):
        spikes = transpike.simulate(net, x[n : n + 1], t).spikes
        arrived = synaptic_operations(net.graph, {sites[key]: s.double() for key, s in spikes.items()})
        total += sum(float(a) for a in arrived.values())
    assert report("mlp").sops == pytest.approx(total / SAMPLES, rel=1e-6) and total > 0
    operations = count_operations(net.graph, net.plan)
    assert report("mlp").constant_macs == operations.macs(Drive.CONSTANT) > 0
    assert report("mlp").energy()["macs"] == operations.macs(Drive.CONSTANT) + np.mean(exits) * operations.dense_work()


@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (8, 1), (8, 4)])
def test_neither_batches_nor_chunks_change_the_report(batch: int, chunk: int) -> None:
    one, other = report("mlp").to_dict(), report("mlp", 0, batch, chunk).to_dict()
    assert other["computed"] >= one["computed"] and (chunk == 1) == (other["computed"] == one["computed"])
    for name in ("exits", "right", "curve", "accuracy", "ann", "samples"):
        assert one[name] == other[name]
    assert one["energy"]["sops"] == pytest.approx(other["energy"]["sops"], rel=1e-6)


def test_the_report_is_written_as_text_json_and_picture(tmp_path: Path) -> None:
    found = report("residual")
    assert found.save(tmp_path) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"exit.txt", "exit.json", "exit.png"}
    read = json.loads((tmp_path / "exit.json").read_text())
    assert read == json.loads(json.dumps(found.to_dict())) and sum(read["exits"]) == SAMPLES
    assert read["policy"]["thresholds"] == list(policy("residual").thresholds)
    assert (tmp_path / "exit.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "exit.txt").read_text()
    assert f"{found.accuracy:.2%} at {found.mean_steps:.2f} steps" in text and "given thresholds on the entropy" in text
    assert all(c.name in text and c.source in text for c in CONSTANTS)
    assert "5-8" in text and "9-10" in text


def test_progress_and_the_notes_of_policy_and_plan() -> None:
    x, y = data("mlp")
    noted = ExitPolicy(Certainty(), (0.5,) * STEPS, notes=("mind the gap",))
    done: list[int] = []
    found = evaluate_exit(network("mlp"), [(x[:9], y[:9]), (x[9:], y[9:])], noted, progress=done.append)
    assert done == [9, SAMPLES] and "mind the gap" in found.notes and "note: mind the gap" in str(found)


def test_a_policy_that_never_lets_go_is_a_run_to_the_end() -> None:
    x, y = data("mlp")
    found = evaluate_exit(network("mlp"), [(x, y)], ExitPolicy(Certainty(), (1.0,) * STEPS))
    assert found.exits[-1] == SAMPLES and found.saved == 0 and found.lost == 0
    assert found.sops == pytest.approx(found.sops_at[-1]) and found.computed == STEPS


def test_data_that_cannot_be_used_is_refused() -> None:
    x, y = data("mlp")
    with pytest.raises(DataError, match="no targets"):
        evaluate_exit(network("mlp"), [x], policy("mlp"))
    with pytest.raises(DataError, match="no batch"):
        evaluate_exit(network("mlp"), [], policy("mlp"))
    with pytest.raises(DataError, match="classes 0 to 3"):
        evaluate_exit(network("mlp"), [(x, y + 7)], policy("mlp"))
    pixels = transpike.convert(make("upsampling"), MaxNorm(), calibration("upsampling"))
    with pytest.raises(DataError, match="early exit takes logits"):
        evaluate_exit(pixels, [(batch_of("upsampling", 2), torch.zeros(2, dtype=torch.int64))], policy("mlp"))

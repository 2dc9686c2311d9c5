"""The demo does the main job on what comes with the package."""

import json
from pathlib import Path

from transpike.demo import WEIGHTS, demo_methods, digits_net, run_demo
from transpike.methods import available
from transpike.tasks.data import digits


def test_the_weights_are_small_and_the_network_is_trained() -> None:
    assert WEIGHTS.stat().st_size < 300_000
    x, y = digits("test").tensors
    assert float((digits_net()(x).argmax(1) == y).float().mean()) > 0.98


def test_every_method_takes_part() -> None:
    untrained = {name for name, kind in available().items() if not getattr(kind, "prepared_only", False)}
    assert untrained - {"Chain"} <= {trial.name for trial in demo_methods()}


def test_the_demo_measures_and_writes_every_method(tmp_path: Path, monkeypatch) -> None:
    quick = [trial for trial in demo_methods() if trial.name != "LTB"]
    monkeypatch.setattr("transpike.demo.demo_methods", lambda: quick)
    reports = run_demo(tmp_path, steps=16)
    for name, report in reports.items():
        assert report.at(16) > report.ann["top1"] - 0.02, name
        assert report.energy.sops[15] > 0
    assert json.loads((tmp_path / "summary.json").read_text()).keys() == reports.keys()
    assert (tmp_path / "curves.png").stat().st_size > 10_000

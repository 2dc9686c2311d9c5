"""Examples run."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_own_network_converts_and_its_error_falls(capsys) -> None:
    load("convert_own_network").main()
    out = capsys.readouterr().out
    errors = [float(line.rsplit(" ", 1)[1]) for line in out.splitlines() if "relative error" in line]
    assert len(errors) == 3
    assert errors[0] > errors[1] > errors[2]
    assert "aten.mul" in out


def test_the_training_script_learns() -> None:
    example = load("train_digits")
    net = example.train(epochs=6)
    assert example.accuracy(net, "test") > 0.8
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_qcfs_trains_in_a_loop_of_ones_own_and_converts(capsys) -> None:
    load("qcfs_digits").main(epochs=2)
    lines = capsys.readouterr().out.splitlines()
    found = [float(line.rsplit(" ", 1)[1].rstrip("%")) for line in lines]
    assert len(found) == 6
    assert found[2] > 96  # trained, 4 levels
    assert found[5] > found[2] - 2  # 16 steps


def test_every_example_is_tested_here() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}"' in text, path

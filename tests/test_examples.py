"""Examples run."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize(
    ("name", "picture", "least"),
    [
        ("segment_scenes", "segmentation.png", 60),
        ("detect_squares", "detection.png", 20),
        ("classify_clouds", "pointcloud.png", 60),
        ("classify_videos", "video.png", 60),
        ("stream_events", "events.png", 60),
    ],
)
def test_a_task_trains_converts_measures_and_draws(name: str, picture: str, least: float, tmp_path: Path, capsys) -> None:
    """Trained for less than by default: ANN and network come out alike, well above chance."""
    load(name).main(str(tmp_path), rounds=100)
    rows = re.findall(r"^ +(\d+) +([\d.]+)%", capsys.readouterr().out, re.MULTILINE)
    assert float(rows[-1][1]) > least
    assert float(rows[-1][1]) >= float(rows[0][1])
    with Image.open(tmp_path / picture) as image:
        assert min(image.size) > 200


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_shorter_than_sixty_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_every_example_is_tested_here() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}"' in text, path

"""Every task from the command line: convert, evaluate, and look at the picture, on small generated data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import retinanet_resnet50_fpn

from transpike.cli import main
from transpike.errors import SpecError
from transpike.specs import task_from
from transpike.tasks.detection import Detection
from transpike.tasks.pictures import shown_steps

NETS = """
import torch
from torch import nn

def seeded(*layers):
    return nn.Sequential(*layers).eval()

def segmenter():
    torch.manual_seed(0)
    return seeded(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

def detector():
    torch.manual_seed(0)
    return seeded(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4))

def decode(readout):
    box = torch.cat((readout[:, :2].sigmoid() * 16, 16 + readout[:, 2:].sigmoid() * 16), 1)
    return [{"boxes": b[None], "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)} for b in box]

def video():
    torch.manual_seed(0)
    return seeded(nn.Conv3d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))

def cloud():
    torch.manual_seed(0)
    return seeded(nn.Linear(3, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))

class Points(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = seeded(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 3, 1))

    def forward(self, cloud):
        return self.layers(cloud.transpose(1, 2)).transpose(1, 2)

def parts():
    torch.manual_seed(0)
    return Points().eval()

def events():
    torch.manual_seed(0)
    return seeded(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24, 2))
"""


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for k in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{k}.png")
        Image.fromarray(rng.integers(0, 4, (32, 32), dtype=np.uint8)).save(folder / "masks" / f"{k}.png")


def boxes(folder: Path) -> str:
    photos(folder)
    annotations = [
        {"id": k + 1, "image_id": k, "category_id": 1, "bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0} for k in range(4)
    ]
    images = [{"id": k, "file_name": f"{k}.png", "width": 32, "height": 32} for k in range(4)]
    data = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "a.json").write_text(json.dumps(data))
    return f"{folder / 'images'},{folder / 'a.json'}"


def class_folders(folder: Path, make) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            make(folder / name / str(k))


def recording(path: Path) -> None:
    rng = np.random.default_rng(1)
    t = np.sort(rng.integers(0, 50_000, 100))
    np.savez(path, x=rng.integers(0, 8, 100), y=rng.integers(0, 6, 100), t=t, p=rng.integers(0, 2, 100))


def prepare(task: str, folder: Path) -> tuple[list[str], list[str]]:
    """Arguments that name data and options for convert and evaluate, and those for evaluate alone."""
    data = folder / "data"
    if task == "segmentation":
        photos(data)
        return ["--data", f"masks:{data}", "--size", "32"], []
    if task == "detection":
        return ["--data", f"coco:{boxes(data)}", "--size", "32"], ["--option", "decoder=nets:decode"]
    if task == "video":
        video = np.random.default_rng(2).integers(0, 255, (6, 20, 20, 3), dtype=np.uint8)
        class_folders(data, lambda path: np.save(path, video))
        return ["--data", f"videofolder:{data}", "--option", "frames=4", "--option", "clips=2", "--size", "16"], []
    if task == "pointcloud":
        data.mkdir()
        np.savez(data / "p.npz", points=np.random.default_rng(3).random((6, 20, 3)), label=np.arange(6) % 2)
        return ["--data", f"npz:{data / 'p.npz'}", "--option", "points=16"], []
    if task == "parts":
        data.mkdir()
        rng = np.random.default_rng(3)
        np.savez(data / "p.npz", points=rng.random((6, 20, 3)), label=rng.integers(0, 3, (6, 20)))
        options = ("points=16", "parts=true", "classes_last=true")
        return ["--data", f"npz:{data / 'p.npz'}", *(word for option in options for word in ("--option", option))], []
    class_folders(data, recording)
    sensor = ["height=6", "width=8", "bins=8", "duration_ms=50", "stream=true"]
    return ["--data", f"eventfolder:{data}", *(word for option in sensor for word in ("--option", option))], []


FACTORY = {
    "segmentation": "segmenter",
    "detection": "detector",
    "video": "video",
    "pointcloud": "cloud",
    "parts": "parts",
    "events": "events",
}
METRIC = {
    "segmentation": "miou",
    "detection": "map50",
    "video": "video_top1",
    "pointcloud": "top1",
    "parts": "miou",
    "events": "top1",
}


@pytest.mark.parametrize("task", FACTORY)
def test_a_task_goes_from_data_to_report_and_picture(task: str, capsys, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    shared, own = prepare(task, tmp_path)
    shared = [*shared, "--task", "pointcloud" if task == "parts" else task, "--batch", "4"]
    assert main(["convert", f"nets:{FACTORY[task]}", *shared, "--method", "maxnorm", "-o", "n.spike"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["evaluate", "n.spike", *shared, *own, "--steps", "8", "-o", "report", "--json"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert len(report["curves"]["plain"][METRIC[task]]) == len(report["measured"]) >= 4
    assert report["step_ms"] == (50 / 8 if task == "events" else None)
    assert report["energy"]["sops"][-1] > 0
    assert json.loads((tmp_path / "report" / "report.json").read_text())["curves"] == report["curves"]
    assert METRIC[task] in (tmp_path / "report" / "report.txt").read_text()
    for name in ("examples.png", "curves.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50  # something is drawn
    assert main(["energy", "n.spike", *shared, *own, "--steps", "8", "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["sops"][-1] == pytest.approx(report["energy"]["sops"][-1])
    leave = ["evaluate", "n.spike", *shared, *own, "--steps", "8", "--exit", "entropy", "--exit-data", shared[1], "--json"]
    if METRIC[task] == "top1":
        assert main(leave) == 0, capsys.readouterr().err
        assert 1 <= json.loads(capsys.readouterr().out)["mean_steps"] <= 8
    else:
        assert main(leave) == 2
        assert "how sure one answer per sample is" in capsys.readouterr().err


def test_detection_without_a_decoder_says_so(capsys, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    shared, _ = prepare("detection", tmp_path)
    shared = [*shared, "--task", "detection"]
    assert main(["convert", "nets:detector", *shared, "--method", "maxnorm", "-o", "n.spike"]) == 0
    assert main(["evaluate", "n.spike", *shared, "--steps", "2"]) == 2
    assert "--option decoder=torchvision:NAME" in capsys.readouterr().err


def test_names_and_settings_are_checked() -> None:
    with pytest.raises(SpecError, match="no task 'segmentatoin'; did you mean 'segmentation'"):
        task_from("segmentatoin")
    with pytest.raises(SpecError, match="no setting 'clip'; did you mean 'clips'"):
        task_from("video", ["clip=3"])
    with pytest.raises(SpecError, match="Settings takes points as int"):
        task_from("pointcloud", ["points=many"])


def test_a_detector_of_torchvision_decodes_its_own_output() -> None:
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).eval()
    kind = task_from("detection", network=model)
    assert isinstance(kind.task, Detection)
    assert kind.task.regression == "bbox_regression"
    assert kind.core(model) is not model


def test_four_steps_are_shown_at_most() -> None:
    assert shown_steps(3) == [1, 2, 3]
    assert shown_steps(64) == [1, 4, 16, 64]
    assert shown_steps(100)[-1] == 100


def test_weights_of_backbones_are_not_downloaded_unasked() -> None:
    kind = task_from("detection", ["decoder=torchvision:ssdlite320_mobilenet_v3_large"])
    assert kind.task.regression == "bbox_regression"
    assert torch.equal(torch.tensor(kind.picture.keywords["fit"].size), torch.tensor([320, 320]))

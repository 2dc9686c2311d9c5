"""Meshes and arrays of points: closed forms and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import transpike
from transpike.errors import DataError
from transpike.methods.mmse import MMSE
from transpike.tasks.pointcloud import mesh_folder, normalised, point_arrays, read_off, sampled
from transpike.tasks.segmentation import Segmentation

SQUARE = "OFF\n4 1 0\n0 0 0\n2 0 0\n2 1 0\n0 1 0\n4 0 1 2 3\n"


def test_a_face_of_four_corners_becomes_two_triangles(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text(SQUARE)
    corners, faces = read_off(tmp_path / "a.off")
    assert corners.shape == (4, 3)
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_comments_and_counts_in_the_first_line_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text(SQUARE.replace("OFF\n4", "OFF4").replace("2 1 0\n", "2 1 0 # corner\n"))
    assert read_off(tmp_path / "a.off")[0].tolist() == [[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("PLY\n", "does not begin with OFF"),
        (SQUARE[:30], "ends too early"),
        (SQUARE.replace("4 0 1 2 3", "3 0 1 9"), "corner 9 of 4"),
    ],
)
def test_damaged_meshes_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(DataError, match=says):
        read_off(tmp_path / "a.off")


def test_points_lie_evenly_on_the_surface() -> None:
    corners = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]])
    points = sampled((corners, torch.tensor([[0, 1, 2], [0, 2, 3]])), 20_000, torch.Generator().manual_seed(0))
    assert bool((points[:, 2] == 0).all())
    counts = torch.histogramdd(points[:, :2], [4, 2], range=[0.0, 2.0, 0.0, 1.0]).hist
    assert float((counts / 2500 - 1).abs().max()) < 0.08  # four standard deviations


def test_a_mesh_without_area_is_refused() -> None:
    with pytest.raises(DataError, match="no face with an area"):
        sampled((torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 4, torch.Generator())


def test_a_normalised_cloud_is_centred_in_the_unit_sphere() -> None:
    cloud = normalised(torch.rand(50, 3) * 9 + 4)
    torch.testing.assert_close(cloud.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert float(cloud.norm(dim=1).max()) == pytest.approx(1.0)


def test_a_folder_of_meshes_has_splits_and_the_same_cloud_at_every_pass(tmp_path: Path) -> None:
    for name in ("chair", "desk"):
        for split in ("train", "test"):
            (tmp_path / name / split).mkdir(parents=True)
            (tmp_path / name / split / "a.off").write_text(SQUARE)
    data = mesh_folder(tmp_path, "test", points=32)
    assert [data[k][1] for k in range(len(data))] == [0, 1]
    assert data[1][0].shape == (32, 3)
    assert torch.equal(data[1][0], mesh_folder(tmp_path, "test", points=32)[1][0])
    assert not torch.equal(data[0][0], data[1][0])


def test_arrays_of_points(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=np.random.rand(3, 40, 3).astype(np.float16), label=np.array([2, 0, 1]))
    data = point_arrays(tmp_path / "a.npz", 16)
    assert data[0][0].shape == (16, 3)
    assert data[0][0].dtype == torch.float32
    assert [data[k][1] for k in range(3)] == [2, 0, 1]
    with pytest.raises(DataError, match="P >= 50"):
        point_arrays(tmp_path / "a.npz", 50)
    np.savez(tmp_path / "b.npz", points=np.zeros((1, 2, 3)))
    with pytest.raises(DataError, match="no array 'label'"):
        point_arrays(tmp_path / "b.npz", 1)


class Parts(nn.Module):
    """PointNet's segmentation in small: points turned by a matrix of their own (T-Net), features of the point and of the cloud."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 16, 1), nn.ReLU())
        self.matrix = nn.Linear(16, 9)
        self.local = nn.Sequential(nn.Conv1d(3, 16, 1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv1d(16, 32, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv1d(48, 16, 1), nn.ReLU(), nn.Conv1d(16, classes, 1, bias=False))
        nn.init.normal_(self.head[2].weight)  # every class is some point's

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        x = cloud.transpose(1, 2)  # N 3 P
        matrix = self.matrix(self.turn(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        local = self.local(torch.bmm(cloud, matrix).transpose(1, 2))
        overall = self.wide(local).amax(2, keepdim=True).expand(-1, -1, x.shape[2])
        return self.head(torch.cat((local, overall), 1)).transpose(1, 2)  # N P classes


def test_parts_of_a_network_with_a_transform_approach_the_ann(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, clouds = Parts().eval(), torch.randn(6, 40, 3)
    with torch.no_grad():
        wanted = model(clouds)
    np.savez(tmp_path / "parts.npz", points=clouds.numpy(), label=wanted.argmax(2).numpy())
    data = point_arrays(tmp_path / "parts.npz", 40)
    x, parts = (torch.stack(column) for column in zip(*(data[k] for k in range(6)), strict=True))
    assert torch.equal(parts, wanted.argmax(2))
    net = transpike.convert(model, MMSE(signed=True, cap=None), clouds)
    report = transpike.evaluate(net, [(x, parts)], 64, task=Segmentation(classes_last=True, all_steps=False))
    assert report.ann["miou"] == 1.0
    assert report.at(64) > max(0.95, report.at(1))
    assert report.energy.sops[-1] > 0
    error = [float((transpike.simulate(net, x, t).readout() - wanted).norm() / wanted.norm()) for t in (4, 64)]
    assert error[1] < 0.4 * error[0]


def test_labels_of_points_come_with_the_points_that_are_taken(tmp_path: Path) -> None:
    labels = np.arange(80).reshape(2, 40) % 5
    np.savez(tmp_path / "a.npz", points=np.zeros((2, 40, 3)), label=labels)
    assert point_arrays(tmp_path / "a.npz", 16)[1][1].tolist() == labels[1, :16].tolist()
    np.savez(tmp_path / "b.npz", points=np.zeros((2, 40, 3)), label=labels[:, :20])
    with pytest.raises(DataError, match="one label for each cloud"):
        point_arrays(tmp_path / "b.npz", 16)

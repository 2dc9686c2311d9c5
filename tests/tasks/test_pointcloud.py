"""Meshes and arrays of points: closed forms and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from transpike.errors import DataError
from transpike.tasks.pointcloud import mesh_folder, normalised, point_arrays, read_off, sampled

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

"""Point clouds: meshes of ModelNet (OFF) and arrays as N points x 3, with classes.

A mesh becomes a cloud by drawing points from its faces, each face as often as its area says, and is then centred and
scaled into the unit sphere, as for PointNet (Qi et al., CVPR 2017, arXiv:1612.00593). Accuracy is `Classification`'s;
a network with a class per point (parts) is measured by `transpike.tasks.segmentation.Segmentation`: mIoU over the parts.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from transpike.errors import DataError
from transpike.tasks.data import arrays_of
from transpike.tasks.datasets import Prepared, class_folders

__all__ = ["Mesh", "mesh_folder", "normalised", "point_arrays", "read_off", "sampled"]

# corners (V 3, float) and faces (F 3, numbers of corners)
Mesh = tuple[torch.Tensor, torch.Tensor]


def read_off(path: Path) -> Mesh:
    """A mesh in the Object File Format; faces of more than three corners are cut into triangles.

    Raises:
        DataError: not readable, or not in this format.
    """
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    words = " ".join(line.partition("#")[0] for line in text.splitlines()).split()
    if not words or not words[0].upper().startswith("OFF"):
        raise DataError(f"{path} does not begin with OFF: it is no mesh in the Object File Format")
    numbers = [words[0][3:], *words[1:]] if len(words[0]) > 3 else words[1:]  # ModelNet40 has files with "OFF490 518 0"
    try:
        corners, faces = int(numbers[0]), int(numbers[1])
        points = np.array(numbers[3 : 3 + 3 * corners], np.float32).reshape(corners, 3)
        triangles, place = [], 3 + 3 * corners
        for _ in range(faces):
            count = int(numbers[place])
            face = [int(number) for number in numbers[place + 1 : place + 1 + count]]
            triangles += [(face[0], b, c) for b, c in itertools.pairwise(face[1:])]
            place += 1 + count
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} ends too early or holds no numbers ({error}): it is damaged") from error
    found = torch.tensor(triangles, dtype=torch.int64).view(-1, 3)
    if len(found) and (int(found.max()) >= corners or int(found.min()) < 0):
        raise DataError(f"{path} has a face with corner {int(found.max())} of {corners}: it is damaged")
    return torch.from_numpy(points), found


def sampled(mesh: Mesh, points: int, generator: torch.Generator) -> torch.Tensor:
    """Points drawn evenly from the surface. points 3

    Raises:
        DataError: a mesh without area.
    """
    corners, faces = mesh
    a, b, c = (corners[faces[:, k]] for k in range(3))
    area = torch.linalg.cross(b - a, c - a).norm(dim=1)
    if not float(area.sum()) > 0:
        raise DataError("a mesh has no face with an area: points cannot be drawn from it")
    chosen = torch.multinomial(area, points, replacement=True, generator=generator)
    u, v = torch.rand(2, points, 1, generator=generator)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)  # fold the square into the triangle
    return a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]


def normalised(cloud: torch.Tensor) -> torch.Tensor:
    """Centred, the farthest point at distance 1. points 3"""
    centred = cloud - cloud.mean(0)
    return centred / centred.norm(dim=1).max().clamp(min=1e-12)


def mesh_folder(folder: Path, split: str, points: int = 1024, seed: int = 0) -> Prepared:
    """ModelNet's layout ``CLASS/train/NAME.off``, ``CLASS/test/NAME.off``: pairs (cloud points 3, class number).

    Args:
        seed: of the points; with the same seed a mesh gives the same cloud, in whatever order clouds are asked for.

    Raises:
        DataError: it is not there, or has no meshes.
    """
    files, classes = class_folders(folder, (".off",), split)

    def make(index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(seed + index)
        return normalised(sampled(read_off(files[index]), points, generator)), classes[index]

    return Prepared(len(files), make)


def point_arrays(path: Path, points: int = 1024) -> Prepared:
    """An ``.npz`` with arrays ``points`` (N P 3) and ``label``: pairs (cloud, target), the first ``points`` of each.

    Labels are class numbers of the clouds (N), or of their points (N P), which are then the target: the parts.

    Raises:
        DataError: not readable, an array is missing, or too few points.
    """
    arrays = arrays_of(path)
    if missing := [key for key in ("points", "label") if key not in arrays]:
        raise DataError(f"{path} has no array {missing[0]!r}: save it with np.savez(file, points=clouds, label=classes)")
    clouds, labels = arrays["points"], arrays["label"]
    fitting = labels.shape in (clouds.shape[:1], clouds.shape[:2])
    if clouds.ndim != 3 or clouds.shape[2] != 3 or not fitting or clouds.shape[1] < points:
        raise DataError(
            f"{path} has points of shape {clouds.shape} and labels of shape {labels.shape}: give N x P x 3 with P >= {points}, and "
            "one label for each cloud (N) or each point (N x P)"
        )

    def make(index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        cloud, label = torch.from_numpy(clouds[index, :points]).float(), labels[index]
        return cloud, int(label) if labels.ndim == 1 else torch.from_numpy(label[:points].astype(np.int64))

    return Prepared(len(labels), make)

"""Point clouds: a small PointNet (pointwise convolutions, a global maximum) on generated solids.

python examples/classify_clouds.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import transpike
from transpike.measure.accuracy import Classification
from transpike.methods.mmse import MMSE
from transpike.tasks.pictures import cloud, draw_classes
from transpike.tasks.pointcloud import normalised


def solids(count: int, seed: int, points: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the surface of a ball (class 0), a cube (1) and a cylinder's wall (2), turned about the vertical axis."""
    g = torch.Generator().manual_seed(seed)
    labels, clouds = torch.arange(count) % 3, []
    for label in labels.tolist():
        p = torch.randn(points, 3, generator=g)
        ball = p / (p[:, :2] if label == 2 else p).norm(dim=1, keepdim=True)
        shape = p / p.abs().amax(1, keepdim=True) if label == 1 else ball.clamp(-1, 1)
        turn = torch.rand((), generator=g) * 6.28
        matrix = torch.tensor([[turn.cos(), -turn.sin(), 0], [turn.sin(), turn.cos(), 0], [0, 0, 1]])
        clouds.append(normalised(shape @ matrix + 0.05 * torch.randn(points, 3, generator=g)))
    return torch.stack(clouds), labels


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.points(x.transpose(1, 2)).amax(2))


def main(folder: str = "pointcloud", rounds: int = 200) -> None:
    torch.manual_seed(0)
    model, (x, y) = PointNet(), solids(600, seed=1)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for some in torch.randint(len(x), (rounds, 64)):
        optimiser.zero_grad()
        F.cross_entropy(model(x[some]), y[some]).backward()
        optimiser.step()
    net = transpike.convert(model.eval(), MMSE(steps=32, signed=True, cap=4), x[:300].split(100))
    test, task = solids(150, seed=2), Classification()
    print(transpike.evaluate(net, [test], steps=32, task=task))
    draw_classes(net, test, 32, Path(folder) / "pointcloud.png", task=task, show=cloud)


if __name__ == "__main__":
    main(*sys.argv[1:2])

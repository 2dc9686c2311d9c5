"""Semantic segmentation: train a small network on drawn scenes, convert it, and look at the masks at several steps.

python examples/segment_scenes.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import transpike
from transpike.methods.mmse import MMSE
from transpike.tasks.images import Fit
from transpike.tasks.pictures import draw_masks
from transpike.tasks.segmentation import Segmentation

SIZE = 48


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of a disc (class 1) and a square (class 2) on a background (class 0)."""
    g = torch.Generator().manual_seed(seed)
    v, u = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    place = torch.rand(count, 2, 2, 1, 1, generator=g) * (SIZE - 20) + 10  # shape, coordinate
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    masks[(v - place[:, 0, 0]) ** 2 + (u - place[:, 0, 1]) ** 2 < 80] = 1
    masks[torch.maximum((v - place[:, 1, 0]).abs(), (u - place[:, 1, 1]).abs()) < 8] = 2
    colours = torch.tensor([[0.2, 0.3, 0.2], [0.7, 0.3, 0.3], [0.6, 0.4, 0.3]])[masks].movedim(-1, 1)
    return (colours + 0.15 * torch.randn(count, 3, SIZE, SIZE, generator=g)).clamp(0, 1) - 0.5, masks


def main(folder: str = "segmentation", rounds: int = 150) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 2, 2), nn.ReLU()]
    model, (x, y) = nn.Sequential(*layers, nn.Conv2d(32, 3, 1)), scenes(256, seed=1)  # a quarter of the resolution
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for some in torch.randint(len(x), (rounds, 32)):
        optimiser.zero_grad()
        F.cross_entropy(F.interpolate(model(x[some]), SIZE, mode="bilinear"), y[some]).backward()
        optimiser.step()
    net = transpike.convert(model.eval(), MMSE(steps=16, signed=True), x.split(64))
    test, task = scenes(32, seed=2), Segmentation(size=(SIZE, SIZE))
    print(transpike.evaluate(net, [test], steps=32, task=task))
    draw_masks(net, test, 32, Path(folder) / "segmentation.png", task=task, fit=Fit((SIZE, SIZE), (0.5,) * 3, (1.0,) * 3))


if __name__ == "__main__":
    main(*sys.argv[1:2])

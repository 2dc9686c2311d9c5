"""Object detection: a network with one output tensor and a decode function of its own; boxes at several steps.

python examples/detect_squares.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import transpike
from transpike.methods.mmse import MMSE
from transpike.tasks.detection import Detection
from transpike.tasks.images import Fit
from transpike.tasks.pictures import draw_detections

SIZE = 64


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright square of 10 to 20 pixels: images N 3 H W, boxes N 4."""
    g = torch.Generator().manual_seed(seed)
    corner, side = torch.randint(0, SIZE - 20, (count, 2), generator=g), torch.randint(10, 21, (count, 1), generator=g)
    boxes, images = torch.cat((corner, corner + side), 1), 0.15 * torch.randn(count, 3, SIZE, SIZE, generator=g)
    for image, (x1, y1, x2, y2) in zip(images, boxes, strict=True):
        image[:, y1:y2, x1:x2] += 0.3
    return images.clamp(-0.5, 0.5), boxes.float()


def decode(readout: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """One box in each image, always sure. Channels: corners as fractions of the image. N 4"""
    sure, label = torch.ones(1), torch.tensor([1])
    return [{"boxes": box[None], "scores": sure, "labels": label} for box in readout.float() * SIZE]


def main(folder: str = "detection", rounds: int = 400) -> None:
    torch.manual_seed(0)
    model, (x, boxes) = nn.Sequential(), scenes(512, seed=1)
    for into, out in ((3, 16), (16, 32), (32, 32)):
        model.extend([nn.Conv2d(into, out, 3, 2, 1), nn.ReLU()])
    model.extend([nn.Flatten(), nn.Linear(32 * 64, 64), nn.ReLU(), nn.Linear(64, 4)])
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for some in torch.randint(len(x), (rounds, 32)):
        optimiser.zero_grad()
        F.l1_loss(model(x[some]), boxes[some] / SIZE).backward()
        optimiser.step()
    net = transpike.convert(model.eval(), MMSE(steps=16, signed=True), x.split(64))
    x, boxes = scenes(32, seed=2)
    test, task = (x, [{"boxes": b[None], "labels": torch.tensor([1])} for b in boxes]), Detection(decode, regression=(0, 4))
    print(transpike.evaluate(net, [test], steps=32, task=task))
    draw_detections(net, test, 32, Path(folder) / "detection.png", task=task, fit=Fit((SIZE, SIZE), (0.5,) * 3, (1.0,) * 3))


if __name__ == "__main__":
    main(*sys.argv[1:2])

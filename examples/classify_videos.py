"""Video: a small 3-D convolutional network on clips of a square that moves four ways; the clips of a video vote.

python examples/classify_videos.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import transpike
from transpike.methods.mmse import MMSE
from transpike.tasks.pictures import draw_classes, middle_frame
from transpike.tasks.video import Clips, VideoAccuracy

CLIPS = Clips(frames=6, stride=2, per_video=3, scale=(18, 18), crop=16, mean=(0.5,) * 3, std=(0.5,) * 3)


def videos(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    """24 frames of 24 x 24 pixels in noise, as bytes T H W 3, with the way that the square goes: right, left, down, up."""
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        video, place = rng.normal(90, 25, (24, 24, 24, 3)), rng.integers(0, 18, 2)
        for t in range(24):
            step = (t if k % 2 == 0 else -t) * np.array([k % 4 >= 2, k % 4 < 2])
            y, x = (place + step) % 18
            video[t, y : y + 6, x : x + 6] += 90
        found.append((video.clip(0, 255).astype(np.uint8), k % 4))
    return found


def clips_of(data: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips N 3 T H W, and for each the class and the number of its video."""
    each = [(n, label, video, start) for n, (video, label) in enumerate(data) for start in CLIPS.starts(len(video))]
    x = torch.stack([CLIPS.clip(video, start) for _, _, video, start in each])
    return x, torch.tensor([[label, n] for n, label, _, _ in each])


def main(folder: str = "video", rounds: int = 200) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 16, 3, (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(16, 32, 3, (1, 2, 2), 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv3d(32, 32, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 4))
    x, y = clips_of(videos(128, seed=1))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for some in torch.randint(len(x), (rounds, 32)):
        optimiser.zero_grad()
        F.cross_entropy(model(x[some]), y[some, 0]).backward()
        optimiser.step()
    net = transpike.convert(model.eval(), MMSE(steps=32, signed=True), x.split(64))
    test, task = clips_of(videos(24, seed=2)), VideoAccuracy()
    print(transpike.evaluate(net, [test], steps=32, task=task))
    draw_classes(net, test, 32, Path(folder) / "video.png", task=task, show=middle_frame)


if __name__ == "__main__":
    main(*sys.argv[1:2])

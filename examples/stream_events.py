"""Event cameras: bars that move four ways; one frame per time step, and accuracy against the time since the first event.

python examples/stream_events.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import transpike
from transpike.measure.accuracy import Classification
from transpike.methods.mmse import MMSE
from transpike.tasks.events import Frames, Still, batches_of
from transpike.tasks.pictures import activity, draw_classes
from transpike.tasks.recordings import Recording

FRAMES = Frames(bins=20, size=(16, 16), duration=100_000, stream=True)


def recordings(count: int, seed: int) -> tuple[list[Recording], list[int]]:
    """A bar of 8 pixels that goes right, left, down or up: ON events in front, OFF events behind, and noise."""
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        t = np.sort(rng.integers(0, 100_000, 600))
        front, across = rng.integers(2, 5) + t * 8 // 100_000, rng.integers(0, 8, 600) + rng.integers(0, 8)
        p = rng.integers(0, 2, 600)
        along = front - 2 * (1 - p)
        along = along if k % 2 == 0 else 15 - along
        noise = rng.random(600) < 0.3
        along, across = (np.where(noise, rng.integers(0, 16, 600), v) for v in (along, across))
        x, y = (along, across) if k % 4 < 2 else (across, along)
        found.append(Recording.of({"x": x, "y": y, "t": t, "p": p}))
    return found, [k % 4 for k in range(count)]


def main(folder: str = "events", rounds: int = 200) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32 * 36, 4))
    train, test = (list(batches_of(*recordings(count, seed), FRAMES)) for count, seed in ((512, 1), (128, 2)))
    x, y = (torch.cat(parts) for parts in zip(*Still(train), strict=True))  # the mean over time
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for some in torch.randint(len(x), (rounds, 32)):
        optimiser.zero_grad()
        F.cross_entropy(model(x[some]), y[some]).backward()
        optimiser.step()
    net = transpike.convert(model.eval(), MMSE(steps=20, signed=True, cap=None), Still(train)).streamed()
    task = Classification(step_ms=FRAMES.step_ms)
    print(transpike.evaluate(net, test, steps=FRAMES.bins, task=task))
    draw_classes(net, test[0], FRAMES.bins, Path(folder) / "events.png", task=task, show=activity)


if __name__ == "__main__":
    main(*sys.argv[1:2])

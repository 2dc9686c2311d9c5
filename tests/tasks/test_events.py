"""Recordings against counting by hand, and streams whose mean is the input of the ANN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recorded import events
from transpike.errors import DataError
from transpike.tasks.events import (
    Frames,
    Still,
    batches_of,
    count_frames,
    event_folder,
    mean_frames,
    voxel_grid,
)
from transpike.tasks.recordings import Recording


def test_count_frames_hold_every_event_once() -> None:
    recording = Recording.of(events())
    frames = count_frames(recording, 4, (6, 8), 1000)
    wanted = torch.zeros(4, 2, 6, 8)
    for x, y, t, p in zip(recording.x, recording.y, recording.t, recording.p, strict=True):
        wanted[int(t * 4 // 1000), int(p), int(y), int(x)] += 1
    assert torch.equal(frames, wanted)
    assert float(frames.sum()) == 200
    assert float(count_frames(recording, 4, (6, 8), 500).sum()) == int((recording.t < 500).sum())


def test_a_voxel_grid_shares_an_event_between_two_bins_by_its_time() -> None:
    recording = Recording.of({"x": [1, 2, 2], "y": [0, 0, 0], "t": [0, 250, 1000], "p": [1, 0, 1]})
    grid = voxel_grid(recording, 3, (1, 4), 1001)
    place = 250 * 2 / 1001
    assert float(grid[0, 0, 1]) == pytest.approx(1.0)
    assert float(grid[0, 0, 2]) == pytest.approx(-(1 - place))
    assert float(grid[1, 0, 2]) == pytest.approx(-place + (2 - 1000 * 2 / 1001))
    assert float(grid.sum()) == pytest.approx(1.0)  # signs add up


def test_an_event_outside_of_the_sensor_is_refused() -> None:
    with pytest.raises(DataError, match="sensor has 4 x 4 pixels"):
        count_frames(Recording.of(events()), 4, (4, 4), 1000)


def test_the_mean_of_mean_frames_is_the_image_at_every_time() -> None:
    images = torch.randn(3, 7, 2, 4, 4)
    frames = mean_frames(images)
    for t in range(1, 8):
        torch.testing.assert_close(frames[:, :t].mean(1), images[:, t - 1], rtol=1e-4, atol=1e-5)


def test_a_folder_of_recordings_gives_grids_or_streams(tmp_path: Path) -> None:
    for k, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", events(seed=k))
    grid = event_folder(tmp_path, Frames(5, (6, 8), 1000))
    x, y = grid[1]
    assert x.shape == (10, 6, 8)
    assert (len(grid), y) == (2, 1)
    frames = Frames(5, (6, 8), 1000, stream=True)
    assert event_folder(tmp_path, frames)[0][0].shape == (5, 2, 6, 8)
    assert event_folder(tmp_path, Frames(5, (6, 8), 1000, stream=True, voxels=True))[0][0].shape == (5, 1, 6, 8)
    assert frames.step_ms == pytest.approx(0.2)
    assert Frames(5, (6, 8), 1000).step_ms is None


def test_recordings_in_memory_become_batches_and_still_ones_are_means() -> None:
    frames = Frames(4, (6, 8), 1000, stream=True)
    batches = list(batches_of([events(seed=k) for k in range(5)], [0, 1, 2, 3, 4], frames, batch=2))
    assert [tuple(x.shape) for x, _ in batches] == [(2, 4, 2, 6, 8)] * 2 + [(1, 4, 2, 6, 8)]
    still = list(Still(batches))
    assert torch.equal(still[0][0], batches[0][0].mean(1))
    assert torch.equal(still[0][1], batches[0][1])

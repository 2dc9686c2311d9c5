"""Clips, votes and folders of videos; torchvision's networks end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model

import transpike
from transpike.errors import DataError
from transpike.methods.max_norm import MaxNorm
from transpike.tasks.video import Clips, VideoAccuracy, read_video, video_folder

PLAIN = Clips(frames=3, stride=2, per_video=3, scale=(4, 6), crop=4, mean=(0.0,) * 3, std=(1.0,) * 3)


def counting(length: int = 12) -> np.ndarray:
    """A video whose frame k has the value k everywhere."""
    return np.broadcast_to(np.arange(length, dtype=np.uint8).reshape(-1, 1, 1, 1), (length, 8, 10, 3)).copy()


def test_clips_are_spread_over_the_video_and_keep_the_stride() -> None:
    assert PLAIN.starts(12) == [0, 4, 7]
    clip = PLAIN.clip(counting(), 7)
    assert clip.shape == (3, 3, 4, 4)
    assert (clip[0, :, 0, 0] * 255).round().tolist() == [7, 9, 11]
    assert Clips(frames=4).starts(10) == [3]


def test_a_video_that_is_too_short_goes_on_with_its_last_frame() -> None:
    assert PLAIN.starts(2) == [0, 0, 0]
    assert (PLAIN.clip(counting(2), 0)[0, :, 0, 0] * 255).round().tolist() == [0, 1, 1]


def test_a_folder_of_frames_and_an_array_are_the_same_video(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for k, frame in enumerate(counting(3)):
        Image.fromarray(frame).save(tmp_path / "v" / f"{k:03}.png")
    np.save(tmp_path / "v.npy", counting(3))
    assert np.array_equal(read_video(tmp_path / "v"), read_video(tmp_path / "v.npy"))
    np.save(tmp_path / "w.npy", np.zeros((3, 4)))
    with pytest.raises(DataError, match="a video is T x H x W x 3 bytes"):
        read_video(tmp_path / "w.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no frames"):
        read_video(tmp_path / "empty")


def encode(path: Path, frames: np.ndarray, codec: str = "ffv1", form: str = "bgr0") -> None:
    """A video file; this codec loses nothing."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], form
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def noise(length: int = 6, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (length, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", [".mkv", ".avi"])
def test_a_video_file_gives_the_frames_that_were_written(ending: str, tmp_path: Path) -> None:
    encode(tmp_path / f"v{ending}", noise())
    assert np.array_equal(read_video(tmp_path / f"v{ending}"), noise())


def test_a_lossy_video_file_keeps_frames_and_their_order(tmp_path: Path) -> None:
    shades = np.broadcast_to(np.arange(0, 240, 40, dtype=np.uint8).reshape(-1, 1, 1, 1), (6, 24, 32, 3)).copy()
    encode(tmp_path / "v.mp4", shades, "mpeg4", "yuv420p")
    found = read_video(tmp_path / "v.mp4")
    assert found.shape == shades.shape
    assert np.abs(found.astype(int) - shades).max() < 12


def test_video_files_of_a_folder_become_clips(tmp_path: Path) -> None:
    (tmp_path / "jump").mkdir()
    encode(tmp_path / "jump" / "v.mkv", noise(12))
    data = video_folder(tmp_path, PLAIN)
    assert torch.equal(data[1][0], PLAIN.clip(noise(12), 4))


def test_a_damaged_video_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "v.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match="not a readable video"):
        read_video(tmp_path / "v.mp4")


def test_without_pyav_a_video_file_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # what is None there cannot be imported
    with pytest.raises(DataError, match=r"a video file needs av, which is not installed: pip install 'transpike\[video\]'"):
        read_video(tmp_path / "v.mp4")


def test_every_clip_knows_its_class_and_its_video(tmp_path: Path) -> None:
    for name in ("jump", "run"):
        (tmp_path / "test" / name).mkdir(parents=True)
        np.save(tmp_path / "test" / name / "a.npy", counting())
    data = video_folder(tmp_path, PLAIN)
    assert len(data) == 6
    assert [data[k][1].tolist() for k in range(6)] == [[0, 0]] * 3 + [[1, 1]] * 3
    assert torch.equal(data[4][0], PLAIN.clip(counting(), 4))
    with pytest.raises(DataError, match="no videos"):
        video_folder(tmp_path / "test" / "run", PLAIN)


def test_the_clips_of_a_video_vote_by_their_probabilities() -> None:
    sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    task, score = VideoAccuracy(), VideoAccuracy().score()
    clips = torch.cat([unsure, sure, unsure, sure])
    targets = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 2]])
    for part in (slice(0, 1), slice(1, 4)):  # the clips of a video may come in different batches
        answer = task.answer(clips[part])
        score.add(answer, task.check(clips[part], targets[part]), answer)
    assert score.values() == {"video_top1": 2 / 3, "clip_top1": 0.5}


@pytest.mark.parametrize(
    ("targets", "says"), [(torch.zeros(2, dtype=torch.int64), "N x 2"), (torch.tensor([[5, 0], [0, 1]]), "network has 3")]
)
def test_wrong_targets_are_refused(targets: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        VideoAccuracy().check(torch.zeros(2, 3), targets)


def video_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return get_model(name, weights=None, num_classes=5).eval()


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_torchvision_networks_go_end_to_end_and_approach_the_ann(name: str) -> None:
    model, x = video_net(name), torch.randn(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    net = transpike.convert(model, MaxNorm(), x)
    with torch.no_grad():
        wanted = model(x)
    errors = [float((transpike.simulate(net, x, t).readout() - wanted).norm() / wanted.norm()) for t in (4, 64)]
    assert errors[1] < 0.6 * errors[0]
    targets = torch.stack([wanted.argmax(1), torch.tensor([0, 0, 1, 2])], 1)
    targets[1, 0] = targets[0, 0]
    report = transpike.evaluate(net, [(x, targets)], 4, task=VideoAccuracy())
    assert report.metrics == ("video_top1", "clip_top1")
    assert report.ann["clip_top1"] >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("s3d", (3, 16, 224, 224)), ("swin3d_t", (3, 4, 32, 32))])
def test_networks_with_gates_and_attention_are_captured_and_say_what_spikes(name: str, shape: tuple[int, ...]) -> None:
    graph = transpike.capture(video_net(name), torch.randn(1, *shape))
    assert len(graph.sites) == {"s3d": 77, "swin3d_t": 0}[name]

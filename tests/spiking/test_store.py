"""Files are written whole or not at all, and every damage is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from transpike.errors import ArtifactError
from transpike.spiking import store
from transpike.spiking.store import digest, read_tensors, write_file, write_tensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(True),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
}
HEADER = {"kind": "plan", "list": [1, 2.5, None, "é"], "deep": {"x": {"y": []}}}


def test_tensors_and_header_come_back_bit_for_bit(tmp_path):
    tensors, header = read_tensors(write_tensors(tmp_path / "x", TENSORS, HEADER), "plan")
    assert header == HEADER and tensors.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert tensors[name].dtype == x.dtype and torch.equal(tensors[name], x)


def test_views_and_strided_tensors_are_written_as_they_look(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    tensors, _ = read_tensors(write_tensors(tmp_path / "x", {"t": x.t(), "row": x[1], "same": x[1]}, HEADER), "plan")
    assert torch.equal(tensors["t"], x.t()) and torch.equal(tensors["row"], tensors["same"])


@pytest.mark.parametrize("changed", ["name", "dtype", "shape", "byte", "text"])
def test_the_digest_notices(changed):
    x = torch.arange(4, dtype=torch.int32)
    one = {"name": {"y": x}, "dtype": {"x": x.view(torch.float32)}, "shape": {"x": x.view(2, 2)}, "byte": {"x": x + 1}}
    assert digest(one.get(changed, {"x": x}), "other" if changed == "text" else "") != digest({"x": x})


def test_the_digest_does_not_depend_on_order_or_layout():
    x, y = torch.rand(3, 4), torch.rand(2)
    assert digest({"x": x, "y": y}) == digest({"y": y, "x": x.t().contiguous().t()})


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = write_tensors(tmp_path / "x", TENSORS, HEADER)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"truncated|changed"):
        read_tensors(path, "plan")


def test_any_flipped_byte_is_noticed(tmp_path):
    path = write_tensors(tmp_path / "x", TENSORS, HEADER)
    sound = path.read_bytes()
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ (1 << position % 8)]) + sound[position + 1 :])
        with pytest.raises(ArtifactError):
            read_tensors(path, "plan")


def test_missing_foreign_and_misplaced_files_are_told_apart(tmp_path):
    with pytest.raises(ArtifactError, match="there is no file"):
        read_tensors(tmp_path / "nowhere", "plan")
    with pytest.raises(ArtifactError, match="there is no file"):
        read_tensors(tmp_path, "plan")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArtifactError, match="not a readable plan"):
        read_tensors(tmp_path / "text", "plan")
    with pytest.raises(ArtifactError, match="holds a plan, not a spiking network"):
        read_tensors(write_tensors(tmp_path / "x", TENSORS, HEADER), "spiking network")


def _unwritable(tmp_path: Path) -> Path:
    """A path below a file: nobody, not even root, can write there."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "x"


def test_a_folder_that_cannot_be_written_gives_one_clear_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write"):
        write_tensors(_unwritable(tmp_path), TENSORS, HEADER)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_gives_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="Permission denied"):
        write_tensors(tmp_path / "x", TENSORS, HEADER)


def test_a_folder_in_the_place_of_the_file_gives_one_clear_error_and_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        write_tensors(tmp_path / "x", TENSORS, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path, monkeypatch, error):
    path = write_tensors(tmp_path / "x", TENSORS, HEADER)
    before = path.read_bytes()

    def fill(tensors, temporary, metadata):
        Path(temporary).write_bytes(b"half")
        raise error

    monkeypatch.setattr(store, "save_file", fill)
    with pytest.raises(ArtifactError, match="No space left"):
        write_tensors(path, {}, HEADER)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "x", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_and_the_file_has_ordinary_permissions(tmp_path):
    path = write_file(tmp_path / "a" / "b" / "x.txt", lambda temporary: temporary.write_text("done"))
    assert path.read_text() == "done"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode

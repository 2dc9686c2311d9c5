"""Every file format of event cameras, written by the test, gives the recording that went in."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recorded import events
from transpike.errors import DataError, SpecError
from transpike.tasks import recordings
from transpike.tasks.events import Frames, event_folder
from transpike.tasks.recordings import Recording, read_recording


def test_time_counts_from_the_first_event_and_events_are_put_in_order() -> None:
    shuffled = np.random.default_rng(1).permutation(events())
    recording = Recording.of(shuffled)
    assert recording.t[0] == 0
    assert bool((np.diff(recording.t) >= 0).all())
    assert len(recording) == 200


@pytest.mark.parametrize(("wrong", "says"), [({"x": [1]}, "no field"), ({"x": [1], "y": [1, 2], "t": [1], "p": [0]}, "lengths")])
def test_a_recording_that_lacks_something_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Recording.of(wrong)


def as_bin(found: np.ndarray) -> bytes:
    """N-MNIST's five bytes an event."""
    rows = [
        [x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255] for x, y, t, p in zip(*(found[k].tolist() for k in "xytp"), strict=True)
    ]
    return bytes(byte for row in rows for byte in row)


def test_all_file_formats_give_the_same_recording(tmp_path: Path) -> None:
    found = events()
    (tmp_path / "a.bin").write_bytes(as_bin(found))
    np.savez(tmp_path / "a.npz", **{key: found[key] for key in "xytp"})
    np.save(tmp_path / "a.npy", found)
    wanted = Recording.of(found)
    for name in ("a.bin", "a.npz", "a.npy"):
        recording = read_recording(tmp_path / name)
        for key in "xytp":
            assert np.array_equal(getattr(recording, key), getattr(wanted, key)), (name, key)


def test_an_overflow_in_a_bin_adds_to_all_later_times(tmp_path: Path) -> None:
    found = np.zeros(4, dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    found["t"], found["y"] = [10, 20, 0, 5], [1, 1, 240, 1]
    (tmp_path / "a.bin").write_bytes(as_bin(found))
    assert read_recording(tmp_path / "a.bin").t.tolist() == [0, 10, 8192 + 5 - 10]


def as_aedat2(found: np.ndarray) -> bytes:
    """DVS128: address x (7 bits), y (7 bits), polarity, and microseconds, big endian."""
    events = [struct.pack(">II", x << 8 | y << 1 | p, t) for x, y, t, p in zip(*(found[k].tolist() for k in "xytp"), strict=True)]
    return b"#!AER-DAT2.0\r\n# written by a test\r\n" + b"".join(events)


def as_aedat3(found: np.ndarray, packet: int = 64) -> bytes:
    """Packets of a header of 28 bytes and events: x (15 bits), y (15 bits), polarity, validity, and microseconds."""
    parts = [b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"]
    for low in range(0, len(found), packet):
        some = found[low : low + packet]
        parts.append(struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, len(some), len(some), len(some)))
        parts += [struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for x, y, t, p in zip(*(some[k].tolist() for k in "xytp"))]
    return b"".join(parts)


def same(a: Recording, b: Recording) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in "xytp")


def as_davis(found: np.ndarray) -> bytes:
    """DAVIS346: y (9 bits), x (10 bits) from the lower right corner, polarity."""
    rows = zip(*(found[k].tolist() for k in "xytp"), strict=True)
    events = [struct.pack(">II", (259 - y) << 22 | (345 - x) << 12 | p << 11, t) for x, y, t, p in rows]
    return b"#!AER-DAT2.0\r\n" + b"".join(events)


@pytest.mark.parametrize(("camera", "write"), [("dvs_128", as_aedat2), ("davis_346", as_davis), (None, as_aedat3)])
def test_an_aedat_gives_the_recording_that_was_written(camera: str | None, write, tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.aedat").write_bytes(write(events()))
    assert same(read_recording(tmp_path / "class" / "a.aedat", camera), Recording.of(events()))
    frames = Frames(5, (6, 8), 1000)
    assert float(event_folder(tmp_path, frames, camera=camera)[0][0].sum()) == 200


def test_other_packets_and_invalid_events_of_aedat_3_are_left_out_and_overflows_counted(tmp_path: Path) -> None:
    def packet(kind: int, overflows: int, *events: tuple[int, int, int, int, int]) -> bytes:
        head = struct.pack("<HHIIIIII", kind, 0, 8, 4, overflows, len(events), len(events), len(events))
        return head + b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t) for x, y, t, p, valid in events)

    data = packet(0, 0, (9, 9, 0, 0, 1)) + packet(1, 0, (1, 2, 10, 1, 1), (3, 4, 20, 0, 0)) + packet(1, 1, (5, 6, 7, 0, 1))
    (tmp_path / "a.aedat").write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + data)
    found = read_recording(tmp_path / "a.aedat")
    assert np.array_equal(found.x, [1, 5]) and np.array_equal(found.y, [2, 6]) and np.array_equal(found.p, [1, 0])
    assert found.t.tolist() == [0, 2**31 + 7 - 10]


def test_a_davis_file_is_read_as_tonic_reads_it(tmp_path: Path) -> None:
    io = pytest.importorskip("tonic.io")
    (tmp_path / "a.aedat").write_bytes(as_davis(events()))
    assert same(read_recording(tmp_path / "a.aedat", "davis_346"), Recording.of(io.read_davis_346(tmp_path / "a.aedat")[-1]))


def test_a_bin_is_read_as_tonic_reads_it(tmp_path: Path) -> None:
    io = pytest.importorskip("tonic.io")
    found = np.random.default_rng(3).permutation(events())
    found["t"][::50], found["y"][::50] = 0, 240
    (tmp_path / "a.bin").write_bytes(as_bin(found))
    assert same(read_recording(tmp_path / "a.bin"), Recording.of(io.read_mnist_file(tmp_path / "a.bin", io.events_struct)))


def test_aedat_4_is_what_tonic_gives_with_its_own_names(tmp_path: Path, monkeypatch) -> None:
    """tonic's reader stands in for itself here: nothing writes these files. It names the polarity ``on``."""
    wanted = events()
    given = wanted.astype([("x", "<u2"), ("y", "<u2"), ("t", "<u8"), ("on", "?")])
    given["on"] = wanted["p"]
    (tmp_path / "a.aedat4").touch()
    seen: list[str] = []
    tonic = SimpleNamespace(read_aedat4=lambda path: seen.append(path) or given)
    monkeypatch.setattr(recordings, "needed", lambda module, *_, **__: tonic)
    assert same(read_recording(tmp_path / "a.aedat4"), Recording.of(wanted))
    assert seen == [str(tmp_path / "a.aedat4")]


@pytest.mark.parametrize("missing", ["tonic", "aedat"])
def test_without_its_readers_aedat_4_says_what_to_install(missing: str, tmp_path: Path, monkeypatch) -> None:
    if missing == "aedat":
        pytest.importorskip("tonic")
    for module in (missing, f"{missing}.io"):
        monkeypatch.setitem(sys.modules, module, None)  # what is None there cannot be imported
    (tmp_path / "a.aedat4").touch()
    with pytest.raises(DataError, match=rf"needs {missing}, which is not installed: pip install 'transpike\[events\]'"):
        read_recording(tmp_path / "a.aedat4")


def test_aedat_2_needs_a_camera(tmp_path: Path) -> None:
    (tmp_path / "a.aedat").write_bytes(as_aedat2(events()))
    with pytest.raises(SpecError, match="does not say how its addresses are laid out: say which camera made it, one of davis_346"):
        read_recording(tmp_path / "a.aedat")
    with pytest.raises(SpecError, match="was not recorded by a 'dvs'"):
        read_recording(tmp_path / "a.aedat", "dvs")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"1234567", "does not begin with #!AER-DAT"),
        (b"#!AER-DAT4.0\r\n", "version 4.0"),
        (as_aedat2(events())[:-3], "no multiple of 8"),
        (as_aedat3(events())[:-3], "ends within a packet"),
        (as_aedat3(events()[:64]) + b"1234", "ends in the header"),
    ],
)
def test_damaged_aedat_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.aedat").write_bytes(data)
    with pytest.raises(DataError, match=says):
        read_recording(tmp_path / "a.aedat", "dvs_128")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_recording(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("name", "says"), [("a.bin", "no multiple of 5"), ("a.npz", "readable"), ("a.npy", "readable"), ("a.raw", "tonic")]
)
def test_damaged_and_unknown_files_are_refused(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"1234567")
    with pytest.raises(DataError, match=says):
        read_recording(tmp_path / name)

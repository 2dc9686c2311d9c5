"""Recordings of event cameras, and the files that hold them.

A recording is a list of events: pixel, time in microseconds, polarity 0 or 1; a numpy structured array with the fields
x, y, t, p is what tonic gives, and is taken as it is. Time counts from the first event.

| file | what it holds |
|---|---|
| ``.npy``, ``.npz`` | a structured array, or arrays x, y, t, p |
| ``.bin`` | N-MNIST, N-Caltech101: 5 bytes an event |
| ``.aedat`` | AEDAT 3.1, and AEDAT 2, where addresses are laid out as the camera has it (`CAMERAS`, as in tonic) |
| ``.aedat4`` | AEDAT 4: compressed packets, read by tonic |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transpike.errors import DataError, SpecError
from transpike.tasks.data import arrays_of
from transpike.tasks.optional import needed

__all__ = ["CAMERAS", "Recording", "read_recording"]

SUFFIXES = (".aedat", ".aedat4", ".bin", ".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Recording:
    """Events in the order of time.

    Args:
        x, y: pixels. t: microseconds since the first event. p: polarity, 0 or 1. all of the same length
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    p: np.ndarray

    @staticmethod
    def of(events: Any) -> Recording:
        """From a structured array with the fields x, y, t, p (tonic's), or anything with these keys; ``on`` may stand for p.

        Raises:
            DataError: a field is missing, or fields differ in length.
        """
        names = getattr(getattr(events, "dtype", None), "names", None) or ()
        try:
            x, y, t, p = (np.asarray(events[key]) for key in ("x", "y", "t", "on" if "on" in names else "p"))
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"a recording has no field {error}: give a structured array or a dict with x, y, t, p") from error
        if not len(x) == len(y) == len(t) == len(p):
            raise DataError(f"x, y, t, p have lengths {len(x)}, {len(y)}, {len(t)}, {len(p)}: give one of each for every event")
        order = np.argsort(t, kind="stable")
        t = t[order].astype(np.int64)
        start = t[0] if len(t) else 0
        return Recording(x[order].astype(np.int64), y[order].astype(np.int64), t - start, (p[order] > 0).astype(np.int64))

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True)
class _Layout:
    """Where an address holds a pixel: first bit and number of bits of x and y, the bit of the polarity."""

    x: tuple[int, int]
    y: tuple[int, int]
    p: int
    flip: tuple[int, int] | None = None  # the largest x and y, of sensors whose addresses count from the other corner

    def events(self, address: np.ndarray, t: np.ndarray) -> Recording:
        x, y = (address >> first & (1 << bits) - 1 for first, bits in (self.x, self.y))
        if self.flip is not None:
            x, y = self.flip[0] - x, self.flip[1] - y
        return Recording.of({"x": x, "y": y, "t": t, "p": address >> self.p & 1})


CAMERAS = {
    "davis_346": _Layout((12, 10), (22, 9), 11, (345, 259)),
    "dvs_128": _Layout((8, 7), (1, 7), 0),
    "dvs_346mini": _Layout((22, 9), (12, 10), 11),
}
_AEDAT3 = _Layout((17, 15), (2, 15), 1)  # whatever the camera


def read_recording(path: Path, camera: str | None = None) -> Recording:
    """A recording from a file, see the table of this module.

    Args:
        camera: of AEDAT 2, one of `CAMERAS`; the other files say themselves what they hold.

    Raises:
        DataError: no such file, damaged, of no known format, or it is AEDAT 4 and tonic is not installed.
        SpecError: no such camera, or none for AEDAT 2.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the path")
    kind = path.suffix.lower()
    if kind == ".aedat":
        return _read_aedat(path, camera)
    if kind == ".aedat4":
        return _read_aedat4(path)
    if kind == ".bin":
        return _read_bin(path)
    if kind == ".npz":
        return Recording.of(arrays_of(path))
    if kind == ".npy":
        try:
            return Recording.of(np.load(path))
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a readable .npy file: {error}") from error
    known = ", ".join(SUFFIXES)
    raise DataError(f"{path} has no known format: give {known}, or read it with tonic and Recording.of(events)")


def _read_bin(path: Path) -> Recording:
    """Of an event: x, y, then polarity (1 bit) and microseconds (23 bits); y = 240 marks an overflow of the time stamp.

    Orchard et al., Front. Neurosci. 2015, doi:10.3389/fnins.2015.00437.
    """
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not len(raw) or len(raw) % 5:
        raise DataError(f"{path} has {len(raw)} bytes, no multiple of 5: it is no recording in the form of N-MNIST, or is cut off")
    x, y, high, middle, low = raw.reshape(-1, 5).T.astype(np.int64)
    overflow = y == 240
    t = ((high & 127) << 16 | middle << 8 | low) + (np.cumsum(overflow) << 13)
    kept = ~overflow
    return Recording.of({"x": x[kept], "y": y[kept], "t": t[kept], "p": (high >> 7)[kept]})


def _read_aedat(path: Path, camera: str | None) -> Recording:
    """AEDAT 2: address and microseconds, 4 bytes each, big endian. AEDAT 3.1: packets, see `_polarity`."""
    data = path.read_bytes()
    version, place = None, 0
    while data[place : place + 1] == b"#" and (end := data.find(b"\n", place)) >= 0:
        line, place = data[place:end].strip(), end + 1
        version = line[len(b"#!AER-DAT") :].decode("ascii", "replace") if line.startswith(b"#!AER-DAT") else version
        if line == b"#!END-HEADER":
            break
    if version is None or version[0] not in "23":
        found = "does not begin with #!AER-DAT" if version is None else f"has version {version}"
        raise DataError(f"{path} {found}: AEDAT 2 and 3.1 are read here, AEDAT 4 is called .aedat4")
    if version[0] == "3":
        events = _polarity(path, data[place:])
        valid = events[:, 0] & 1 == 1
        return _AEDAT3.events(events[valid, 0], events[valid, 1])
    if camera not in CAMERAS:
        given = "does not say how its addresses are laid out" if camera is None else f"was not recorded by a {camera!r}"
        raise SpecError(f"{path} {given}: say which camera made it, one of {', '.join(CAMERAS)}")
    if (len(data) - place) % 8:
        raise DataError(f"{path} has {len(data) - place} bytes of events, no multiple of 8: it is damaged or cut off")
    events = np.frombuffer(data[place:], ">u4").astype(np.int64).reshape(-1, 2)
    return CAMERAS[camera].events(events[:, 0], events[:, 1])


def _polarity(path: Path, data: bytes) -> np.ndarray:
    """Address and microseconds of all polarity events (packets of type 1) of an AEDAT 3.1 file. events 2

    A packet's header has 28 bytes: type and source (2 bytes each), then size of an event, offset of the time stamp, its
    overflows (of 31 bits), capacity, events and valid events (4 bytes each), little endian.
    """
    parts, place = [np.empty((0, 2), np.int64)], 0
    while place < len(data):
        if place + 28 > len(data):
            raise DataError(f"{path} ends in the header of a packet: it is damaged or cut off")
        kind, _, size, _, overflows, capacity, count, _ = struct.unpack_from("<HHIIIIII", data, place)
        place += 28
        if place + size * capacity > len(data) or count > capacity:
            raise DataError(f"{path} ends within a packet: it is damaged or cut off")
        if kind == 1:
            events = np.frombuffer(data, "<u4", 2 * count, place).astype(np.int64).reshape(-1, 2)
            parts.append(events + np.array([0, overflows << 31]))
        place += size * capacity
    return np.concatenate(parts)


def _read_aedat4(path: Path) -> Recording:
    read = needed("tonic.io", "AEDAT 4", extra="events").read_aedat4
    needed("aedat", "AEDAT 4", extra="events")  # tonic imports it when it reads
    try:
        events = read(str(path))
    except Exception as error:  # no closed list of what it raises
        raise DataError(f"{path} is not a readable AEDAT 4 file: {type(error).__name__} {error}") from error
    return Recording.of(events)

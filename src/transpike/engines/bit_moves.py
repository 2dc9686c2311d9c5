"""Operations that only move values, on the bits of spikes: channels beside channels, slices of a map, margins of 0s.

What a spike of each unit is worth moves the same way; it is worked out once a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from transpike.engines.emitted import Emitted, Worth
from transpike.engines.vectors import LANES
from transpike.graph.ir import Node
from transpike.graph.roles import base_name

__all__ = ["beside", "moved"]


def beside(node: Node) -> bool:
    """Does the operation put the channels of its operands beside each other?"""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return base_name(node.op) == "aten.cat" and node.batch_axis == 0 and axis == 1 and len(node.shape or ()) in (2, 4)


def moved(node: Node, read: Callable[[str], Any], shared: dict[Any, Any]) -> Emitted | None:
    """What ``node`` makes of bits, as bits; None where it does more than move them, or reads anything else.

    Args:
        read: a value by name. shared: what is worked out once a run.
    """
    move = _beside if beside(node) else _MOVES.get(base_name(node.op))
    if move is None or node.kwargs or node.batch_axis != 0:
        return None
    parts = [read(name) for name in node.refs()]
    if not parts or not all(isinstance(part, Emitted) and not part.several for part in parts):
        return None
    pixels = move(node, [part.pixels() for part in parts], 8)
    if pixels is None or 8 * pixels.shape[-1] % LANES:
        return None
    key = (node.name, "worth")
    if key not in shared:  # as maps of one frame, channels last
        maps = [part.worth.units.view(1, *part.pixels().shape[1:-1], part.worth.channels).numpy() for part in parts]
        units = move(node, maps, 1)
        assert units is not None
        shared[key] = Worth(torch.from_numpy(np.ascontiguousarray(units)).view(-1), units.shape[-1])
    return Emitted.made_of(pixels, shared[key])


# each takes maps (frames x height x width x channels) whose last axis has ``octet`` channels in one, None if it cannot
def _beside(node: Node, maps: list[np.ndarray], octet: int) -> np.ndarray | None:
    return np.concatenate(maps, -1)


def _slice(node: Node, maps: list[np.ndarray], octet: int) -> np.ndarray | None:
    """Of rows or columns: x[:, :, start:end:step]."""
    axis, start, end, step = [*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :]]
    if axis not in (2, 3) or maps[0].ndim != 4 or not all(isinstance(x, (int, type(None))) for x in (start, end, step)):
        return None
    part = slice(start, end, step)
    return maps[0][:, part] if axis == 2 else maps[0][:, :, part]


def _pad(node: Node, maps: list[np.ndarray], octet: int) -> np.ndarray | None:
    """With 0s around columns, rows and channels."""
    pads, *rest = node.args[1:]
    if maps[0].ndim != 4 or [x for x in rest if x not in ("constant", None, 0)] or len(pads) not in (2, 4, 6):
        return None
    columns, rows, channels = (pads[k : k + 2] or [0, 0] for k in (0, 2, 4))
    if min(pads) < 0 or any(x % octet for x in channels):
        return None
    return np.pad(maps[0], ((0, 0), rows, columns, [x // octet for x in channels]))


_MOVES = {"aten.slice": _slice, "aten.pad": _pad, "aten.constant_pad_nd": _pad}

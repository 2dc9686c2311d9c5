"""What only moves values does on bits what torch does on numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transpike
from engines.test_emitted import CHANNELS, SHAPE, emitted
from models import eighths
from transpike.engines.bit_moves import moved
from transpike.engines.vectors import LANES
from transpike.graph.ir import BatchSize, Node, Ref, Role
from transpike.methods.max_norm import MaxNorm

LAST = 2**63 - 1


def node(op: str, *args: object) -> Node:
    return Node("y", op, args, {}, Role.SHAPE, (BatchSize(1), 1, 1, 1))


@pytest.mark.parametrize(
    ("op", "args", "same"),
    [
        ("aten.slice.Tensor", (2, 0, LAST, 2), lambda x: x[:, :, ::2]),
        ("aten.slice.Tensor", (3, 1, 4), lambda x: x[:, :, :, 1:4]),
        ("aten.slice.Tensor", (2, -2), lambda x: x[:, :, -2:]),
        ("aten.pad.default", ([0, 0, 0, 0, LANES, LANES],), lambda x: F.pad(x, (0, 0, 0, 0, LANES, LANES))),
        ("aten.constant_pad_nd.default", ([1, 0, 2, 1], 0.0), lambda x: F.pad(x, (1, 0, 2, 1))),
    ],
)
def test_spikes_and_their_worth_move_alike(op, args, same) -> None:
    x, numbers = emitted(4, eighths(*SHAPE, low=1, high=9))
    shared = {}
    found = moved(node(op, Ref("x"), *args), {"x": x}.__getitem__, shared)
    assert found is not None and torch.equal(found.numbers(), same(numbers))
    again = moved(node(op, Ref("x"), *args), {"x": x}.__getitem__, shared)
    assert again is not None and again.worth is found.worth


def test_channels_put_beside_each_other_are_concatenated() -> None:
    shapes = (SHAPE, (LANES, *SHAPE[1:]))
    parts = [emitted(4, eighths(shape[0], 1, 1, low=1, high=9, seed=k), k, shape) for k, shape in enumerate(shapes)]
    env = {str(k): part for k, (part, _) in enumerate(parts)}
    both = moved(node("aten.cat.default", [Ref("0"), Ref("1")], 1), env.__getitem__, {})
    assert both is not None and torch.equal(both.numbers(), torch.cat([numbers for _, numbers in parts], 1))
    assert len(both.by_channel) == CHANNELS + LANES


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.slice.Tensor", (1, 0, 8)),  # channels share bytes
        ("aten.slice.Tensor", (0, 0, 2)),  # samples
        ("aten.pad.default", ([0, 0, 0, 0, 1, 7],)),
        ("aten.pad.default", ([0, 0, -1, 0],)),
        ("aten.pad.default", ([1, 1], "reflect")),
        ("aten.constant_pad_nd.default", ([1, 1], 0.5)),
        ("aten.relu.default", ()),
    ],
)
def test_what_bits_cannot_hold_is_left_to_torch(op, args) -> None:
    x, _ = emitted(2, torch.ones(1))
    assert moved(node(op, Ref("x"), *args), {"x": x}.__getitem__, {}) is None
    assert moved(node("aten.slice.Tensor", Ref("x"), 2, 0, 2), {"x": x.numbers()}.__getitem__, {}) is None


class Shortcut(nn.Module):
    """A residual block whose shortcut skips pixels and pads channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.second = (
            nn.Conv2d(2, LANES, 3, 1, 1),
            nn.Conv2d(LANES, LANES, 3, 2, 1),
            nn.Conv2d(LANES, 2 * LANES, 1),
        )
        self.head = nn.Linear(2 * LANES, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = self.second(F.relu(self.first(x)))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, LANES // 2, LANES // 2)))
        return self.head(x.mean((2, 3)))


def test_a_shortcut_that_skips_pixels_and_pads_channels_runs_on_bits() -> None:
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    net = transpike.convert(Shortcut().eval(), MaxNorm(), [x])
    dense, events = (transpike.simulate(net, x, 12, engine=engine) for engine in ("dense", "events"))
    for name, spikes in dense.spikes.items():
        assert float((spikes - events.spikes[name]).abs().mean()) < 0.01
    torch.testing.assert_close(dense.readout(), events.readout(), rtol=0.02, atol=0.02)

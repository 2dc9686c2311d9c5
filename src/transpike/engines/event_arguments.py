"""What the event kernels are called with; see `transpike.engines.event_kernels.respond`. Arrays are flat, channels innermost."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from transpike.engines.event_vectors import NO_BITS, NOTHING

__all__ = ["Beside", "Geometry", "Neurons", "Reading", "Room"]


class Geometry(NamedTuple):
    """A synapse as the kernels see it; see `transpike.engines.events.Synapse`.

    Args:
        rows, stride, padding, dilation: of the kernel, vertically. margin: columns of 0s before an input's first.
        columns, vectors: what a line holds in registers; ``blocks`` times ``vectors`` vectors are all channels of a group.
        taps, hop, step, segment: input columns that an output sees one by one; their distance for neighbouring outputs and for
            neighbouring taps; weights of a tap.
        words, packed: words of an input column with all rows that a line sees; rows in a word, 0 where a row takes several.
        bytes: of an input pixel's bits; each group begins with one of its own.
        bank: weights of a block. nested: do all blocks take a line before the next one?
    """

    height: int
    width: int
    channels: int
    groups: int
    out_height: int
    out_width: int
    out_channels: int
    rows: int
    stride: int
    padding: int
    dilation: int
    margin: int
    columns: int
    vectors: int
    blocks: int
    taps: int
    hop: int
    step: int
    segment: int
    words: int
    packed: int
    bytes: int
    bank: int
    nested: int


class Reading(NamedTuple):
    """What synapses read; nothing in the place of what they need not.

    Args:
        numbers: the input's frames NHWC. bits: where they are not 0. worth: what an event of each channel is worth, where
            that is the same for all.
        weights, bias: as `transpike.engines.events.Weights`. folded: are weights multiplied by ``worth`` already? Then nothing
            else than the bits is read.
        offsets: as `transpike.engines.events.Synapse.offsets`.
    """

    numbers: Any
    bits: Any
    worth: Any
    weights: Any
    folded: bool
    bias: Any
    offsets: Any


class Beside(NamedTuple):
    """Another current of the neurons behind synapses.

    Args:
        numbers: frames NHWC, or what a spike of each unit is worth. bits: where there are spikes.
        kind: 0 nothing, 1 the same numbers at every step, 2 a frame for each step, 3 spikes.
    """

    numbers: Any = NOTHING
    bits: Any = NO_BITS
    kind: int = 0


class Room(NamedTuple):
    """Where neurons emit.

    Args:
        numbers: written, but where ``marked`` neurons fire once at most: then their bits say it all.
        bits: where they emit something (frames NHWC), if they are ``marked`` (1, else 0).
    """

    numbers: Any = NOTHING
    bits: Any = NO_BITS
    marked: int = 0


class Neurons(NamedTuple):
    """Neurons behind synapses: v, sent, count (samples, units), theta, worth, extra (units); cap, signed as in a plan."""

    v: Any = NOTHING
    sent: Any = NOTHING
    count: Any = NOTHING
    theta: Any = NOTHING
    worth: Any = NOTHING
    extra: Any = NOTHING
    cap: Any = np.float32(0)
    signed: bool = False

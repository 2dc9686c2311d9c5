"""What ran where, and why: for every synapse and neuron layer its time, its density and the engine that was chosen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Layer", "Trace"]


@dataclass
class Layer:
    """One operation's share of a run.

    Args:
        name: its node; a neuron layer that took its synapse over is called by the neurons.
        macs: multiply-accumulates that one frame takes with all 0s counted.
        frames: steps x samples that went through it. events: how many of them by events.
        nonzeros: inputs that were not 0, as far as they were looked at. looked: inputs that were looked at.
        seconds: wall time (on a GPU only until the work is handed over).
        precision: the number format of its products, see `transpike.engines.precision`.
    """

    name: str
    macs: int
    frames: int = 0
    events: int = 0
    nonzeros: int = 0
    looked: int = 0
    seconds: float = 0.0
    precision: str = "float32"

    @property
    def density(self) -> float | None:
        """Share of the inputs that are not 0, None if nobody looked."""
        return self.nonzeros / self.looked if self.looked else None

    @property
    def engine(self) -> str:
        """Which engine ran it."""
        if not self.events:
            return "dense"
        return "events" if self.events == self.frames else f"events {100 * self.events // self.frames} %"


@dataclass(frozen=True)
class Trace:
    """Layers by name, in the order in which they first ran."""

    layers: dict[str, Layer] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str, macs: int, frames: int, precision: str = "float32") -> Iterator[Layer]:
        """Count what runs inside as the layer's."""
        layer = self.layers.setdefault(name, Layer(name, macs, precision=precision))
        began = time.perf_counter()
        try:
            yield layer
        finally:
            layer.seconds += time.perf_counter() - began
            layer.frames += frames

    def add(self, other: Trace) -> None:
        """Take another run's layers in."""
        for name, theirs in other.layers.items():
            mine = self.layers.setdefault(name, Layer(name, theirs.macs, precision=theirs.precision))
            for key in ("frames", "events", "nonzeros", "looked", "seconds"):
                setattr(mine, key, getattr(mine, key) + getattr(theirs, key))

    def rows(self) -> list[Mapping[str, object]]:
        """One row a layer, ready for a table or JSON."""
        return [
            {
                "layer": layer.name,
                "engine": layer.engine,
                "precision": layer.precision,
                "seconds": layer.seconds,
                "density": layer.density,
                "macs": layer.macs,
                "operations": layer.macs * layer.frames,
            }
            for layer in self.layers.values()
        ]

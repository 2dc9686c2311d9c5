"""What a lower precision did to a run: the distance to the same run in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transpike.engines.run import Run
from transpike.graph.ir import map_tree
from transpike.measure.tally import Task

__all__ = ["Effect", "effect_of"]


@dataclass(frozen=True)
class Effect:
    """How far the read-out of all steps and the spikes are from those in float32, on the first samples.

    Args:
        precision: of the products, see `transpike.engines.precision`.
        samples: how many were simulated twice. float32_layers: convolutions and linear layers that stayed in float32,
            of ``layers`` in all.
        largest: ``max |o - o32|`` over everything read out. relative: ``|o - o32|_2 / |o32|_2``.
        same_answer: share of answers that are those in float32 (of samples, or of pixels, as the task compares them).
        spikes: ``(n - n32) / n32`` for the spikes of all sites in all.
    """

    precision: str
    samples: int
    layers: int
    float32_layers: int
    largest: float
    relative: float
    same_answer: float
    spikes: float

    def __str__(self) -> str:
        return (
            f"{self.precision} against float32 on {self.samples} samples: read-out differs by {self.largest:.3g} at most, "
            f"{self.relative:.3%} in all (L2), {self.same_answer:.2%} same answers, {self.spikes:+.3%} spikes; "
            f"{self.float32_layers} of {self.layers} layers stayed float32"
        )


def effect_of(precision: str, task: Task, run: Run, single: Run) -> Effect:
    """Compare ``run`` with ``single``, the same samples and steps in float32."""
    low, full = (task.readout(given.readout()) for given in (run, single))
    a, b = _flat(low), _flat(full)
    size, spikes = float(b.norm()), _spikes(single)
    same = task.agreement(task.answer(low), task.answer(full))
    kinds = [layer.precision for layer in run.trace.layers.values()]
    return Effect(
        precision,
        len(same),
        len(kinds),
        sum(kind.startswith("float32") for kind in kinds),
        float((a - b).abs().max()),
        float((a - b).norm()) / size if size else 0.0,
        float(same.double().mean()),
        (_spikes(run) - spikes) / spikes if spikes else 0.0,
    )


def _flat(readout: object) -> torch.Tensor:
    leaves: list[torch.Tensor] = []
    map_tree(leaves.append, readout)
    return torch.cat([leaf.double().flatten() for leaf in leaves])


def _spikes(run: Run) -> float:
    return sum(float(n.sum(dtype=torch.float64)) for n in run.spikes.values())

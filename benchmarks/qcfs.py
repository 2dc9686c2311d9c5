"""QCFS on the zoo's CIFAR-10 ResNet-20: fine-tune from its ReLU weights, convert, measure. Resumable, also after a kill.

Networks learn the outputs of the ReLU network, with 4 levels a tenth of the labels too (labels alone overfit after six epochs with
8 levels, 90.6 %, and carry too far with 4, 88.0 %). With 8 levels noise makes neurons that fire unevenly lose less. With 4 levels
some epochs by what neurons send in 8 steps follow, in which every second batch is answered with 32 levels instead, and 30 % of
the weights stay as they were: what few steps need alone would cost those who wait. Products are in bfloat16 where the processor is
faster so.

Neurons that fire unevenly need no training by steps where the number of steps is known: the first potentials are found for it in
seconds.

python -m benchmarks.qcfs [TRAINING ...]         trained networks are kept in .cache/qcfs/
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import ROOT, cifar10_ready, pairs, read, record, zoo
from transpike import convert, evaluate
from transpike.engines.precision import has_bfloat16
from transpike.graph.prepared import Prepared
from transpike.methods import Method
from transpike.methods.chain import Chain
from transpike.methods.initial_potential import InitialPotential
from transpike.methods.light_calibration import LightCalibration
from transpike.methods.qcfs import QCFS, prepare
from transpike.spiking.plan import Granularity
from transpike.tasks.data import Augmented
from transpike.training import Epoch, Recipe, accuracy, train

CASE = "cifar10_resnet20"
FOLDER = ROOT / ".cache" / "qcfs"


@dataclass(frozen=True)
class Training:
    """A network to train: how its activations quantise, the recipe, and the training it goes on from (None: ReLU weights).

    ``labels``: their share of the loss. ``mixed``: images are mixed in pairs, which the ReLU network has not learnt by heart: it
    says more about them. ``between``: every second batch is answered with so many levels, without steps.
    """

    method: QCFS
    recipe: Recipe
    after: str | None = None
    labels: float = 0.0
    mixed: bool = False
    between: int | None = None


_FAST = has_bfloat16("cpu")
_FOUR = QCFS(levels=4, granularity=Granularity.CHANNEL)
TRAININGS = {
    "8": Training(QCFS(levels=8, noise=0.6), Recipe(epochs=12, lr=0.02, ceiling_decay=5e-4, ceiling_rate=1.0, bfloat16=_FAST)),
    "4": Training(_FOUR, Recipe(epochs=28, lr=0.01, ceiling_rate=0.2, bfloat16=_FAST), labels=0.1),
    "4, then 8 steps": Training(
        replace(_FOUR, steps=8), Recipe(epochs=6, lr=0.0005, bfloat16=_FAST, kept=0.3), "4", labels=0.1, between=32
    ),
}
TEMPERATURE = 3.0
ANN_BARS = {8: 91.0, 4: 90.3}
SPIKING_BARS = {8: 89.0, 16: 91.0, 32: 91.3}  # integrate-and-fire, plain read-out
STEPS = 32


def fine_tuned(name: str) -> tuple[Prepared, list[dict[str, Any]]]:
    """The network of that training, from the cache where it is there."""
    module = zoo()
    assert module is not None
    training = TRAININGS[name]
    path = FOLDER / f"resnet20-{name.replace(', ', '-').replace(' ', '-')}.safetensors"
    inputs = module.calibration(CASE)
    start = module.model(CASE) if training.after is None else fine_tuned(training.after)[0]
    net = prepare(start, training.method, inputs[:500].split(100)).to(memory_format=torch.channels_last)
    checkpoint = path.with_suffix(".ckpt")
    if path.exists():
        net.load_state_dict(load_file(path))
        return net.eval(), torch.load(checkpoint, weights_only=True)["history"] if checkpoint.exists() else []
    with np.load(module.CIFAR10) as arrays:
        targets = torch.from_numpy(arrays["y_train"]).long()
    case = module.load(CASE)
    test = pairs(case.inputs, case.targets)
    print(f"{name}: before training {accuracy(net.eval(), test):.2%}", flush=True)

    def say(epoch: Epoch) -> None:
        print(f"{name}: {epoch}", flush=True)

    shuffled = DataLoader(TensorDataset(inputs, targets), batch_size=128, shuffle=True, drop_last=True)
    batches = Augmented(shuffled, crop=4, flip=True)
    taught = _Taught(batches, module.model(CASE).eval(), training.mixed)
    turns = count(1)

    def turn() -> None:
        """The next batch is answered by levels or by steps."""
        if training.between is not None:
            levels = next(turns) % 2 == 1
            net.steps, net.levels = (None, training.between) if levels else (training.method.steps, training.method.levels)

    loss = partial(_divergence, labels=training.labels)
    history = train(net, taught, training.recipe, validation=test, checkpoint=checkpoint, loss=loss, tick=turn, done=say)
    net.steps, net.levels = training.method.steps, training.method.levels
    save_file({key: x.contiguous() for key, x in net.state_dict().items()}, path)
    return net, [vars(epoch) for epoch in history]


class _Taught:
    """The same images, or mixtures of two (Zhang et al., arXiv:1710.09412; taught: Beyer et al., arXiv:2106.05237), with the
    outputs of another network beside the labels, which come last."""

    def __init__(self, batches: Augmented, teacher: torch.nn.Module, mixed: bool) -> None:
        self._batches, self._teacher, self._mixed = batches, teacher, mixed

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, labels in self._batches:
            if self._mixed:
                share = torch.rand(len(x), 1, 1, 1)
                x = share * x + (1 - share) * x[torch.randperm(len(x))]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=_FAST):
                wanted = torch.cat((self._teacher(x).float(), labels[:, None]), 1)
            yield x, wanted  # outside: a generator's no_grad would hold for its reader too


def _divergence(outputs: torch.Tensor, wanted: torch.Tensor, labels: float) -> torch.Tensor:
    """Kullback-Leibler divergence of softened classes (Hinton et al., arXiv:1503.02531) and ``labels`` of the cross entropy."""
    soft = (wanted[:, :-1] / TEMPERATURE).softmax(1)
    learnt = TEMPERATURE**2 * kl_div((outputs / TEMPERATURE).log_softmax(1), soft, reduction="batchmean")
    return (1 - labels) * learnt + labels * cross_entropy(outputs, wanted[:, -1].long())


def measure(name: str) -> dict[str, Any]:
    module = zoo()
    assert module is not None
    net, history = fine_tuned(name)
    training = TRAININGS[name]
    levels = training.method.levels
    case = module.load(CASE)
    test = pairs(case.inputs, case.targets)
    converted = convert(net, QCFS(levels=levels), case.inputs[:100])
    report = evaluate(converted, test, STEPS)
    ann = 100 * accuracy(net, test)
    checks = []
    if training.after is None:  # trained by steps, a network need not answer well with levels
        checks += [{"what": "ann", "measured": ann, "bar": ANN_BARS[levels], "met": ann >= ANN_BARS[levels]}]
    calibration = module.calibration(CASE)[:1000].split(100)

    def refined(by: Method, steps: int) -> float:
        """Accuracy at ``steps`` with integrate-and-fire neurons and numbers that are made for so many steps."""
        mended = convert(net, Chain(QCFS(levels=levels), by), calibration)
        return 100 * evaluate(mended, test, steps).at(steps)

    potentials = {steps: refined(InitialPotential(steps=steps), steps) for steps in SPIKING_BARS}
    for label, found in (("", {t: 100 * report.at(t) for t in SPIKING_BARS}), (", initial potentials", potentials)):
        for steps, bar in SPIKING_BARS.items():
            check = {"what": f"integrate-and-fire{label} at {steps}", "measured": found[steps], "bar": bar}
            checks.append({**check, "met": found[steps] >= bar})
    return {
        "recipe": vars(training.recipe),
        "after": training.after,
        "labels": training.labels,
        "mixed": training.mixed,
        "between": training.between,
        "noise": training.method.noise,
        "steps": training.method.steps,
        "granularity": training.method.granularity.value,
        "history": history,
        "ann": ann,
        "checks": checks,
        "with_light_calibration": {
            steps: refined(LightCalibration(steps=steps, samples=128, iterations=1), steps) for steps in (4, 8)
        },
        "curves": {window: [round(100 * v, 2) for v in curve["top1"]] for window, curve in report.to_dict()["curves"].items()},
        "samples": len(case.inputs),
        "notes": list(report.notes),
    }


def main(names: list[str]) -> None:
    if zoo() is None or not cifar10_ready():
        print("skipped: there is no zoo beside the project")
        return
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    for name in names or TRAININGS:
        if name in read("qcfs").get("trainings", {}) and not names:
            continue
        found = measure(name)
        results = read("qcfs") or {"trainings": {}}
        results["trainings"][name] = found
        record("qcfs", results)
        for check in found["checks"]:
            verdict = "met" if check["met"] else "MISSED"
            print(f"{name}: {check['what']} {check['measured']:.2f} (bar {check['bar']:.2f}) {verdict}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

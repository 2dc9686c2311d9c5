"""A plain training loop: SGD with momentum, a cosine for the learning rate, a checkpoint after every epoch.

    lr(k) = lr (1 + cos(pi k / K)) / 2,   step k of K

Nothing in it is special to quantised networks, but that ceilings get no weight decay (it would only shrink them, and with
them the range of the activation) and a small share of the learning rate: the gradient of one is a sum over all activations that
share it, and at lr 0.03 in full many fell below zero, where their neurons are silent for good (Esser et al., "Learned
step size quantization", ICLR 2020, arXiv:1902.08153, divide by the root of activations times levels for the same reason).
An epoch draws its random numbers from ``seed + epoch`` alone, so training that was killed and resumed ends with the same bits
as training that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from transpike.engines.allocator import keep_freed_memory
from transpike.errors import ArtifactError, DataError, TrainingError
from transpike.graph.batches import call_arguments, target_of
from transpike.spiking.store import write_file

__all__ = ["Epoch", "Recipe", "accuracy", "train", "train_into"]

_FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        epochs: passes through the data.
        lr: learning rate of the first step; falls to 0 as a cosine. The default is for weights that are trained already, which
            0.01 and more undo; from random weights 0.1 is usual.
        momentum: of SGD.
        weight_decay: of weights, biases and batch norm; ceilings get ``ceiling_decay``.
        ceiling_decay: of the ceilings.
        ceiling_rate: learning rate of the ceilings, as a share of ``lr``.
        seed: of everything random in an epoch (order, augmentation, dropout).
        bfloat16: convolutions and linear layers multiply in bfloat16; weights, activations' levels, loss and updates stay as they
            are. Faster on a GPU and on processors that multiply it faster (AMX, AMD Zen 4 and later), slower elsewhere.
        kept: share of the weights that training began with in those it ends with, ``kept w(0) + (1 - kept) w(K)``: epochs that
            serve few steps cost many less then (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022,
            arXiv:2109.01903).
    """

    epochs: int = 10
    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ceiling_decay: float = 0.0
    ceiling_rate: float = 0.1
    seed: int = 0
    bfloat16: bool = False
    kept: float = 0.0


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave.

    Args:
        number: from 1. loss: mean training loss. accuracy: on the validation data, 0 to 1, None without such data.
        seconds: of training, without validation.
    """

    number: int
    loss: float
    accuracy: float | None
    seconds: float

    def __str__(self) -> str:
        found = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
        return f"epoch {self.number}: loss {self.loss:.4f}{found}, {self.seconds:.0f} s"


def train(
    model: nn.Module,
    batches: Any,
    recipe: Recipe,
    *,
    validation: Iterable[Any] | None = None,
    checkpoint: Path | str | None = None,
    loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy,
    tick: Callable[[], object] | None = None,
    done: Callable[[Epoch], object] | None = None,
) -> list[Epoch]:
    """Train ``model`` in place and leave it in eval mode.

    Args:
        batches: labelled batches, gone through once an epoch: a DataLoader or anything else with a length. What it draws
            from torch's global generator (shuffling, augmentation) is reproducible; the caller's generator stays as it is.
        validation: labelled batches on which the accuracy is measured after each epoch.
        checkpoint: file written after every epoch; if it is there training goes on from it.
        loss: of outputs and targets. tick: called after every batch. done: called after every epoch.

    Raises:
        DataError: no batches, or batches without targets.
        TrainingError: the loss is not finite, or ``kept`` is no share.
        ArtifactError: the checkpoint is of another model or recipe, or cannot be read or written.
    """
    steps = len(batches)
    if not steps:
        raise DataError("the training data has no batch")
    if not 0 <= recipe.kept <= 1:
        raise TrainingError(f"kept is {recipe.kept}: a share of the weights lies between 0 and 1")
    keep_freed_memory()
    optimiser = torch.optim.SGD(_groups(model, recipe), lr=recipe.lr, momentum=recipe.momentum)
    start = {name: x.clone() for name, x in model.state_dict().items()} if recipe.kept else {}
    history = _resume(checkpoint, model, optimiser, recipe, start)
    for number in range(len(history) + 1, recipe.epochs + 1):
        began = time.perf_counter()
        with _random(recipe.seed + number):
            mean = _epoch(model.train(), batches, recipe, optimiser, (number - 1) * steps, steps, loss, tick)
        seconds = time.perf_counter() - began
        model.eval()
        history.append(Epoch(number, mean, None if validation is None else accuracy(model, validation), seconds))
        if checkpoint is not None:
            _save(Path(checkpoint), model, optimiser, recipe, history, start)
        if done is not None:
            done(history[-1])
    model.eval()
    if recipe.kept:
        _keep(model, start, recipe.kept)
        history[-1] = replace(history[-1], accuracy=None if validation is None else accuracy(model, validation))
    return history


def train_into(
    folder: Path,
    model: nn.Module,
    batches: Any,
    recipe: Recipe,
    *,
    resume: bool = False,
    **options: Any,
) -> list[Epoch]:
    """`train` with everything in one folder: ``checkpoint.pt`` while it lasts, ``model.safetensors`` and ``history.json``.

    Args:
        resume: go on from a checkpoint that is there. options: as for `train`.

    Raises:
        ArtifactError: there is a checkpoint, and it is not to be resumed.
    """
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise ArtifactError(f"{checkpoint} is there from earlier training: resume it, or choose another folder")
    history = train(model, batches, recipe, checkpoint=checkpoint, **options)
    state = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    write_file(folder / "model.safetensors", lambda path: save_file(state, path))
    write_file(folder / "history.json", lambda path: path.write_text(json.dumps([asdict(epoch) for epoch in history], indent=1)))
    return history


def _epoch(
    model: nn.Module,
    batches: Any,
    recipe: Recipe,
    optimiser: torch.optim.Optimizer,
    before: int,
    steps: int,
    loss: Callable[[Any, Any], torch.Tensor],
    tick: Callable[[], object] | None,
) -> float:
    total, seen = 0.0, 0
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * recipe.lr * (1 + math.cos(math.pi * (before + step) / (recipe.epochs * steps))) / 2
        args, kwargs, target = _labelled(model, batch)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            outputs = model(*args, **kwargs)
        value = loss(outputs.to(torch.float32) if recipe.bfloat16 and isinstance(outputs, torch.Tensor) else outputs, target)
        now = value.item()
        if not math.isfinite(now):
            raise TrainingError(f"the loss is {now} at step {before + step + 1}: lower the learning rate ({recipe.lr})")
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        total, seen = total + now * len(target), seen + len(target)
        if tick is not None:
            tick()
    return total / seen


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Share of samples whose largest output is their class, 0 to 1."""
    hits, seen = 0, 0
    with torch.no_grad():
        for batch in batches:
            args, kwargs, target = _labelled(model, batch)
            hits += int((model(*args, **kwargs).argmax(1) == target).sum())
            seen += len(target)
    return hits / max(1, seen)


def _labelled(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]:
    args, kwargs = call_arguments(model, batch)
    target = target_of(batch, max(1, len(args)))
    if not isinstance(target, torch.Tensor):
        raise DataError("the batches have no targets: give pairs (input, class numbers)")
    return args, kwargs, target.to(next((p.device for p in model.parameters()), None))


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with and without the weights' decay."""
    ceilings = {id(p) for name, p in model.named_parameters() if "ceilings" in name.split(".")}
    found = list(model.parameters())
    groups = [
        {"params": [p for p in found if id(p) not in ceilings], "weight_decay": recipe.weight_decay, "share": 1.0},
        {"params": [p for p in found if id(p) in ceilings], "weight_decay": recipe.ceiling_decay, "share": recipe.ceiling_rate},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def _random(seed: int) -> Iterator[None]:
    """torch's generators start from ``seed`` inside, and are as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _keep(model: nn.Module, start: dict[str, torch.Tensor], share: float) -> None:
    """Weights, running statistics and ceilings between those at the start and those now."""
    now = model.state_dict()
    mixed = {name: x.lerp(start[name].to(x), share) if x.is_floating_point() else x for name, x in now.items()}
    model.load_state_dict(mixed)


def _save(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    history: list[Epoch],
    start: dict[str, torch.Tensor],
) -> None:
    state = {
        "format": _FORMAT,
        "recipe": asdict(recipe),
        "history": [asdict(epoch) for epoch in history],
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "start": start,
    }
    write_file(path, lambda temporary: torch.save(state, temporary))


def _resume(
    path: Path | str | None, model: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, start: dict[str, torch.Tensor]
) -> list[Epoch]:
    """Load the checkpoint, if there is one, and return the epochs that are done; ``start`` is as it was before the first."""
    if path is None or not Path(path).exists():
        return []
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        found, history = state["recipe"], state["history"]
    except Exception as error:  # unpickling raises whatever it likes
        raise ArtifactError(f"{path} is no checkpoint of transpike: delete it to start anew ({error})") from error
    if found != asdict(recipe):
        differing = ", ".join(
            f"{key} {found.get(key)} there, {value} here" for key, value in asdict(recipe).items() if found.get(key) != value
        )
        raise ArtifactError(f"{path} belongs to training with other settings ({differing}): use the same, or another folder")
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start.update(state.get("start", {}))
    except (RuntimeError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} belongs to another network: use another folder ({first})") from error
    return [Epoch(**epoch) for epoch in history]

"""Names given as text (command line, configuration) become objects here, and nowhere else."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from transpike.errors import ArtifactError, SpecError
from transpike.graph.prepared import Prepared
from transpike.methods import Method, available
from transpike.methods.chain import Chain
from transpike.tasks.catalog import TASKS, Kind, Settings
from transpike.tasks.data import Preparation
from transpike.tasks.detectors import is_known

__all__ = ["import_factory", "method_from", "model_from", "preparation_from", "shape_from", "task_from"]


def method_from(name: str, settings: Iterable[str] = ()) -> Method:
    """A method by its name (any case, ``A+B`` for a chain) with ``key=value`` settings typed by its fields.

    Raises:
        SpecError: no such method or setting, or a value of the wrong type.

    Example:
        >>> method_from("percentile", ["q=99.5"]).q
        99.5
    """
    parts = [part for part in name.split("+") if part]
    classes = [_find_method(part) for part in parts]
    given = dict(_key_value(text) for text in settings)
    methods = []
    for cls in classes:
        fields = {field.name for field in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        chosen = {key: _typed(cls, key, value, hints[key]) for key, value in given.items() if key in fields}
        methods.append(cls(**chosen))
    known = {field.name for cls in classes for field in dataclasses.fields(cls)}
    if unknown := [key for key in given if key not in known]:
        raise SpecError(f"{name} has no setting {unknown[0]!r}{_hint(unknown[0], known)}")
    if not methods:
        raise SpecError("the method's name is empty: `transpike methods` lists them")
    return methods[0] if len(methods) == 1 else Chain(*methods)


def task_from(
    name: str, settings: Iterable[str] = (), preparation: Preparation | None = None, network: nn.Module | None = None
) -> Kind:
    """A task by its name with ``key=value`` settings typed by the fields of `Settings`.

    Args:
        network: what is converted; a detector of torchvision decodes its own output where no decoder is set.

    Raises:
        SpecError: no such task or setting, a value of the wrong type, or no such decoder.
    """
    if name not in TASKS:
        raise SpecError(f"there is no task {name!r}{_hint(name, TASKS)}")
    given = dict(_key_value(text, "--option") for text in settings)
    hints = typing.get_type_hints(Settings)
    if unknown := [key for key in given if key not in hints]:
        raise SpecError(f"tasks have no setting {unknown[0]!r}{_hint(unknown[0], hints)}")
    chosen = Settings(**{key: _typed(Settings, key, value, hints[key]) for key, value in given.items()})
    decoder: Any = network if network is not None and is_known(network) else None
    if chosen.decoder is not None:
        torchvisions = chosen.decoder.startswith("torchvision:")
        decoder = model_from(chosen.decoder) if torchvisions else import_factory(chosen.decoder, "decoder")
    return TASKS[name](chosen, preparation or Preparation(), decoder)


def _find_method(name: str) -> type[Any]:
    methods = {key.lower(): cls for key, cls in available().items() if cls is not Chain}
    key = name.lower().replace("-", "").replace("_", "")
    if key not in methods:
        names = [cls.__name__ for cls in methods.values()]
        raise SpecError(f"there is no method {name!r}{_hint(name, names)}")
    return methods[key]


def _hint(wrong: str, right: Iterable[str]) -> str:
    names = sorted(right)
    close = difflib.get_close_matches(wrong.lower(), [name.lower() for name in names], 1)
    best = next((name for name in names if close and name.lower() == close[0]), None)
    return f"; did you mean {best!r}?" if best else f": choose from {', '.join(names)}"


def _key_value(text: str, option: str = "--set") -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise SpecError(f"{option} {text!r} is not key=value")
    return key.strip().replace("-", "_"), value.strip()


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _typed(cls: type, key: str, text: str, hint: Any) -> Any:
    """``text`` as the type that the field is annotated with."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in choices:
        try:
            if kind is type(None) and text.lower() in ("none", ""):
                return None
            if kind is bool and text.lower() in _TRUTH:
                return _TRUTH[text.lower()]
            if isinstance(kind, type) and issubclass(kind, enum.Enum):
                return kind(text.lower())
            if kind in (int, float, str):
                return kind(text)
        except ValueError:
            continue
    wanted = [", ".join(k.value for k in c) if isinstance(c, type) and issubclass(c, enum.Enum) else c.__name__ for c in choices]
    raise SpecError(f"{cls.__name__} takes {key} as {' or '.join(wanted).replace('NoneType', 'none')}, not {text!r}")


def model_from(spec: str, weights: str | None = None) -> nn.Module:
    """A network by its name, in eval mode.

    ``torchvision:resnet18``, ``timm:NAME``, ``package.module:factory``, or a ``.pt2`` file of torch.export.

    Args:
        weights: a ``.safetensors`` or ``.pt`` file with its state dict; for torchvision also a name such as DEFAULT,
            which torchvision downloads. None: as the factory makes it (random for torchvision).

    Raises:
        SpecError: no such network or factory. ArtifactError: weights that cannot be read or do not fit.
    """
    if spec.endswith(".pt2"):
        return _exported(Path(spec))
    source, sign, name = spec.partition(":")
    if not sign or not name:
        raise SpecError(
            f"{spec!r} names no network: write torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 or .spike file"
        )
    from_file = weights is not None and Path(weights).suffix in (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
    if source == "torchvision":
        known = torchvision.models.list_models()
        if name not in known:
            raise SpecError(f"torchvision has no network {name!r}{_hint(name, known)}")
        builder: Any = torchvision.models.get_model_builder(name)
        given: dict[str, Any] = {"weights": None if from_file else weights}
        if given["weights"] is None and "weights_backbone" in inspect.signature(builder).parameters:
            given["weights_backbone"] = None  # of detectors and segmenters, which would download it unasked
        model = builder(**given)
    elif source == "timm":
        model = _timm(name)
    else:
        model = import_factory(spec, "network")()
    if not isinstance(model, nn.Module):
        raise SpecError(f"{spec} gave a {type(model).__name__}, not a torch.nn.Module")
    if from_file or (weights is not None and source != "torchvision"):
        model = _with_weights(model, Path(str(weights)))
    return model.eval()


def _timm(name: str) -> nn.Module:
    try:
        import timm  # type: ignore[import-not-found] # optional
    except ImportError as error:
        raise SpecError("timm is not installed: pip install 'transpike[timm]'") from error
    if name not in timm.list_models():
        raise SpecError(f"timm has no network {name!r}{_hint(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False)


def _exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}: check the path")
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # torch.export.load has no closed list of what it raises
        raise ArtifactError(f"{path} is not a readable .pt2 file: {error}; save it again with torch.export.save") from error
    for part in module.modules():
        part.training = False
    return module


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    """``model`` with the weights in it; prepared, if they are those of a prepared network (`transpike train`)."""
    if not path.is_file():
        raise ArtifactError(f"there is no weights file {path}: check the path")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever it likes
        first = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is no state dict that loads safely: save model.state_dict() ({first})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    try:
        if "_extra_state" in state and not isinstance(model, Prepared):
            levels, average = state["_extra_state"].tolist()
            model = Prepared(model, levels, average_pooling=bool(average))
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        first = " ".join(str(error).split())[:300]
        raise ArtifactError(f"the weights in {path} do not fit {type(model).__name__}: {first}") from error
    return model


def import_factory(spec: str, what: str) -> Callable[..., Any]:
    """The callable ``package.module:name``; the working folder is searched too.

    Raises:
        SpecError: no such module or name, or not callable.
    """
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError(f"cannot import {module_name!r} for the {what} {spec!r}: {error}") from error
    finally:
        sys.path.remove(here)
    found = getattr(module, name, None)
    if not callable(found):
        raise SpecError(f"{module_name} has no factory {name!r} for the {what}{_hint(name, _callables(module))}")
    return found


def _callables(module: types.ModuleType) -> Sequence[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


def shape_from(text: str) -> list[int]:
    """The shape of one input, written 3x224x224.

    Raises:
        SpecError: it is not written so.
    """
    try:
        shape = [int(size) for size in text.lower().split("x")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise SpecError(f"--input {text!r} is no shape: write 3x224x224")
    return shape


def preparation_from(batch: int, limit: int | None, size: int, mean: str | None, std: str | None, split: str) -> Preparation:
    """How data is prepared; ``mean`` and ``std`` by channel as ``"0.485,0.456,0.406"``.

    Raises:
        SpecError: the text is no list of numbers.
    """
    chosen: dict[str, Any] = {}
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            try:
                chosen[name] = tuple(float(value) for value in text.split(","))
            except ValueError as error:
                raise SpecError(f"--{name} {text!r} is no list of numbers: write 0.485,0.456,0.406") from error
    return Preparation(size=size, batch=batch, limit=limit, split=split, **chosen)

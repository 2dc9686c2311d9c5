"""A trainable copy of a network whose rectifiers quantise: every call of one, however written, becomes `qcfs`.

    relu(z)  ->  lambda_i clip(floor(z L / lambda_i + 1/2) / L, 0, 1),   i: the call's place in the forward pass

While training it may also be the spiking network that answers (``steps``): it runs first, then each activation has the value of
what its neurons sent on average and the gradients of `qcfs`:

    relu(z)  ->  sum_t theta_i s_i(t) / T,   theta_i: lambda_i by the cap of bursts

which is what the converted network answers where linear layers, rectifiers and max pools are all there is.

The user's own ``forward`` runs as it is; the calls are caught on their way into torch (`torch.overrides`), so functional,
in-place and shared rectifiers are all seen, and nothing in the copy is renamed or replaced.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from transpike.errors import PlanError
from transpike.graph.quantised import guarded, qcfs
from transpike.graph.roles import rectifier_ceiling

__all__ = ["AtCall", "Prepared", "Sender", "channel_shape", "intercepted", "modes_kept"]

NETWORK = "network"  # where a prepared network keeps the user's: the prefix of its parameters' names

# what takes the place of a rectifier: number of the call, pre-activation, upper clip (None: none), axis of the channels
AtCall = Callable[[int, torch.Tensor, float | None, int], torch.Tensor]
# what neurons send on average, by number of the rectifier call: the network, positional and keyword arguments of a pass
Sender = Callable[["Prepared", tuple[Any, ...], Mapping[str, Any]], Mapping[int, torch.Tensor]]


class Prepared(nn.Module):
    """The user's network (``network``, a deep copy) with quantising activations of ``levels`` levels.

    ``ceilings[i]`` belongs to the i-th rectifier call of a forward pass: a scalar, or one for every channel in a shape that
    broadcasts against the activation (C x 1 x 1 after a convolution). Without values they are found in the first pass, which
    must come before an optimiser asks for the parameters.

    Args:
        network: any network; copied.
        levels: L, at least 1.
        ceilings: initial values, activation units, for every rectifier call; None: found by the first pass, all ``initial``.
        per_channel: a ceiling for every channel, where the first pass makes them.
        average_pooling: average pooling in the place of max pooling, with the same kernel, stride and padding.
        noise: in training mode pre-activations are off by up to so many levels, evenly distributed.
        steps: in training mode activations are what neurons send on average in so many steps (None: levels).
        sender: says what they send. It runs modules in eval mode, with the running statistics of batch norm; gradients are
            taken in training mode.
        initial: where no values are given (8 in the authors' code); a clip of the rectifier's own is not exceeded.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: int,
        ceilings: Iterable[float | torch.Tensor] | None = None,
        *,
        per_channel: bool = False,
        average_pooling: bool = False,
        noise: float = 0.0,
        steps: int | None = None,
        sender: Sender | None = None,
        initial: float = 8.0,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.levels, self.average_pooling, self.initial = levels, average_pooling, initial
        self.per_channel, self.noise, self.ceilings = per_channel, noise, nn.ParameterList()
        for value in ceilings or ():
            self._add(value)
        self.steps, self._sender = steps, sender
        self._found = ceilings is not None
        self.train(network.training)

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override] # a value with a signature of its own
        """The user's forward, with its signature, under interception.

        Raises (when called):
            PlanError: another number of rectifier calls than before.
        """
        call = partial(self._run)
        call.__signature__ = inspect.signature(self.network.forward)  # type: ignore[attr-defined] # export goes by names
        return call

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        calls = 0
        sent = self._sender(self, args, kwargs) if self.training and self.steps and self._found and self._sender else {}

        def at_call(i: int, z: torch.Tensor, clip: float | None, axis: int) -> torch.Tensor:
            nonlocal calls
            calls = i + 1
            if i == len(self.ceilings):
                if self._found:
                    raise PlanError(self._changed(f"at least {calls}"))
                shape = channel_shape(z, axis) if self.per_channel else ()
                self._add(torch.full(shape, self.initial if clip is None else min(clip, self.initial)))
            ceiling = self.ceilings[i]
            if self.training and self.noise:
                level = guarded(ceiling.detach()) / self.levels
                z = z + torch.empty_like(z).uniform_(-self.noise, self.noise) * level
            h = qcfs(z.to(ceiling), ceiling, self.levels)  # in the ceiling's precision, also under autocast
            return _InPlaceOf.apply(h, sent[i].to(h.dtype)) if i in sent else h

        with intercepted(at_call, self.average_pooling):
            result = self.network(*args, **kwargs)
        if calls != len(self.ceilings):
            raise PlanError(self._changed(str(calls)))
        self._found = True
        return result

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As for any module.

        Raises:
            PlanError: the ceilings are not known yet.
        """
        if not self._found:
            raise PlanError("the ceilings are not known yet: give batches to prepare(), or run one batch through the network first")
        return super().named_parameters(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, average_pooling={self.average_pooling}"

    def get_extra_state(self) -> torch.Tensor:
        """Levels and pooling: a state dict says what it is for."""
        return torch.tensor([self.levels, int(self.average_pooling)])

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Refuse the state of a network with other levels or pooling."""
        levels, average = state.tolist()
        if (levels, bool(average)) != (self.levels, self.average_pooling):
            raise PlanError(
                f"the state is of a network with levels={levels}, average_pooling={bool(average)}, this one has "
                f"{self.extra_repr()}: prepare it with the same settings"
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if not self._found:
            values = [x for name, x in state_dict.items() if name.startswith(f"{prefix}ceilings.")]
            for value in values:
                self._add(value)
            self._found = bool(values)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _add(self, value: float | torch.Tensor) -> None:
        like = next(self.network.parameters(), torch.empty(0))
        self.ceilings.append(nn.Parameter(torch.as_tensor(value).detach().to(like, copy=True)))

    def _changed(self, calls: str) -> str:
        return (
            f"{type(self.network).__name__} called {calls} rectifiers, {len(self.ceilings)} before: each pass must call the same "
            "ones in the same order; take rectifiers out of branches that depend on mode or data"
        )


class _InPlaceOf(torch.autograd.Function):
    """The value of the second, with the gradients of the first."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, sent: torch.Tensor) -> torch.Tensor:
        return sent.view_as(sent)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every module is in its own mode (training or eval) afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def channel_shape(z: torch.Tensor, axis: int) -> tuple[int, ...]:
    """The shape in which one value per channel broadcasts against ``z``: C x 1 x 1 for channels in the axis 1 of 4."""
    return (z.shape[axis], *[1] * (z.dim() - axis - 1))


class intercepted(TorchFunctionMode):  # noqa: N801 - used as a context: `with intercepted(...)`
    """Let ``at_call`` take the place of every rectifier call inside the context, numbered from 0.

    Channels lie in axis 1, but in the last after a linear layer or a layer norm.

    Args:
        at_call: what takes its place. average_pooling: average pooling in the place of max pooling.
    """

    def __init__(self, at_call: AtCall, average_pooling: bool = False) -> None:
        super().__init__()
        self._at_call, self._average = at_call, average_pooling
        self._calls, self._last = 0, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if self._average and func in _WITH_INDICES:
            raise PlanError(f"{func.__name__}: indices are of a maximum: drop average_pooling")
        if self._average and func in _POOLS:
            return _average_pool(func, args, options)
        self._last = func in _CHANNELS_LAST or (self._last and func not in _CHANNELS_FIRST)
        found = _rectifier(func, args, options)
        if found is None:
            return func(*args, **options)
        z, clip, in_place = found
        axis = z.dim() - 1 if self._last else min(1, z.dim() - 1)
        number, self._calls = self._calls, self._calls + 1
        if not in_place:
            return self._at_call(number, z, clip, axis)
        return z.copy_(self._at_call(number, z.clone(), clip, axis))  # the old values are needed for the gradients


_CHANNELS_LAST = {F.linear, F.layer_norm}
_CHANNELS_FIRST = {getattr(owner, f"conv{kind}{d}d") for owner in (torch, F) for kind in ("", "_transpose") for d in (1, 2, 3)}
_CHANNELS_FIRST |= {F.batch_norm, torch.flatten, torch.reshape, torch.Tensor.flatten, torch.Tensor.reshape, torch.Tensor.view}

# how each rectifier names its arguments: input first, then the options of the captured operation
_RECTIFIERS: Mapping[str, tuple[str, tuple[str, ...], tuple[Any, ...]]] = {
    # name: captured operation, keywords of its options, their defaults
    "relu": ("aten.relu", (), ()),
    "relu6": ("aten.relu6", (), ()),
    "hardtanh": ("aten.hardtanh", ("min_val", "max_val"), (-1.0, 1.0)),
    "clamp": ("aten.clamp", ("min", "max"), (None, None)),
    "clip": ("aten.clamp", ("min", "max"), (None, None)),
    "clamp_min": ("aten.clamp_min", ("min",), (None,)),
    "threshold": ("aten.threshold", ("threshold", "value"), (None, None)),
}


def _by_function() -> dict[Any, tuple[str, bool]]:
    """Every spelling of the rectifiers: function -> (name, in place)."""
    found: dict[Any, tuple[str, bool]] = {}
    for owner in (torch, torch.Tensor, F):
        for name in _RECTIFIERS:
            for spelling, in_place in ((name, False), (f"{name}_", True)):
                if hasattr(owner, spelling):
                    found[getattr(owner, spelling)] = (name, in_place)
    return found


_FUNCTIONS = _by_function()


def _rectifier(
    func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[torch.Tensor, float | None, bool] | None:
    """Pre-activation, upper clip and whether in place, None if the call is no rectifier."""
    if func not in _FUNCTIONS or options.get("out") is not None:
        return None
    name, in_place = _FUNCTIONS[func]
    operation, keywords, defaults = _RECTIFIERS[name]
    z = args[0] if args else options.get("input")
    if not isinstance(z, torch.Tensor) or not z.is_floating_point() or z.dim() == 0:
        return None
    given = list(args[1 : 1 + len(keywords)])
    rest = zip(keywords[len(given) :], defaults[len(given) :], strict=True)
    clip = rectifier_ceiling(operation, given + [options.get(key, default) for key, default in rest])
    if clip is False:
        return None
    in_place = in_place or bool(options.get("inplace")) or args[1 + len(keywords) : 2 + len(keywords)] == (True,)
    return z, None if clip is None else float(clip), in_place


_POOLS: Mapping[Any, Callable[..., Any]] = {
    F.max_pool1d: F.avg_pool1d,
    F.max_pool2d: F.avg_pool2d,
    F.max_pool3d: F.avg_pool3d,
    torch.max_pool1d: F.avg_pool1d,
    torch.max_pool2d: F.avg_pool2d,
    torch.max_pool3d: F.avg_pool3d,
    F.adaptive_max_pool1d: F.adaptive_avg_pool1d,
    F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d,
}
_WITH_INDICES = {getattr(F, f"{kind}max_pool{d}d_with_indices") for kind in ("", "adaptive_") for d in (1, 2, 3)}


def _average_pool(func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> torch.Tensor:
    """The average pool of the same window."""
    adaptive = "adaptive" in func.__name__
    keywords = ("input", "output_size") if adaptive else ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    call = {**dict(zip(keywords, args, strict=False)), **options}
    if call.pop("return_indices", False) or call.pop("dilation", 1) not in (1, (1,), (1, 1), (1, 1, 1), [1, 1]):
        raise PlanError(f"{func.__name__} with indices or dilation has no average in its place: drop average_pooling")
    return _POOLS[func](**call)

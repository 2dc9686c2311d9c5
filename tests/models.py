"""Small networks that the tests share: one idea each, seeded, in eval mode.

``CASES`` is the table of all of them with an example input; ``make("residual")`` builds one. Batch norms have
statistics that are not trivial. ``dyadic(model)`` rounds weights so that sums are exact in float32.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from transpike.graph.capture import Pooling, capture
from transpike.graph.ir import Graph
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.plan import Plan

__all__ = [
    "ANALOG",
    "CASES",
    "Case",
    "EarlyShortcut",
    "as_inputs",
    "batch_of",
    "calibration",
    "captured",
    "converted",
    "dyadic",
    "eighths",
    "images",
    "make",
    "tensors",
    "vectors",
]


class Residual(nn.Module):
    """conv+bn+relu, max pool, a block whose one ReLU object fires twice, global average, linear."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.stem_bn(self.stem(x))))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        x = self.relu(y + x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class EarlyShortcut(nn.Module):
    """A residual block whose shortcut, a convolution, is computed before the branch; every ReLU is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2)
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu0, self.relu1, self.relu2 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.hidden, self.relu3, self.fc = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu0(self.stem(x))
        short = self.shortcut(x)
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))) + short)
        return self.fc(self.relu3(self.hidden(x.mean((2, 3)))))


class DeepPool(nn.Module):
    """Max pooling behind the second neuron layer, where currents change from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class FunctionalRelu(nn.Module):
    """F.relu, torch.relu and x.relu() instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.c(torch.relu(self.b(F.relu(self.a(x))))).relu())


class SharedRelu(nn.Module):
    """One ReLU module called at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.act(self.c(self.act(self.b(self.act(self.a(x)))))))


class InplaceRelu(nn.Module):
    """In-place rectifiers and an in-place sum; the rectified tensor is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x.relu_()
        y = self.b(x).clamp_(min=0)
        y += x
        return self.c(F.relu(y, inplace=True))


class Clamped(nn.Module):
    """torch.clamp with a floor of 0: without a ceiling, and with one of 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.clamp(self.b(torch.clamp(self.a(x), min=0)), 0.0, 0.5))


class Stack(nn.Sequential):
    """A subclass of nn.Sequential with a forward of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1)) * 2.0


class InputSkip(nn.Module):
    """What depends on the input alone is read beside spikes; a pre-activation is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.a(x)
        y = self.b(F.relu(z) + z)
        return self.c(F.relu(y) - 0.5 * y)


class TwoOutputs(nn.Module):
    """Returns a tuple: logits and the features of the last neuron layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = F.relu(self.a(x))
        return self.b(h), h


class DictOutput(nn.Module):
    """Returns nested dicts and lists, as detection and segmentation heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        h = F.relu(self.a(x))
        up = F.interpolate(self.b(h), scale_factor=2, mode="bilinear", align_corners=False)
        return {"out": up, "aux": [self.c(h), h.mean((2, 3))]}


class TwoInputs(nn.Module):
    """Two tensors, an image and a vector, joined before the read-out; 64 pixels, so that their mean is dyadic."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        h = torch.cat([F.relu(self.conv(image)).mean((2, 3)), F.relu(self.fc(vector))], 1)
        return self.head(h)


class Fire(nn.Module):
    """SqueezeNet's pattern: squeeze, two expanding branches, concatenation, max pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(F.max_pool2d(F.relu(self.stem(x)), 2)))
        x = F.max_pool2d(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1), 2)
        return F.adaptive_avg_pool2d(F.relu(self.head(x)), 1).flatten(1)


class BranchedStem(nn.Module):
    """Two rectified stems joined and max-pooled at once: the currents are constant, so the pool moves before the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1), nn.Linear(9 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.max_pool2d(x, 2).flatten(1))


class SharedConv(nn.Module):
    """One convolution read by two batch norms: neither may fold into the other's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once, again = self.one(self.conv(x)), self.two(self.conv(x))
        return self.head((F.relu(once) + F.relu(again)).mean((2, 3)))


class BatchNormFirst(nn.Module):
    """Batch norm before a convolution without padding, one with padding, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.valid = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, groups=3)
        self.bn1, self.padded = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.bn2, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.valid(self.bn0(x)))
        x = F.relu(self.padded(self.bn1(x)))
        return self.fc(self.bn2(x.mean((2, 3))))


class Activations(nn.Module):
    """GELU, SiLU, softmax, layer norm and group norm behind a neuron layer: the analog operations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.layer_norm, self.group_norm = nn.LayerNorm(8), nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.b(F.relu(self.a(x))))
        x = F.silu(self.group_norm(self.c(self.layer_norm(x))))
        return self.d(x.softmax(1))


class Attention(nn.Module):
    """One transformer block: scaled dot-product attention over tokens, layer norms, a ReLU MLP."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed, self.norm1, self.qkv = nn.Linear(6, dim), nn.LayerNorm(dim), nn.Linear(dim, 3 * dim)
        self.proj, self.norm2 = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.up, self.down, self.head = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Linear(dim, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.embed(x))  # N L D
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        x = x + self.down(F.relu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class SqueezeExcite(nn.Module):
    """A product of two streams: channels scaled by a gate that itself varies in time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.fc((x * gate[:, :, None, None]).mean((2, 3)))


class Masks(nn.Module):
    """Masks, indices and constants beside real values: comparison, where, arg max, maximum with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("floor", torch.full((8,), 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        x = torch.where(x > 0.3, x, 0.1 * x) + F.one_hot(x.argmax(1), 8)
        return self.c(torch.maximum(F.relu(self.b(x)), self.floor) * (x > 0.2).float())


class TokensFirst(nn.Module):
    """Returns its tokens first, the batch on axis 1, as sequence models do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x.transpose(0, 1))))  # N L D -> L N D


def encoder() -> nn.Module:
    """A stock transformer encoder layer with a ReLU in front; its attention goes through tokens-first layouts."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))


def recurrent() -> nn.Module:
    """A GRU over the tokens of a sample, behind a neuron layer."""
    return nn.Sequential(OrderedDict(up=nn.Linear(6, 8), act=nn.ReLU(), gru=nn.GRU(8, 5, batch_first=True)))


def mlp() -> nn.Module:
    """Two rectified linear layers and a read-out."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def relu6() -> nn.Module:
    """ReLU6 behind a layer with large weights, so that it clips."""
    up = nn.Linear(6, 8)
    up.weight.data *= 10
    return nn.Sequential(OrderedDict(up=up, act=nn.ReLU6(), fc=nn.Linear(8, 4)))


def depthwise() -> nn.Module:
    """MobileNet's pattern: depthwise and pointwise convolutions with batch norm and ReLU6."""
    return nn.Sequential(
        *[nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()],
        *[nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()],
        *[nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 4)],
    )


def conv1d() -> nn.Module:
    """PointNet's pattern: pointwise 1-D convolutions with batch norm, a max over the points."""
    layers = [nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(6, 4))


def conv3d() -> nn.Module:
    """Video: 3-D convolutions, batch norm, average pooling."""
    layers = [nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 5, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 3))


def upsampling() -> nn.Module:
    """Grouped transposed convolution with batch norm behind it, as in a decoder."""
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()],
        *[nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)],
    )


def images(n: int = 4, channels: int = 3, size: int = 8) -> torch.Tensor:
    """Standard normal images. N C H W"""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(n))


def vectors(n: int = 4, *shape: int) -> torch.Tensor:
    """Standard normal vectors; N 6 unless other axes are given."""
    return torch.randn(n, *(shape or (6,)), generator=torch.Generator().manual_seed(n))


def eighths(*shape: int, seed: int = 0, low: int = -8, high: int = 8) -> torch.Tensor:
    """Random multiples of 1/8 between ``low / 8`` and ``high / 8``: their sums are exact in float32."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)) / 8


@dataclass(frozen=True)
class Case:
    """A network and ``example(n)``: n samples of its input, in the form that `capture` takes."""

    build: Callable[[], nn.Module]
    example: Callable[[int], Any] = images


CASES: dict[str, Case] = {
    "mlp": Case(mlp, vectors),
    "residual": Case(Residual),
    "deep_pool": Case(DeepPool),
    "functional_relu": Case(FunctionalRelu, vectors),
    "shared_relu": Case(SharedRelu, vectors),
    "inplace_relu": Case(InplaceRelu, vectors),
    "clamped": Case(Clamped, vectors),
    "relu6": Case(relu6, vectors),
    "stack": Case(Stack, lambda n: vectors(n, 2, 3)),
    "input_skip": Case(InputSkip, vectors),
    "two_outputs": Case(TwoOutputs, vectors),
    "dict_output": Case(DictOutput),
    "two_inputs": Case(TwoInputs, lambda n: (images(n), vectors(n, 5))),
    "fire": Case(Fire),
    "branched_stem": Case(BranchedStem),
    "depthwise": Case(depthwise),
    "conv1d": Case(conv1d, lambda n: vectors(n, 3, 10)),
    "conv3d": Case(conv3d, lambda n: vectors(n, 2, 4, 8, 8)),
    "upsampling": Case(upsampling),
    "shared_conv": Case(SharedConv),
    "batch_norm_first": Case(BatchNormFirst),
    "activations": Case(Activations, vectors),
    "attention": Case(Attention, lambda n: vectors(n, 5, 6)),
    "squeeze_excite": Case(SqueezeExcite),
    "masks": Case(Masks, vectors),
    "tokens_first": Case(TokensFirst, lambda n: vectors(n, 5, 6)),
    "encoder": Case(encoder, lambda n: vectors(n, 5, 6)),
    "recurrent": Case(recurrent, lambda n: vectors(n, 5, 6)),
}

ANALOG = (
    "activations",
    "attention",
    "squeeze_excite",
    "masks",
    "encoder",
    "recurrent",
)  # their main operations are analog; max pools are so elsewhere


def make(name: str, seed: int = 0) -> nn.Module:
    """The network called ``name``, the same numbers at every call, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CASES[name].build()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                assert module.running_mean is not None and module.running_var is not None
                for tensor, low, high in (
                    *[(module.weight.data, 0.5, 1.5), (module.bias.data, -0.5, 0.5)],
                    *[(module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0)],
                ):
                    tensor.uniform_(low, high)
    return model.eval()


def dyadic(model: nn.Module, scale: float = 4.0) -> nn.Module:
    """Weights and biases times ``scale``, rounded to multiples of 1/8, in place: for bit-exact comparisons.

    Only for networks without batch norm (its square root is never dyadic).
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * scale * 8).round() / 8)
    return model


@cache
def captured(name: str, pooling: Pooling = Pooling.RATE) -> Graph:
    """The network called ``name``, captured once for all tests."""
    return capture(make(name), batch_of(name, 3), pooling=pooling)


@cache
def converted(name: str) -> tuple[Graph, Plan]:
    """The captured network with max-norm thresholds."""
    return captured(name), MaxNorm().fit(captured(name), calibration(name))


def batch_of(name: str, n: int = 4) -> Any:
    """``n`` samples of the input of the network called ``name``."""
    return CASES[name].example(n)


def as_inputs(batch: Any) -> tuple[torch.Tensor, ...]:
    """A batch as the positional arguments of its network."""
    return batch if isinstance(batch, tuple) else (batch,)


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    values: Sequence[Any] = list(tree.values()) if isinstance(tree, dict) else tree
    return [leaf for value in values for leaf in tensors(value)]


def calibration(name: str, batches: int = 3, n: int = 8) -> list[Any]:
    """Calibration batches for the network called ``name``: different samples in each."""
    whole = batch_of(name, batches * n)
    if isinstance(whole, tuple):
        return [tuple(x[i * n : (i + 1) * n] for x in whole) for i in range(batches)]
    return [whole[i * n : (i + 1) * n] for i in range(batches)]

"""One peer in a process of its own: converts ResNet-20 as that library would, then simulates whenever it is asked to.

    python serve.py PEER ZOO      reads "STEPS BATCH" lines from standard input, answers each with the seconds it took

Runs in the peers' environment, which has torch and the peer but not Transpike. The zoo's network is rewritten with a module
for every rectifier and a convolution for every shortcut: no peer takes it as it is.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

Simulate = Callable[[torch.Tensor, int], torch.Tensor]


class Block(nn.Module):
    """A residual block of the zoo's ResNet-20 with modules for its rectifiers and its shortcut."""

    def __init__(self, own: nn.Module, stride: int, ins: int, outs: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = own.conv1, own.bn1, own.conv2, own.bn2
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or ins != outs:  # strided slices, padded with channels of 0s
            self.shortcut = nn.Conv2d(ins, outs, 1, stride, bias=False)
            weight = torch.zeros(outs, ins, 1, 1)
            weight[(outs - ins) // 2 :][torch.arange(ins), torch.arange(ins)] = 1
            self.shortcut.weight.data = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Network(nn.Module):
    """The zoo's ResNet-20, rewritten."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = own.conv, own.bn, nn.ReLU()
        sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        blocks = [*own.stage1, *own.stage2, *own.stage3]
        self.blocks = nn.Sequential(*(Block(b, s, i, o) for b, (i, o, s) in zip(blocks, sizes, strict=True)))
        self.pool, self.flatten, self.fc = nn.AvgPool2d(8), nn.Flatten(), own.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.flatten(self.pool(self.blocks(self.relu(self.bn(self.conv(x)))))))


def spikingjelly(net: nn.Module, x: torch.Tensor) -> dict[str, Simulate]:
    """Its own conversion, local threshold balancing, in both step modes."""
    from spikingjelly.activation_based import ann2snn, functional

    loader = [(part, torch.zeros(len(part))) for part in x.split(100)] * 10
    recipe = ann2snn.LocalThresholdBalancingRecipe(dataloader=loader)
    converted = ann2snn.FXConverter(recipe).convert(net).eval()

    def single(images: torch.Tensor, steps: int) -> torch.Tensor:
        functional.reset_net(converted)
        functional.set_step_mode(converted, "s")
        return sum(converted(images) for _ in range(steps)) / steps  # type: ignore[return-value]

    def multi(images: torch.Tensor, steps: int) -> torch.Tensor:
        functional.reset_net(converted)
        functional.set_step_mode(converted, "m")
        return converted(images.expand(steps, *images.shape)).mean(0)

    return {"spikingjelly single-step": single, "spikingjelly multi-step": multi}


def snntorch(net: nn.Module, x: torch.Tensor) -> dict[str, Simulate]:
    """Its neurons, reset by subtraction, in the place of rectifiers; thresholds are the largest activations."""
    from snntorch import Leaky, utils

    for path, largest in _largest(net, x).items():
        _replace(net, path, Leaky(beta=1.0, threshold=largest, reset_mechanism="subtract", init_hidden=True))

    def run(images: torch.Tensor, steps: int) -> torch.Tensor:
        utils.reset(net)
        return sum(net(images) for _ in range(steps)) / steps  # type: ignore[return-value]

    return {"snntorch": run}


def sinabs(net: nn.Module, x: torch.Tensor) -> dict[str, Simulate]:
    """Its neurons in the place of rectifiers, all steps of the batch at once."""
    from sinabs.layers import IAFSqueeze

    paths = _largest(net, x)
    for path, largest in paths.items():
        _replace(net, path, IAFSqueeze(batch_size=1, spike_threshold=torch.tensor(largest)))

    def run(images: torch.Tensor, steps: int) -> torch.Tensor:
        for path in paths:
            layer = net.get_submodule(path)
            layer.reset_states()
            layer.batch_size = len(images)
        frames = images.unsqueeze(1).expand(-1, steps, *images.shape[1:]).flatten(0, 1)
        return net(frames).unflatten(0, (len(images), steps)).mean(1)

    return {"sinabs": run}


def _largest(net: nn.Module, x: torch.Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    paths = [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]
    hooks = [
        net.get_submodule(path).register_forward_hook(lambda m, i, y, path=path: found.update({path: float(y.max())}))
        for path in paths
    ]
    net(x[:100])
    for hook in hooks:
        hook.remove()
    return found


def _replace(net: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, layer)


def main(peer: str, zoo_folder: str) -> None:
    sys.path.insert(0, zoo_folder)
    import zoo

    own = zoo.model("cifar10_resnet20")
    x = zoo.calibration("cifar10_resnet20", 1000)
    net = Network(own).eval()
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        torch.testing.assert_close(net(x[:4]), own(x[:4]), rtol=1e-4, atol=1e-4)
        modes = {"spikingjelly": spikingjelly, "snntorch": snntorch, "sinabs": sinabs}[peer](net, x)
    print("ready", *(name.replace(" ", "_") for name in modes), flush=True)
    for line in sys.stdin:
        name, steps, batch = line.split()
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            began = time.perf_counter()
            modes[name.replace("_", " ")](x[: int(batch)], int(steps))
            seconds = time.perf_counter() - began
        print(seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Does the read-out converge to the ANN's? Relative L2 error at 64 to 512 steps, thresholds at the true maximum.

python -m benchmarks.convergence [NAME ...]

The same images calibrate and test, so nothing is clipped and only time is left as a source of error. With max pooling
placed before the neuron step by step (the papers' form, ``Pooling.CURRENT``) as the peer in the same run.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import torch
import torchvision

from benchmarks.common import read, record
from transpike import convert, simulate
from transpike.engines.executor import Run
from transpike.graph.capture import Pooling
from transpike.graph.interpret import forward
from transpike.graph.ir import Site
from transpike.methods.max_norm import MaxNorm
from transpike.network import SpikingNetwork

NETWORKS = ("vgg11_bn", "resnet18", "squeezenet1_1", "densenet121", "mobilenet_v2")
STEPS = (64, 128, 256, 512)
VARIANTS = {
    "default": ({}, Pooling.RATE),
    "signed": ({"signed": True}, Pooling.RATE),
    "pool currents": ({}, Pooling.CURRENT),
}


def random_network(name: str, x: torch.Tensor, warm: bool) -> torch.nn.Module:
    """Random weights. ``warm``: batch norm has the statistics of noise images, as training would leave them (harder)."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    if warm:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _ in range(4):
                model.train()(torch.randn(16, *x.shape[1:], generator=generator))
    return model.eval()


def layer_errors(net: SpikingNetwork, x: torch.Tensor, run: Run) -> dict[str, float]:
    """By site, how far the spike rates are from the ANN's activations: relative L2."""
    errors: dict[str, float] = {}

    def at_site(site: Site, z: torch.Tensor) -> torch.Tensor:
        a = z.clamp_(0, site.ceiling)
        theta = net.plan.sites[site.name].threshold.view(site.channel_shape())
        rate = run.net[site.name] * theta / run.steps
        errors[site.name] = float((rate - a).norm() / a.norm().clamp(min=1e-12))
        return a

    forward(net.graph, [x], at_site)
    return errors


def measure(name: str, warm: bool) -> dict[str, Any]:
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    model = random_network(name, x, warm)
    with torch.no_grad():
        wanted = model(x)
    found: dict[str, Any] = {}
    for variant, (settings, pooling) in VARIANTS.items():
        net = convert(model, MaxNorm(**settings), [x], pooling=pooling)
        run = simulate(net, x, steps=STEPS[-1], max_memory=4 << 30)
        errors = [float((run.readout(t) - wanted).norm() / wanted.norm()) for t in STEPS]
        ratios = [a / b for a, b in pairwise(errors)]
        worst = sorted(layer_errors(net, x, run).items(), key=lambda item: -item[1])[:5]
        found[variant] = {"steps": STEPS, "error": errors, "ratio": ratios, "worst_layers_at_512": dict(worst)}
        print(name, "warm" if warm else "", variant, [f"{e:.4f}" for e in errors], [f"{r:.2f}" for r in ratios], flush=True)
    return found


def main(names: list[str]) -> None:
    results = read("convergence") or {"networks": {}}
    for warm in (False, True):
        for name in names or NETWORKS:
            key = f"{name}{', batch norm warmed' if warm else ''}"
            if names or key not in results["networks"]:
                results["networks"][key] = measure(name, warm)
                record("convergence", results)


if __name__ == "__main__":
    main(sys.argv[1:])

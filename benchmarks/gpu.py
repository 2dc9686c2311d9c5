"""Simulation on a GPU against the network's own forward pass in the same precision, and against SpikingJelly's Triton neurons.

python -m benchmarks.gpu

ResNet-34 on 224 x 224, batch 64, 32 steps, everything interleaved. Bars: 0.9 x (32 x forward) at most, and a third of
SpikingJelly's time at most (2.0, multi-step, where it takes Triton by itself, its own ResNet-34; `pip install -r
benchmarks/peers/requirements.txt` beside torch for CUDA). Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import record
from benchmarks.engines import load, rounds
from transpike import convert, simulate
from transpike.engines.dense import gpu_kernel
from transpike.methods.percentile import Percentile

STEPS, BATCH, ROUNDS = 32, 64, 7
BARS = {"own forward": 0.9, "spikingjelly": 1 / 3}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(work: Callable[[], Any]) -> float:
    """Time on the GPU, from an idle one to an idle one."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def spikingjelly(x: torch.Tensor) -> Callable[[], Any] | None:
    """Its own ResNet-34 with integrate-and-fire neurons, all steps of a layer at once; None where it is not installed."""
    if importlib.util.find_spec("spikingjelly") is None:
        return None
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model import spiking_resnet

    net = spiking_resnet.spiking_resnet34(pretrained=False, spiking_neuron=neuron.IFNode, v_reset=None).eval().cuda()
    functional.set_step_mode(net, "m")

    def run() -> torch.Tensor:
        functional.reset_net(net)
        total = torch.zeros((), device=x.device)
        for _ in range(STEPS // 4):  # the state goes on; 32 steps at once would need the memory of 2048 images
            total = total + net(x.expand(4, *x.shape)).sum(0)
        return total

    return run


def main() -> None:
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here, and the bars are for one")
        return
    if gpu_kernel() is None:
        print("skipped: Triton is not installed, neurons would go step by step")
        return
    model, calibration = load("resnet34", 8)
    net = convert(model, Percentile(), [calibration]).cuda()
    x = torch.rand(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(1)).cuda()
    works: dict[str, Callable[[], float]] = {}
    for name, dtype in TYPES.items():
        own = _copy(model, dtype)
        given = x.to(dtype).contiguous(memory_format=torch.channels_last)
        works[f"forward {name}"] = lambda own=own, given=given: min(seconds(lambda: own(given)) for _ in range(5))
        works[f"simulate {name}"] = lambda name=name: seconds(lambda: simulate(net, x, STEPS, precision=name))
    other = spikingjelly(x)
    if other is None:
        print("SpikingJelly is not installed: its bar is left out")
    else:
        works["spikingjelly"] = lambda: seconds(other)
    with torch.no_grad():
        times = rounds(works, ROUNDS)
    found: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "gpu": torch.cuda.get_device_name(), "bars": BARS, "times": times}
    for name in TYPES:
        pairs = zip(times[f"simulate {name}"], times[f"forward {name}"], strict=True)
        found[f"{name} to own forward"] = statistics.median(a / (b * STEPS) for a, b in pairs)
        if other is not None:
            pairs = zip(times[f"simulate {name}"], times["spikingjelly"], strict=True)
            found[f"{name} to spikingjelly"] = statistics.median(a / b for a, b in pairs)
    record("gpu", found)
    print({key: round(value, 3) for key, value in found.items() if isinstance(value, float)}, flush=True)


def _copy(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Another one of the same weights on the GPU, channels last."""
    return copy.deepcopy(model).to("cuda", dtype).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()

"""Time of simulation, calibration and capture against the network's own forward pass, interleaved in one process.

python -m benchmarks.speed

Only ratios within one run mean anything. "Forward" is the float32 network, channels-last, at its best batch size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torchvision

from benchmarks.common import cifar10_ready, record, zoo
from transpike import calibrate, capture, convert, simulate
from transpike.methods.ltb import LTB

IMAGES, STEPS, ROUNDS = 64, 32, 5


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def own_forward(model: torch.nn.Module, x: torch.Tensor, batch: int) -> Callable[[], object]:
    """The network as its owner would run it fast. Inputs are laid out beforehand."""
    batches = [part.contiguous(memory_format=torch.channels_last) for part in x.split(batch)]

    def run() -> None:
        with torch.inference_mode():
            for part in batches:
                model(part)

    return run


def main() -> None:
    if not cifar10_ready():
        print("skipped: there is no zoo beside the project")
        return
    module = zoo()
    assert module is not None
    model = module.model("cifar10_resnet20").to(memory_format=torch.channels_last)
    x = module.calibration("cifar10_resnet20", IMAGES)
    net = convert(model, LTB(iterations=20), module.calibration("cifar10_resnet20", 2000).split(100))
    batch = min((8, 16, 32, 64), key=lambda b: min(seconds(own_forward(model, x, b)) for _ in range(5)))
    forward = own_forward(model, x, batch)
    simulate(net, x, steps=STEPS, engine="dense")
    rounds = []
    for _ in range(ROUNDS):
        once = statistics.median(seconds(forward) for _ in range(9))
        rounds.append({"forward": once * STEPS, "dense": seconds(lambda: simulate(net, x, steps=STEPS, engine="dense"))})
    ratio = statistics.median(r["dense"] / r["forward"] for r in rounds)
    print(f"dense, ResNet-20, {STEPS} steps: {ratio:.2f} x ({STEPS} x forward at batch {batch}); bar 1.25", flush=True)

    many = module.calibration("cifar10_resnet20", 2000).split(100)
    own = own_forward(model, torch.cat(list(many)), 100)
    calibrations = []
    for _ in range(ROUNDS):
        calibrations.append({"forward": seconds(own), "ltb": seconds(lambda: calibrate(net.graph, LTB(iterations=20), many))})
    ltb = statistics.median(r["ltb"] / r["forward"] for r in calibrations)
    print(f"LTB calibration, 20 batches of 100: {ltb:.2f} x forward over the same batches; bar 1.5", flush=True)

    resnet50 = torchvision.models.resnet50(weights=None).eval()
    captures = [seconds(lambda: capture(resnet50, torch.rand(1, 3, 224, 224))) for _ in range(3)]
    print(f"capture of ResNet-50: {statistics.median(captures):.1f} s; bar 5 s", flush=True)
    record(
        "speed",
        {
            "dense": {"ratio": ratio, "bar": 1.25, "batch": batch, "images": IMAGES, "steps": STEPS, "rounds": rounds},
            "ltb": {"ratio": ltb, "bar": 1.5, "rounds": calibrations},
            "capture_resnet50": {"seconds": captures, "bar": 5.0},
        },
    )


if __name__ == "__main__":
    main()

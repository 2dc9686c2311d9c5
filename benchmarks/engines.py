"""Every engine and the peers against the network's own forward pass, interleaved in one run; only ratios mean anything.

python -m benchmarks.engines [NETWORK ...]

"Forward" is the float32 network, channels-last, at its best batch size, times the steps. Peers run in processes of their own
(`benchmarks/peers`), asked in turn with everything else; their environment is made where it is missing.
"""

from __future__ import annotations

import copy
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torchvision

from benchmarks.common import ROOT, ZOO, cifar10_ready, pairs, read, record, zoo
from benchmarks.speed import own_forward, seconds
from transpike import SpikingNetwork, convert, evaluate, simulate
from transpike.engines.precision import PRECISIONS, has_bfloat16
from transpike.measure.energy import energy
from transpike.methods import Method
from transpike.methods.ltb import LTB
from transpike.methods.mmse import MMSE
from transpike.methods.parallel import Parallel
from transpike.methods.percentile import Percentile

STEPS = 32
PEERS = ("spikingjelly", "snntorch", "sinabs")
ENVIRONMENT = ROOT / ".cache" / "peers"
FIGURE = ROOT / "docs" / "speed.png"


@dataclass(frozen=True)
class Case:
    """A network, how it is converted, how many images are simulated at once, and how often it is measured."""

    method: Method
    images: int
    calibration: int
    rounds: int = 5


CASES = {
    "cifar10_resnet20": Case(LTB(iterations=200), 32, 2000),
    "imagenet_squeezenet": Case(Percentile(), 2, 40, 3),
    "imagenet_mobilenetv1": Case(Percentile(), 8, 40, 3),
    "resnet34": Case(Percentile(), 2, 8, 3),
}


def load(name: str, images: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with ``images`` calibration inputs."""
    if name == "resnet34":  # random weights; batch norm sees data, so that activations are of the usual sizes
        torch.manual_seed(0)
        model, x = torchvision.models.resnet34(weights=None).train(), torch.rand(images, 3, 224, 224)
        with torch.no_grad():
            for part in x.split(8):
                model(part)
        return model.eval(), x
    module = zoo()
    assert module is not None
    return module.model(name), module.calibration(name, images)


@contextmanager
def peer(name: str) -> Iterator[dict[str, Callable[[int, int], float]]]:
    """The ways in which a peer simulates ResNet-20: called with steps and batch, they give seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    script = str(ROOT / "benchmarks" / "peers" / "serve.py")
    command = [str(ENVIRONMENT / "bin" / "python"), script, name, str(ZOO)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    modes = stdout.readline().split()[1:]

    def ask(mode: str) -> Callable[[int, int], float]:
        def run(steps: int, batch: int) -> float:
            stdin.write(f"{mode} {steps} {batch}\n")
            stdin.flush()
            return float(stdout.readline())

        return run

    try:
        yield {mode: ask(mode) for mode in modes}
    finally:
        stdin.close()
        process.wait()


def peers_ready() -> bool:
    """Makes the peers' environment: torch comes from ours, the peers from PyPI."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        own = next(path for path in sys.path if path.endswith("site-packages"))
        packages = next((ENVIRONMENT / "lib").glob("python3*")) / "site-packages"
        (packages / "ours.pth").write_text(own)
    wanted = str(ROOT / "benchmarks" / "peers" / "requirements.txt")
    return subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", wanted], check=False).returncode == 0


def peak() -> float:
    """Multiply-accumulates per second of a large matrix product: the machine's roof."""
    a = torch.rand(2048, 2048)
    return 2048**3 / min(seconds(lambda: a @ a) for _ in range(7))


def ratios(times: dict[str, list[float]], steps: int) -> dict[str, float]:
    """Medians over the rounds of each time to the forward pass times the steps in the same round."""
    forwards = times["forward"]
    return {
        name: statistics.median(a / (b * steps) for a, b in zip(found, forwards, strict=True))
        for name, found in times.items()
        if name != "forward"
    }


def measure(name: str) -> dict[str, Any]:
    case = CASES[name]
    model, calibration = load(name, case.calibration)
    parts = calibration.split(100 if name == "cifar10_resnet20" else 8)
    net = convert(model, case.method, parts)
    model, x = model.to(memory_format=torch.channels_last), calibration[: case.images]
    sizes = [b for b in (1, 2, 4, 8, 16, 32) if b <= case.images]
    batch = min(sizes, key=lambda b: min(seconds(own_forward(model, x, b)) for _ in range(3)))
    forward = own_forward(model, x, batch)
    works: dict[str, Callable[[], float]] = {"forward": lambda: min(seconds(forward) for _ in range(3))}
    for engine in ("dense", "events", "auto"):
        works[engine] = lambda engine=engine: seconds(lambda: simulate(net, x, STEPS, engine=engine))
    for low in ("bfloat16", "int8"):
        works[low] = lambda low=low: seconds(lambda: simulate(net, x, STEPS, precision=low))
    with ExitStack() as stack:
        if name == "cifar10_resnet20" and peers_ready():
            for other in PEERS:
                for mode, run in stack.enter_context(peer(other)).items():
                    works[mode] = lambda run=run: run(STEPS, case.images)
        times = rounds(works, case.rounds)
    found: dict[str, Any] = {"steps": STEPS, "images": case.images, "batch": batch, "ratios": ratios(times, STEPS), "times": times}
    found["agreement"] = agreement(net, calibration[: 10 * case.images])
    sops = energy(net, [x], STEPS).sops[-1] * case.images
    found["sops_per_second"] = sops / statistics.median(times["auto"])
    found["peak_macs_per_second"] = peak()
    if name == "cifar10_resnet20":
        found |= {"counts": in_counts(model, parts, x, forward), "scaling": scaling(net, model, x)}
        found["precisions"] = precisions(net, 500)
    return found


def rounds(works: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Every work once to warm up, then ``count`` times in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for k in range(count + 1):
        for name, work in works.items():
            took = work()
            if k:
                times[name].append(took)
    return times


def agreement(net: SpikingNetwork, x: torch.Tensor) -> dict[str, float]:
    """How far events, and the same network in float64, are from the dense engine: share of equal classes, difference of all spikes.

    Where a sum is a threshold but for rounding, two orders of summation differ by a spike, and what follows from it: float64 says
    how much of that lies in float32 itself.
    """
    dense, events = (simulate(net, x, STEPS, engine=engine) for engine in ("dense", "events"))
    exact = simulate(copy.deepcopy(net).double(), x.double(), STEPS, engine="dense")
    found: dict[str, float] = {"images": len(x)}
    total = sum(float(n.sum(dtype=torch.float64)) for n in dense.spikes.values())
    for name, run in (("", events), ("float64_", exact)):
        same = dense.readout().argmax(1) == run.readout().argmax(1)
        spikes = sum(float(n.sum(dtype=torch.float64)) for n in run.spikes.values())
        found |= {f"{name}same_class": float(same.float().mean()), f"{name}spikes": abs(spikes - total) / total}
    return found


def precisions(net: SpikingNetwork, images: int) -> dict[str, Any]:
    """What lower precision does to the accuracy on labelled images, and to the outputs of the first 100 of them."""
    module = zoo()
    assert module is not None
    case = module.load("cifar10_resnet20", images)
    found: dict[str, Any] = {"images": images, "steps": STEPS, "fast_bfloat16": has_bfloat16("cpu")}
    for precision in PRECISIONS:
        report = evaluate(net, pairs(case.inputs, case.targets), STEPS, precision=precision)
        effect = {} if report.effect is None else vars(report.effect)
        found[precision] = {"ann": report.ann["top1"], "top1": [report.at(t) for t in (8, 16, 32)], **effect}
    return found


def in_counts(
    model: torch.nn.Module, parts: tuple[torch.Tensor, ...], x: torch.Tensor, forward: Callable[[], None]
) -> dict[str, float]:
    """Forward passes that a run in count space takes, whatever the steps."""
    found = {}
    for label, method in (("parallel", Parallel(STEPS)), ("signed", MMSE(cap=None, signed=True))):
        net = convert(model, method, parts[:5])
        works: dict[str, Callable[[], float]] = {"forward": lambda: min(seconds(forward) for _ in range(3))}
        for steps in (8, 32, 128):
            works[str(steps)] = lambda net=net, t=steps: seconds(lambda: simulate(net, x, t, engine="counts"))
        curve = [1, 2, 4, 8, 16, 32, 64]
        works["curve"] = lambda net=net, at=curve: seconds(lambda: simulate(net, x, engine="counts", at=at))
        times = rounds(works, 7)
        found |= {f"{label} {key}": value for key, value in ratios(times, 1).items()}
        found[f"{label} 128 to 8"] = statistics.median(b / a for a, b in zip(times["8"], times["128"], strict=True))
    return found


def scaling(net: SpikingNetwork, model: torch.nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Time over steps and over batch sizes, as a share of the forward pass times the steps at that batch size."""
    steps_curve, batches = {}, {}
    for steps in (4, 8, 16, 32, 64, 128, 256):
        some = x[:8]
        steps_curve[steps] = min(seconds(lambda t=steps, s=some: simulate(net, s, t)) for _ in range(2))
    for batch in (1, 4, 16, 64):
        some = x[:batch] if batch <= len(x) else x.repeat(math.ceil(batch / len(x)), 1, 1, 1)[:batch]
        forward = own_forward(model, some, batch)
        works: dict[str, Callable[[], float]] = {
            "forward": lambda forward=forward: min(seconds(forward) for _ in range(5)),
            "auto": lambda some=some: seconds(lambda: simulate(net, some, STEPS)),
        }
        batches[batch] = ratios(rounds(works, 5), STEPS)["auto"]
    return {"seconds_by_steps": steps_curve, "256_to_128": steps_curve[256] / steps_curve[128], "auto_by_batch": batches}


def draw(networks: dict[str, Any]) -> None:
    """Ratios of all networks as bars, time over steps as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, line) = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for k, (name, found) in enumerate(networks.items()):
        bars.barh([f"{label} {k * ' '}" for label in found["ratios"]], list(found["ratios"].values()), label=name, alpha=0.7)
    bars.axvline(1, color="black", linestyle=":")
    bars.set(xscale="log", xlabel=f"time / ({STEPS} x forward), lower is faster", title="engines and peers")
    bars.legend(fontsize=7)
    curve = networks.get("cifar10_resnet20", {}).get("scaling", {}).get("seconds_by_steps", {})
    line.plot([int(t) for t in curve], list(curve.values()), marker="o")
    line.set(xlabel="time steps", ylabel="seconds for 8 images", title="ResNet-20, engine auto")
    line.grid(alpha=0.3)
    figure.savefig(FIGURE, dpi=110)


def main(names: list[str]) -> None:
    if zoo() is None or not cifar10_ready():
        print("skipped: there is no zoo beside the project")
        return
    for name in names or CASES:
        found = measure(name)
        results = read("engines") or {"networks": {}}
        results["networks"][name] = found
        record("engines", results)
        print(name, {key: round(value, 2) for key, value in found["ratios"].items()}, flush=True)
        for key in ("counts", "scaling", "agreement", "precisions"):
            if key in found:
                print(f"  {key}: {found[key]}", flush=True)
    draw(read("engines")["networks"])


if __name__ == "__main__":
    main(sys.argv[1:])

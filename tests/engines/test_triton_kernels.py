"""The GPU's neuron kernel equals the step function bit for bit: by Triton's interpreter anywhere, by itself on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import transpike
from models import batch_of, captured, converted, tensors
from transpike.engines import dense, executor
from transpike.engines.dense import DensePopulation, gpu_kernel
from transpike.graph.ir import Site
from transpike.spiking.neurons import step
from transpike.spiking.plan import SiteParams

STEPS, SAMPLES, UNITS = 6, 3, 700  # samples do not begin where a program does
WITH_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def normals() -> Callable[..., torch.Tensor]:
    """Draws tensors of any shape, the same at every start."""
    return partial(torch.randn, generator=torch.Generator().manual_seed(0))


def plain_kernel(
    x,
    constant,
    v,
    sent,
    count,
    theta,
    worth,
    extra,
    steps,
    cap,
    signed,
    bias=None,
    beside=None,
    each=None,
    spikes=None,
    counted=False,
) -> None:
    """What the kernel does, in torch."""
    out = x if spikes is None else spikes
    others = [None] * steps if beside is None else beside.float().view(steps, *v.shape)
    for frame, other, to in zip(x.view(steps, *v.shape), others, out.view(steps, *v.shape), strict=True):
        current = frame.float() if constant is None else constant
        current = current if bias is None else current + bias
        if other is not None:
            current = current + (other if each is None else each * other)
        s, potential, net = step(v, sent, current + extra, theta, cap, signed)
        v.copy_(potential)
        count.add_(s.abs())
        if signed:
            sent.copy_(net)
        to.copy_(s if counted else worth * s)


def check_parts(device: str) -> None:
    """Currents in parts, in both number formats, and spikes written as numbers or as counts."""
    kernel = gpu_kernel()
    assert kernel is not None
    normal, generator = normals(), torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for parts in ((), ("bias",), ("beside",), ("bias", "beside", "each")):
            x, beside = 2 * normal(STEPS * SAMPLES, UNITS), torch.randint(0, 3, (STEPS * SAMPLES, UNITS), generator=generator)
            bias, each, theta = normal(UNITS), normal(UNITS).abs(), normal(UNITS).abs() + 0.1
            x, beside, counted = x.to(dtype), beside.to(dtype), dtype == torch.bfloat16
            v = sent = torch.zeros(SAMPLES, UNITS)
            emitted = []
            for frame, other in zip(x.float().view(STEPS, SAMPLES, UNITS), beside.float().view(STEPS, SAMPLES, UNITS), strict=True):
                current = frame + bias if "bias" in parts else frame
                if "beside" in parts:
                    current = current + (each * other if "each" in parts else other)
                s, v, sent = step(v, sent, current, theta, 3, False)
                emitted.append(s if counted else theta * s)
            given = {"bias": bias, "beside": beside, "each": each}
            mine = [torch.zeros(SAMPLES, UNITS, device=device) for _ in range(2)]
            numbers = (y.to(device) for y in (theta, theta, torch.zeros(UNITS)))
            place, rest = x.to(device), {name: given[name].to(device) for name in parts}
            kernel(place, None, mine[0], mine[1], mine[1], *numbers, STEPS, 3, False, **rest, counted=counted)
            assert torch.equal(place.cpu().float(), torch.cat(emitted)), (dtype, parts)
            assert torch.equal(mine[0].cpu(), v), (dtype, parts)


def check(device: str) -> None:
    """Every kind of neuron, real numbers, state that is there already."""
    kernel = gpu_kernel()
    assert kernel is not None
    normal, generator = normals(), torch.Generator().manual_seed(0)
    for cap in (1, 3, None):
        for signed in (False, True):
            for constant in (False, True):
                x, drive = 2 * normal(STEPS * SAMPLES, UNITS), 2 * normal(SAMPLES, UNITS)
                theta, worth, extra = normal(UNITS).abs() + 0.1, normal(UNITS).abs(), 0.1 * normal(UNITS)
                v, count = normal(SAMPLES, UNITS), torch.randint(0, 4, (SAMPLES, UNITS), generator=generator).float()
                sent = torch.randint(0, 4, (SAMPLES, UNITS), generator=generator).float() if signed else count
                emitted, state = [], (v, sent, count)
                for frame in x.view(STEPS, SAMPLES, UNITS):
                    s, v, sent = step(v, sent, (drive if constant else frame) + extra, theta, cap, signed)
                    emitted.append(worth * s)
                    count = count + s.abs()
                got, drives = x.to(device), drive.to(device) if constant else None
                mine = [part.clone().to(device) for part in state]
                mine[1] = mine[1] if signed else mine[2]
                kernel(got, drives, *mine, *(y.to(device) for y in (theta, worth, extra)), STEPS, cap, signed)
                case = (cap, signed, constant)
                assert torch.equal(got.cpu(), torch.cat(emitted)), case
                assert torch.equal(mine[0].cpu(), v) and torch.equal(mine[2].cpu(), count), case
                assert not signed or torch.equal(mine[1].cpu(), sent), case


@WITH_TRITON
def test_interpreted_it_is_the_step_function() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "from engines.test_triton_kernels import check, check_parts; check('cpu'); check_parts('cpu')"
    there = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=there, capture_output=True, text=True, check=False
    )  # the interpreter is chosen when Triton is imported
    assert done.returncode == 0, done.stderr


@WITH_TRITON
def test_it_compiles_for_a_gpu_without_fused_or_approximate_operations() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled

    from transpike.engines.triton_kernels import _fire

    names = ("x", "out", "constant", "bias", "beside", "each", "v", "sent", "count", "theta", "worth", "extra")
    pointers = dict.fromkeys(names, "*fp32")
    for signed, single in ((False, True), (False, False), (True, False)):
        added = dict.fromkeys(("biased", "joined", "weighed"), True)
        chosen = {"same": False, **added, "counted": False, "signed": signed, "single": single, "block": 512}
        kinds = {**pointers, **dict.fromkeys(("steps", "neurons", "units"), "i32"), "cap": "fp32"}
        source = ASTSource(_fire, {**kinds, **dict.fromkeys(chosen, "constexpr")}, chosen)
        ptx = compiled(source, GPUTarget("cuda", 80, 32), {"enable_fp_fusion": False}).asm["ptx"]
        assert "fma" not in ptx and "div.full" not in ptx and ("div.rn.f32" in ptx) == (not single)


def test_without_triton_neurons_go_step_by_step(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(dense.importlib, "import_module", missing)
    assert gpu_kernel.__wrapped__() is None


@pytest.mark.parametrize("params", [SiteParams(torch.tensor(0.5)), SiteParams(torch.tensor(0.5), cap=2, signed=True)])
def test_a_population_hands_its_state_over(params: SiteParams, monkeypatch) -> None:
    """The arguments of the kernel, in the kernel written here."""
    monkeypatch.setattr(dense, "gpu_kernel", lambda: plain_kernel)
    site, x = Site("a#1", "a", (5,), 0), torch.randn(STEPS * SAMPLES, 5, generator=torch.Generator().manual_seed(1))
    for constant in (False, True):
        runs = []
        for way in ("_on_gpu", "_stepwise"):
            monkeypatch.setattr(DensePopulation, "_fire", getattr(DensePopulation, way))
            neurons = DensePopulation(site, params, SAMPLES, 0, x)
            given = x[:SAMPLES] if constant else x
            y = neurons.advance(given, STEPS, constant=constant, overwrite=False)
            runs.append((y, neurons.spikes(), neurons.net(), neurons.membrane()))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mlp", "residual", "deep_pool", "fire"])
def test_neurons_that_take_sums_do_what_others_do(name: str, precision: str, monkeypatch) -> None:
    """The way of a GPU, with the kernel written here."""
    graph, plan = converted(name)
    x = batch_of(name, 5)
    net = transpike.build(graph, plan)
    wanted = transpike.simulate(net, x, 16, engine="dense", precision=precision)
    monkeypatch.setattr(dense, "gpu_kernel", lambda: plain_kernel)
    for module in (dense, executor):
        monkeypatch.setattr(module, "takes_sums", lambda x: True)
    found = transpike.simulate(net, x, 16, engine="dense", precision=precision)
    for a, b in zip(tensors(found.readout()), tensors(wanted.readout()), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-3


@ON_GPU
def test_on_a_gpu_it_is_the_step_function() -> None:
    check("cuda")
    check_parts("cuda")


@ON_GPU
@pytest.mark.parametrize("name", ["mlp", "residual", "deep_pool", "fire"])
def test_a_network_on_a_gpu_does_what_it_does_on_the_cpu(name: str) -> None:
    graph, plan = converted(name)
    x, net = batch_of(name, 5), transpike.build(graph, plan)
    here = tensors(transpike.simulate(net, x, 16, engine="dense").readout())
    for low in ("float32", "bfloat16", "int8"):
        there = tensors(transpike.simulate(net.cuda(), x, 16, precision=low).readout())
        net.cpu()
        for a, b in zip(there, here, strict=True):
            assert float((a.cpu() - b).norm() / b.norm()) < (0.02 if low == "float32" else 0.2)


@ON_GPU
def test_nothing_waits_for_the_gpu_between_chunks() -> None:
    net = transpike.build(captured("residual"), converted("residual")[1]).cuda()
    x = batch_of("residual", 5).cuda()
    transpike.simulate(net, x, 4, chunk=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("warn")  # says once that it is a prototype and misses some synchronizing operations
        torch.cuda.set_sync_debug_mode("default")
    waits = []
    for steps in (2, 8):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                transpike.simulate(net, x, steps, chunk=1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(len([one for one in found if "synchronizing" in str(one.message)]))
    assert waits[0] == waits[1]

"""Does every classification network of torchvision go through? Capture, MaxNorm, four steps; writes docs/support.md.

python -m benchmarks.universality [NAME ...]     (no names: all; results are kept and not computed again)
"""

from __future__ import annotations

import gc
import sys
import time
import warnings
from typing import Any

import torch
import torchvision

from benchmarks.common import ROOT, read, record, zoo
from transpike import convert, inspect, simulate
from transpike.methods.max_norm import MaxNorm
from transpike.spiking.store import write_file

SIZES = (32, 64, 75, 96, 128, 160, 192, 224, 240, 299)


def smallest_input(model: torch.nn.Module) -> torch.Tensor:
    """Two noise images of the smallest size that the network accepts."""
    for size in SIZES:
        x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(x)
            return x
        except (RuntimeError, AssertionError, ValueError):
            continue
    raise RuntimeError("no size is legal")


def examine(model: torch.nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Convert, simulate four steps, and say what the network consists of."""
    began = time.perf_counter()
    try:
        with torch.no_grad():
            wanted = model(x)
        net = convert(model, MaxNorm(), [x])
        run = simulate(net, x, steps=4)
        got = run.readout(4)
        if isinstance(got, torch.Tensor) and got.shape != wanted.shape:
            raise RuntimeError(f"the read-out has shape {tuple(got.shape)}, not {tuple(wanted.shape)}")
        account = inspect(net)
    except Exception as error:  # the table says what failed
        return {"ok": False, "input": list(x.shape[1:]), "error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {
        "ok": True,
        "input": list(x.shape[1:]),
        "sites": len(account.sites),
        "analog": len(account.analog),
        "spiking_share": account.spiking_share,
        "constant_share": account.constant_macs / max(1, account.macs),
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(results: dict[str, Any]) -> str:
    """docs/support.md"""
    rows = results["networks"]
    passed = sum(row["ok"] for row in rows.values())
    lines = [
        "# Which networks convert",
        "",
        "Made by `python -m benchmarks.universality`: every classification network of torchvision (random weights, eval mode, the",
        "smallest input it accepts, batch of 2) is captured, calibrated with `MaxNorm` and simulated for 4 steps, and so are the",
        f"example networks with real weights. **{passed} of {len(rows)}** go through.",
        "",
        "*Sites*: places where neurons sit. *Analog*: operations that are not spike-driven; the differential combinator keeps",
        "their averages exact, and they are charged as dense work at every step. *Spike-driven*, *once*: share of the",
        "multiply-accumulates that spikes drive, and that depend on the input alone and are computed once. A network without ReLU",
        "(ViT, Swin, ConvNeXt, EfficientNet: GELU or SiLU) has no sites: it runs, exactly, as the constant function it then is,",
        "and nothing in it spikes.",
        "",
        "| network | input | sites | analog | spike-driven | once |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, row in sorted(rows.items()):
        size = "×".join(map(str, row["input"]))
        if row["ok"]:
            cells = f"{row['sites']} | {row['analog']} | {row['spiking_share']:.1%} | {row['constant_share']:.1%}"
        else:
            cells = f"**fails**: {row['error']} | | |"
        lines.append(f"| {name} | {size} | {cells} |")
    versions = results["origin"]["versions"]
    lines += ["", f"torch {versions['torch']}, torchvision {torchvision.__version__}, {results['origin']['date']}", ""]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    results = read("universality") or {"networks": {}}
    wanted = names or torchvision.models.list_models(module=torchvision.models)
    warnings.simplefilter("ignore")
    for name in wanted:
        if not names and results["networks"].get(name, {}).get("ok"):
            continue
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        results["networks"][name] = examine(model, smallest_input(model))
        print(name, results["networks"][name], flush=True)
        record("universality", results)
        del model
        gc.collect()
    module = zoo()
    for name in module.names() if module is not None and not names else ():
        assert module is not None
        x = module.calibration(name, 2) if name != "cifar10_resnet20" else torch.rand(2, 3, 32, 32)
        results["networks"][f"zoo: {name}"] = examine(module.model(name), x)
        print(name, results["networks"][f"zoo: {name}"], flush=True)
        record("universality", results)
    text = table(read("universality"))
    write_file(ROOT / "docs" / "support.md", lambda path: path.write_text(text))
    print(f"{sum(row['ok'] for row in results['networks'].values())} of {len(results['networks'])} networks")


if __name__ == "__main__":
    main(sys.argv[1:])

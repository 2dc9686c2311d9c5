"""Write the generated parts of the documentation: docs/methods.md from the code, figures from benchmarks/results.

python -m benchmarks.pages
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from benchmarks.board_page import STEPS, board_page
from benchmarks.common import ROOT, read
from transpike.methods import available
from transpike.spiking.store import write_file


def methods_page() -> str:
    """Every method: its module's docstring and its settings."""
    lines = ["# Methods", "", "Made from the code by `python -m benchmarks.pages`."]
    for name, cls in available().items():
        module = inspect.getmodule(cls)
        assert module is not None
        lines += ["", f"## {name}", "", f"`from {module.__name__} import {name}`", "", "```", (module.__doc__ or "").strip(), "```"]
        fields = [field for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
        about = _about_fields(inspect.getdoc(cls) or "")
        if fields:
            lines += ["", "| setting | default | |", "|---|---|---|"]
            for field in fields:
                default = getattr(field.default, "value", field.default)
                lines.append(f"| `{field.name}` | {default} | {about.get(field.name, '')} |")
    return "\n".join(lines) + "\n"


def _about_fields(doc: str) -> dict[str, str]:
    """Field descriptions of an Args section."""
    _, _, args = doc.partition("Args:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", args, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def accuracy_table(rows: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Top-1 by steps, plain and delayed; parallel neurons have sent all they have to say only after the last step."""
    lines = [
        "| conversion | read-out | " + " | ".join(map(str, STEPS)) + " | images |",
        "|---|---|" + "---:|" * (len(STEPS) + 1),
    ]
    for name, row in rows.items():
        if not name.startswith(prefix):
            continue
        for window in ("plain",) if name.removeprefix(prefix).strip().startswith("Parallel") else ("plain", "delayed"):
            curve = row["curves"][window]
            cells = " | ".join(f"{curve[t - 1]:.2f}" if t <= len(curve) else "" for t in STEPS)
            lines.append(f"| {name.removeprefix(prefix).strip()} | {window} | {cells} | {row['samples']} |")
    return lines


ACCURACY = """
## Accuracy

Top-1 (%) by time steps on networks that others trained; calibrated on other images. The delayed read-out is the papers'
rule: estimated delay, at least 4 steps. Where fewer images were measured the sample moves the figure: at 90 % and 1,000 images one
standard error is 0.95 points (ResNet-20 MMSE at 32 steps has 90.2 on the first 1,000 images and 89.5 on all).
"""

CONVERGENCE = """
## Convergence

Relative L2 error of the read-out (%), random weights, 64 × 64 noise images, thresholds at the true maximum. "Pool currents"
is the papers' max pooling, step by step before the neuron. "Batch norm warmed" gives batch norm the statistics of noise
images, as training would: deep normalised networks converge more slowly.

| network | variant | 64 | 128 | 256 | 512 | factor per doubling | slowest layers at 512 (%) |
|---|---|---:|---:|---:|---:|---|---|"""

SLOW = """
Depthwise layers converge slowly because each neuron hears few inputs: currents of either sign arrive unevenly, spikes
that were sent too early cannot be taken back, and every further layer adds to it. Signed neurons take them back."""


TASKS = """
## Tasks

The task's own metric (%) by time steps, plain read-out, on networks that others trained; calibrated on other samples. Where fewer
samples than the whole evaluation split were measured, the ANN's figure is that on the same samples. map50 is COCO's AP at an
overlap of 0.5. "Streamed": step t sees the events of the t-th of 30 parts of 300 ms, and the ANN the mean over all of them.

| conversion | metric | ANN | """


def tasks_table(rows: dict[str, Any]) -> list[str]:
    """The main metric by steps, and how far box terms are from the ANN's."""
    heading = TASKS + " | ".join(map(str, STEPS)) + " | last | samples |"
    lines = [heading, "|---|---|---:|" + "---:|" * (len(STEPS) + 2)]
    for name, row in rows.items():
        for metric in dict.fromkeys((row["metric"], *(m for m in row["ann"] if m == "regression_error"))):
            curve = dict(zip(row["measured"], row["curves"]["plain"][metric], strict=True))
            cells = " | ".join(f"{curve[t]:.2f}" if t in curve else "" for t in STEPS)
            last = f"{curve[row['steps']]:.2f} at {row['steps']}"
            lines.append(f"| {name} | {metric} | {row['ann'][metric]:.2f} | {cells} | {last} | {row['samples']} |")
    return lines


BURSTS = """
## Bursts and compression

Top-1 (%) and spikes an image at 8 steps, plain read-out (`python -m benchmarks.bursts`). The cap search may spend 80 % of the
spikes of cap 8 everywhere; compression may add as much error of the read-out as there was. Both see calibration images only.

| network | conversion | ANN | top-1 | spikes (k) | of cap 8 | of before | images |
|---|---|---:|---:|---:|---:|---:|---:|"""


def bursts_table(rows: dict[str, Any]) -> list[str]:
    """What every start and its compression cost, against cap 8 and against the plan before."""
    lines = [BURSTS]
    for row in rows.values():
        start, _, compressed = row["conversion"].partition(" + ")
        spent = {other["conversion"]: other["spikes"] for other in rows.values() if other["case"] == row["case"]}
        kept = f"{row['spikes'] / spent[start]:.0%}" if compressed else ""
        shares = f"{row['spikes'] / spent['MMSE cap 8']:.0%} | {kept}"
        figures = f"{row['ann']:.2f} | {row['top1']:.2f} | {row['spikes'] / 1e3:.1f} | {shares} | {row['samples']}"
        lines.append(f"| {row['case']} | {row['conversion']} | {figures} |")
    return lines


ENGINES = """
## Engines and peers

Time of 32 steps over (32 x the network's own float32 forward pass at its best batch size), medians of rounds in one run with
everything interleaved; lower is faster (`python -m benchmarks.engines`). Peers: SpikingJelly 2.0 with its own conversion, snnTorch
and sinabs with their neurons in the place of rectifiers, all on the network rewritten with modules.

![Engines and peers](speed.png)
"""


AGREEMENT = """
Images with the same class by events as by the dense engine, and by that engine in float64 as in float32. Where a sum is a
threshold but for rounding, two orders of summation differ by a spike, and what follows from it differs: least where the network
is sure of its class.
"""


def engines_table(networks: dict[str, Any]) -> list[str]:
    """Ratios of every engine and peer, then what holds for ResNet-20 alone."""
    names = list(dict.fromkeys(name for found in networks.values() for name in found["ratios"]))
    lines = [ENGINES, "| network | " + " | ".join(names) + " | share of the roof |", "|---|" + "---:|" * (len(names) + 1)]
    for network, found in networks.items():
        cells = " | ".join(f"{found['ratios'][name]:.2f}" if name in found["ratios"] else "" for name in names)
        lines.append(f"| {network} | {cells} | {found['sops_per_second'] / found['peak_macs_per_second']:.1%} |")
    lines += ["", "Roof: synaptic operations per second of `auto` over the multiply-accumulates per second of a matrix product."]
    lines.append(AGREEMENT)
    for network, found in networks.items():
        if "float64_same_class" in (same := found["agreement"]):
            shown = f"{same['same_class']:.1%} by events, {same['float64_same_class']:.1%} in float64"
            lines.append(f"- {network}: {shown} ({same['images']} images; spikes in all {same['spikes']:.0e} apart)")
    for found in networks.values():
        if "counts" in found:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in found["counts"].items())
            lines += ["", f"Count space, forward passes in all (curve: 1, 2, 4, ..., 64 steps): {shown}."]
        if "scaling" in found:
            batches = ", ".join(f"{b}: {r:.2f}" for b, r in found["scaling"]["auto_by_batch"].items())
            ratio = found["scaling"]["256_to_128"]
            lines += ["", f"`auto` by batch size (to the forward pass at that size): {batches}; 256 steps take {ratio:.2f} x 128."]
    return lines


GPU = """
## On a GPU

ResNet-34, 224 × 224, a batch of {batch}, {steps} steps on one {gpu} (`python -m benchmarks.gpu`): time over ({steps} x the
network's own forward pass in that precision), and over that of SpikingJelly 2.0 (its own ResNet-34, multi-step, Triton,
float32). PyTorch's own settings, so float32 convolutions may use TF32.

| precision | to own forward | to SpikingJelly |
|---|---:|---:|"""


def gpu_table(found: dict[str, Any]) -> list[str]:
    """Both ratios in both precisions."""
    lines = [GPU.format(**found)]
    for precision in ("float32", "bfloat16"):
        cells = (found.get(f"{precision} to {other}") for other in ("own forward", "spikingjelly"))
        lines.append(f"| {precision} | " + " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells) + " |")
    return lines


def measured_page() -> str:
    """docs/measured.md: the figures behind the claims."""
    accuracy, convergence, speed, memory = (read(name) for name in ("accuracy", "convergence", "speed", "memory"))
    source = "Made by `python -m benchmarks.pages` from `benchmarks/results/*.json`, which name machine, versions and commit."
    lines = ["# Measured", "", source]
    if accuracy:
        rows = accuracy["rows"]
        lines += [ACCURACY, *accuracy_table(rows), "", "Calibration images and settings:", ""]
        for name, row in rows.items():
            kept = {k: v for k, v in row["method"]["settings"].items() if k not in ("granularity", "v_init")}
            lines.append(f"- {name}: ANN {row['ann']:.2f} % on these images, {row['calibration']} calibration images, {kept}")
    if tasks := read("tasks"):
        lines += tasks_table(tasks["rows"])
    if bursts := read("bursts"):
        lines += bursts_table(bursts["rows"])
    if convergence:
        lines.append(CONVERGENCE)
        for name, variants in convergence["networks"].items():
            for variant, row in variants.items():
                errors = " | ".join(f"{100 * e:.2f}" for e in row["error"])
                ratios = ", ".join(f"{r:.2f}" for r in row["ratio"])
                worst = ", ".join(f"{site} {100 * e:.0f}" for site, e in list(row["worst_layers_at_512"].items())[:3])
                lines.append(f"| {name} | {variant} | {errors} | {ratios} | {worst} |")
        lines.append(SLOW)
    if speed:
        lines += [
            "",
            "## Speed",
            "",
            f"- dense simulation, ResNet-20, 32 steps: {speed['dense']['ratio']:.2f} x (32 x own forward)",
            f"- LTB calibration: {speed['ltb']['ratio']:.2f} x the forward over the same batches",
            f"- capture of ResNet-50: {sorted(speed['capture_resnet50']['seconds'])[1]:.1f} s",
        ]
    if engines := read("engines"):
        lines += engines_table(engines["networks"])
    if startup := read("startup"):
        over = ", ".join(f"{start} {row['over']:.1f} s" for start, row in startup["starts"].items())
        asked = "ResNet-34, first simulation of a process over the steady state (cold: kernels compiled, warm: from the cache)"
        lines += ["", f"{asked}: {over}."]
    if gpu := read("gpu"):
        lines += gpu_table(gpu)
    if memory:
        budget = f"ResNet-34, 224 × 224, batch 8, max_memory {memory['budget'] >> 20} MiB; peak resident size of the process:"
        lines += ["", "## Memory", "", budget, ""]
        lines += [f"- {row['steps']} steps: {row['peak'] >> 20} MiB ({row['before'] >> 20} MiB before)" for row in memory["rows"]]
    if task_memory := read("task_memory"):
        lines += task_memory_table(task_memory["rows"])
    return "\n".join(lines) + "\n"


def task_memory_table(rows: dict[str, Any]) -> list[str]:
    """What simulations of dense networks at the papers' sizes add to a process."""
    asked = "What `simulate` adds to the process on one sample, random weights (`python -m benchmarks.task_memory`), in MiB:"
    lines = ["", asked, "", "| network | input | steps | max_memory | increase |", "|---|---|---:|---:|---:|"]
    for name, row in rows.items():
        size = " × ".join(map(str, row["input"][2:]))
        lines.append(f"| {name} | {size} | {row['steps']} | {row['budget'] >> 20} | {row['increase'] >> 20} |")
    return lines


def main() -> None:
    pages = {"methods": methods_page(), "measured": measured_page()}
    if read("board"):
        pages["board"] = board_page()
    for name, text in pages.items():
        path = ROOT / "docs" / f"{name}.md"
        write_file(path, lambda temporary, text=text: temporary.write_text(text))
    rows = read("accuracy").get("rows", {})
    readme = (ROOT / "README.md").read_text()
    table = "\n".join(["<!-- accuracy -->", "", *accuracy_table(rows, prefix="resnet20"), "", "<!-- /accuracy -->"])
    readme = re.sub(r"<!-- accuracy -->.*<!-- /accuracy -->", lambda _: table, readme, flags=re.DOTALL)
    write_file(ROOT / "README.md", lambda path: path.write_text(readme))


if __name__ == "__main__":
    main()

"""Write the generated parts of the documentation: docs/methods.md from the code, figures from benchmarks/results.

python -m benchmarks.pages
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from benchmarks.common import ROOT, read
from transpike.methods import available
from transpike.spiking.store import write_file

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


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
    """Top-1 by steps, plain and delayed."""
    lines = [
        "| conversion | read-out | " + " | ".join(map(str, STEPS)) + " | images |",
        "|---|---|" + "---:|" * (len(STEPS) + 1),
    ]
    for name, row in rows.items():
        if not name.startswith(prefix):
            continue
        for window in ("plain", "delayed"):
            curve = row["curves"][window]
            cells = " | ".join(f"{curve[t - 1]:.2f}" if t <= len(curve) else "" for t in STEPS)
            lines.append(f"| {name.removeprefix(prefix).strip()} | {window} | {cells} | {row['samples']} |")
    return lines


ACCURACY = """
## Accuracy

Top-1 (%) by time steps on networks that others trained; calibrated on other images. The delayed read-out is the papers'
rule: estimated delay, at least 4 steps.
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
    if memory:
        budget = f"ResNet-34, 224 × 224, batch 8, max_memory {memory['budget'] >> 20} MiB; peak resident size of the process:"
        lines += ["", "## Memory", "", budget, ""]
        lines += [f"- {row['steps']} steps: {row['peak'] >> 20} MiB ({row['before'] >> 20} MiB before)" for row in memory["rows"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    for name, text in (("methods", methods_page()), ("measured", measured_page())):
        path = ROOT / "docs" / f"{name}.md"
        write_file(path, lambda temporary, text=text: temporary.write_text(text))
    rows = read("accuracy").get("rows", {})
    readme = (ROOT / "README.md").read_text()
    table = "\n".join(["<!-- accuracy -->", "", *accuracy_table(rows, prefix="resnet20"), "", "<!-- /accuracy -->"])
    readme = re.sub(r"<!-- accuracy -->.*<!-- /accuracy -->", lambda _: table, readme, flags=re.DOTALL)
    write_file(ROOT / "README.md", lambda path: path.write_text(readme))


if __name__ == "__main__":
    main()

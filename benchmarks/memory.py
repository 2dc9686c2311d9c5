"""Peak memory of a simulation: ResNet-34 at 224 x 224, batch 8, in a process of its own per number of steps.

python -m benchmarks.memory
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.common import ROOT, record

BUDGET = 2 << 30

SCRIPT = """
import json, resource, sys
import torch, torchvision
from transpike import build, capture, simulate
from transpike.spiking.plan import Plan, SiteParams

torch.manual_seed(0)
x = torch.rand(8, 3, 224, 224)
graph = capture(torchvision.models.resnet34(weights=None).eval(), x[:1])
net = build(graph, Plan({site.name: SiteParams(torch.tensor(1.0), torch.tensor(0.5)) for site in graph.sites}))
del graph
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
run = simulate(net, x, steps=int(sys.argv[1]), max_memory=int(sys.argv[2]))
print(json.dumps({"steps": run.steps, "peak": peak(), "before": before}))
"""


def main() -> None:
    rows = []
    for steps in (64, 256):
        command = [sys.executable, "-c", SCRIPT, str(steps), str(BUDGET)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print({key: value if key == "steps" else f"{value / 2**20:.0f} MiB" for key, value in rows[-1].items()}, flush=True)
    record("memory", {"budget": BUDGET, "rows": rows})
    print("within the budget" if max(row["peak"] for row in rows) <= BUDGET else "OVER the budget")


if __name__ == "__main__":
    main()

"""How long the first simulation of a new process takes over the steady state: kernels compiled anew, then from the cache on disk.

python -m benchmarks.startup
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from benchmarks.common import ROOT, record

BARS = {"cold": 30.0, "warm": 3.0}  # seconds over the steady state

SCRIPT = """
import json, time
import torch, torchvision
from transpike import build, capture, simulate
from transpike.spiking.plan import Plan, SiteParams

torch.manual_seed(0)
x = torch.rand(2, 3, 224, 224)
graph = capture(torchvision.models.resnet34(weights=None).eval(), x[:1])
net = build(graph, Plan({site.name: SiteParams(torch.tensor(1.0), torch.tensor(0.5)) for site in graph.sites}))
seconds = []
for _ in range(4):
    began = time.perf_counter()
    simulate(net, x, steps=8)
    seconds.append(time.perf_counter() - began)
print(json.dumps({"first": seconds[0], "steady": min(seconds[1:])}))
"""


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for start in BARS:  # the first process fills the cache that the second finds
            environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
            command = [sys.executable, "-c", SCRIPT]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            found[start] = {**row, "over": row["first"] - row["steady"], "bar": BARS[start]}
            verdict = "met" if found[start]["over"] <= BARS[start] else "MISSED"
            print(
                f"{start} start: {found[start]['over']:.1f} s over the steady state (bar {BARS[start]:.0f} s) {verdict}", flush=True
            )
    record("startup", {"network": "resnet34", "starts": found})


if __name__ == "__main__":
    main()

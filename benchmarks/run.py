"""All benchmarks, one after the other; finished results are kept (delete benchmarks/results/NAME.json to repeat).

python -m benchmarks.run [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import RESULTS, ROOT

ONCE = ("speed", "engines", "startup", "gpu", "memory", "task_memory", "group_norm", "early_exit")
RESUMABLE = ("universality", "convergence", "accuracy", "bursts", "tasks", "qcfs", "board")


def main(names: list[str]) -> None:
    for name in names or ONCE + RESUMABLE:
        if name in RESUMABLE or names or not (RESULTS / f"{name}.json").exists():
            print(f"== {name}", flush=True)
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

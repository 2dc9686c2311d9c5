"""A converted network in one file: graph and plan as JSON, tensors as safetensors. No pickle, no user classes.

`SpikingNetwork.save` writes it. The checksum covers names, numbers and structure, so a file that was cut short or
changed is refused.
"""

from __future__ import annotations

from pathlib import Path

from transpike.errors import ArtifactError
from transpike.graph import serial
from transpike.network import FILE_FORMAT, FILE_KIND, SpikingNetwork
from transpike.spiking.plan import Plan
from transpike.spiking.store import read_tensors

__all__ = ["load"]


def load(path: Path | str) -> SpikingNetwork:
    """Read a network that `SpikingNetwork.save` wrote; it gives bit-identical outputs on the same machine.

    Raises:
        ArtifactError: missing, truncated, changed, or of a newer format.
    """
    tensors, header = read_tensors(path, FILE_KIND)
    if header.get("format") not in range(1, FILE_FORMAT + 1):
        raise ArtifactError(f"{path} has format {header.get('format')}, this version reads 1 to {FILE_FORMAT}: upgrade transpike")
    weights = {name.removeprefix("weight/"): x for name, x in tensors.items() if name.startswith("weight/")}
    numbers = {name.removeprefix("plan/"): x for name, x in tensors.items() if name.startswith("plan/")}
    graph = serial.from_header(header["graph"], weights)
    return SpikingNetwork(graph, Plan.from_header(header["plan"], numbers), **header["run"])

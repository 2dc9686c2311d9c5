"""Tensors and JSON in one safetensors file: written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from transpike.errors import ArtifactError

__all__ = ["digest", "read_tensors", "write_file", "write_tensors"]

_KEY = "transpike"


def digest(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names, and over ``text``."""
    h = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{x.dtype}|{tuple(x.shape)}|".encode())
        h.update(x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return h.hexdigest()


def write_file(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: nobody ever sees half a file.

    Raises:
        ArtifactError: the folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        write(temporary)
        temporary.replace(path)
        temporary = None
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"cannot write {path}: {reason}; choose a folder you may write to") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header with a checksum of both."""
    plain = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {_KEY: text, "sha256": digest(plain, text)}
    return write_file(path, lambda temporary: save_file(plain, temporary, metadata))


def read_tensors(path: Path | str, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        ArtifactError: no such file, not such a file, truncated, or changed since it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}: check the path")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a readable {kind}: truncated or of another format ({error}); save it again") from error
    if _KEY not in metadata or "sha256" not in metadata:
        raise ArtifactError(f"{path} is a safetensors file but not a {kind} of transpike: pass the file that .save() wrote")
    if digest(tensors, metadata[_KEY]) != metadata["sha256"]:
        raise ArtifactError(f"{path} was changed or damaged after it was written (checksum differs): save it again")
    header = json.loads(metadata[_KEY])
    if header.get("kind") != kind:
        raise ArtifactError(f"{path} holds a {header.get('kind')}, not a {kind}")
    return tensors, header

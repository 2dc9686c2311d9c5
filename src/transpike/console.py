"""How the command line speaks: text or JSON, notes, progress on the error stream, errors in one line with an exit code."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from transpike.errors import SpecError, TranspikeError

__all__ = ["about", "err", "guarded", "notes", "out", "profile", "progress", "samples", "settings", "show"]

out, err = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one line and an exit code: 1 conversion or data error, 2 usage, 130 interrupted."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except TranspikeError as error:
            err.print(f"error: {error}", highlight=False, markup=False)
            raise typer.Exit(2 if isinstance(error, SpecError) else 1) from error
        except KeyboardInterrupt as error:
            err.print("interrupted: no file was left half written")
            raise typer.Exit(130) from error

    return run


def show(found: Any, as_json: bool) -> None:
    """A report as text or JSON."""
    if as_json:
        out.print_json(json.dumps(found.to_dict()))
    else:
        out.print(str(found), highlight=False, markup=False)


def notes(found: tuple[str, ...]) -> None:
    """What a user should know, one line each."""
    for note in found:
        out.print(f"note: {note}", highlight=False, markup=False)


def profile(rows: Iterable[Mapping[str, Any]]) -> None:
    """What ran where, as a table."""
    table = Table("layer", "engine", "precision", "seconds", "density", "operations", box=None, pad_edge=False)
    for row in rows:
        density = "" if row["density"] is None else f"{row['density']:.1%}"
        ran = (row["layer"], row["engine"], row["precision"], f"{row['seconds']:.2f}")
        table.add_row(*ran, density, f"{row['operations']:.2e}")
    out.print(table)


def about(cls: type) -> str:
    """The first sentence of the module that holds the method."""
    text = (sys.modules[cls.__module__].__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).rstrip(".")


def settings(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults."""
    return {f.name: getattr(f.default, "value", f.default) for f in dataclasses.fields(cls)}


def samples(loader: Any) -> int | None:
    """How many samples a loader has, None where it does not say."""
    dataset: Any = getattr(loader, "dataset", None)
    return len(dataset) if dataset is not None else None


@contextmanager
def progress(what: str, total: int | None, quiet: bool) -> Iterator[Any]:
    """A progress bar on the error stream; yields ``tick(n)``."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n=1: bar.advance(task, n)

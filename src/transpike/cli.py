"""The command line: thin verbs over the library, no logic of their own.

Exit codes: 0 done, 1 conversion or data error (one clear line), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import transpike
from transpike import console
from transpike.console import guarded, out
from transpike.demo import Trial, comparison, run_demo
from transpike.engines.precision import check_precision
from transpike.engines.program import check_engine
from transpike.errors import SpecError
from transpike.graph.capture import Pooling
from transpike.measure.accuracy import Classification
from transpike.measure.count_curve import count_curve
from transpike.measure.early_exit import Certainty, Statistic, record
from transpike.measure.energy import energy as measure_energy
from transpike.measure.exit_report import evaluate_exit
from transpike.measure.exit_thresholds import levelled, risk_controlled
from transpike.measure.report import Report, milestones
from transpike.methods import available
from transpike.methods.qcfs import QCFS, prepare
from transpike.network import SpikingNetwork
from transpike.specs import import_factory, method_from, model_from, preparation_from, shape_from, task_from
from transpike.spiking.plan import Granularity
from transpike.spiking.store import write_file
from transpike.tasks.catalog import Kind
from transpike.tasks.data import Augmented, Counted, Preparation, loader_from
from transpike.tasks.events import Still
from transpike.training import Recipe, train_into

__all__ = ["main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=transpike.__doc__)

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, package.module:factory, a .pt2 or a .spike file")]
Network = Annotated[Path, typer.Argument(help="the .spike file that `transpike convert` wrote")]
Weights = Annotated[str | None, typer.Option(help="state dict (.pt, .safetensors); for torchvision also a name such as DEFAULT")]
Data = Annotated[str, typer.Option(help="digits, imagefolder:DIR, cifar10:DIR, npz:FILE, package.module:factory; tasks have more")]
TaskName = Annotated[str, typer.Option("--task", help="classification, segmentation, detection, video, pointcloud or events")]
Options = Annotated[list[str] | None, typer.Option("--option", help="a setting of the task, as clips=10; see docs/tasks")]
Batch = Annotated[int, typer.Option(min=1, help="samples in a batch")]
Limit = Annotated[int | None, typer.Option(min=1, help="use this many samples, spread evenly over the data")]
Size = Annotated[int, typer.Option(min=1, help="image folders: side of the square given to the network")]
Mean = Annotated[str | None, typer.Option(help="image data: mean of each channel, as 0.485,0.456,0.406")]
Std = Annotated[str | None, typer.Option(help="image data: standard deviation of each channel")]
Steps = Annotated[int, typer.Option(min=1, help="time steps")]
Engine = Annotated[str, typer.Option(help="auto, dense or events; evaluate also takes counts (parallel neurons)")]
Precision = Annotated[str, typer.Option(help="of products: float32, bfloat16 or int8; the report says what it changes")]
Threads = Annotated[int | None, typer.Option(min=1, help="processor cores to use; default: all")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


@app.command()
@guarded
def inspect(
    model: Model,
    weights: Weights = None,
    shape: Annotated[str, typer.Option("--input", help="shape of one input, as 3x224x224")] = "3x224x224",
    task: TaskName = "classification",
    pooling: Annotated[Pooling, typer.Option(help="where max pooling stands")] = Pooling.RATE,
    as_json: Json = False,
) -> None:
    """Say what is in a network: sites, what is not spike-driven, shares of the operations."""
    if model.endswith(".spike"):
        found = transpike.inspect(transpike.load(model))
    else:
        example = torch.zeros(1, *shape_from(shape))
        part = task_from(task).core(model_from(model, weights))
        found = transpike.inspect(transpike.capture(part, example, pooling=pooling))
    console.show(found, as_json)


@app.command()
@guarded
def train(
    model: Model,
    data: Data,
    out_folder: Annotated[Path, typer.Option("--output", "-o", "--out", help="folder for the network, history and checkpoint")],
    weights: Weights = None,
    levels: Annotated[int, typer.Option(min=1, help="levels of the quantising activations")] = 8,
    granularity: Annotated[Granularity, typer.Option(help="what shares a ceiling")] = QCFS.granularity,
    average_pooling: Annotated[bool, typer.Option(help="average pooling in the place of max pooling")] = False,
    noise: Annotated[float, typer.Option(min=0, help="levels by which training is off, for few steps")] = QCFS.noise,
    steps: Annotated[int | None, typer.Option(min=1, help="steps of neurons to train by instead: the last epochs")] = QCFS.steps,
    epochs: Annotated[int, typer.Option(min=1, help="passes through the data")] = Recipe.epochs,
    lr: Annotated[float, typer.Option(min=0, help="learning rate of the first step, falls as a cosine")] = Recipe.lr,
    momentum: Annotated[float, typer.Option(min=0, max=1, help="of SGD")] = Recipe.momentum,
    weight_decay: Annotated[float, typer.Option(min=0, help="of all but the ceilings")] = Recipe.weight_decay,
    seed: Annotated[int, typer.Option(help="of order and augmentation")] = Recipe.seed,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="multiply in bfloat16: faster where the processor can")] = False,
    kept: Annotated[float, typer.Option(min=0, max=1, help="share of the first weights in the last: few steps cost many less")] = 0,
    crop: Annotated[int, typer.Option(min=0, help="random crops: pixels of padding")] = 0,
    flip: Annotated[bool, typer.Option(help="mirror images at random")] = False,
    test: Annotated[str | None, typer.Option(help="data to evaluate on; default: the test split of digits and cifar10")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in the folder")] = False,
    batch: Batch = 128,
    limit: Limit = None,
    size: Size = 224,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Train a network with quantising activations (QCFS), from given weights or anew, for `convert --method qcfs`."""
    preparation = preparation_from(batch, limit, size, mean, std, "train")
    shuffled = loader_from(data, dataclasses.replace(preparation, shuffle=True), import_factory)
    test = test or (data if data.split(":")[0] in ("digits", "cifar10") else None)
    held_out = None if test is None else loader_from(test, preparation_from(batch, None, size, mean, std, "test"), import_factory)
    few = islice(loader_from(data, preparation, import_factory), 10)
    net = prepare(model_from(model, weights), QCFS(levels, granularity, average_pooling, noise, steps), few)
    recipe = Recipe(epochs, lr, momentum, weight_decay, seed=seed, bfloat16=bfloat16, kept=kept)
    with console.progress("training, batches", epochs * len(shuffled), as_json) as tick:
        batches, say = Augmented(shuffled, crop, flip), lambda epoch: None if as_json else out.print(str(epoch), highlight=False)
        history = train_into(out_folder, net, batches, recipe, validation=held_out, resume=resume, tick=tick, done=say)
    file = out_folder / "model.safetensors"
    if as_json:
        out.print_json(json.dumps({"file": str(file), "levels": levels, "history": list(map(vars, history))}))
    else:
        out.print(f"wrote {file}: transpike convert {model} --weights {file} --method qcfs --data ...", highlight=False)


@app.command()
@guarded
def convert(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="the .spike file to write")],
    method: Annotated[str, typer.Option(help="a name of `transpike methods`, or A+B for one after the other")] = "Auto",
    settings: Annotated[list[str] | None, typer.Option("--set", help="a setting of the method, as iterations=500")] = None,
    weights: Weights = None,
    task: TaskName = "classification",
    options: Options = None,
    batch: Batch = 100,
    limit: Limit = None,
    size: Size = 224,
    mean: Mean = None,
    std: Std = None,
    pooling: Annotated[Pooling, typer.Option(help="where max pooling stands")] = Pooling.RATE,
    require_spiking: Annotated[bool, typer.Option(help="refuse a network with operations that are not spike-driven")] = False,
    as_json: Json = False,
) -> None:
    """Convert a network on calibration data and write a .spike file."""
    chosen = method_from(method, settings or [])
    net = model_from(model, weights)
    preparation = preparation_from(batch, limit, size, mean, std, "train")
    kind = task_from(task, options or [], preparation, net)
    loader = _loader(data, kind, preparation)
    batches = Still(loader) if kind.streamed else loader
    with console.progress(f"calibrating with {method}", getattr(chosen, "iterations", None), as_json) as tick:
        counted, part = Counted(batches, tick), kind.core(net)
        converted = transpike.convert(part, chosen, counted, pooling=pooling, require_spiking=require_spiking)
    converted.save(output)
    if as_json:
        out.print_json(
            json.dumps({"file": str(output), **converted.plan.header()["metadata"], "notes": list(converted.plan.notes)})
        )
    else:
        out.print(f"wrote {output}: {len(converted.graph.sites)} sites, {output.stat().st_size / 1e6:.1f} MB", highlight=False)
        console.notes(converted.plan.notes)


@app.command()
@guarded
def evaluate(
    network: Network,
    data: Data,
    steps: Steps = 32,
    start: Annotated[list[int] | None, typer.Option(help="also read out from this step on")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for the report: text, JSON and PNG")] = None,
    leave: Annotated[Statistic | None, typer.Option("--exit", help="let samples leave early, and report on that instead")] = None,
    exit_data: Annotated[str | None, typer.Option(help="labelled data to choose exits on, neither trained nor tested on")] = None,
    exit_loss: Annotated[float, typer.Option(help="the share of accuracy that exits may lose")] = 0.01,
    exit_confidence: Annotated[float, typer.Option(help="the confidence that they lose no more")] = 0.95,
    task: TaskName = "classification",
    options: Options = None,
    engine: Engine = "auto",
    precision: Precision = "float32",
    threads: Threads = None,
    profile: Annotated[bool, typer.Option("--profile", help="also print what ran where: time, density, engine by layer")] = False,
    batch: Batch = 100,
    limit: Limit = None,
    size: Size = 224,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """The task's metric at every step, agreement with the ANN, rates and energy, in one pass."""
    if (leave is None) != (exit_data is None):
        raise SpecError("--exit and --exit-data go together: exits are chosen on labelled data of their own")
    if leave is not None and (start or precision != "float32"):
        raise SpecError("--exit reads out from the first step on, in float32: drop --start and --precision")
    if engine == "counts" and (leave is not None or start or profile or output is not None):
        raise SpecError("--engine counts gives a curve alone: drop --exit, --start, --profile and --output")
    check_engine(engine if engine != "counts" else "auto")
    check_precision(precision, engine)
    if threads is not None:
        torch.set_num_threads(threads)
    preparation = preparation_from(batch, limit, size, mean, std, "test")
    kind = task_from(task, options or [], preparation)
    single = kind.task if isinstance(kind.task, Classification) else None
    if leave is not None and single is None:
        raise SpecError(f"--exit asks how sure one answer per sample is: {task} has many answers, or several samples for one")
    if engine == "counts" and single is None:
        raise SpecError(f"--engine counts measures one class per sample: {task} needs another engine")
    net = transpike.load(network)
    net = net.streamed() if kind.streamed else net
    loader = _loader(data, kind, preparation)
    policy = None
    if leave is not None and exit_data is not None:
        held_out = _loader(exit_data, kind, dataclasses.replace(preparation, split="train"))
        with console.progress("choosing exits: batches", None, as_json) as tick:
            trace = record(net, Counted(held_out, tick), steps, task=single)
        shape, rest = trace.halves()
        policy = risk_controlled(rest, levelled(shape, Certainty(leave)), loss=exit_loss, confidence=exit_confidence)
    with console.progress("samples", console.samples(loader), as_json) as tick:
        done = 0

        def advance(samples: int) -> None:
            nonlocal done
            tick(samples - done)
            done = samples

        if engine == "counts":
            console.show(count_curve(net, loader, milestones(steps), task=single, progress=advance), as_json)
            return
        if policy is None:
            how = {"starts": tuple(start or ()), "engine": engine, "precision": precision}
            report = transpike.evaluate(net, loader, steps, task=kind.task, progress=advance, **how)
        else:
            report = evaluate_exit(net, loader, policy, task=single, progress=advance)
    if output is not None:
        report.save(output)
        if kind.picture is not None:
            kind.picture(net, next(iter(loader)), steps, output / "examples.png")
    console.show(report, as_json)
    if profile and not as_json and isinstance(report, Report):
        console.profile(report.profile)


@app.command()
@guarded
def energy(
    network: Network,
    data: Data,
    steps: Steps = 32,
    task: TaskName = "classification",
    options: Options = None,
    batch: Batch = 100,
    limit: Limit = None,
    size: Size = 224,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Synaptic operations and energy per sample under both constant sets; needs no labels."""
    preparation = preparation_from(batch, limit, size, mean, std, "test")
    kind = task_from(task, options or [], preparation)
    net: SpikingNetwork = transpike.load(network)
    net = net.streamed() if kind.streamed else net
    loader = _loader(data, kind, preparation)
    with console.progress("batches", None, as_json) as tick:
        found = measure_energy(net, Counted(loader, tick), steps)
    console.show(found, as_json)


@app.command()
@guarded
def methods(as_json: Json = False) -> None:
    """List the conversion methods with their settings."""
    found = {name: cls for name, cls in available().items() if name != "Chain"}
    if as_json:
        out.print_json(
            json.dumps({name: {"about": console.about(cls), "settings": console.settings(cls)} for name, cls in found.items()})
        )
        return
    table = Table("method", "what it does", "settings", box=None, pad_edge=False)
    for name, cls in found.items():
        table.add_row(name, console.about(cls), ", ".join(f"{key}={value}" for key, value in console.settings(cls).items()))
    out.print(table)


@app.command()
@guarded
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for reports and curves")] = Path("transpike-demo"),
    steps: Steps = 64,
    as_json: Json = False,
) -> None:
    """Convert a small network for handwritten digits with every method and compare them."""
    write_file(output / "README.txt", lambda path: path.write_text("Written by `transpike demo`.\n"))
    with console.progress("converting with every method", None, as_json) as tick:

        def done(trial: Trial, report: Report) -> None:
            tick(1)

        reports = run_demo(output, steps, done)
    if as_json:
        out.print_json(json.dumps({name: report.to_dict() for name, report in reports.items()}))
        return
    table, remarks = comparison(reports, steps)
    first = next(iter(reports.values()))
    out.print(f"{first.network}: top-1 (%) on {first.samples} handwritten digits by time steps; ANN {first.ann['top1']:.2%}")
    out.print(table)
    for remark in remarks:
        out.print(remark, highlight=False)
    out.print(f"reports and curves are in {output}/ (curves.png, summary.json, one folder per method)", highlight=False)


def _loader(data: str, kind: Kind, preparation: Preparation) -> Any:
    return loader_from(data, preparation, import_factory, sources=kind.sources, collate=kind.collate)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run() -> None:
    """The ``transpike`` command."""
    sys.exit(main())


if __name__ == "__main__":
    run()

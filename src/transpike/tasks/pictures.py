"""What a network makes of a few samples at several steps, beside the ANN and the truth, as one PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from transpike.graph.batches import checked_inputs, inputs_of, target_of
from transpike.graph.interpret import forward
from transpike.graph.ir import map_tree
from transpike.measure.accuracy import Classification
from transpike.measure.report import milestones
from transpike.measure.tally import Task
from transpike.network import SpikingNetwork, simulate
from transpike.spiking.store import write_file
from transpike.tasks.detection import Boxes, Detection
from transpike.tasks.images import Fit
from transpike.tasks.segmentation import Segmentation
from transpike.tasks.video import VideoAccuracy

__all__ = ["activity", "cloud", "draw_classes", "draw_detections", "draw_masks", "draw_parts", "middle_frame", "shown_steps"]

_ROWS = 3  # samples in a picture
_ABOUT = 6  # classes of which a curve is drawn

Show = Callable[[Any, torch.Tensor], None]  # axes and one input


def shown_steps(steps: int) -> list[int]:
    """At most four of 1, 2, 4, ... and the last step, evenly chosen among them."""
    known = milestones(steps)
    if len(known) <= 4:
        return known
    return [known[round(k * (len(known) - 1) / 3)] for k in range(4)]


def draw_masks(net: SpikingNetwork, batch: Any, steps: int, path: Path, *, task: Segmentation, fit: Fit) -> Path:
    """Photo, true mask, the ANN's and the spiking network's at several steps, over the photo."""
    x, targets = _few(net, batch)
    answers = _answers(net, x, steps, task)
    top = max(int(torch.stack([answer.max() for answer in answers.values()]).max()), int(targets[targets != task.ignore].max()))

    def paint(axes: Any, classes: torch.Tensor, photo: torch.Tensor) -> None:
        axes.imshow(photo.numpy())
        hidden = classes.float().masked_fill((classes == 0) | (classes == task.ignore), float("nan"))
        axes.imshow(hidden.numpy(), cmap="tab20", vmin=0, vmax=max(top, 19), alpha=0.65, interpolation="nearest")

    def draw(cell: Callable[[int, int], Any]) -> None:
        for n, image in enumerate(x):
            photo = fit.pixels(image)
            cell(n, 0).imshow(photo.numpy())
            for k, classes in enumerate([targets[n], *(answer[n] for answer in answers.values())], 1):
                paint(cell(n, k), classes.cpu(), photo)

    return _grid(path, ["photo", "truth", *answers], len(x), draw)


def draw_parts(net: SpikingNetwork, batch: Any, steps: int, path: Path, *, task: Segmentation) -> Path:
    """Clouds in the colours of their true parts, the ANN's and the spiking network's at several steps."""
    x, targets = _few(net, batch)
    answers = _answers(net, x, steps, task)

    def draw(cell: Callable[[int, int], Any]) -> None:
        for n, points in enumerate(x):
            for k, parts in enumerate([targets[n], *(answer[n] for answer in answers.values())]):
                _scatter(cell(n, k), points, parts.cpu(), cmap="tab10", vmin=0, vmax=9)

    return _grid(path, ["truth", *answers], len(x), draw)


def draw_detections(net: SpikingNetwork, batch: Any, steps: int, path: Path, *, task: Detection, fit: Fit) -> Path:
    """True boxes, and the confident ones of the ANN and of the spiking network at several steps, on the photo."""
    x, targets = _few(net, batch)
    answers = _answers(net, x, steps, task)

    def draw(cell: Callable[[int, int], Any]) -> None:
        for n, image in enumerate(x):
            photo = fit.pixels(image)
            for k, boxes in enumerate([targets[n], *(answer.found[n] for answer in answers.values())]):
                cell(n, k).imshow(photo.numpy())
                _boxes(cell(n, k), boxes, task.confident, fit.size)

    return _grid(path, ["truth", *answers], len(x), draw)


def _boxes(axes: Any, boxes: Boxes, confident: float, size: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle  # as in `_grid`

    corners = boxes["boxes"].cpu()
    if "scores" in boxes:
        corners = corners[boxes["scores"].cpu() >= confident]
    labels = boxes["labels"].cpu()[boxes["scores"].cpu() >= confident] if "scores" in boxes else boxes["labels"]
    scale = torch.tensor([size[1], size[0]] * 2) if len(corners) and float(corners.max()) <= 1.5 else 1  # fractions of the image
    for (x1, y1, x2, y2), label in zip((corners * scale).tolist(), labels.tolist(), strict=True):
        colour = f"C{label % 10}"
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.2))
        axes.text(x1, y1, str(label), fontsize=6, color="white", backgroundcolor=colour, clip_on=True)


def draw_classes(
    net: SpikingNetwork, batch: Any, steps: int, path: Path, *, task: Classification | VideoAccuracy, show: Show
) -> Path:
    """The input as ``show`` draws it, and how sure of each class the read-out is at every step, or time; dotted: the ANN."""
    x, _ = _few(net, batch)
    outputs = task.readout(simulate(net, x, steps).outputs).double()
    t = torch.arange(1, steps + 1)
    sure = (outputs.cumsum(0) / t.view(-1, 1, 1)).softmax(-1)
    ann = task.readout(forward(net.graph, [x])).double().softmax(-1)
    time = t if task.step_ms is None else t * task.step_ms

    def draw(cell: Callable[[int, int], Any]) -> None:
        for n, image in enumerate(x):
            show(cell(n, 0), image)
            axes = cell(n, 1)
            axes.axis("on")
            for label in torch.maximum(ann[n], sure[-1, n]).topk(min(_ABOUT, ann.shape[1])).indices.tolist():
                axes.plot(time.numpy(), sure[:, n, label].numpy(), color=f"C{label % 10}", label=str(label), linewidth=1.2)
                axes.axhline(float(ann[n, label]), color=f"C{label % 10}", linestyle=":", linewidth=0.8)
            axes.set(ylim=(-0.02, 1.02), xlabel="time steps" if task.step_ms is None else "ms since the first event")
            axes.legend(fontsize=6, title="class", title_fontsize=6, loc="upper right")

    return _grid(path, ["input", "probability of classes, dotted: ANN"], len(x), draw, widths=(1, 2))


def middle_frame(axes: Any, clip: torch.Tensor) -> None:
    """The frame in the middle of a clip 3 T H W."""
    frame = clip[:, clip.shape[1] // 2].movedim(0, -1)
    axes.imshow(((frame - frame.min()) / (frame.max() - frame.min()).clamp(min=1e-12)).numpy())


def cloud(axes: Any, points: torch.Tensor) -> None:
    """Points seen a little from above; near ones are dark. P 3, or 3 P"""
    _scatter(axes, points, None, cmap="viridis")


def _scatter(axes: Any, points: torch.Tensor, colours: torch.Tensor | None, **options: Any) -> None:
    x, depth, z = (points if points.shape[-1] != 3 else points.T).numpy()
    axes.scatter(x + 0.3 * depth, z + 0.3 * depth, c=depth if colours is None else colours.numpy() % 10, s=2, **options)
    axes.set_aspect("equal")


def activity(axes: Any, frames: torch.Tensor) -> None:
    """The sum of all frames and channels at each pixel. ... H W"""
    axes.imshow(frames.flatten(0, -3).sum(0).numpy(), cmap="magma")


def _few(net: SpikingNetwork, batch: Any) -> tuple[torch.Tensor, Any]:
    x = checked_inputs(net.graph, inputs_of(batch))[0][:_ROWS]
    return x, target_of(batch)[:_ROWS]


def _answers(net: SpikingNetwork, x: torch.Tensor, steps: int, task: Task) -> dict[str, Any]:
    """Answers by column title: the ANN's, and those at several steps."""
    outputs = task.readout(simulate(net, x, steps).outputs)
    found = {"ANN": task.answer(task.readout(forward(net.graph, [x])))}
    for t in shown_steps(steps):
        found[f"{t} steps" if t > 1 else "1 step"] = task.answer(map_tree(lambda y, t=t: y[:t].mean(0), outputs))
    return found


def _grid(
    path: Path,
    titles: Sequence[str],
    rows: int,
    draw: Callable[[Callable[[int, int], Any]], None],
    widths: Sequence[float] | None = None,
) -> Path:
    """Rows of pictures under ``titles``; ``draw`` is given the axes by row and column."""
    # imported here because it takes about as long as the rest of transpike, and most uses draw nothing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = widths or [1] * len(titles)
    figure = Figure(figsize=(2.2 * sum(shares), 2.2 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(rows, len(titles), squeeze=False, width_ratios=shares)
    for axes in cells.flat:
        axes.axis("off")
    for axes, title in zip(cells[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    draw(lambda row, column: cells[row][column])
    return write_file(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))

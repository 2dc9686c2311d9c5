"""Weights made in the forward pass are parameters afterwards; batch statistics of data are still refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transpike
from transpike.errors import CaptureError
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.methods.max_norm import MaxNorm


class Standardised(nn.Module):
    """As in networks without normalisation: each filter has mean 0 and variance 1, by batch norm of the weight."""

    def __init__(self, inside: int, outside: int, size: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.conv.weight.reshape(1, self.conv.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.conv.weight)
        return F.conv2d(x, weight, self.conv.bias, padding=self.conv.padding)


class Positions(nn.Module):
    """A table that is looked up, and given to every sample."""

    index: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 5))
        self.register_buffer("index", torch.tensor([2, 0, 1, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[self.index].exp().expand(x.shape[0], -1, -1)


def test_composed_weights_are_computed_once_and_batch_norm_folds_into_them() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    model = nn.Sequential(
        Standardised(3, 4, 3, padding=1), norm, nn.ReLU(), normed, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    graph = capture(model, x)
    ops = [node.op.split(".")[1] for node in graph.nodes]
    assert ops == ["conv2d", "relu", "conv2d", "relu", "reshape", "linear"]
    net = transpike.convert(model, MaxNorm(), x)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(forward(graph, [x]), wanted)
    error = (transpike.simulate(net, x, steps=256).readout() - wanted).norm() / wanted.norm()
    assert error < 0.02


def test_looked_up_tables_are_parameters_but_what_depends_on_the_number_of_samples_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Positions(), nn.ReLU(), nn.Linear(5, 2)).eval()
    graph = capture(model, torch.randn(2, 4, 5))
    assert any(x.shape == (4, 5) for x in graph.params.values()) and not any(node.op == "aten.exp.default" for node in graph.nodes)
    for n in (1, 3):
        x = torch.randn(n, 4, 5)
        with torch.no_grad():
            torch.testing.assert_close(forward(graph, [x]), model(x))


def test_batch_statistics_of_data_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()).eval()
    with pytest.raises(CaptureError, match="normalisation by batch statistics in 1"):
        capture(model, torch.randn(2, 3, 6, 6))


def test_a_file_keeps_computed_weights(tmp_path: Path) -> None:
    model = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    net = transpike.convert(model, MaxNorm(), x)
    net.save(tmp_path / "net.spike")
    assert torch.equal(transpike.load(tmp_path / "net.spike")(x), net(x))

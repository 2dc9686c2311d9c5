"""Folding batch norm (P-IF-7): ``y = g x + h`` goes into the synapse behind or before it, to rounding in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import make, vectors
from transpike.graph.capture import capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Graph, Role
from transpike.graph.passes import folded
from transpike.graph.prepared import Prepared
from transpike.graph.roles import AFFINE, BATCH_NORM, base_name


def _normalised(layers: list[nn.Module]) -> nn.Module:
    """In float64 and eval mode, with statistics of no special kind."""
    generator = torch.Generator().manual_seed(0)
    for module in layers:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return nn.Sequential(*layers).double().eval()


def _captured(layers: list[nn.Module], *shape: int) -> tuple[nn.Module, Graph, torch.Tensor]:
    torch.manual_seed(0)
    model, x = _normalised(layers), torch.randn(3, *shape, dtype=torch.float64)
    return model, capture(model, x), x


def _ops(graph: Graph) -> list[str]:
    return [base_name(node.op) for node in graph.nodes]


BEHIND = {
    "conv1d": ([nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)], (3, 8)),
    "conv2d grouped": ([nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=False), nn.BatchNorm2d(6)], (4, 7, 7)),
    "conv3d": ([nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 4, 4, 4)),
    "conv2d same": ([nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)], (3, 6, 6)),
    "transposed": ([nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)], (3, 5, 5)),
    "transposed grouped": ([nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6)], (4, 5, 5)),
    "transposed 1d": ([nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)], (4, 9)),
    "linear": ([nn.Linear(5, 4), nn.BatchNorm1d(4)], (5,)),
    "no affine": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)], (3, 6, 6)),
}
BEFORE = {
    "linear": ([nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 4)], (5,)),
    "linear without bias": ([nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 4, bias=False)], (5,)),
    "conv": ([nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, stride=2)], (3, 7, 7)),
    "conv grouped": ([nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, bias=False)], (4, 7, 7)),
    "conv valid": ([nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="valid")], (3, 7, 7)),
}
AFFINE_STAYS = {
    "padded conv": ([nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)], (3, 7, 7)),
    "transposed": ([nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 3)], (3, 5, 5)),
    "between neurons": ([nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()], (3, 5, 5)),
    "channels are not features": ([nn.ReLU(), nn.Linear(5, 6), nn.BatchNorm1d(3)], (3, 5)),
}


@pytest.mark.parametrize("name", BEHIND)
def test_batch_norm_behind_a_synapse_folds_into_it(name):
    model, graph, x = _captured(*BEHIND[name][:1], *BEHIND[name][1])
    assert len(graph.nodes) == 1
    torch.testing.assert_close(forward(graph, [x]), model(x).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BEFORE)
def test_batch_norm_before_a_synapse_without_padding_folds_into_it(name):
    model, graph, x = _captured(*BEFORE[name][:1], *BEFORE[name][1])
    assert len(graph.nodes) == 2
    torch.testing.assert_close(forward(graph, [x]), model(x).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE_STAYS)
def test_batch_norm_that_cannot_fold_stays_as_one_linear_operation(name):
    model, graph, x = _captured(*AFFINE_STAYS[name][:1], *AFFINE_STAYS[name][1])
    assert _ops(graph).count(AFFINE) == 1 and "aten._native_batch_norm_legit_no_training" not in _ops(graph)
    torch.testing.assert_close(forward(graph, [x]), model(x).detach(), rtol=1e-12, atol=1e-12)


def test_the_folded_numbers_are_those_of_the_closed_form():
    model, graph, _ = _captured(*BEHIND["conv1d"][:1], *BEHIND["conv1d"][1])
    conv, norm = model
    g = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(graph.params["0.weight"], (g[:, None, None] * conv.weight).detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(graph.params["0.bias"], (g * (conv.bias - norm.running_mean) + norm.bias).detach())


def test_a_convolution_read_by_two_batch_norms_keeps_two_sets_of_weights():
    model = make("shared_conv").double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = capture(model, x)
    assert AFFINE not in _ops(graph) and len([name for name in graph.params if name.startswith("conv.weight")]) == 2
    torch.testing.assert_close(forward(graph, [x]), model(x).detach(), rtol=1e-12, atol=1e-12)


def test_a_synapse_whose_result_is_read_elsewhere_too_keeps_its_weights():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x)
            return y + self.norm(y)

    model = Both().double().eval()
    graph, x = capture(model, vectors().double()), vectors().double()
    assert torch.equal(graph.params["fc.weight"], model.fc.weight)
    torch.testing.assert_close(forward(graph, [x]), model(x).detach(), rtol=1e-12, atol=1e-12)


def test_batch_norm_before_two_readers_folds_into_both():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.left, self.right = nn.BatchNorm1d(6), nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(torch.relu(x))
            return self.left(x) - self.right(x)

    model = Fork().double().eval()
    model.norm.running_mean.uniform_(0.5, 1.5)
    graph, x = capture(model, vectors().double()), vectors().double()
    assert AFFINE not in _ops(graph)
    torch.testing.assert_close(forward(graph, [x]), model(x).detach(), rtol=1e-12, atol=1e-12)


def test_a_network_that_quantises_folds_on_request_and_loses_what_nobody_reads():
    layers = [nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)]
    model, x = _normalised(layers), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    graph = capture(Prepared(model, 64, [2.0, 2.0]).eval(), x)
    small = folded(graph)
    assert _ops(graph).count(BATCH_NORM) == 2 and BATCH_NORM not in _ops(small) and _ops(small).count(AFFINE) == 1
    assert small.sites == graph.sites and [node.role for node in small.body].count(Role.LINEAR) == 2
    assert not any("running" in name for name in small.params)
    torch.testing.assert_close(forward(small, [x]), forward(graph, [x]), rtol=1e-12, atol=1e-12)


def test_weights_that_the_prefix_reads_too_keep_their_numbers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.fc(torch.relu(self.fc(x))))

    torch.manual_seed(0)
    model, x = _normalised([Twice(), nn.BatchNorm1d(5)]), torch.randn(3, 5, dtype=torch.float64)
    graph = capture(Prepared(model, 64, [2.0]).eval(), x)
    torch.testing.assert_close(forward(folded(graph), [x]), forward(graph, [x]), rtol=1e-12, atol=1e-12)

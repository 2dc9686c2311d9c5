"""Capture: the graph computes what the model computes, the model is left alone, and every misfit is named at once."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from models import CASES, as_inputs, batch_of, captured, images, make, tensors, vectors
from transpike.errors import CaptureError
from transpike.graph.capture import Pooling, _as_the_weights, _export, capture
from transpike.graph.interpret import forward
from transpike.graph.ir import Role

Pair = namedtuple("Pair", "first second")


class Behind(nn.Module):
    """``function`` behind one rectified linear layer: the smallest network with a given operation in its body."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.function = nn.Linear(6, 8), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(F.relu(self.fc(x)))


class Counter(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.relu(x) * self.calls


class Branch(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x) if x.sum() > 0 else x


class Join(nn.Module):
    """Takes keyword tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return F.relu(self.left(left)) - F.relu(self.right(right))


def problems(model: nn.Module, example: Any) -> tuple[str, ...]:
    with pytest.raises(CaptureError) as caught:
        capture(model, example)
    return caught.value.problems


def structure(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tuple(tree.shape)
    if isinstance(tree, dict):
        return {key: structure(value) for key, value in tree.items()}
    return type(tree)(structure(value) for value in tree)


@pytest.mark.parametrize("name", CASES)
def test_captured_forward_equals_the_model_for_any_batch_size_in_its_own_structure(name):
    model, graph = make(name), captured(name)
    for n in (1, 3, 8):
        x = as_inputs(batch_of(name, n))
        with torch.no_grad():
            wanted = model(*x)
        got = forward(graph, x)
        assert structure(got) == structure(wanted)
        for a, b in zip(tensors(got), tensors(wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = make("residual")
    model.fc.weight.requires_grad_(False)
    hook = model.fc.register_forward_hook(lambda *_: None)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    identities = [id(x) for x in [*model.parameters(), *model.buffers()]]
    graph = capture(model, images())
    graph.params["fc.weight"].add_(1)  # the graph has copies
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert identities == [id(x) for x in [*model.parameters(), *model.buffers()]]
    assert not any(module.training for module in model.modules())
    assert list(model.fc._forward_hooks) == [hook.id] and not model._forward_pre_hooks
    assert not model.fc.weight.requires_grad and model.conv1.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_refused_model_is_left_as_it_was_too():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), Counter()).train()
    before = copy.deepcopy(model.state_dict())
    problems(model, vectors())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_the_example_is_not_written_to():
    x = vectors()
    before = x.clone()
    capture(make("inplace_relu"), x)
    assert torch.equal(x, before)


def test_every_call_of_one_relu_module_is_a_site_of_its_own():
    assert [site.name for site in captured("shared_relu").sites] == ["act#1", "act#2", "act#3"]


def test_functional_rectifiers_are_named_after_the_module_that_calls_them():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make("functional_relu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    assert [site.name for site in capture(Outer().eval(), vectors()).sites] == [f"inner.relu#{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("mlp", [("1#1", (16,), 0, None), ("3#1", (12,), 0, None)]),
        ("residual", [(f"relu#{i}", (8, 4, 4), 0, None) for i in (1, 2, 3)]),
        ("relu6", [("act#1", (8,), 0, 6.0)]),
        ("clamped", [("clamp#1", (8,), 0, None), ("clamp#2", (8,), 0, 0.5)]),
        ("depthwise", [("2#1", (8, 4, 4), 0, 6.0), ("5#1", (8, 4, 4), 0, 6.0), ("8#1", (12, 4, 4), 0, 6.0)]),
        ("attention", [("relu#1", (5, 8), 1, None), ("relu#2", (5, 16), 1, None)]),
        ("tokens_first", [("relu#1", (5, 8), 1, None)]),
        ("conv3d", [("2#1", (4, 4, 8, 8), 0, None), ("5#1", (5, 2, 4, 4), 0, None)]),
    ],
)
def test_a_site_has_name_shape_channel_axis_and_ceiling(name, sites):
    assert [(site.name, site.shape, site.channel_axis, site.ceiling) for site in captured(name).sites] == sites


def test_half_precision_networks_are_captured_in_single_precision():
    for dtype in (torch.float16, torch.bfloat16):
        model = make("mlp").to(dtype)
        graph = capture(model, vectors().to(dtype))
        assert {x.dtype for x in graph.params.values()} == {graph.inputs[0].dtype} == {torch.float32}
        assert next(model.parameters()).dtype is dtype
        with torch.no_grad():
            torch.testing.assert_close(forward(graph, [vectors()]), make("mlp").to(dtype).float()(vectors()))


@pytest.mark.parametrize(
    ("weights", "data"), [(torch.float64, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.float64)]
)
def test_the_example_takes_the_precision_of_the_weights(weights, data):
    graph = capture(make("mlp").to(weights), vectors().to(data))
    assert graph.inputs[0].dtype is weights
    assert forward(graph, [vectors().to(weights)]).dtype is weights


def test_keyword_tensors_keep_their_names_in_any_order():
    torch.manual_seed(0)
    model, left, right = Join().eval(), vectors(3), vectors(3, 5)
    graph = capture(model, {"right": right, "left": left})
    by_key = {"left": left, "right": right}
    with torch.no_grad():
        torch.testing.assert_close(forward(graph, [by_key[value.key] for value in graph.inputs]), model(left, right))


def test_a_compiled_model_is_captured_as_the_model_it_wraps():
    assert [site.name for site in capture(torch.compile(make("mlp")), vectors()).sites] == ["1#1", "3#1"]


def test_hooks_that_change_a_result_are_part_of_the_network():
    model = make("mlp")
    model.register_forward_hook(lambda module, args, output: output * 2)
    with torch.no_grad():
        torch.testing.assert_close(forward(capture(model, vectors()), [vectors()]), model(vectors()))


def test_named_tuples_come_back_as_tuples():
    graph = capture(Behind(lambda h: Pair(h, h * 2)).eval(), vectors())
    assert type(forward(graph, [vectors()])) is tuple


def test_training_mode_integer_input_nan_weights_and_batch_mixing_are_reported_at_once():
    model = Behind(lambda h: h.flip(0)).train()
    model.fc.weight.data[0, 0] = float("nan")
    found = problems(model, torch.ones(3, 6, dtype=torch.int64))
    for part in ("dtype torch.int64", "model.eval()", "fc.weight has NaN", "aten.flip"):
        assert sum(part in problem for problem in found) == 1, part
    assert len(found) == 4


def test_random_stateful_and_batch_statistics_are_reported_at_once():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(), Counter()).eval()
    model[2].train()
    found = problems(model, vectors())
    for part in ("random operation aten.native_dropout.default in 2", "changes its own state", "batch statistics in 1"):
        assert sum(part in problem for problem in found) == 1, part


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda h: h + torch.rand_like(h), "random operation aten.rand_like"),
        (lambda h: h - h.mean(0), "no batch axis"),
        (lambda h: h.flip(0), "aten.flip.default in flip mixes the batch"),
        (lambda h: h @ h.t() @ h, "batch on two axes"),
        (lambda h: h / h.shape[0], "size of the batch"),
        (lambda h: h[torch.arange(h.shape[0])], "sample's place"),
        (lambda h: h.view(2, -1), "batch size is fixed"),
        (lambda h: h.view(16, -1), "batch size is fixed"),
        (lambda h: h.as_strided((h.shape[0], 8), (8, 1)), "layout of memory"),
        (lambda h: (h, 3), "returns int"),
        (lambda h: None, "returns NoneType"),
        (lambda h: h.argmax(1), "logits, not class numbers"),
        (lambda h: {"a": h, "b": torch.ones(2)}, "output 1 does not depend on the input"),
    ],
)
def test_what_would_be_silently_wrong_is_refused_with_its_reason(function, part):
    found = problems(Behind(function).eval(), vectors(16))
    assert any(part in problem for problem in found), found


def test_a_product_with_the_batch_size_before_the_first_neuron_is_refused():
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x / x.shape[0])

    assert "size of the batch" in problems(Scaled().eval(), vectors())[0]


def test_control_flow_on_data_is_refused_with_its_line_and_nothing_is_printed(capfd):
    (found,) = problems(Branch().eval(), vectors())
    assert "depends on the data" in found and "test_capture.py" in found
    out, err = capfd.readouterr()
    assert not out and not err


@pytest.mark.parametrize(
    ("example", "part"),
    [
        (torch.zeros(0, 6), "at least one sample"),
        (torch.tensor(1.0), "at least one sample"),
        ("image.png", "holds str"),
        ((), "holds nothing"),
        (torch.zeros(3, 7), "cannot trace it"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(example, part):
    assert part in problems(make("mlp"), example)[0]


def test_an_empty_example_is_the_only_problem_reported_for_a_sound_model():
    assert len(problems(make("mlp"), torch.zeros(0, 6))) == 1


def test_what_is_no_module_is_refused():
    assert "not a torch.nn.Module" in problems(lambda x: x, vectors())[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "roles"),
    [
        (lambda h: h * (h > 0.3), [Role.ANALOG, Role.ANALOG]),
        (lambda h: h.int().float(), [Role.ANALOG, Role.ANALOG]),
        (lambda h: h.double().float(), [Role.SHAPE, Role.SHAPE]),
        (lambda h: (h > 0.3).view(-1, 2, 4).sum(1).float(), [Role.ANALOG, Role.SHAPE, Role.LINEAR, Role.ANALOG]),
    ],
)
def test_masks_and_indices_have_no_average_so_their_borders_are_analog(function, roles):
    graph = capture(Behind(function).eval(), vectors())
    assert [node.role for node in graph.body[1:]] == roles


def test_capture_does_not_depend_on_how_many_samples_the_example_has():
    one, many = capture(make("fire"), images(1)), captured("fire", Pooling.RATE)
    assert [node.op for node in one.nodes] == [node.op for node in many.nodes] and one.sites == many.sites


def test_a_network_on_a_gpu_is_traced_with_an_example_from_the_cpu():
    """Without a GPU: tensors that have its device but no values, and convolutions that there take at most 65,535 samples."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            net = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(8, 2)
            ).eval()
        _, args, kwargs = _as_the_weights(net, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),), {})
        assert args[0].is_cuda and args[0].dtype == torch.float32
        program, problems = _export(net, args, kwargs)
    assert program is not None and not problems

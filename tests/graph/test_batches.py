"""What data loaders yield: every usual form is understood, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from models import captured, vectors
from transpike.errors import DataError
from transpike.graph.batches import Batches, checked_inputs, inputs_of, peek, target_of

X, Y, LABEL = vectors(4), vectors(4, 5), torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "count", "inputs", "target"),
    [
        (X, 1, [X], None),
        ((X, LABEL), 1, [X], LABEL),
        ([X, LABEL], 1, [X], LABEL),
        ((X,), 1, [X], None),
        ((X, Y), 2, [X, Y], None),
        ((X, Y, LABEL), 2, [X, Y], LABEL),
        (((X, Y), LABEL), 2, [X, Y], LABEL),
        ({"left": X, "right": Y}, 2, [X, Y], None),
        (({"left": X, "right": Y}, LABEL), 2, [X, Y], LABEL),
    ],
)
def test_inputs_and_target_are_found_in_every_usual_form(batch, count, inputs, target):
    assert [id(x) for x in inputs_of(batch, count)] == [id(x) for x in inputs]
    assert target_of(batch, count) is target


@pytest.mark.parametrize("batch", [3, "image.png", [], (X, 3), [1.0, 2.0]])
def test_a_batch_without_enough_tensors_is_refused(batch):
    with pytest.raises(DataError, match="give tensors or pairs"):
        inputs_of(batch, 2)


def test_peek_returns_the_first_batch_and_batches_that_start_from_it_again():
    loader = DataLoader(TensorDataset(X, LABEL), batch_size=2)
    for batches in ([X, Y], (x for x in (X, Y)), iter([X, Y]), X[None], loader):
        first, again = peek(batches)
        for _ in range(2):
            restarted = next(iter(again))
            assert torch.equal(inputs_of(restarted)[0], inputs_of(first)[0])


def test_a_tensor_is_one_batch():
    first, again = peek(X)
    assert first is X and len(list(again)) == 1


@pytest.mark.parametrize("batches", [[], (x for x in ()), 3, None])
def test_no_data_is_refused(batches):
    with pytest.raises(DataError, match="the data"):
        peek(batches)


def test_every_pass_gives_all_batches_and_counts_their_samples():
    batches = Batches(captured("mlp"), [(X, LABEL), (X[:3], LABEL[:3])])
    for _ in range(2):
        assert [len(inputs[0]) for inputs in batches] == [4, 3]
        assert batches.samples == 7


def test_forever_goes_round():
    rounds = Batches(captured("mlp"), [X, X[:1]]).forever()
    assert [len(next(rounds)[0]) for _ in range(5)] == [4, 1, 4, 1, 4]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 7), r"input 0 has shape \(2, 7\), Sequential was captured for \(N, 6\)"),
        (torch.zeros(6), r"captured for \(N, 6\)"),
        (torch.tensor(1.0), r"captured for \(N, 6\)"),
        (torch.zeros(0, 6), "empty batch"),
        (torch.full((2, 6), float("nan")), "NaN or infinite"),
        (torch.full((2, 6), float("inf")), "NaN or infinite"),
        (torch.zeros(2, 6, dtype=torch.uint8), "input 0 is uint8: scale it"),
    ],
)
def test_an_input_that_does_not_fit_is_named(x, message):
    with pytest.raises(DataError, match=message):
        checked_inputs(captured("mlp"), [x])


def test_inputs_of_different_length_or_number_are_refused():
    image = torch.zeros(2, 3, 8, 8)
    with pytest.raises(DataError, match="input 1 has 3 samples, input 0 has 2"):
        checked_inputs(captured("two_inputs"), [image, torch.zeros(3, 5)])
    with pytest.raises(DataError, match="takes 2 inputs, got 1"):
        checked_inputs(captured("two_inputs"), [image])


def test_inputs_take_the_dtype_of_the_graph_and_carry_no_gradient():
    (x,) = checked_inputs(captured("mlp"), [X.double().requires_grad_()])
    assert x.dtype is torch.float32 and not x.requires_grad


@pytest.mark.parametrize("skip", [0, 1, 3, 5, 9])
def test_the_first_samples_are_left_out_at_every_pass(skip: int) -> None:
    graph, data = captured("mlp"), vectors(9)
    later = Batches(graph, list(data.split(2))).after(skip)
    for _ in range(2):
        found = [inputs[0] for inputs in later]
        assert torch.equal(torch.cat(found) if found else data[:0], data[skip:]) and later.samples == 9 - skip
    assert torch.equal(torch.cat([inputs[0] for inputs in Batches(graph, list(data.split(2))).after(1).after(2)]), data[3:])

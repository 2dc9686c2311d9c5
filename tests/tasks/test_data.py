"""Data sets by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transpike.errors import DataError, SpecError
from transpike.tasks.data import Augmented, Counted, Preparation, digits, loader_from


def test_digits_splits_are_disjoint_and_complete() -> None:
    train, test = digits("train").tensors, digits("test").tensors
    assert len(train[0]) + len(test[0]) == 1797
    assert train[0].shape[1:] == (1, 8, 8)
    assert float(train[0].max()) == 1.0


def test_the_limit_spreads_over_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(100, dtype=np.float32)[:, None], y=np.zeros(100, np.int64))
    loader = loader_from(f"npz:{tmp_path / 'd.npz'}", Preparation(limit=3, batch=2))
    assert [batch[0].flatten().tolist() for batch in loader] == [[0.0, 50.0], [99.0]]


def test_an_image_folder_is_cut_and_normalised(tmp_path: Path) -> None:
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(tmp_path / name / "a.png")
    loader = loader_from(f"imagefolder:{tmp_path}", Preparation(size=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    x, y = next(iter(loader))
    assert x.shape == (2, 3, 16, 16)
    assert torch.equal(y, torch.tensor([0, 1]))
    assert torch.equal(x[0], torch.full((3, 16, 16), -1.0))
    assert torch.equal(x[1], torch.full((3, 16, 16), 1.0))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [({"x": np.zeros((2, 1))}, "no array"), ({"x": np.zeros((2, 1)), "y": np.zeros(3)}, "2 inputs and 3 classes")],
)
def test_a_wrong_npz_says_what_is_wrong(arrays, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=says):
        loader_from(f"npz:{tmp_path / 'd.npz'}", Preparation())


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match="readable"):
        loader_from(f"npz:{tmp_path / 'd.npz'}", Preparation())


def test_a_factory_may_give_batches_of_its_own() -> None:
    batches = [torch.zeros(2, 3)]
    assert loader_from("my.module:batches", Preparation(), lambda spec, what: lambda: batches) is batches


def test_unknown_data_is_refused() -> None:
    with pytest.raises(SpecError, match="names no data"):
        loader_from("digitz", Preparation())


def test_counted_ticks_once_a_batch_and_again_on_the_next_pass() -> None:
    ticks: list[int] = []
    counted = Counted([1, 2, 3], lambda: ticks.append(1))
    assert list(counted) == [1, 2, 3]
    assert list(counted) == [1, 2, 3]
    assert len(ticks) == 6


def test_augmented_images_are_windows_of_the_padded_one_or_its_mirror() -> None:
    x = torch.arange(1, 2 * 3 * 4 * 5 + 1).view(2, 3, 4, 5).float()
    torch.manual_seed(0)
    batches = Augmented([(x, torch.tensor([3, 4]))], crop=2, flip=True)
    assert len(batches) == 1
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for _ in range(40):
        ((found, target),) = batches
        assert target.tolist() == [3, 4] and found.shape == x.shape
        for n in range(2):
            windows = {(i, j): padded[n, :, i : i + 4, j : j + 5] for i in range(5) for j in range(5)}
            hits = [(i, j, m) for (i, j), w in windows.items() for m in (0, 1) if torch.equal(found[n], w.flip(-1) if m else w)]
            assert len(hits) == 1
            seen.add(hits[0])
    assert {m for *_, m in seen} == {0, 1} and len(seen) > 25
    ((same, _),) = Augmented([(x, None)])
    assert torch.equal(same, x)

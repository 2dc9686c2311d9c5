"""Data sets by name: what the command line calls ``digits``, ``imagefolder:DIR``, ``cifar10:DIR``, ``npz:FILE``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

from transpike.errors import DataError, SpecError

__all__ = ["Augmented", "Counted", "Preparation", "Sources", "arrays_of", "digits", "loader_from"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preparation:
    """How images become tensors, and how many.

    Args:
        size: side of the square that is cut out of the middle, after the shorter side is scaled to size / 0.875.
        mean, std: of each channel, subtracted and divided by (pixels from 0 to 1).
        batch: samples in a batch. limit: how many samples in all, None for all, spread evenly over the data.
        split: "train" or "test", for data that has both. shuffle: a new order at every pass, from torch's generator.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    batch: int = 100
    limit: int | None = None
    split: str = "test"
    shuffle: bool = False


def loader_from(
    spec: str,
    preparation: Preparation,
    factory: Callable[[str, str], Callable[..., Any]] | None = None,
    *,
    sources: Sources | None = None,
    collate: Callable[[Any], Any] | None = None,
) -> Any:
    """Batches (input, target) of the data called ``spec``; targets are class numbers unless a task has others.

    Args:
        spec: ``digits``, ``imagefolder:DIR`` (a folder of images per class), ``cifar10:DIR`` (the data set's python
            version, nothing is downloaded), ``npz:FILE`` (arrays x and y), or ``package.module:factory``.
        factory: finds the callable of the last form.
        sources: the kinds of data, by name; those above if None. collate: how samples become a batch.

    Raises:
        SpecError: no such kind of data. DataError: it is not there, empty, or not readable.
    """
    kind, sign, where = spec.partition(":")
    sources = SOURCES if sources is None else sources
    if kind in sources and (sign or kind == "digits"):
        data = sources[kind](where, preparation)
    elif sign and factory is not None:
        data = factory(spec, "data")()
    else:
        known = ", ".join(name if name == "digits" else f"{name}:{_PLACES.get(name, 'DIR')}" for name in sources)
        raise SpecError(f"{spec!r} names no data: write {known} or package.module:factory")
    if not isinstance(data, Dataset):
        return data  # batches of the user's own making
    size = len(data)  # type: ignore[arg-type]
    if not size:
        raise DataError(f"{spec} has no samples")
    if preparation.limit is not None and preparation.limit < size:
        if preparation.limit < 1:
            raise DataError(f"the limit is {preparation.limit}: use at least one sample")
        data = Subset(data, np.linspace(0, size - 1, preparation.limit).round().astype(int).tolist())
    return DataLoader(data, batch_size=preparation.batch, shuffle=preparation.shuffle, collate_fn=collate)


def digits(split: str) -> TensorDataset:
    """scikit-learn's 8 x 8 digits, pixels from 0 to 1; every fourth sample is for test. N 1 8 8"""
    data: Any = load_digits()
    x = torch.from_numpy(data.images / 16.0).float()[:, None]
    y = torch.from_numpy(data.target).long()
    test = torch.arange(len(x)) % 4 == 3
    chosen = test if split == "test" else ~test
    return TensorDataset(x[chosen], y[chosen])


def _image_folder(path: Path, preparation: Preparation) -> Dataset[Any]:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: check the path")
    steps = [
        transforms.Resize(round(preparation.size / 0.875)),
        transforms.CenterCrop(preparation.size),
        transforms.ToTensor(),
        transforms.Normalize(preparation.mean, preparation.std),
    ]
    try:
        return datasets.ImageFolder(str(path), transforms.Compose(steps))
    except FileNotFoundError as error:
        raise DataError(f"{path} is no image folder: it needs one folder of images per class ({error})") from error


def _cifar10(path: Path, preparation: Preparation) -> Dataset[Any]:
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(preparation.mean, preparation.std)])
    try:
        return datasets.CIFAR10(str(path), train=preparation.split == "train", transform=steps, download=False)
    except RuntimeError as error:
        raise DataError(f"CIFAR-10 is not in {path}: put cifar-10-batches-py there ({error})") from error


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file.

    Raises:
        DataError: it is not there or not readable.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the path")
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # numpy leaves the file open if it is damaged
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from error


def _npz(path: Path, preparation: Preparation) -> Dataset[Any]:
    arrays = arrays_of(path)
    if missing := [key for key in "xy" if key not in arrays]:
        raise DataError(f"{path} has no array {missing[0]!r}: save it with np.savez(file, x=inputs, y=classes)")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    if len(x) != len(y):
        raise DataError(f"{path} has {len(x)} inputs and {len(y)} classes: one class number per input")
    return TensorDataset(x.float(), y.long())


# by name: what stands behind the colon, and how it is to be prepared, to samples
Sources = Mapping[str, Callable[[str, Preparation], Dataset[Any]]]

SOURCES: Sources = {
    "digits": lambda where, preparation: digits(preparation.split),
    "imagefolder": lambda where, preparation: _image_folder(Path(where), preparation),
    "cifar10": lambda where, preparation: _cifar10(Path(where), preparation),
    "npz": lambda where, preparation: _npz(Path(where), preparation),
}
_PLACES = {"npz": "FILE", "coco": "IMAGES,ANNOTATIONS.json"}  # what stands behind a colon, where it is no folder


class Augmented:
    """Batches (images, target) with random crops and flips, new ones at every pass, from torch's generator.

    Args:
        batches: images N C H W with whatever else; anything with a length.
        crop: pixels of padding (zeros) around the image, out of which a window of its size is cut.
        flip: mirror every second image, left to right?
    """

    def __init__(self, batches: Any, crop: int = 0, flip: bool = False) -> None:
        self._batches, self._crop, self._flip = batches, crop, flip

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for x, *rest in self._batches:
            yield (self._changed(x), *rest)

    def _changed(self, x: torch.Tensor) -> torch.Tensor:
        samples, channels, height, width = x.shape
        if self._crop:
            rows, columns = (torch.randint(2 * self._crop + 1, (samples, 1)) + torch.arange(size) for size in (height, width))
            each, all_channels = torch.arange(samples).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
            padded = torch.nn.functional.pad(x, (self._crop,) * 4)
            x = padded[each, all_channels, rows[:, None, :, None], columns[:, None, None, :]]
        return torch.where(torch.rand(samples, 1, 1, 1) < 0.5, x.flip(-1), x) if self._flip else x


class Counted:
    """Batches that tell how many have gone by; can be gone through again if the original can."""

    def __init__(self, batches: Any, tick: Callable[[], object]) -> None:
        self._batches, self._tick = batches, tick

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch
            self._tick()

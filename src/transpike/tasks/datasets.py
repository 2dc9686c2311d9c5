"""Photos with masks or boxes: PASCAL VOC, COCO and folders of masks as pairs (input, target). Nothing is downloaded."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from transpike.errors import DataError
from transpike.tasks.images import Fit, photo
from transpike.tasks.optional import needed

__all__ = ["PHOTOS", "Prepared", "class_folders", "coco_boxes", "coco_masks", "collate_boxes", "mask_folder", "voc"]

# COCO's category numbers of VOC's 20 classes, in VOC's order: aeroplane, bicycle, bird, ..., tv
VOC_OF_COCO = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)

PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def class_folders(folder: Path, endings: Sequence[str], split: str = "") -> tuple[list[Path], list[int]]:
    """Files of a folder per class (under ``split`` in it, where there is one), and their class numbers: classes by name.

    Raises:
        DataError: it is not there, or no class has a file with one of these endings.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: check the path")
    files, classes = [], []
    for number, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        inner = name / split if split and (name / split).is_dir() else name
        found = sorted(path for path in inner.iterdir() if path.suffix.lower() in endings)
        files += found
        classes += [number] * len(found)
    if not files:
        raise DataError(f"{folder} has no {' or '.join(endings)} files in folders of its own for each class: check the path")
    return files, classes


class Prepared(Dataset[tuple[torch.Tensor, Any]]):
    """Pairs that a function makes when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], tuple[torch.Tensor, Any]]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return self._make(index)


def voc(folder: Path, fit: Fit, split: str, *, ignore: int = 255) -> Prepared:
    """PASCAL VOC 2012 segmentation in ``folder`` (which holds VOCdevkit): images 3 H W and masks H W.

    Raises:
        DataError: it is not there.
    """
    try:
        data = datasets.VOCSegmentation(str(folder), year="2012", image_set="train" if split == "train" else "val", download=False)
    except RuntimeError as error:
        raise DataError(f"PASCAL VOC 2012 is not in {folder}: put VOCdevkit/VOC2012 there ({error})") from error

    def make(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = data[index]
        return fit.image(image), fit.mask(mask, ignore)

    return Prepared(len(data), make)


def mask_folder(folder: Path, fit: Fit, *, ignore: int = 255) -> Prepared:
    """``folder/images/NAME.jpg`` with ``folder/masks/NAME.png``, whose pixel values are class numbers.

    Raises:
        DataError: a folder, or the mask of a photo, is not there.
    """
    photos = _photos(folder / "images")
    masks = [folder / "masks" / f"{path.stem}.png" for path in photos]
    if missing := [path for path in masks if not path.is_file()]:
        raise DataError(f"{len(missing)} of {len(photos)} photos have no mask, the first is {missing[0]}: put it there")

    def make(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return fit.image(photo(photos[index])), fit.mask(photo(masks[index]), ignore)

    return Prepared(len(photos), make)


def _photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: check the path")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTOS)


def coco_boxes(where: str, fit: Fit) -> Prepared:
    """COCO's format ``IMAGES,ANNOTATIONS.json``: images 3 H W, targets of ``boxes`` (M 4), ``labels``, ``iscrowd`` (M).

    Raises:
        DataError: it is not there or not readable, or pycocotools is not installed.
    """
    data = _coco(where)

    def make(index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, annotations = data[index]
        boxes = torch.tensor([found["bbox"] for found in annotations], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # corner and size to corners
        target = {
            "boxes": fit.boxes(boxes, *image.size),
            "labels": torch.tensor([found["category_id"] for found in annotations], dtype=torch.int64),
            "iscrowd": torch.tensor([found.get("iscrowd", 0) for found in annotations], dtype=torch.int64),
        }
        return fit.image(image), target

    return Prepared(len(data), make)


def coco_masks(where: str, fit: Fit, *, classes: Sequence[int] = VOC_OF_COCO, ignore: int = 255) -> Prepared:
    """COCO's format ``IMAGES,ANNOTATIONS.json`` as masks: category ``classes[k]`` has number k + 1, what is none of them 0.

    Where objects overlap the pixel is ignored, as in torchvision's reference training.

    Raises:
        DataError: as `coco_boxes`.
    """
    data, number = _coco(where), {category: k for k, category in enumerate(classes, 1)}

    def make(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, annotations = data[index]
        mask = np.zeros((image.height, image.width), np.uint8)
        covered = np.zeros(mask.shape, np.uint8)
        for found in annotations:
            if found["category_id"] in number:
                with warnings.catch_warnings():  # pycocotools speaks an older numpy
                    warnings.simplefilter("ignore", DeprecationWarning)
                    shape = data.coco.annToMask(found).astype(bool)
                mask[shape] = number[found["category_id"]]
                covered += shape
        mask[covered > 1] = ignore
        return fit.image(image), fit.mask(Image.fromarray(mask), ignore)

    return Prepared(len(data), make)


def _coco(where: str) -> Any:
    needed("pycocotools.coco", "data in COCO's format")
    images, _, annotations = where.partition(",")
    if not annotations:
        raise DataError(f"{where!r} names no data in COCO's format: write IMAGES,ANNOTATIONS.json")
    for path in (Path(images), Path(annotations)):
        if not path.exists():
            raise DataError(f"there is no {path}: check the path")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on itself
            return datasets.CocoDetection(images, annotations)
    except (ValueError, KeyError, AssertionError) as error:
        raise DataError(f"{annotations} is not in COCO's format: {error!r}") from error


def collate_boxes(pairs: Sequence[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, list[Any]]:
    """A batch of images with a list of targets, which differ in their number of boxes."""
    images, targets = zip(*pairs, strict=True)
    return torch.stack(images), list(targets)

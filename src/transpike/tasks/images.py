"""Photos whose shape matters: scaled to fit into a rectangle, never stretched, with masks and boxes that follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from transpike.errors import DataError
from transpike.tasks.data import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Fit", "photo"]


@dataclass(frozen=True)
class Fit:
    """An image in the upper left corner of ``size``; what is beside it is 0 after normalisation.

    Args:
        size: height and width of the network's input, pixels.
        mean, std: of each channel, subtracted and divided by (pixels from 0 to 1).
        stretch: scale height and width each to ``size`` instead, as SSD does.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    stretch: bool = False

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image gets."""
        if self.stretch:
            return self.size[1], self.size[0]
        scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def image(self, image: Image.Image) -> torch.Tensor:
        """3 H W, normalised."""
        width, height = self.scaled(*image.size)
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        normal = (torch.from_numpy(pixels).movedim(-1, 0) - _column(self.mean)) / _column(self.std)
        canvas = torch.zeros(3, *self.size)
        canvas[:, :height, :width] = normal
        return canvas

    def mask(self, mask: Image.Image, ignore: int) -> torch.Tensor:
        """Class numbers H W; ``ignore`` beside the image."""
        width, height = self.scaled(*mask.size)
        classes = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST), np.int64)
        canvas = torch.full(self.size, ignore, dtype=torch.int64)
        canvas[:height, :width] = torch.from_numpy(classes)
        return canvas

    def boxes(self, boxes: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Corners x1, y1, x2, y2 in pixels of an image of this size, in pixels of the network's input. M 4"""
        new_width, new_height = self.scaled(width, height)
        return boxes * torch.tensor([new_width / width, new_height / height] * 2)

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        """The picture behind a network's input, from 0 to 1. 3 H W -> H W 3"""
        return (x.cpu() * _column(self.std) + _column(self.mean)).clamp(0, 1).movedim(0, -1)


def _column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def photo(path: object) -> Image.Image:
    """An image file.

    Raises:
        DataError: it is no image.
    """
    try:
        with Image.open(str(path)) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(f"{path} is not a readable image: {error}") from error

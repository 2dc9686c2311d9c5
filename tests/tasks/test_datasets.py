"""Photos with masks and boxes, in the layouts of VOC, COCO and plain folders, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transpike.errors import DataError
from transpike.tasks.datasets import coco_boxes, coco_masks, collate_boxes, mask_folder, voc
from transpike.tasks.images import Fit, photo
from transpike.tasks.optional import needed

FIT = Fit((8, 8), (0.5,) * 3, (0.5,) * 3)


def save_photo(path: Path, width: int = 16, height: int = 8, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def save_mask(path: Path, width: int = 16, height: int = 8) -> None:
    """Class 0 on the left, 3 on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 3
    Image.fromarray(mask).save(path)


def save_coco(folder: Path) -> str:
    """Two photos; on the first a person (category 1) and a crowd of them, overlapping in part, on the second nothing."""
    for k in (1, 2):
        save_photo(folder / "images" / f"{k}.png")
    square = [[0, 0, 8, 0, 8, 8, 0, 8]]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "segmentation": square, "area": 64, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 99, "bbox": [4, 2, 4, 4], "segmentation": square, "area": 16, "iscrowd": 1},
    ]
    data = {
        "info": {},
        "images": [{"id": k, "file_name": f"{k}.png", "width": 16, "height": 8} for k in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 99, "name": "other"}],
    }
    (folder / "annotations.json").write_text(json.dumps(data))
    return f"{folder / 'images'},{folder / 'annotations.json'}"


def test_an_image_keeps_its_shape_in_the_upper_left_corner() -> None:
    x = FIT.image(Image.fromarray(np.full((8, 16, 3), 255, np.uint8)))
    assert torch.equal(x[:, :4], torch.ones(3, 4, 8))  # 16 x 8 pixels fit as 8 x 4
    assert torch.equal(x[:, 4:], torch.zeros(3, 4, 8))
    assert torch.equal(FIT.pixels(x)[:4], torch.ones(4, 8, 3))
    stretched = Fit((8, 8), (0.5,) * 3, (0.5,) * 3, stretch=True)
    assert torch.equal(stretched.image(Image.fromarray(np.full((8, 16, 3), 255, np.uint8))), torch.ones(3, 8, 8))


def test_boxes_move_with_the_image() -> None:
    box = torch.tensor([[2.0, 4.0, 16.0, 8.0]])
    assert FIT.boxes(box, 16, 8).tolist() == [[1.0, 2.0, 8.0, 4.0]]
    assert Fit((8, 8), stretch=True).boxes(box, 16, 8).tolist() == [[1.0, 4.0, 8.0, 8.0]]


def test_a_folder_of_masks(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.jpg")
    save_mask(tmp_path / "masks" / "a.png")
    x, mask = mask_folder(tmp_path, FIT, ignore=7)[0]
    assert x.shape == (3, 8, 8)
    assert torch.equal(mask[:4], torch.tensor([0] * 4 + [3] * 4).expand(4, 8))
    assert bool((mask[4:] == 7).all())
    save_photo(tmp_path / "images" / "b.jpg")
    with pytest.raises(DataError, match="1 of 2 photos have no mask"):
        mask_folder(tmp_path, FIT)


def test_voc_is_read_as_torchvision_lays_it_out(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    save_photo(root / "JPEGImages" / "a.jpg")
    save_mask(root / "SegmentationClass" / "a.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    data = voc(tmp_path, FIT, "test")
    assert len(data) == 1
    assert set(data[0][1].unique().tolist()) == {0, 3, 255}
    with pytest.raises(DataError, match="put VOCdevkit/VOC2012 there"):
        voc(tmp_path / "nowhere", FIT, "test")


def test_coco_boxes_are_corners_in_pixels_of_the_input(tmp_path: Path) -> None:
    data = coco_boxes(save_coco(tmp_path), FIT)
    x, targets = collate_boxes([data[0], data[1]])
    assert x.shape == (2, 3, 8, 8)
    assert targets[0]["boxes"].tolist() == [[0, 0, 4, 4], [2, 1, 4, 3]]
    assert targets[0]["labels"].tolist() == [1, 99]
    assert targets[0]["iscrowd"].tolist() == [0, 1]
    assert targets[1]["boxes"].shape == (0, 4)


def test_coco_masks_number_the_classes_asked_for(tmp_path: Path) -> None:
    where = save_coco(tmp_path)
    _, mask = coco_masks(where, FIT)[0]
    assert set(mask[:4, :4].unique().tolist()) == {15}  # person is VOC's fifteenth class
    assert set(mask[:4, 4:].unique().tolist()) == {0}
    _, both = coco_masks(where, FIT, classes=(1, 99))[0]
    assert set(both[:4, :4].unique().tolist()) == {255}  # two objects


@pytest.mark.parametrize(("where", "says"), [("only", "IMAGES,ANNOTATIONS.json"), ("a,b.json", "there is no a")])
def test_wrong_places_of_coco_are_refused(where: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        coco_boxes(where, FIT)


def test_a_file_that_is_no_annotation_and_a_damaged_photo_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="not in COCO's format"):
        coco_boxes(f"{tmp_path},{tmp_path / 'a.json'}", FIT)
    with pytest.raises(DataError, match="not a readable image"):
        photo(tmp_path / "a.json")


def test_a_package_that_is_not_installed_is_named_with_what_installs_it() -> None:
    with pytest.raises(DataError, match=r"video files needs nowhere_package.*transpike\[video\]"):
        needed("nowhere_package.inner", "video files", extra="video")

"""Segmentation against torchmetrics' own IoU and against plain counting, and torchvision's networks end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model

import transpike
from transpike.errors import DataError
from transpike.methods.max_norm import MaxNorm
from transpike.tasks.segmentation import Segmentation, core

CLASSES = 4


class Tiny(nn.Module):
    """Two convolutions and a resize; logits as a dict, as torchvision's networks return them."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, classes, 1, bias=False)
        nn.init.normal_(self.b.weight)  # every class is some pixel's

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.b(F.relu(self.a(x)))
        return {"out": F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)}


def images(samples: int = 6, size: int = 12) -> torch.Tensor:
    return torch.rand(samples, 3, size, size, generator=torch.Generator().manual_seed(3))


def masks(samples: int = 6, size: int = 12, classes: int = CLASSES) -> torch.Tensor:
    found = torch.randint(0, classes, (samples, size, size), generator=torch.Generator().manual_seed(4))
    found[:, :2] = 255
    return found


def counted(answer: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """mIoU over the classes of the target, and pixel accuracy, by sets of pixels."""
    known = target != 255
    iou = []
    for c in np.unique(target[known]):
        a, b = (answer == c) & known, target == c
        iou.append((a & b).sum() / (a | b).sum())
    return float(np.mean(iou)), float((answer == target)[known].mean())


def test_both_metrics_are_those_of_counting_pixels_over_all_batches() -> None:
    answer, target = torch.randint(0, CLASSES, (6, 12, 12), generator=torch.Generator().manual_seed(5)), masks()
    score = Segmentation().score()
    for part in (slice(0, 1), slice(1, 6)):
        score.add(answer[part], target[part], answer[part])
    found = score.values()
    assert (found["miou"], found["pixel_accuracy"]) == pytest.approx(counted(answer.numpy(), target.numpy()))


def test_a_class_that_no_target_has_counts_only_as_a_wrong_answer() -> None:
    score = Segmentation().score()
    score.add(torch.tensor([[[0, 7]]]), torch.tensor([[[0, 0]]]), torch.zeros(1, 1, 2))
    score.add(torch.tensor([[[1, 1]]]), torch.tensor([[[1, 1]]]), torch.zeros(1, 1, 2))  # a smaller table
    assert score.values() == pytest.approx({"miou": (0.5 + 1) / 2, "pixel_accuracy": 0.75})


def test_evaluate_gives_the_curve_that_separate_simulations_give() -> None:
    torch.manual_seed(0)
    net = transpike.convert(Tiny().eval(), MaxNorm(), images())
    batches = [(images()[:4], masks()[:4]), (images()[4:], masks()[4:])]
    report = transpike.evaluate(net, batches, 6, task=Segmentation("out"))
    assert report.metrics == ("miou", "pixel_accuracy")
    for t in (1, 3, 6):
        answer = transpike.simulate(net, images(), t).readout()["out"].argmax(1)
        wanted = counted(answer.numpy(), masks().numpy())
        assert (report.at(t), report.at(t, metric="pixel_accuracy")) == pytest.approx(wanted)
    assert len(set(report.curves["plain"]["miou"])) > 1
    assert "pixel_accuracy: ANN" in str(report)


def test_fewer_steps_may_be_measured() -> None:
    torch.manual_seed(0)
    net = transpike.convert(Tiny().eval(), MaxNorm(), images())
    report = transpike.evaluate(net, [(images(), masks())], 6, task=Segmentation("out", all_steps=False))
    assert list(report.points) == [1, 2, 4, 6]
    assert len(report.curves["delayed"]["miou"]) == 4
    with pytest.raises(DataError, match="not measured at step 3"):
        report.at(3)


def test_resizing_the_mean_is_the_mean_of_the_resized() -> None:
    low = torch.randn(5, 2, 3, 7, 9)
    task = Segmentation(size=(14, 17))
    high = torch.stack([F.interpolate(y, (14, 17), mode="bilinear", align_corners=False) for y in low]).mean(0)
    assert torch.equal(task.answer(low.mean(0)), high.argmax(1))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (None, "masks are a NoneType"),
        (torch.zeros(2, 5, 5, dtype=torch.int64), r"Segmentation\(size=\(5, 5\)\)"),
        (torch.full((2, 4, 4), 9), "classes 9 to 9, the network 0 to 2"),
        (torch.zeros(2, 4, 4), "tensor of torch.float32"),
    ],
)
def test_wrong_targets_are_refused(targets, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Segmentation().check(torch.zeros(2, 3, 4, 4), targets)


def test_masks_without_a_class_are_refused() -> None:
    score = Segmentation().score()
    score.add(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2))
    with pytest.raises(DataError, match="every pixel"):
        score.values()


def test_a_point_cloud_may_be_segmented() -> None:
    logits, targets = torch.randn(2, 3, 10), torch.randint(0, 3, (2, 10))
    task = Segmentation()
    score = task.score()
    score.add(task.answer(logits), task.check(logits, targets), None)
    assert score.values()["pixel_accuracy"] == pytest.approx(float((logits.argmax(1) == targets).double().mean()))


def test_another_network_is_its_own_core() -> None:
    net = Tiny()
    assert core(net) is net


@pytest.mark.parametrize(("name", "size"), [("lraspp_mobilenet_v3_large", 64), ("fcn_resnet50", 32), ("deeplabv3_resnet50", 32)])
def test_torchvision_networks_go_end_to_end_and_approach_the_ann(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    x, y = images(2, size), masks(2, size)
    with torch.no_grad():
        wanted, low = model(x)["out"], core(model)(x)
    torch.testing.assert_close(F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False), wanted)
    net = transpike.convert(core(model), MaxNorm(), x)
    errors = [float((transpike.simulate(net, x, t).readout() - low).norm() / low.norm()) for t in (4, 64)]
    assert errors[1] < 0.6 * errors[0]
    report = transpike.evaluate(net, [(x, y)], 4, task=Segmentation(size=(size, size), all_steps=False))
    assert report.at(4, metric="pixel_accuracy") > 0
    assert report.energy.sops[-1] > 0

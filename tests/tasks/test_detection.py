"""Average precision worked out by hand, torchvision's detectors against their own forward, and a detector end to end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import detection

import transpike
from transpike.errors import DataError
from transpike.methods.max_norm import MaxNorm
from transpike.tasks.detection import Detection, average_precision
from transpike.tasks.detectors import core, detection_of, fit_of

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def truth(*boxes: tuple[float, ...], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    rows = torch.tensor(boxes).view(-1, 4)
    return {"boxes": rows, "labels": torch.tensor(labels or [1] * len(rows))}


def guess(*boxes: tuple[float, ...], scores: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {**truth(*boxes, labels=labels), "scores": torch.tensor(scores)}


def test_a_perfect_detector_has_precision_one_and_an_empty_one_none() -> None:
    wanted = [truth((0, 0, 10, 10)), truth((5, 5, 9, 20), (30, 30, 40, 40), labels=[2, 1])]
    found = [{**w, "scores": torch.ones(len(w["labels"]))} for w in wanted]
    assert average_precision(found, wanted) == pytest.approx((1.0, 1.0))
    assert average_precision([guess(scores=[])] * 2, wanted) == (0.0, 0.0)


def test_precision_counts_what_stands_before_the_hit() -> None:
    """A miss of a higher score halves the precision of every recall level."""
    found = [guess((50, 50, 60, 60), (0, 0, 10, 10), scores=[0.9, 0.8])]
    assert average_precision(found, [truth((0, 0, 10, 10))]) == pytest.approx((0.5, 0.5))


def test_overlap_decides_at_which_of_the_ten_levels_a_box_is_right() -> None:
    found = [guess((0, 0, 10, 7.2), scores=[0.9])]  # overlap 0.72: right at 0.5, 0.55, 0.6, 0.65, 0.7
    assert average_precision(found, [truth((0, 0, 10, 10))]) == pytest.approx((0.5, 1.0))


def test_classes_weigh_the_same_and_crowds_do_not_count() -> None:
    wanted = [truth((0, 0, 10, 10), (20, 20, 30, 30), labels=[1, 2])]
    found = [guess((0, 0, 10, 10), scores=[0.9])]
    assert average_precision(found, wanted)[1] == pytest.approx(0.5)
    crowd = [{**wanted[0], "iscrowd": torch.tensor([0, 1])}]
    assert average_precision(found, crowd)[1] == pytest.approx(1.0)


def test_data_without_a_true_box_is_refused() -> None:
    with pytest.raises(DataError, match="no image has a true box"):
        average_precision([guess(scores=[])], [truth()])


def decode(readout: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """One box per cell of a 4 x 4 grid: objectness, offset of the corner, class scores."""
    v, u = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    corner = torch.stack((u * 8, v * 8), -1) + readout[:, 1:3].movedim(1, -1)
    boxes = torch.cat((corner, corner + 8), -1).flatten(1, 2)
    scores, labels = readout[:, 0].sigmoid().flatten(1), readout[:, 3:].argmax(1).flatten(1)
    return [{"boxes": b.float(), "scores": s, "labels": k} for b, s, k in zip(boxes, scores, labels, strict=True)]


class Grid(nn.Module):
    """32 x 32 pixels to 4 x 4 cells of 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(12, 6, 2, 2)
        nn.init.normal_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)))


def grid_case() -> tuple[nn.Module, torch.Tensor, list[dict[str, torch.Tensor]]]:
    """A detector, images, and as truth what it finds itself with the greatest confidence."""
    torch.manual_seed(0)
    model, x = Grid().eval(), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        found = decode(model(x))
    return model, x, [{key: boxes[key][boxes["scores"] > 0.6] for key in ("boxes", "labels")} for boxes in found]


def test_the_curves_of_a_single_tensor_detector_are_those_of_separate_simulations() -> None:
    model, x, targets = grid_case()
    net = transpike.convert(model, MaxNorm(), x)
    task = Detection(decode, regression=(1, 3))
    report = transpike.evaluate(net, [(x[:3], targets[:3]), (x[3:], targets[3:])], 32, task=task)
    assert list(report.points) == [1, 2, 4, 8, 16, 32]
    assert report.ann["map50"] > 0.5
    assert report.ann["regression_error"] == 0
    with torch.no_grad():
        wanted = model(x)[:, 1:3]
    for t in (2, 32):
        readout = transpike.simulate(net, x, t).readout()
        assert report.at(t, metric="map") == pytest.approx(average_precision(decode(readout), targets)[0])
        error = float((readout[:, 1:3] - wanted).norm() / wanted.norm())
        assert report.at(t, metric="regression_error") == pytest.approx(error, rel=1e-5)
    assert report.at(32, metric="regression_error") < 0.3 * report.at(1, metric="regression_error")
    assert report.at(32) > report.at(1)
    assert report.agreement["plain"][-1] > report.agreement["plain"][0]


def test_agreement_is_the_f1_of_confident_boxes() -> None:
    task = Detection(lambda readout: readout, confident=0.5)
    mine = task.answer([guess((0, 0, 10, 10), (0, 0, 10, 10), (50, 50, 60, 60), scores=[0.9, 0.8, 0.1]), guess(scores=[])])
    ann = task.answer([guess((0, 0, 10, 9), scores=[0.7]), guess(scores=[])])
    assert task.agreement(mine, ann).tolist() == pytest.approx([2 / 3, 1.0])


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (None, "targets are a NoneType"),
        (torch.zeros(2, 4), "targets are a Tensor"),
        ([{"boxes": BOX}], "lacks boxes or labels"),
        ([{"boxes": BOX.flip(1), "labels": torch.tensor([1])}], "x1 <= x2"),
        ([{"boxes": BOX, "labels": torch.tensor([1, 2])}], "2 labels with boxes of shape"),
    ],
)
def test_wrong_targets_are_refused(targets, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Detection(decode).check(torch.zeros(1, 6, 4, 4), targets)


def test_a_wrong_place_of_the_box_terms_and_a_wrong_decode_are_refused() -> None:
    with pytest.raises(DataError, match="no output 'offsets'"):
        Detection(decode, regression="offsets").answer(torch.zeros(1, 6, 4, 4))
    with pytest.raises(DataError, match="decode gave no scores"):
        Detection(lambda readout: [truth()]).answer(torch.zeros(1))


SIZE = (64, 96)
SIZED = {"min_size": 64, "max_size": 96, "num_classes": 5}


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    sized = {} if name.startswith("ssd") else SIZED
    return getattr(detection, name)(weights=None, weights_backbone=None, **{"num_classes": 5, **sized}).eval()


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "ssd300_vgg16"])
def test_core_and_decoding_are_the_detector_itself(name: str) -> None:
    model = detector(name)
    size = None if name.startswith("ssd") else SIZE
    task, fit = detection_of(model, size), fit_of(model, size)
    image = torch.rand(3, *fit.size)
    x = (image - torch.tensor(fit.mean).view(3, 1, 1)) / torch.tensor(fit.std).view(3, 1, 1)
    model.score_thresh = 0.0  # random weights are never sure
    with torch.no_grad():
        mine, wanted = task.answer(core(model)(x[None])).found[0], model([image])[0]
    assert len(wanted["boxes"]) > 0
    assert torch.equal(mine["labels"], wanted["labels"])
    torch.testing.assert_close(mine["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mine["scores"], wanted["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50_fpn",
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
        "ssdlite320_mobilenet_v3_large",
        pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    ],
)
def test_torchvision_detectors_go_end_to_end_and_approach_the_ann(name: str) -> None:
    model = detector(name)
    size = None if name.startswith("ssd") else SIZE
    task, fit = detection_of(model, size), fit_of(model, size)
    x = torch.randn(2, 3, *fit.size, generator=torch.Generator().manual_seed(1))
    net = transpike.convert(core(model), MaxNorm(), x)
    targets = [truth((4, 4, 40, 40)), truth((8, 8, 60, 50), (1, 1, 20, 20), labels=[2, 3])]
    report = transpike.evaluate(net, [(x, targets)], 16, task=task)
    assert report.at(16, metric="regression_error") < 0.7 * report.at(2, metric="regression_error")
    assert 0 <= report.at(16) <= 1


def test_another_network_needs_a_decode_of_its_own() -> None:
    with pytest.raises(DataError, match=r"give Detection\(decode=...\)"):
        detection_of(Grid())
    with pytest.raises(DataError, match=r"give size=\(height, width\)"):
        detection_of(detector("retinanet_resnet50_fpn"))
    net = Grid()
    assert core(net) is net

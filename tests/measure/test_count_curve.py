"""A curve in count space is the accuracy of the network run frame by frame."""

from __future__ import annotations

import json

import pytest
import torch

import transpike
from models import batch_of, calibration, make
from transpike.errors import DataError, SpecError
from transpike.measure.count_curve import count_curve
from transpike.methods.max_norm import MaxNorm
from transpike.methods.parallel import Parallel


def test_the_curve_is_that_of_networks_run_frame_by_frame() -> None:
    model = make("residual")
    net = transpike.convert(model, Parallel(8), calibration("residual"))
    x = batch_of("residual", 12)
    with torch.no_grad():
        targets = model(x).argmax(1)
    targets[::3] = 0
    seen: list[int] = []
    found = count_curve(net, [(x[:5], targets[:5]), (x[5:], targets[5:])], (8, 2), progress=seen.append)
    assert found.at == (2, 8) and found.samples == 12 and seen == [5, 12]
    for k, t in enumerate(found.at):
        classes = transpike.simulate(net, x, t, engine="dense").readout().argmax(1)
        assert found.values["top1"][k] == pytest.approx(float((classes == targets).float().mean()))
        with torch.no_grad():
            assert found.agreement[k] == pytest.approx(float((classes == model(x).argmax(1)).float().mean()))
    assert json.loads(json.dumps(found.to_dict()))["at"] == [2, 8] and "in count space" in str(found)


def test_other_networks_and_other_data_are_refused() -> None:
    net = transpike.convert(make("residual"), MaxNorm(), calibration("residual"))
    x = batch_of("residual", 2)
    with pytest.raises(SpecError, match="choose engine='dense'"):
        count_curve(net, [(x, torch.zeros(2, dtype=torch.int64))])
    parallel = transpike.convert(make("residual"), Parallel(4), calibration("residual"))
    with pytest.raises(DataError, match="no targets"):
        count_curve(parallel, [x])
    with pytest.raises(SpecError, match="use count_curve"):
        transpike.evaluate(parallel, [(x, torch.zeros(2, dtype=torch.int64))], engine="counts")

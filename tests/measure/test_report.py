"""A report of numbers made up by hand: what it says, what it saves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from transpike.errors import ArtifactError, DataError
from transpike.measure.energy import Energy
from transpike.measure.report import Report, draw, milestones

REPORT = Report(
    network="Net",
    task="classification",
    metrics=("top1", "top5"),
    better="top1",
    steps=5,
    samples=200,
    ann={"top1": 0.8, "top5": 0.9},
    curves={
        "plain": {"top1": [0.1, 0.3, 0.72, 0.71, 0.77], "top5": [0.2, 0.5, 0.8, 0.85, 0.9]},
        "delayed": {"top1": [0.1, 0.3, 0.6, 0.76, 0.8], "top5": [0.2, 0.5, 0.8, 0.85, 0.9]},
    },
    agreement={"plain": [0.1, 0.4, 0.8, 0.8, 0.9], "delayed": [0.1, 0.4, 0.8, 0.9, 1.0]},
    windows={"plain": {"delay": 0, "minimum": None}, "delayed": {"delay": 3, "minimum": 4}},
    delay=2.25,
    rates={"relu#1": 0.125, "relu#2": 0.0625},
    silent={"relu#1": 0, "relu#2": 3},
    saturated={"relu#1": 1, "relu#2": 0},
    channels={"relu#1": 8, "relu#2": 16},
    energy=Energy(200, 1000, 100, 10, (10.0, 20.0, 30.0, 40.0, 50.0), (9.0, 18.0, 27.0, 36.0, 45.0), {"fc (linear)": 50.0}, 0.9),
    seconds={"ann": 0.5, "snn": 2.0},
    origin={"method": "LTB", "settings": {"iterations": 5}},
    notes=("2 thresholds are dead",),
)


def test_at_reads_the_curve_from_step_one() -> None:
    assert REPORT.at(1) == 0.1 and REPORT.at(5) == 0.77
    assert REPORT.at(4, "delayed") == 0.76 and REPORT.at(2, metric="top5") == 0.5


@pytest.mark.parametrize(
    ("t", "window", "metric", "words"),
    [
        (0, "plain", None, "1 to 5"),
        (6, "plain", None, "1 to 5"),
        (1, "late", None, "choose from plain, delayed"),
        (1, "plain", "top3", "choose from top1, top5"),
    ],
)
def test_at_refuses_what_is_not_there(t: int, window: str, metric: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        REPORT.at(t, window, metric)


def test_steps_and_operations_to_a_share_of_the_ann() -> None:
    assert (REPORT.steps_to(0.90), REPORT.sops_to(0.90)) == (3, 30.0)  # the first time, though step 4 falls back
    assert (REPORT.steps_to(0.95), REPORT.sops_to(0.95)) == (5, 50.0)
    assert (REPORT.steps_to(0.95, "delayed"), REPORT.sops_to(0.95, "delayed")) == (4, 40.0)
    assert REPORT.steps_to(1.0) is None and REPORT.sops_to(1.0) is None


def test_everything_goes_through_json_and_back() -> None:
    found = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert found["top1"] == found["curves"]["plain"]["top1"] == [0.1, 0.3, 0.72, 0.71, 0.77]
    assert found["ann"] == {"top1": 0.8, "top5": 0.9} and found["steps"] == 5 and found["samples"] == 200
    assert found["energy"]["sops"] == [10.0, 20.0, 30.0, 40.0, 50.0] and len(found["energy"]["constants"]) == 2
    assert found["targets"]["sop90"]["steps"] == 3 and found["targets"]["sop95"]["sops"] == 50.0
    assert found["silent_channels"] == {"relu#1": 0, "relu#2": 3} and found["notes"] == ["2 thresholds are dead"]


def test_a_target_that_is_never_reached_is_null_and_said_so() -> None:
    poor = replace(REPORT, ann={"top1": 1.0, "top5": 1.0})
    assert poor.to_dict()["targets"] == {"sop90": None, "sop95": None}
    assert "SOP90: not reached" in str(poor)


def test_the_text_has_the_numbers_a_reader_looks_for() -> None:
    text = str(REPORT)
    for words in (
        "Net, LTB",
        "200 samples, 5 steps",
        "ANN top1 80.00%",
        "estimated delay 2.2 steps",
        "SOP90: 0.00 M",
        "at 3 steps",
    ):
        assert words in text
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["5"])
    assert row == ["5", "77.00%", "80.00%", "90.00%", "0.00"]
    (site,) = (line.split() for line in text.splitlines() if "relu#2" in line)
    assert site == ["relu#2", "0.0625", "3", "0", "of", "16"]
    assert "note: 2 thresholds are dead" in text and "cmos45" in text and "neuromorphic" in text


@pytest.mark.parametrize(("steps", "wanted"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])])
def test_milestones_are_powers_of_two_and_the_last_step(steps: int, wanted: list[int]) -> None:
    assert milestones(steps) == wanted


def test_save_writes_text_json_and_a_picture(tmp_path: Path) -> None:
    folder = replace(REPORT, network="Nétz").save(tmp_path / "deep" / "report")
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "report.json", "report.txt"]
    assert "Nétz, LTB" in (folder / "report.txt").read_text(encoding="utf-8")
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["delay"] == 2.25
    picture = (folder / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_several_reports_in_one_picture(tmp_path: Path) -> None:
    draw([REPORT, replace(REPORT, origin={})], tmp_path / "both.png", ["one", "other"])
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_a_folder_that_cannot_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write"):
        REPORT.save(tmp_path / "file" / "report")

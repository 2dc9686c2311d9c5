"""First contact: what a newcomer types, and what every foreseeable mistake says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from transpike.cli import main

SPIKING = "transpike.demo:digits_net"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line(text: str) -> bool:
    return text.startswith("error: ") and len(text.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "digits.spike"
    assert main(["convert", SPIKING, "--data", "digits", "--method", "percentile", "--limit", "200", "-o", str(path)]) == 0
    return path


def npz(path: Path, x: np.ndarray, y: np.ndarray | None = None) -> str:
    np.savez(path, x=x, y=np.zeros(len(x), np.int64) if y is None else y)
    return f"npz:{path}"


def test_engines_and_a_profile(converted: Path, capsys, tmp_path: Path) -> None:
    shared = ["evaluate", str(converted), "--data", "digits", "--steps", "4", "--limit", "100"]
    code, out, err = run(capsys, *shared, "--engine", "events", "--profile", "--threads", "1")
    assert code == 0, err
    table = out[out.rindex("layer") :].splitlines()
    assert len(table) > 1 and all("events" in line for line in table[1:] if line)
    code, out, err = run(capsys, *shared, "--json", "--engine", "auto")
    assert code == 0 and json.loads(out)["profile"][0]["seconds"] > 0
    code, _, err = run(capsys, *shared, "--engine", "warp")
    assert code == 2 and one_line(err) and "choose from auto" in err
    code, _, err = run(capsys, *shared, "--engine", "counts", "--profile")
    assert code == 2 and one_line(err) and "a curve alone" in err
    code, _, err = run(capsys, *shared, "--engine", "counts")
    assert code == 2 and one_line(err) and "parallel neurons" in err
    net = tmp_path / "parallel.spike"
    assert run(capsys, "convert", SPIKING, "--data", "digits", "--method", "Parallel", "--set", "steps=8", "-o", str(net))[0] == 0
    code, out, err = run(capsys, "evaluate", str(net), "--data", "digits", "--steps", "8", "--engine", "counts", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["at"] == [1, 2, 4, 8] and found["values"]["top1"][-1] > 0.8


def test_lower_precision_says_what_it_did(converted: Path, capsys) -> None:
    shared = ["evaluate", str(converted), "--data", "digits", "--steps", "4", "--limit", "100"]
    code, out, _ = run(capsys, *shared, "--precision", "int8", "--profile")
    assert code == 0 and "int8 against float32 on 100 samples" in out and "float32 (behind all neurons)" in out
    code, out, _ = run(capsys, *shared, "--precision", "bfloat16", "--json")
    found = json.loads(out)
    assert code == 0 and found["precision"]["precision"] == "bfloat16" and found["origin"]["precision"] == "bfloat16"
    for wrong, words in (
        (["--precision", "int4"], "choose from float32, bfloat16, int8"),
        (["--precision", "int8", "--engine", "events"], "needs engine='dense'"),
        (["--precision", "bfloat16", "--engine", "counts"], "needs engine='dense'"),
        (["--precision", "int8", "--exit", "margin", "--exit-data", "digits"], "drop --start and --precision"),
    ):
        code, _, err = run(capsys, *shared, *wrong)
        assert code == 2 and words in err


def test_convert_then_evaluate_reports_accuracy_near_the_ann(converted: Path, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    code, out, _ = run(capsys, "evaluate", str(converted), "--data", "digits", "--steps", "16", "--json", "-o", str(folder))
    report = json.loads(out)
    assert code == 0
    assert report["ann"]["top1"] > 0.98
    assert report["top1"][15] > report["ann"]["top1"] - 0.03
    assert {path.name for path in folder.iterdir()} == {"report.txt", "report.json", "curves.png"}
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_early_exit_is_chosen_on_data_of_its_own_and_reported(converted: Path, capsys, tmp_path: Path) -> None:
    arguments = ["evaluate", str(converted), "--data", "digits", "--steps", "16", "--exit", "confidence", "--exit-data", "digits"]
    code, out, _ = run(capsys, *arguments, "--exit-loss", "0.05", "--exit-confidence", "0.9", "--json", "-o", str(tmp_path))
    report = json.loads(out)
    assert code == 0
    assert report["policy"]["statistic"] == "confidence"
    assert report["policy"]["origin"]["loss"] == 0.05
    assert report["policy"]["origin"]["confidence"] == 0.9
    assert report["policy"]["origin"]["samples"] == 1348 // 2
    assert report["lost"] <= 0.05
    assert report["mean_steps"] < 12
    assert {path.name for path in tmp_path.iterdir()} == {"exit.txt", "exit.json", "exit.png"}


def test_settings_reach_the_method_with_their_types(capsys, tmp_path: Path) -> None:
    path = tmp_path / "x.spike"
    arguments = ["--method", "mmse", "--set", "steps=8", "--set", "cap=4", "--set", "signed=true", "--set", "granularity=layer"]
    code, out, _ = run(capsys, "convert", SPIKING, "--data", "digits", "--limit", "50", "-o", str(path), "--json", *arguments)
    settings = json.loads(out)["settings"]
    assert code == 0
    assert (settings["steps"], settings["cap"], settings["signed"], settings["granularity"]) == (8, 4, True, "layer")


def test_who_names_no_method_gets_the_best_of_several(capsys, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "convert", SPIKING, "--data", "digits", "--limit", "50", "-o", str(tmp_path / "x.spike"), "--json")
    assert code == 0 and json.loads(out)["method"] == "Auto" and len(json.loads(out)["tried"]) > 2


def test_energy_needs_no_labels_and_prints_both_constant_sets(converted: Path, capsys) -> None:
    code, out, _ = run(capsys, "energy", str(converted), "--data", "digits", "--limit", "20", "--steps", "4")
    assert code == 0
    assert "cmos45" in out
    assert "neuromorphic" in out


def test_inspect_lists_sites_of_a_model_and_of_a_file(converted: Path, capsys) -> None:
    code, out, _ = run(capsys, "inspect", SPIKING, "--input", "1x8x8", "--json")
    assert code == 0
    assert [site["name"] for site in json.loads(out)["sites"]] == ["stem.2#1", "branch.2#1", "relu#1", "deep.2#1"]
    code, out, _ = run(capsys, "inspect", str(converted))
    assert code == 0
    assert "threshold" in out


def test_methods_lists_every_method_with_its_settings(capsys) -> None:
    code, out, _ = run(capsys, "methods", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"LTB", "MMSE", "MaxNorm", "Percentile"} <= set(found)
    assert found["LTB"]["settings"]["iterations"] == 1000


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["evaluate", "nowhere.spike", "--data", "digits"], 1, "no file nowhere.spike"),
        (["evaluate", "x.spike", "--data", "digits", "--exit", "entropy"], 2, "--exit and --exit-data go together"),
        (["evaluate", "x.spike", "--data", "digits", "--exit-data", "digits"], 2, "--exit and --exit-data go together"),
        (
            ["evaluate", "x.spike", "--data", "digits", "--exit", "margin", "--exit-data", "digits", "--start", "2"],
            2,
            "drop --start",
        ),
        (["inspect", "nowhere.spike"], 1, "no file nowhere.spike"),
        (["inspect", "nowhere.pt2"], 1, "no file nowhere.pt2"),
        (["inspect", "torchvision:resnet19"], 2, "no network 'resnet19'"),
        (["inspect", "resnet18"], 2, "names no network"),
        (["inspect", "no_such_package:net"], 2, "cannot import"),
        (["inspect", "transpike.demo:no_such_net"], 2, "no factory 'no_such_net'"),
        (["inspect", SPIKING, "--input", "banana"], 2, "is no shape"),
        (["inspect", SPIKING, "--weights", "nowhere.pt", "--input", "1x8x8"], 1, "no weights file"),
        (["convert", SPIKING, "--data", "digits", "-o", "x.spike", "--method", "ltbb"], 2, "did you mean 'LTB'"),
        (["convert", SPIKING, "--data", "digits", "-o", "x.spike", "--set", "steps=many"], 2, "not 'many'"),
        (
            ["convert", SPIKING, "--data", "digits", "-o", "x.spike", "--method", "ltb", "--set", "iteration=3"],
            2,
            "did you mean 'iterations'",
        ),
        (["convert", SPIKING, "--data", "digits", "-o", "x.spike", "--set", "cap"], 2, "not key=value"),
        (["convert", SPIKING, "--data", "nonsense", "-o", "x.spike"], 2, "names no data"),
        (["convert", SPIKING, "--data", "npz:nowhere.npz", "-o", "x.spike"], 1, "no file nowhere.npz"),
        (["convert", SPIKING, "--data", "imagefolder:nowhere", "-o", "x.spike"], 1, "no folder nowhere"),
        (["convert", SPIKING, "--data", "cifar10:.", "-o", "x.spike"], 1, "CIFAR-10 is not in"),
        (["convert", SPIKING, "--data", "digits", "-o", "x.spike", "--mean", "a,b"], 2, "no list of numbers"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_the_right_code(arguments, code, says, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    got, _, err = run(capsys, *arguments)
    assert got == code
    assert says in " ".join(err.split())
    assert one_line(err)
    assert not list(tmp_path.glob("*.spike"))


@pytest.mark.parametrize(
    "arguments", [["evaluate"], ["convert", SPIKING], ["nonsense"], ["evaluate", "x", "--steps", "0", "--data", "digits"]]
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys) -> None:
    assert run(capsys, *arguments)[0] == 2


def test_images_of_the_wrong_shape_say_both_shapes(converted: Path, capsys, tmp_path: Path) -> None:
    data = npz(tmp_path / "wrong.npz", np.zeros((4, 1, 9, 9), np.float32))
    code, _, err = run(capsys, "evaluate", str(converted), "--data", data)
    assert code == 1
    assert "(4, 1, 9, 9)" in err
    assert "(N, 1, 8, 8)" in err


def test_nan_in_the_data_is_refused_in_calibration_and_test(converted: Path, capsys, tmp_path: Path) -> None:
    data = npz(tmp_path / "nan.npz", np.full((4, 1, 8, 8), np.nan, np.float32))
    for arguments in (
        ["evaluate", str(converted), "--data", data],
        ["convert", SPIKING, "--data", data, "-o", str(tmp_path / "y.spike")],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 1
        assert "NaN" in err
    assert not (tmp_path / "y.spike").exists()


def test_an_empty_data_set_is_refused(converted: Path, capsys, tmp_path: Path) -> None:
    code, _, err = run(capsys, "evaluate", str(converted), "--data", npz(tmp_path / "no.npz", np.zeros((0, 1, 8, 8), np.float32)))
    assert code == 1
    assert one_line(err)
    assert "no samples" in err


def test_class_numbers_beyond_the_network_are_refused(converted: Path, capsys, tmp_path: Path) -> None:
    data = npz(tmp_path / "far.npz", np.zeros((3, 1, 8, 8), np.float32), np.array([0, 1, 99]))
    code, _, err = run(capsys, "evaluate", str(converted), "--data", data)
    assert code == 1
    assert "classes 0 to 9" in " ".join(err.split())


def test_a_corrupted_file_is_refused(converted: Path, capsys, tmp_path: Path) -> None:
    content = bytearray(converted.read_bytes())
    content[-100] ^= 1
    bad = tmp_path / "bad.spike"
    bad.write_bytes(content)
    code, _, err = run(capsys, "evaluate", str(bad), "--data", "digits")
    assert code == 1
    assert "changed or damaged" in " ".join(err.split())
    bad.write_bytes(converted.read_bytes()[:1000])
    code, _, err = run(capsys, "evaluate", str(bad), "--data", "digits")
    assert code == 1
    assert "truncated" in err


def test_an_output_that_cannot_be_written_says_so(capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    path = tmp_path / "file" / "x.spike"
    code, _, err = run(capsys, "convert", SPIKING, "--data", "digits", "--limit", "20", "--method", "max-norm", "-o", str(path))
    assert code == 1
    assert "cannot write" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder_says_so(capsys, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, "convert", SPIKING, "--data", "digits", "--limit", "20", "-o", str(tmp_path / "x.spike"))
    tmp_path.chmod(0o700)
    assert code == 1
    assert "cannot write" in err


def test_weights_that_do_not_fit_say_so(capsys, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "w.pt")
    code, _, err = run(capsys, "inspect", SPIKING, "--weights", str(tmp_path / "w.pt"), "--input", "1x8x8")
    assert code == 1
    assert "do not fit DigitsNet" in " ".join(err.split())


def test_ctrl_c_ends_with_130_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.spike"
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # shells deafen what runs behind them
    code = f"{heard}; import transpike.methods.ltb, transpike.cli as c; print('ready', flush=True); c.run()"
    arguments = ["convert", SPIKING, "--data", "digits", "--method", "ltb", "--set", "iterations=100000000", "-o", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing is left behind if it did not hear
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_pt2_file_with_a_dynamic_batch_is_a_model(capsys, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    code, out, err = run(capsys, "inspect", str(tmp_path / "net.pt2"), "--input", "4", "--json")
    assert code == 0, err
    assert len(json.loads(out)["sites"]) == 1

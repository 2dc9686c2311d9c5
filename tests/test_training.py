"""The training loop: schedule, decay, reproducibility, and resuming as if nothing had happened."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from transpike.errors import ArtifactError, DataError, TrainingError
from transpike.methods.qcfs import QCFS, prepare
from transpike.tasks.data import Augmented, digits
from transpike.training import Epoch, Recipe, accuracy, train, train_into


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    return prepare(net, QCFS(levels=4), [torch.rand(50, 1, 8, 8)])


def loader(samples: int = 200) -> DataLoader[Any]:
    x, y = digits("train").tensors
    return DataLoader(TensorDataset(x[:samples], y[:samples]), batch_size=50, shuffle=True)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


class StoppedError(Exception):
    pass


def stop_after(number: int) -> Any:
    def done(epoch: Epoch) -> None:
        if epoch.number == number:
            raise StoppedError

    return done


def test_learns_and_reports_every_epoch() -> None:
    test = DataLoader(digits("test"), batch_size=450)
    net, seen = network(), []
    history = train(net, loader(1200), Recipe(epochs=4, lr=0.1), validation=test, done=seen.append)
    assert history == seen and [epoch.number for epoch in history] == [1, 2, 3, 4]
    assert history[-1].loss < history[0].loss / 2 and history[-1].accuracy == accuracy(net, test) > 0.8
    assert not net.training


def test_resuming_ends_with_the_same_bits(tmp_path: Path) -> None:
    data, recipe = Augmented(loader(), crop=1, flip=True), Recipe(epochs=3, lr=0.1)
    whole = network()
    wanted = train(whole, data, recipe)
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedError):
        train(network(), data, recipe, checkpoint=file, done=stop_after(2))
    torch.rand(7)  # whatever happens in between
    resumed = network()
    history = train(resumed, data, recipe, checkpoint=file)
    assert same(whole, resumed)
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in wanted]
    assert train(network(), data, recipe, checkpoint=file) == history  # nothing left to do


def test_a_share_of_the_first_weights_is_kept_also_after_a_kill(tmp_path: Path) -> None:
    test, file = DataLoader(digits("test"), batch_size=450), tmp_path / "checkpoint.pt"
    start, plain, kept, resumed = network(), network(), network(), network()
    train(plain, loader(), Recipe(epochs=2, lr=0.1))
    recipe = Recipe(epochs=2, lr=0.1, kept=0.25)
    history = train(kept, loader(), recipe, validation=test)
    first, trained = start.state_dict(), plain.state_dict()
    for name, x in kept.state_dict().items():
        wanted = 0.25 * first[name] + 0.75 * trained[name] if x.is_floating_point() else trained[name]
        assert torch.allclose(x, wanted, atol=1e-6), name
    assert history[-1].accuracy == accuracy(kept, test)
    with pytest.raises(StoppedError):
        train(network(), loader(), recipe, checkpoint=file, done=stop_after(1))
    with torch.no_grad():
        resumed.network[1].weight.add_(1)  # the checkpoint knows where training began
    train(resumed, loader(), recipe, checkpoint=file)
    assert same(kept, resumed)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(TrainingError, match="between 0 and 1"):
        train(network(), loader(), Recipe(kept=1.5))


@pytest.mark.parametrize("steps", [None, 4])
def test_in_bfloat16_products_are_rounded_and_nothing_else_is(steps: int | None) -> None:
    test, inputs = DataLoader(digits("test"), batch_size=450), []
    net = prepare(network(), QCFS(levels=4, steps=steps))
    hook = net.network[3].register_forward_pre_hook(lambda _, args: inputs.append(args[0].dtype))
    history = train(net, loader(1200), Recipe(epochs=4, lr=0.1, bfloat16=True), validation=test)
    hook.remove()
    assert torch.bfloat16 in inputs and torch.float32 in inputs  # while training, and while validating
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert history[-1].loss < history[0].loss / 2 and (steps or history[-1].accuracy == accuracy(net, test) > 0.8)


def test_the_callers_random_numbers_are_as_before_and_the_seed_decides() -> None:
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    first, second, other = network(), network(), network()
    torch.manual_seed(11)
    train(first, loader(), Recipe(epochs=1, seed=5))
    assert torch.equal(torch.rand(3), wanted)
    train(second, loader(), Recipe(epochs=1, seed=5))
    train(other, loader(), Recipe(epochs=1, seed=6))
    assert same(first, second) and not same(first, other)


def test_the_learning_rate_is_a_cosine_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.SGD.step

    def spy(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(network(), loader(), Recipe(epochs=2, lr=0.3))
    assert rates == pytest.approx([0.15 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])


class Still(nn.Module):
    """A network whose gradients are zero: what moves is decay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.ceilings = nn.ParameterList([nn.Parameter(torch.tensor(2.0))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * self.weight.sum() + 0 * self.ceilings[0]


def test_weights_decay_and_ceilings_only_if_asked() -> None:
    batches = [(torch.zeros(2, 3), torch.zeros(2).long())]
    for decay, stays in ((0.0, True), (0.1, False)):
        net = Still()
        train(net, batches, Recipe(epochs=1, lr=0.1, weight_decay=0.5, ceiling_decay=decay))
        assert net.weight[0].item() == pytest.approx(1 - 0.1 * 0.5)
        assert (net.ceilings[0].item() == 2.0) is stays


class Shifted(Still):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.stack((self.weight[0], self.ceilings[0], torch.tensor(0.0)))


def test_ceilings_learn_at_their_share_of_the_learning_rate() -> None:
    batches = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    moved = {}
    for share in (1.0, 0.25):
        net = Shifted()
        train(net, batches, Recipe(epochs=1, lr=0.1, weight_decay=0.0, ceiling_rate=share))
        moved[share] = 2.0 - net.ceilings[0].item(), 1.0 - net.weight[0].item()
    assert moved[0.25][0] == pytest.approx(moved[1.0][0] / 4, rel=1e-4) and moved[0.25][1] == moved[1.0][1] != 0


def test_a_loss_that_is_not_finite_stops_with_one_line() -> None:
    data = [(torch.full((4, 1, 8, 8), math.nan), torch.zeros(4).long())]
    with pytest.raises(TrainingError, match="loss is nan at step 1: lower the learning rate"):
        train(network(), data, Recipe(epochs=1))


def test_data_without_targets_or_batches_is_refused() -> None:
    with pytest.raises(DataError, match="no targets"):
        train(network(), [torch.zeros(4, 1, 8, 8)], Recipe(epochs=1))
    with pytest.raises(DataError, match="no batch"):
        train(network(), [], Recipe(epochs=1))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    file, data = tmp_path / "c.pt", [(torch.zeros(4, 1, 8, 8), torch.zeros(4).long())]
    train(network(), data, Recipe(epochs=1), checkpoint=file)
    with pytest.raises(ArtifactError, match=r"lr 0.003 there, 0.5 here"):
        train(network(), data, Recipe(epochs=1, lr=0.5), checkpoint=file)
    with pytest.raises(ArtifactError, match="another network"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, Recipe(epochs=1), checkpoint=file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ArtifactError, match="delete it"):
        train(network(), data, Recipe(epochs=1), checkpoint=file)


def test_a_folder_with_a_checkpoint_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    data = [(torch.zeros(4, 1, 8, 8), torch.zeros(4).long())]
    train_into(tmp_path, network(), data, Recipe(epochs=1))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "history.json", "model.safetensors"}
    with pytest.raises(ArtifactError, match="resume it, or choose another folder"):
        train_into(tmp_path, network(), data, Recipe(epochs=1))
    assert len(train_into(tmp_path, network(), data, Recipe(epochs=1), resume=True)) == 1


COMMAND = [
    "train",
    "transpike.demo:digits_net",
    "--data",
    "digits",
    "--levels",
    "4",
    "--epochs",
    "3",
    "--limit",
    "600",
    "--crop",
    "1",
]


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", "from transpike.cli import run; run()", *COMMAND, "--out", str(folder), "--json", *more]


def test_a_killed_command_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(whole), capture_output=True, text=True, check=True)
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, env=os.environ.copy())
    while not (killed / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    refused = subprocess.run(command(killed), capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "resume" in refused.stderr
    subprocess.run(command(killed, "--resume"), capture_output=True, check=True)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    history = json.loads(done.stdout)["history"]
    assert len(history) == 3 and history[-1]["accuracy"] > 0.9


def test_what_the_command_trained_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transpike.cli import main

    assert main([*COMMAND[:8], "--limit", "600", "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert "epoch 1: loss" in capsys.readouterr().out
    model, file = ["transpike.demo:digits_net", "--weights", str(tmp_path / "model.safetensors")], tmp_path / "net.spike"
    convert = ["convert", *model, "--data", "digits", "--limit", "100", "--method", "qcfs", "--set", "levels=4", "-o", str(file)]
    assert main([*convert, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "QCFS"
    assert main(["evaluate", str(file), "--data", "digits", "--steps", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ann"]["top1"] > 0.9 and report["top1"][7] > report["ann"]["top1"] - 0.06
    for_four = ["--method", "qcfs+initial-potential", "--set", "levels=4", "--set", "steps=4", "-o", str(file)]
    assert main([*convert[:8], *for_four, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "Chain"
    assert main(["evaluate", str(file), "--data", "digits", "--steps", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"][3] >= report["top1"][3] - 0.01
    assert main(["convert", model[0], *convert[4:]]) == 1
    assert "prepare(model" in capsys.readouterr().err


def test_epochs_by_what_neurons_send_follow_ordinary_ones_and_help_at_few_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transpike.cli import main

    def at_two_steps(trained: Path) -> float:
        model, file = ["transpike.demo:digits_net", "--weights", str(trained)], tmp_path / "net.spike"
        convert = ["convert", *model, "--data", "digits", "--method", "qcfs", "--set", "levels=4", "-o", str(file)]
        assert main([*convert, "--limit", "100", "--json"]) == 0
        capsys.readouterr()
        assert main(["evaluate", str(file), "--data", "digits", "--steps", "2", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["top1"][1]

    first, *more = (tmp_path / name for name in ("first", "levels", "steps"))
    assert main([*COMMAND[:6], "--epochs", "1", "--output", str(first)]) == 0
    again = [*COMMAND[:6], "--epochs", "2", "--lr", "0.005", "--weights", str(first / "model.safetensors")]
    for folder, options in zip(more, ([], ["--steps", "2"]), strict=True):
        assert main([*again, *options, "--output", str(folder)]) == 0
    by_levels, by_steps = (at_two_steps(folder / "model.safetensors") for folder in more)
    assert by_steps > by_levels + 0.02, (by_levels, by_steps)

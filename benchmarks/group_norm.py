"""Group norm in a detection head: the exact differential form against an affine operation with statistics of calibration data.

python -m benchmarks.group_norm

torchvision's FCOS head (random weights, 64 channels, two convolutions) on feature maps of noise. ``even``: all samples have
the same scale; ``uneven``: the scale differs from sample to sample by a factor of up to 4, as contrast does from photo to photo.
"""

from __future__ import annotations

import copy
import time
from statistics import median
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.fcos import FCOSHead

from benchmarks.common import record
from transpike import SpikingNetwork, convert, energy, simulate
from transpike.methods.mmse import MMSE

STEPS, SAMPLES, CHANNELS, SIDE = (4, 8, 16, 32), 4, 64, 8


class Head(nn.Module):
    """The head on one level: its three outputs side by side. N C H W -> N (H W) 16"""

    def __init__(self) -> None:
        super().__init__()
        self.head = FCOSHead(CHANNELS, num_anchors=1, num_classes=11, num_convs=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(self.head([features]).values()), -1)


def folded(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model with each group norm as a batch norm whose statistics are those of its groups, means over ``x``."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, nn.GroupNorm):
                continue
            seen: list[torch.Tensor] = []
            hook = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            with torch.no_grad():
                model(x)
            hook.remove()
            groups = seen[0].unflatten(1, (norm.num_groups, -1)).flatten(2)  # N groups ...
            fixed = nn.BatchNorm2d(norm.num_channels, eps=norm.eps)
            fixed.load_state_dict({**fixed.state_dict(), **norm.state_dict()})
            each = norm.num_channels // norm.num_groups
            assert fixed.running_mean is not None and fixed.running_var is not None
            fixed.running_mean.copy_(groups.mean(2).mean(0).repeat_interleave(each))
            fixed.running_var.copy_(groups.var(2, unbiased=False).mean(0).repeat_interleave(each))
            setattr(parent, name, fixed)  # the next ones see what this one now gives
    return model.eval()


def maps(uneven: bool, seed: int) -> torch.Tensor:
    """Feature maps of noise, rectified as a backbone's."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, CHANNELS, SIDE, SIDE, generator=generator).relu()
    return x * 2 ** (2 * torch.rand(SAMPLES, 1, 1, 1, generator=generator) - 1) if uneven else x


def compare(uneven: bool) -> dict[str, Any]:
    """Both forms on the same data: error of the read-out against the ANN with group norm, dense work, time."""
    torch.manual_seed(0)
    model = Head().eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
            elif isinstance(norm, nn.Conv2d):
                nn.init.kaiming_normal_(norm.weight)  # as large as trained ones: torchvision begins with nearly nothing
    seen, x = maps(uneven, 1), maps(uneven, 2)
    with torch.no_grad():
        wanted = model(x)
    forms = {"differential": model, "folded": folded(model, seen)}
    nets: dict[str, SpikingNetwork] = {name: convert(form, MMSE(signed=True, cap=4), seen) for name, form in forms.items()}
    found: dict[str, Any] = {}
    for name, net in nets.items():
        run = simulate(net, x, STEPS[-1])
        work = energy(net, x, STEPS[-1])
        with torch.no_grad():
            itself = forms[name](x)
        found[name] = {
            "error": {t: float((run.readout(t) - wanted).norm() / wanted.norm()) for t in STEPS},
            "error_of_the_ann": float((itself - wanted).norm() / wanted.norm()),
            "dense_macs_per_step": work.dense_macs,
            "sops": work.sops[-1],
        }
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(3):
        for name, net in nets.items():
            began = time.perf_counter()
            simulate(net, x, 16)
            seconds[name].append(time.perf_counter() - began)
    found["time_of_differential_over_folded"] = median(seconds["differential"]) / median(seconds["folded"])
    return found


def main() -> None:
    results = {name: compare(name == "uneven") for name in ("even", "uneven")}
    record("group_norm", {"samples": SAMPLES, "input": [CHANNELS, SIDE, SIDE], "method": "MMSE(signed=True, cap=4)", **results})
    for name, row in results.items():
        print(f"{name}: differential takes {row['time_of_differential_over_folded']:.2f} times as long")
        for form in ("differential", "folded"):
            errors = ", ".join(f"{t}: {error:.3f}" for t, error in row[form]["error"].items())
            dense, sops = row[form]["dense_macs_per_step"] / 1e6, row[form]["sops"] / 1e6
            own = row[form]["error_of_the_ann"]
            print(f"  {form}: error {errors}; ANN {own:.3f}; dense {dense:.2f} M a step, {sops:.1f} M operations in all")


if __name__ == "__main__":
    main()

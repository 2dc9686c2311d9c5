"""Convert a network of your own: any nn.Module, written any way.

python examples/convert_own_network.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import transpike
from transpike.methods.mmse import MMSE


class Gated(nn.Module):
    """Functional and in-place calls, a product of two streams (not spike-driven), a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.gate = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.max_pool2d(self.norm(self.conv(image)).relu_(), 2)
        x = torch.clamp(x.mean((2, 3)), 0, 4)
        return {"scores": self.head(x * torch.sigmoid(self.gate(x)))}


def main() -> None:
    torch.manual_seed(0)
    model, images = Gated().eval(), torch.rand(64, 3, 16, 16)
    net = transpike.convert(model, MMSE(steps=64), images.split(16))
    print(transpike.inspect(net))
    run = transpike.simulate(net, images[:8], steps=256)
    with torch.no_grad():
        wanted = model(images[:8])["scores"]
    for t in (16, 64, 256):
        error = (run.readout(t)["scores"] - wanted).norm() / wanted.norm()
        print(f"{t:4} steps: relative error {error:.4f}")


if __name__ == "__main__":
    main()

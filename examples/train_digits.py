"""Train the network that comes with the package on scikit-learn's digits (a minute on two cores).

python examples/train_digits.py [FILE]      (default: src/transpike/assets/digits.safetensors)
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from transpike.demo import WEIGHTS, DigitsNet
from transpike.tasks.data import digits


def accuracy(net: nn.Module, split: str) -> float:
    x, y = digits(split).tensors
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).float().mean())


def train(epochs: int = 40) -> DigitsNet:
    torch.manual_seed(0)
    net = DigitsNet()
    loader = DataLoader(digits("train"), batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    for epoch in range(epochs):
        net.train()
        for x, y in loader:
            shift = torch.randint(-1, 2, (2,)).tolist()
            loss = nn.functional.cross_entropy(net(torch.roll(x, shift, (2, 3))), y, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: train {accuracy(net, 'train'):.2%}, test {accuracy(net, 'test'):.2%}", flush=True)
    return net.eval()


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS
    save_file(train().state_dict(), path)
    print(f"wrote {path} ({path.stat().st_size / 1024:.0f} kB)")
